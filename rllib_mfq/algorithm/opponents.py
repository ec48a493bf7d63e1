"""Opponents: who plays the other side of a match."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from rllib_mfq.algorithm.checkpoint import load_modules
from rllib_mfq.algorithm.pretrained import PREFIX
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Array, Group

RANDOM = "random"


@dataclass
class Opponent:
    """Plays any group of an environment, by modules or by uniform legal actions.

    Attributes:
        groups: the environment's groups.
        modules: the module of each group; None for uniform legal actions.
        explore: whether modules draw from the Boltzmann policy at the saved temperature; greedy
            otherwise.
    """

    groups: Mapping[str, Group]
    modules: Mapping[str, MFQTorchRLModule] | None = None
    explore: bool = False

    def players(self, generator: torch.Generator) -> dict[str, Player]:
        """A player for every group; `generator` is the source of its draws."""
        return {group: self._player(group, generator) for group in self.groups}

    def _player(self, group: str, generator: torch.Generator) -> Player:
        if self.modules is None:
            size = int(self.groups[group].action_space.n)
            return Player(
                f"{RANDOM}/{group}",
                lambda obs, mean_actions, mask: random_actions(len(obs), size, mask, generator),
                Neighborhood("none"),
            )
        module = self.modules[group]
        act = functools.partial(module.act, explore=self.explore, generator=generator)
        return module.player(f"opponent/{group}", act)  # of the mean actions it was trained with


def load_opponent(
    name: str, spec: str, groups: Mapping[str, Group], explore: bool = False
) -> Opponent:
    """Makes the opponent that an entry of `evaluation_opponents` names.

    Args:
        name: its name in the results.
        spec: `random`; `pretrained:NAME`, an agent that comes with the package; or the path of
            a checkpoint: of an algorithm, or of its modules.
        groups: the environment's groups.
        explore: see `Opponent`.

    Raises:
        ValueError: there is no such checkpoint, or it cannot play a group.
    """
    if spec == RANDOM:
        return Opponent(groups)
    found = load_modules(spec)
    if not found:
        raise ValueError(
            f"opponent {name!r} is {spec!r}, which is neither 'random' nor the folder of a "
            f"checkpoint with modules nor '{PREFIX}NAME'."
        )
    modules: dict[str, MFQTorchRLModule] = {}
    for group, spaces in groups.items():
        its_name = group if group in found else next(iter(found)) if len(found) == 1 else None
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
    return Opponent(groups, modules, explore)


def random_actions(n: int, size: int, mask: Array | None, generator: torch.Generator) -> Array:
    """Uniform legal actions of n agents with `size` actions each, `[n]` int64.

    `mask` is `[n, size]` bool, or None if all actions are legal.
    """
    noise = torch.rand((n, size), generator=generator).numpy()
    return (noise if mask is None else np.where(mask, noise, -1.0)).argmax(axis=1)
