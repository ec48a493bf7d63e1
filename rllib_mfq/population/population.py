"""The contract between environments and the sampler: a whole population as arrays.

A population is one environment whose agents are rows of arrays, group by group, only the
living. A class that has the attribute and the three methods of `Population` works as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

Array = np.ndarray[Any, Any]


class PopulationError(ValueError):
    """An environment broke the contract or produced a value nothing can be learned from."""


class Group(NamedTuple):
    """The spaces all agents of one group share."""

    observation_space: gym.spaces.Box
    action_space: gym.spaces.Discrete[Any]


@dataclass(slots=True)
class Rows:
    """The agents of one group that observe now, one row each.

    Attributes:
        ids: `[n]` integers, an agent's own as long as it lives.
        positions: `[n, d]` coordinates, or None.
        action_mask: `[n, A]` bool, true where the action is legal, or None.
        edges: `[p, 2]` row numbers, or None: `edges[i, 0]` has the neighbour `edges[i, 1]`.
    """

    ids: Array
    positions: Array | None = None
    action_mask: Array | None = None
    edges: Array | None = None


@dataclass(slots=True)
class Step:
    """What one step did to the agents of one group that acted in it.

    Attributes:
        rewards: `[n]` float, in the order in which the agents acted.
        terminated: `[n]` bool: the agent's life ended; it observes no more.
        truncated: `[n]` bool: it was cut off alive; it observes once more, to bootstrap.
        rows: the agents that observe after the step: those that acted and were not
            terminated, in their order, then any that have just entered.
    """

    rewards: Array
    terminated: Array
    truncated: Array
    rows: Rows


@runtime_checkable
class Population(Protocol):
    """One environment, group by group.

    An episode ends with the step after which nobody is left to act: every row was terminated
    or truncated, and nobody entered.

    Besides these, the sampler and the tools call, where they exist:
    `result()`, at the end of an episode: figures per group such as
    `{"kills": {"red": 3, "blue": 5}}`, where `score` (or else `kills`, or else the group's
    return) decides who won; `render()`, an RGB array `[h, w, 3]` uint8; and `close()`.
    """

    groups: Mapping[str, Group]

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; a seed restarts the random numbers, None lets them run on."""
        ...

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Plays `{group: [n] int64}`, one action per row of the last `reset` or `step`."""
        ...

    def observe(self, group: str, out: Array) -> None:
        """Writes the observations of the group's current rows into `out`, `[n, *obs]`.

        Called with memory that is reused, and any number of times per step; writing in place
        is what makes sampling fast.
        """
        ...
