"""The memory: a ring of rows that keeps every observation once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rllib_mfq.population.population import Array

KEPT = ("obs", "actions", "rewards", "terminateds", "mean_actions", "next_mean_actions")


class ReplayMemory:
    """Preallocated columns that are overwritten in the order in which they were written.

    A row finds its next observation by the distance to the row that holds it. That row was
    written later, so it is overwritten later: a row never outlives its successor.

    Args:
        capacity: rows, closing ones included.
        obs_dtype: type to keep observations in (`float16`, `uint8`, ...); None keeps theirs.
        seed: of the draws.
        n_step: how many steps of an agent a drawn row spans; fewer where its life, or the
            fragment that the row came in, ends before.
    """

    def __init__(
        self,
        capacity: int,
        obs_dtype: str | None = None,
        seed: int | None = None,
        n_step: int = 1,
    ) -> None:
        self.capacity = capacity
        self.obs_dtype = obs_dtype
        self.n_step = n_step
        self._rng = np.random.default_rng(seed)
        self._columns: dict[str, Array] = {}
        self._size = 0  # rows written and not yet overwritten
        self._next = 0  # where the next row goes
        self.num_steps = 0  # of those, rows with an action
        self.num_steps_added = 0  # rows with an action ever written

    def __len__(self) -> int:
        """Rows to learn from (those that only close a life are not counted)."""
        return self.num_steps

    @property
    def bytes_per_row(self) -> float:
        """Memory a row takes, over all columns."""
        return sum(c.nbytes for c in self._columns.values()) / self.capacity

    def add(self, columns: Mapping[str, Array]) -> None:
        """Copies a fragment's rows in, in at most two slices per column.

        Args:
            columns: a sampler's columns over n rows.

        Raises:
            ValueError: the fragment is larger than the memory, or `obs_dtype` cannot hold its
                observations (`uint8` must hold them exactly, a float type within its range).
        """
        rows = len(columns["actions"])
        if rows > self.capacity:
            raise ValueError(
                f"replay_capacity is {self.capacity}, less than one fragment of {rows} rows; "
                "raise it or shorten rollout_fragment_length."
            )
        self._check_obs_dtype(columns["obs"])
        if not self._columns:
            self._allocate(columns)
        if "action_mask" in columns and "action_mask" not in self._columns:
            # An environment may give its first mask late; until then everything was legal.
            shape = (self.capacity, *columns["action_mask"].shape[1:])
            self._columns["action_mask"] = np.ones(shape, bool)
        index = np.arange(rows, dtype=np.int32)
        distance = np.where(columns["next_row"] < 0, 0, columns["next_row"] - index)
        first = min(rows, self.capacity - self._next)
        lands = [(slice(self._next, self._next + first), slice(0, first))]
        lands += [(slice(0, rows - first), slice(first, rows))] if first < rows else []
        valid = self._columns["loss_mask"]
        new = {"action_mask": np.ones((rows, 1), bool), **columns, "distance": distance}
        for here, there in lands:
            self.num_steps -= int(np.count_nonzero(valid[here]))
            for name, column in self._columns.items():
                column[here] = new[name][there]
            self.num_steps += int(np.count_nonzero(valid[here]))
        self.num_steps_added += int(np.count_nonzero(columns["loss_mask"]))
        self._next = (self._next + rows) % self.capacity
        self._size = min(self.capacity, self._size + rows)

    def sample(self, size: int) -> dict[str, Array]:
        """Draws rows uniformly, with replacement.

        Args:
            size: B.

        Returns:
            `[B, ...]` columns `obs`, `new_obs` (`obs` where terminated), `actions`, `rewards`,
            `terminateds`, `mean_actions`, `next_mean_actions`, and `action_mask` and
            `new_action_mask` where the environment has masks. All of them are fresh arrays.
            With several steps, `rewards` `[B, n_step]` are those of the steps, `num_steps`
            `[B]` says how many there are, the others being 0; `terminateds`, `new_obs` and
            `new_mean_actions`, the mean action there, belong to the last of them.

        Raises:
            ValueError: there is no row to learn from.
        """
        if not self.num_steps:
            raise ValueError("the memory holds no row to learn from.")
        rows = self._draw(size)
        columns = self._columns
        batch = {name: columns[name][rows] for name in KEPT}
        mask = columns["action_mask"][rows] if "action_mask" in columns else None
        if self.n_step > 1:
            rows = self._follow(rows, batch)
        after = self._after(rows)
        batch["new_obs"] = columns["obs"][after]
        if mask is not None:
            batch["action_mask"] = mask
            batch["new_action_mask"] = columns["action_mask"][after]
        return batch

    def _after(self, rows: Array) -> Array:
        """`[B]`: the rows that hold the next observations; the rows themselves if terminated."""
        after: Array = (rows + self._columns["distance"][rows]) % self.capacity
        return after

    def _follow(self, rows: Array, batch: dict[str, Array]) -> Array:
        """Puts the further steps of the rows' agents into a batch; returns the last rows."""
        columns = self._columns
        rewards = np.zeros((len(rows), self.n_step), np.float32)
        rewards[:, 0] = batch["rewards"]
        steps, going = np.ones(len(rows), np.int32), np.ones(len(rows), bool)
        for k in range(1, self.n_step):
            after = self._after(rows)
            going &= (after != rows) & columns["loss_mask"][after]  # it acted there, too
            rows = np.where(going, after, rows)
            rewards[:, k] = np.where(going, columns["rewards"][rows], 0.0)
            steps += going
        batch |= {
            "rewards": rewards,
            "num_steps": steps,
            "terminateds": columns["terminateds"][rows],
            "new_mean_actions": columns["next_mean_actions"][rows],
        }
        return rows

    def get_state(self) -> dict[str, Any]:
        """The filled rows and everything needed to go on exactly as before."""
        filled = {name: column[: self._size].copy() for name, column in self._columns.items()}
        return {
            "columns": filled,
            "next": self._next,
            "num_steps": self.num_steps,
            "num_steps_added": self.num_steps_added,
            "replay_capacity": self.capacity,
            "replay_obs_dtype": self.obs_dtype,
            "rng": self._rng.bit_generator.state,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_state`.

        Raises:
            ValueError: the state is of a memory of another capacity or `obs_dtype`.
        """
        mine = {"replay_capacity": self.capacity, "replay_obs_dtype": self.obs_dtype}
        for name, value in mine.items():
            if state[name] != value:
                raise ValueError(
                    f"{name} is {value!r}, but the checkpoint's memory has {state[name]!r}; use "
                    "the same."
                )
        self._columns, self._size = {}, 0
        for name, filled in state["columns"].items():
            self._columns[name] = np.zeros((self.capacity, *filled.shape[1:]), filled.dtype)
            self._columns[name][: len(filled)] = filled
            self._size = len(filled)
        self._next, self.num_steps = state["next"], state["num_steps"]
        self.num_steps_added = state["num_steps_added"]
        self._rng.bit_generator.state = state["rng"]

    def _allocate(self, columns: Mapping[str, Array]) -> None:
        self._columns = {
            name: np.zeros((self.capacity, *columns[name].shape[1:]), columns[name].dtype)
            for name in (*KEPT, "loss_mask")
        }
        if self.obs_dtype is not None:
            obs = self._columns["obs"]
            self._columns["obs"] = np.zeros(obs.shape, self.obs_dtype)
        self._columns["distance"] = np.zeros(self.capacity, np.int32)

    def _check_obs_dtype(self, obs: Array) -> None:
        if self.obs_dtype is None or not obs.size:
            return
        with np.errstate(all="ignore"):
            kept = obs.astype(self.obs_dtype)
            held = np.isfinite(kept) if kept.dtype.kind == "f" else kept == obs
        if not held.all():
            raise ValueError(
                f"replay_obs_dtype is {self.obs_dtype!r}, which cannot hold the observation value "
                f"{obs[~held][0]}; use a wider type or leave it out."
            )

    def _draw(self, size: int) -> Array:
        """`[size]` rows with an action, by drawing again where one has none."""
        rows = self._rng.integers(self._size, size=size)
        again = np.flatnonzero(~self._columns["loss_mask"][rows])
        while len(again):
            rows[again] = self._rng.integers(self._size, size=len(again))
            again = again[~self._columns["loss_mask"][rows[again]]]
        return rows
