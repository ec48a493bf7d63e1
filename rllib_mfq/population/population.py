"""The contract between environments and the sampler: a whole population as arrays.

A population is one environment whose agents are rows of arrays, group by group, only the
living. A class that has the attribute and the three methods of `Population` works as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

Array = np.ndarray[Any, Any]

GYM_GROUP = "agent"
"""The group of agents whose ids are no strings, and of a Gymnasium environment's one agent."""


class PopulationError(ValueError):
    """An environment broke the contract or produced a value nothing can be learned from."""


def group_of(agent: Any) -> str:
    """The group of the agent with an id: the one rule, wherever agents have names.

    The group is what stands before the last `_` if a number follows (`red_12` is of the group
    `red`), else the whole id; for an id that is no string, `GYM_GROUP`.
    """
    if not isinstance(agent, str):
        return GYM_GROUP
    name, _, number = agent.rpartition("_")
    return name if name and number.isdecimal() else agent


def close(population: Any) -> None:
    """Closes a population that can be closed."""
    getattr(population, "close", lambda: None)()


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
        action_mask: `[n, A]` bool, true where the action is legal (one at least), or None.
        edges: `[p, 2]` row numbers, or None: `edges[i, 0]` has the neighbour `edges[i, 1]`.
    """

    ids: Array
    positions: Array | None = None
    action_mask: Array | None = None
    edges: Array | None = None

    def select(self, mask: Array) -> Rows:
        """The rows where `mask`, `[n]` bool, is true, and the edges between them, renumbered."""
        if mask.all():
            return self
        positions, legal = (c if c is None else c[mask] for c in (self.positions, self.action_mask))
        edges = self.edges
        if edges is not None:
            edges = (np.cumsum(mask) - 1)[edges[mask[edges].all(axis=1)]]
        return Rows(self.ids[mask], positions, legal, edges)

    def check(self, num_actions: int) -> None:
        """Raises PopulationError unless the columns fit together."""
        n, positions, mask = len(self.ids), self.positions, self.action_mask
        check_shape("ids", self.ids, (n,))
        if positions is not None:
            check_shape("positions", positions, (n, *(np.shape(positions)[1:2] or ("d",))))
        if mask is not None:
            check_shape("action_mask", mask, (n, num_actions))
            if not (legal := mask.any(axis=1)).all():
                raise PopulationError(f"row {legal.argmin()} has no legal action.")
        if self.edges is not None:
            low, high = np.min(self.edges, initial=0), np.max(self.edges, initial=-1)
            if np.shape(self.edges)[1:] != (2,) or low < 0 or high >= n:
                found = f"shape {np.shape(self.edges)} and values from {low} to {high}"
                legal_edges = f"(p, 2) and row numbers below {n}"
                raise PopulationError(f"edges has {found}, expected {legal_edges}.")


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

    def check(self, n: int, num_actions: int) -> None:
        """Raises PopulationError unless it is a step of `n` agents."""
        for name in ("rewards", "terminated", "truncated"):
            check_shape(name, getattr(self, name), (n,), ", one per agent that acted")
        # The sum is a cheap first test: it is NaN or infinite if a reward is.
        if self.rewards.dtype != np.float32 or not math.isfinite(np.add.reduce(self.rewards)):
            with np.errstate(over="ignore"):
                bad = np.flatnonzero(~np.isfinite(np.asarray(self.rewards, np.float32)))
            if len(bad):
                wrong = f"the reward of row {bad[0]} is {self.rewards[bad[0]]}"
                raise PopulationError(f"{wrong}; it must be a finite float32.")
        self.rows.check(num_actions)
        left = n - int(np.count_nonzero(self.terminated))
        if len(self.rows.ids) < left:
            raise PopulationError(
                f"{left} agents were not terminated but only {len(self.rows.ids)} observe."
            )


def check_shape(name: str, column: Any, shape: tuple[Any, ...], why: str = "") -> None:
    """Raises PopulationError unless a column has the shape."""
    if np.shape(column) != shape:
        raise PopulationError(f"{name} has shape {np.shape(column)}, expected {shape}{why}.")


@runtime_checkable
class Population(Protocol):
    """One environment, group by group.

    An episode ends with the step after which nobody is left to act: every row was terminated
    or truncated, and nobody entered.

    The sampler and the tools also call, where they exist: `result()`, at the end of an episode:
    figures per group such as `{"kills": {"red": 3, "blue": 5}}`, where `score` (or else `kills`,
    or else the group's return) decides who won; `render()`, an RGB array `[h, w, 3]` uint8; and
    `close()`.
    """

    groups: Mapping[str, Group]

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; a seed restarts the random numbers, None lets them run on."""

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Plays `{group: [n] int32}`, one action per row of the last `reset` or `step`."""

    def observe(self, group: str, out: Array) -> None:
        """Writes the observations of the group's current rows into `out`, `[n, *obs]`.

        The sampler calls this any number of times per step, with memory that it reuses.
        """
