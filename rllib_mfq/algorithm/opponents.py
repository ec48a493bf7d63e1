"""Opponents: who plays the other side of a match."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rllib_mfq.algorithm.checkpoint import load_modules, saved_play
from rllib_mfq.algorithm.match import play_step
from rllib_mfq.algorithm.pretrained import PREFIX
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.mean_field.legal import did_you_mean, find
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.battle_scripts import SCRIPTS
from rllib_mfq.population.opponent_policy import OpponentPolicy
from rllib_mfq.population.player import Player, Scene
from rllib_mfq.population.population import Array, Group, Population

RANDOM = "random"
NAMES = (RANDOM, *SCRIPTS)
"""The opponents that are no files; beside them there are `pretrained.names()`."""


class Opponent:
    """Plays any group of an environment.

    Args:
        name: its name in the results.
        groups: the environment's groups.
        modules: the module of each group, or the policy; None for uniform legal actions.
        explore: whether modules draw from the Boltzmann policy at the saved temperature; greedy
            otherwise.
    """

    def __init__(
        self,
        name: str,
        groups: Mapping[str, Group],
        modules: Mapping[str, MFQTorchRLModule | OpponentPolicy] | None = None,
        explore: bool = False,
    ) -> None:
        self.name, self.groups, self.modules, self.explore = name, groups, modules, explore

    def players(self, generator: torch.Generator, random_steps: int = 0) -> dict[str, Player]:
        """A player for every group; `generator` is the source of its draws.

        In the first `random_steps` of every match it plays uniform legal actions, so that greedy
        agents do not play the same match again and again.
        """
        players = {group: self._player(group, generator) for group in self.groups}
        return begin_at_random(players, self.groups, random_steps, generator)

    def _player(self, group: str, generator: torch.Generator) -> Player:
        name = f"opponent {self.name}/{group}"
        size = int(self.groups[group].action_space.n)
        if self.modules is None:
            return Player(
                name,
                lambda obs, mean_actions, mask: random_actions(len(obs), size, mask, generator),
                Neighborhood("none"),
                learns=False,
            )
        module = self.modules[group]
        if isinstance(module, OpponentPolicy):
            seed = int(torch.randint(2**62, (), generator=generator))
            act = functools.partial(_act, self.name, module, size, np.random.default_rng(seed))
            hood = Neighborhood.parse(module.neighborhood)
            return Player(name, act, hood, sees=True, learns=False)
        act = functools.partial(module.act, explore=self.explore, generator=generator)
        player = module.player(name, act)  # of the mean actions it was trained with
        return dataclasses.replace(player, learns=False)


def _act(
    name: str,
    policy: OpponentPolicy,
    size: int,
    rng: np.random.Generator,
    obs: Array,
    mean_actions: Array,
    mask: Array | None,
    *,
    scene: Scene,
) -> Array:
    """The actions of a policy, checked: it may be anybody's."""
    actions = policy.act(obs, mean_actions, mask, scene, rng)
    kind = getattr(getattr(actions, "dtype", None), "kind", type(actions).__name__)
    if kind not in ("i", "u") or actions.shape != (len(obs),):
        found = getattr(actions, "shape", kind)
        raise ValueError(
            f"opponent {name!r} returned actions of type {kind} and shape {found}; they must be a "
            f"NumPy array of integers of shape {(len(obs),)}."
        )
    low, high = int(actions.min(initial=0)), int(actions.max(initial=0))
    if low < 0 or high >= size:
        raise ValueError(
            f"opponent {name!r} returned actions from {low} to {high}; legal are 0 to {size - 1}."
        )
    if mask is not None and not (legal := mask[np.arange(len(obs)), actions]).all():
        row = int(legal.argmin())
        raise ValueError(
            f"opponent {name!r} returned action {actions[row]} for row {row}, whose mask allows "
            f"{np.flatnonzero(mask[row]).tolist()} only."
        )
    return actions


def begin_at_random(
    players: Mapping[str, Player],
    groups: Mapping[str, Group],
    random_steps: int,
    generator: torch.Generator,
) -> dict[str, Player]:
    """The players of groups, who play uniform legal actions in the first steps of every match."""
    if not random_steps:
        return dict(players)
    return {
        group: dataclasses.replace(
            player,
            act=functools.partial(
                _act_at_random_first,
                player,
                random_steps,
                int(groups[group].action_space.n),
                generator,
            ),
            sees=True,
        )
        for group, player in players.items()
    }


