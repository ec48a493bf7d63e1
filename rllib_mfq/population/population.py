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
    """The spaces all agents of one group share.

    Attributes:
        observation_space: a Box of any shape and number type.
        action_space: a Discrete that starts at 0.
    """

    observation_space: gym.spaces.Box
    action_space: gym.spaces.Discrete[Any]


BOOLS, MASK, WHOLE, REAL = "b", "biu", "iu", "biuf"
"""The kinds of values that a column may hold, by the letters that NumPy has for them."""

_WORDS = {BOOLS: "bool", MASK: "bool", WHOLE: "integers", REAL: "real numbers"}


def check_column(name: str, column: Any, shape: tuple[int | None, ...], kinds: str) -> None:
    """Raises PopulationError unless a column is as expected.

    `kinds` is one of the above; None in `shape` stands for any length.
    """
    if not isinstance(column, np.ndarray) or column.dtype.kind not in kinds:
        found = getattr(column, "dtype", type(column).__name__)
        expected = f"expected an array of {_WORDS[kinds]}"
        raise PopulationError(f"{name} is of type {found}, {expected}.")
    if column.shape != shape:
        pairs = zip(column.shape, shape, strict=False)
        if column.ndim != len(shape) or any(want not in (None, got) for got, want in pairs):
            expected = str(shape).replace("None", "any")
            raise PopulationError(f"{name} has shape {column.shape}, expected {expected}.")


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
        """Raises PopulationError unless the columns fit together and `num_actions`, A."""
        positions, mask = self.positions, self.action_mask
        check_column("ids", self.ids, getattr(self.ids, "shape", ())[:1] or (None,), WHOLE)
        n = len(self.ids)
        if positions is not None:
            wide = getattr(positions, "shape", ())[1:2] or (None,)
            check_column("positions", positions, (n, *wide), REAL)
        if mask is not None:
            check_column("action_mask", mask, (n, num_actions), MASK)
            if not (legal := mask.any(axis=1)).all():
                raise PopulationError(f"row {legal.argmin()} has no legal action.")
        if self.edges is not None:
            check_column("edges", self.edges, (None, 2), WHOLE)
            low, high = np.min(self.edges, initial=0), np.max(self.edges, initial=-1)
            if low < 0 or high >= n:
                found = f"row numbers from {low} to {high}"
                raise PopulationError(f"edges has {found}, expected 0 to {n - 1}.")


@dataclass(slots=True)
class Late:
    """What came of the actions of agents that were `waiting` since an earlier step.

    Attributes:
        ids: `[m]` integers, those agents.
        rewards: `[m]` float, everything that an agent got since it acted.
        terminated: `[m]` bool: it observes no more. The others are among the step's rows.
        truncated: `[m]` bool: it observes once more, to bootstrap.
    """

    ids: Array
    rewards: Array
    terminated: Array
    truncated: Array


@dataclass(slots=True)
class Step:
    """What one step did to the agents of one group that acted in it.

    Attributes:
        rewards: `[n]` float, in the order in which the agents acted.
        terminated: `[n]` bool: the agent's life ended; it observes no more.
        truncated: `[n]` bool: it was cut off alive; it observes once more, to bootstrap.
        rows: the agents that observe after the step: those that acted, were not terminated and do
            not wait, in their order, then any that have just entered or come back.
        waiting: `[n]` bool: it lives on but does not observe now; a later step's `late` says what
            came of its action, and its reward here does not count. None if nobody waits.
        late: of those that waited until now; None if nobody did.
    """

    rewards: Array
    terminated: Array
    truncated: Array
    rows: Rows
    waiting: Array | None = None
    late: Late | None = None

    def total(self) -> float:
        """All rewards that count."""
        counted = self.rewards if self.waiting is None else self.rewards[~self.waiting]
        late = 0.0 if self.late is None else float(np.add.reduce(self.late.rewards))
        return float(np.add.reduce(counted)) + late

    def check(self, n: int, num_actions: int) -> None:
        """Raises PopulationError unless it is a step of `n` agents of `num_actions` actions."""
        kinds = {"rewards": REAL, "terminated": BOOLS, "truncated": BOOLS}
        for name, kind in kinds.items():
            check_column(name, getattr(self, name), (n,), kind)
        _check_rewards(self.rewards)
        self.rows.check(num_actions)
        left = n - int(np.count_nonzero(self.terminated))
        if self.waiting is not None:
            check_column("waiting", self.waiting, (n,), BOOLS)
            left -= int(np.count_nonzero(self.waiting & ~self.terminated))
        if self.late is not None:
            m = len(self.late.ids)
            for name, kind in {"ids": WHOLE, **kinds}.items():
                check_column(f"late {name}", getattr(self.late, name), (m,), kind)
            _check_rewards(self.late.rewards)
            left += m - int(np.count_nonzero(self.late.terminated))
        if len(self.rows.ids) < left:
            raise PopulationError(f"{left} agents are to observe but only {len(self.rows.ids)} do.")


def _check_rewards(rewards: Array) -> None:
    # The sum is a cheap first test: it is NaN or infinite if a reward is.
    if rewards.dtype == np.float32 and math.isfinite(np.add.reduce(rewards)):
        return
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~np.isfinite(rewards.astype(np.float32)))
    if len(bad):
        wrong = f"the reward of row {bad[0]} is {rewards[bad[0]]}"
        raise PopulationError(f"{wrong}; it must be a finite float32.")


@runtime_checkable
class Population(Protocol):
    """One environment, group by group.

    An episode ends with the step after which nobody is left to act: every row was terminated
    or truncated, and nobody entered. If there is a method `is_over()`, it is asked then, and
    where it says False the episode goes on without anybody.

    `agent_ids`, where it exists, is `{group: ids}`, all ids by which users know the agents, for
    `policy_mapping_fn`; else agent 12 of the group `red` is known as `red_12`.

    The sampler and the tools also call, where they exist: `result()`, at the end of an episode:
    figures per group such as `{"kills": {"red": 3, "blue": 5}}`, where `score` (or else `kills`,
    or else the group's return) decides who won; `render()`, an RGB array `[h, w, 3]` uint8; and
    `close()`.
    """

    groups: Mapping[str, Group]

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; `seed` restarts the random numbers, None lets them run on."""

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Plays `actions`, `{group: [n] int32}`: one per row of the last `reset` or `step`."""

    def observe(self, group: str, out: Array) -> None:
        """Writes the observations of the current rows of `group` into `out`, `[n, *obs]`.

        The sampler calls this any number of times per step, with memory that it reuses.
        """
