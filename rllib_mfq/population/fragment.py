"""Fragments: what one `sample` call returns, and the columns it is written into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Array, Group, Rows

Columns = dict[str, Array]


@dataclass
class Episode:
    """One episode of one population.

    Attributes:
        id_: its number, unique within the sampler.
        env_index: which of the sampler's populations plays it.
        returns: sum of rewards per group.
        length: steps so far.
        is_done: whether it has ended.
        result: the population's own figures, `{name: {group: value}}`, once it is done.
        custom_data: for callbacks.
        custom_metrics: figures that callbacks add to the results of RLlib's old API stack.
    """

    id_: int
    env_index: int
    returns: dict[str, float]
    length: int = 0
    is_done: bool = False
    result: dict[str, dict[str, float]] = field(default_factory=dict)
    custom_data: dict[str, Any] = field(default_factory=dict)
    custom_metrics: dict[str, float] = field(default_factory=dict)

    def env_steps(self) -> int:
        """Steps so far, under the name RLlib's episodes use."""
        return self.length

    def get_return(self) -> float:
        """Sum of all groups' returns, under the name RLlib's episodes use."""
        return sum(self.returns.values())

    def shares(self) -> dict[str, float]:
        """1 for the group that won and 0 for one that lost; a draw is shared equally."""
        score = self.result.get("score", self.result.get("kills", self.returns))
        best = max(score.values())
        winners = sum(value == best for value in score.values())
        return {group: (value == best) / winners for group, value in score.items()}


@dataclass
class Fragment:
    """The rows of one `sample` call.

    Attributes:
        columns: per player, columns over its rows; views of memory that the next `sample`
            overwrites. `next_row` is the row of an agent's next observation, -1 where it was
            terminated; where `loss_mask` is false a row is such an observation and no more.
        env_steps: steps over all populations.
        agent_steps: rows with `loss_mask`, per group.
        episodes: those that ended.
        failures: how many populations raised and were made anew.
    """

    columns: dict[str, Columns]
    env_steps: int
    agent_steps: dict[str, int]
    episodes: list[Episode]
    failures: int = 0


class Block:
    """The columns of one player's rows, and which of them act now."""

    def __init__(self, player: Player, groups: Mapping[str, Group], names: list[str]) -> None:
        self.player = player
        self.names = names
        space = groups[names[0]].observation_space
        sizes = {name: int(group.action_space.n) for name, group in groups.items()}
        self.num_actions = sizes[names[0]]
        width = player.neighborhood.width(names[0], sizes)
        self.capacity, self.start, self.stop, self.end = 0, 0, 0, 0
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            "obs": (space.shape, space.dtype),
            "mean_actions": ((width,), np.float32),
            "next_mean_actions": ((width,), np.float32),
            "actions": ((), np.int32),
            "rewards": ((), np.float32),
            "terminateds": ((), bool),
            "next_row": ((), np.int32),
            "loss_mask": ((), bool),
            "eps_id": ((), np.int64),
            "t": ((), np.int32),
            "group": ((), np.int8),
            "agent_index": ((), np.int32),
        }
        self.data = {name: np.empty((0, *shape), kind) for name, (shape, kind) in layout.items()}
        self.slices: dict[str, slice] = {name: slice(0, 0) for name in names}
        self.population = {name: np.empty(0, np.int64) for name in names}

    def reserve(self, rows: int) -> None:
        """Makes room for some rows behind the last one."""
        if self.end + rows > self.capacity:
            self.capacity = max(2 * self.capacity, self.end + rows)
            for name, old in self.data.items():
                self.data[name] = np.empty((self.capacity, *old.shape[1:]), old.dtype)
                self.data[name][: self.end] = old[: self.end]

    def take(self, rows: int) -> slice:
        """The next free rows."""
        self.reserve(rows)
        self.end += rows
        return slice(self.end - rows, self.end)

    def rewind(self) -> None:
        """Moves the rows that act now to the front and forgets all others."""
        for column in self.data.values():
            column[: self.stop - self.start] = column[self.start : self.stop]
        self.slices = {
            name: slice(s.start - self.start, s.stop - self.start)
            for name, s in self.slices.items()
        }
        self.start, self.stop, self.end = 0, self.stop - self.start, self.stop - self.start

    def act(self) -> None:
        """Chooses the actions of the rows that act now."""
        now = slice(self.start, self.stop)
        mask = self.data["action_mask"][now] if "action_mask" in self.data else None
        if self.stop > self.start:
            given = (self.data["obs"][now], self.data["mean_actions"][now], mask)
            together = self.player.act_together
            self.data["actions"][now] = (
                self.player.act(*given) if together is None else together(*given, self._crowd())
            )

    def _crowd(self) -> Array:
        """`[n]`: numbers the acting rows by population and group."""
        groups = enumerate(self.names)
        return np.concatenate(
            [self.population[name] * len(self.names) + index for index, name in groups]
        )

    def write(self, where: slice, source: Array, rows: Rows) -> None:
        """Fills all columns but `obs` of rows in which agents observe.

        Args:
            where: the rows.
            source: `[n]` the row each agent comes from, -1 for one that has just entered.
            rows: what their population says of them.
        """
        data = self.data
        known = source >= 0
        data["next_row"][source[known]] = np.arange(where.start, where.stop)[known]
        data["mean_actions"][where] = 0.0
        data["mean_actions"][where][known] = data["next_mean_actions"][source[known]]
        data["agent_index"][where] = rows.ids
        for name in ("next_mean_actions", "actions", "rewards", "terminateds", "loss_mask"):
            data[name][where] = 0
        data["next_row"][where] = -1
        if rows.action_mask is not None and "action_mask" not in data:
            data["action_mask"] = np.ones((self.capacity, self.num_actions), bool)
        if "action_mask" in data:
            data["action_mask"][where] = True if rows.action_mask is None else rows.action_mask