def _act_at_random_first(
    player: Player,
    random_steps: int,
    size: int,
    generator: torch.Generator,
    obs: Array,
    mean_actions: Array,
    mask: Array | None,
    *,
    scene: Scene,
    **carried: Array,
) -> Any:
    """What the player does, but uniform legal actions in the first steps of a match."""
    seen: dict[str, Any] = {"scene": scene} if player.sees else {}
    acted = player.act(obs, mean_actions, mask, **seen, **carried)
    early = scene.steps < random_steps
    if not early.any():
        return acted
    drawn = random_actions(len(obs), size, mask, generator)
    if player.remembers:
        return np.where(early, drawn, acted[0]), acted[1]
    return np.where(early, drawn, acted)


def is_named(spec: str) -> bool:
    """Whether a spec is a name or the path of a class, and no folder's."""
    return spec in NAMES or spec.startswith(PREFIX) or _is_class_path(spec)


def _is_class_path(spec: str) -> bool:
    module, colon, name = spec.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), name])


def _policy_class(name: str, spec: str) -> type[OpponentPolicy]:
    """The class that `my_package.my_module:MyClass` names, which is imported and not called."""
    if spec in SCRIPTS:
        return SCRIPTS[spec]
    found = find(spec.replace(":", "."))
    if isinstance(found, type) and issubclass(found, OpponentPolicy):
        return found
    missing = ", which cannot be imported" if found is None else ""
    raise ValueError(
        f"opponent {name!r} is {spec!r}{missing}; a path must name a class that derives from "
        "rllib_mfq.OpponentPolicy."
    )


def check_opponents(
    specs: Mapping[str, str], population: Population, env: str, explore: bool = False
) -> None:
    """Raises a ValueError unless each opponent, by its name, can play one step as each group.

    The population stays open; `env` is its name in the sentence.
    """
    generator = torch.Generator().manual_seed(0)
    for name, spec in specs.items():
        players = load_opponent(name, spec, population.groups, explore).players(generator)
        try:
            play_step(population, players)
        except Exception as error:
            raise ValueError(f"opponent {name!r} cannot play {env}: {error}") from error


def load_opponent(
    name: str, spec: str, groups: Mapping[str, Group], explore: bool = False
) -> Opponent:
    """Makes the opponent that an entry of `evaluation_opponents` names.

    Args:
        name: its name in the results.
        spec: `random` or one of `SCRIPTS`; `pretrained:NAME`, an agent that comes with the
            package; `my_package.my_module:MyClass`, an `OpponentPolicy`; or the path of a
            checkpoint: of an algorithm, or of its modules.
        groups: the environment's groups.
        explore: see `Opponent`.

    Raises:
        ValueError: there is no such opponent, or it cannot play a group.
    """
    if spec == RANDOM:
        return Opponent(name, groups)
    if spec in SCRIPTS or (_is_class_path(spec) and not spec.startswith(PREFIX)):
        policy = _policy_class(name, spec)
        try:
            policies = {group: policy(group, groups) for group in groups}
            for each in policies.values():
                Neighborhood.parse(each.neighborhood)
            return Opponent(name, groups, policies)
        except (TypeError, ValueError) as error:  # such as one without `act`
            raise ValueError(f"opponent {name!r} is {spec!r}: {error}") from error
    found = load_modules(spec)
    if not found:
        raise ValueError(
            f"opponent {name!r} is {spec!r}{did_you_mean(spec, NAMES)}, which is neither one of "
            f"{', '.join(NAMES)} nor '{PREFIX}NAME', the folder of a checkpoint with modules, or "
            "the path of a class, 'my_package.my_module:MyClass'."
        )
    modules: dict[str, MFQTorchRLModule | OpponentPolicy] = {}
    trained = saved_play(spec).get("groups", {})
    for group, spaces in groups.items():
        its_name = trained.get(group, group)
        if its_name not in found:
            its_name = next(iter(found)) if len(found) == 1 else None
        if its_name is None:
            raise ValueError(
                f"opponent {name!r} has no module for group {group!r}; it has {sorted(found)}."
            )
        module = found[its_name]
        if not isinstance(module, MFQTorchRLModule):
            kind = type(module).__name__
            raise ValueError(
                f"opponent {name!r}: module {its_name!r} of {spec} is a {kind}, not MFQ's."
            )
        plays = (module.observation_space, module.action_space)
        if plays != tuple(spaces):
            raise ValueError(
                f"opponent {name!r}: module {its_name!r} plays {plays[0]} and {plays[1]}, but "
                f"group {group!r} has {spaces[0]} and {spaces[1]}."
            )
        modules[group] = module.eval()
    return Opponent(name, groups, modules, explore)


def random_actions(n: int, size: int, mask: Array | None, generator: torch.Generator) -> Array:
    """Uniform legal actions of n agents with `size` actions each, `[n]` int64.

    `mask` is `[n, size]` bool, or None if all actions are legal.
    """
    noise = torch.rand((n, size), generator=generator).numpy()
    return (noise if mask is None else np.where(mask, noise, -1.0)).argmax(axis=1)
