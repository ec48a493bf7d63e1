"""Opponents: whoever plays the other side in an evaluation."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_mfq.algorithm.pretrained import PREFIX, header, load_pretrained
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Array, Group

RANDOM = "random"
MODULES_IN_CHECKPOINT = Path("learner_group", "learner", "rl_module")


class Opponent(Protocol):
    """Plays any group of an environment."""

    def players(self, generator: torch.Generator) -> dict[str, Player]:
        """A player for every group; `generator` is the source of its draws."""
        ...


class RandomOpponent:
    """Uniform legal actions.

    Args:
        groups: the environment's groups.
    """

    def __init__(self, groups: Mapping[str, Group]) -> None:
        self._groups = groups

    def players(self, generator: torch.Generator) -> dict[str, Player]:
        """See `Opponent`."""

        def act(num_actions: int, obs: Array, mean_actions: Array, mask: Array | None) -> Array:
            legal = np.ones((len(obs), num_actions), bool) if mask is None else mask
            return random_actions(legal, generator)

        return {
            name: Player(
                f"{RANDOM}/{name}",
                functools.partial(act, int(group.action_space.n)),
                Neighborhood("none"),
            )
            for name, group in self._groups.items()
        }


class CheckpointOpponent:
    """Modules from a checkpoint, with the mean actions that they were trained with.

    Args:
        modules: the module of each group.
        explore: draw from the Boltzmann policy at the saved temperature; greedy otherwise.
    """

    def __init__(self, modules: Mapping[str, MFQTorchRLModule], explore: bool = False) -> None:
        self._modules = modules
        self._explore = explore

    def players(self, generator: torch.Generator) -> dict[str, Player]:
        """See `Opponent`."""
        return {
            name: Player(
                f"opponent/{name}",
                functools.partial(module.act, explore=self._explore, generator=generator),
                module.neighborhood,
                module.mean_action_iterations,
            )
            for name, module in self._modules.items()
        }


def load_opponent(
    name: str, spec: str, groups: Mapping[str, Group], explore: bool = False
) -> Opponent:
    """Makes the opponent that an entry of `evaluation_opponents` names.

    Args:
        name: its name in the results.
        spec: `random`; `pretrained:NAME`, an agent that comes with the package; or the path of
            a checkpoint: of an algorithm, or of its modules.
        groups: the environment's groups.
        explore: whether a checkpoint draws from its Boltzmann policy; greedy otherwise.

    Raises:
        ValueError: there is no such checkpoint, or it cannot play a group.
    """
    if spec == RANDOM:
        return RandomOpponent(groups)
    pretrained = spec.startswith(PREFIX)
    found = {spec: Path(spec)} if pretrained else find_modules(spec)
    if not found:
        raise ValueError(
            f"opponent {name!r} is {spec!r}, which is neither 'random' nor the folder of a "
            f"checkpoint with modules nor '{PREFIX}NAME'."
        )
    modules: dict[str, MFQTorchRLModule] = {}
    for group, spaces in groups.items():
        where = found.get(group) or (next(iter(found.values())) if len(found) == 1 else None)
        if where is None:
            raise ValueError(
                f"opponent {name!r} has no module for group {group!r}; it has {sorted(found)}."
            )
        module = load_pretrained(spec) if pretrained else RLModule.from_checkpoint(where)
        if not isinstance(module, MFQTorchRLModule):
            raise ValueError(f"opponent {name!r}: {where} is a {type(module).__name__}, not MFQ's.")
        if (module.observation_space, module.action_space) != tuple(spaces):
            raise ValueError(
                f"opponent {name!r}: module {where.name!r} plays {module.observation_space} and "
                f"{module.action_space}, but group {group!r} has {spaces.observation_space} and "
                f"{spaces.action_space}."
            )
        modules[group] = module.eval()
    return CheckpointOpponent(modules, explore)


def find_modules(checkpoint: str | Path) -> dict[str, Path]:
    """The folders of the modules in a checkpoint: of an algorithm, its modules, or one of them."""
    path = Path(checkpoint).expanduser().resolve()
    folder = path / MODULES_IN_CHECKPOINT if (path / MODULES_IN_CHECKPOINT).is_dir() else path
    for candidates in ([*folder.glob("*/")], [folder]):  # the folder of all has a state, too
        found = {p.name: p for p in candidates if any(p.glob("module_state.*"))}
        if found:
            return found
    return {}


def saved_settings(checkpoint: str | Path) -> dict[str, Any]:
    """The config dict in an algorithm's checkpoint; empty if it has none (as on the old stack).

    Of `pretrained:NAME`, what is known: `env` and `env_config`.
    """
    if str(checkpoint).startswith(PREFIX):
        return {key: header(str(checkpoint))[key] for key in ("env", "env_config")}
    path = Path(checkpoint).expanduser() / "class_and_ctor_args.pkl"
    if not path.is_file():
        return {}
    settings: dict[str, Any] = pickle.loads(path.read_bytes())["ctor_args_and_kwargs"][0][0]
    return settings


def random_actions(legal: Array, generator: torch.Generator) -> Array:
    """Uniform legal actions: `[n, A]` bool to `[n]` int64."""
    noise = torch.rand(legal.shape, generator=generator).numpy()
    actions: Array = np.where(legal, noise, -1.0).argmax(axis=1)
    return actions
