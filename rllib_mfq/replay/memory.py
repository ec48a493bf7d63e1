"""The memory: a ring of rows that keeps every observation once."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rllib_mfq.population.population import Array

DRAWN = ("obs", "actions", "rewards", "terminateds", "mean_actions", "next_mean_actions")
KEPT = (*DRAWN, "loss_mask", "distance", "action_mask")


class ReplayMemory:
    """Preallocated columns that are overwritten in the order in which they were written.

    Every row keeps the distance to the row that holds its next observation. That row was written
    later, so it is overwritten later, and a row always finds its next observation.

    Args:
        capacity: rows, closing ones included.
        obs_dtype: type to keep observations in (`float16`, `uint8`, ...); None keeps theirs.
        seed: of the draws.
        n_step: how many steps of an agent a drawn row spans; fewer where its life, or the
            fragment that the row came in, ends before.
    """

    def __init__(
        self, capacity: int, obs_dtype: str | None = None, seed: int | None = None, n_step: int = 1
    ) -> None:
        self.capacity, self.obs_dtype, self.n_step = capacity, obs_dtype, n_step
        self._rng = np.random.default_rng(seed)
        self._columns: dict[str, Array] = {}
        self._size = 0  # rows written and not yet overwritten
        self._next = 0  # where the next row goes
        self.num_steps = 0  # of those written and not yet overwritten, rows with an action
        self.num_steps_added = 0  # rows with an action ever written

    def __len__(self) -> int:
        """Rows to learn from (those that only close a life are not counted)."""
        return self.num_steps

    def add(self, columns: Mapping[str, Array]) -> None:
        """Copies the rows of a fragment, a sampler's columns, in at most two slices per column.

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
        index = np.arange(rows, dtype=np.int32)
        distance = np.where(columns["next_row"] < 0, 0, columns["next_row"] - index)
        new = {**columns, "distance": distance}
        for name in KEPT:
            if name in new and name not in self._columns:
                kind = (self.obs_dtype if name == "obs" else None) or new[name].dtype
                self._allocate(name, new[name].shape[1:], kind)
        first = min(rows, self.capacity - self._next)
        ends = slice(self._next, self._next + first), slice(rows - first)
        added = int(np.count_nonzero(columns["loss_mask"]))
        self.num_steps_added += added
        self.num_steps += added
        for here, there in zip(ends, (slice(first), slice(first, rows)), strict=True):
            self.num_steps -= int(np.count_nonzero(self._columns["loss_mask"][here]))
            for name, column in self._columns.items():
                # An environment may give its first mask late; until then everything was legal.
                column[here] = new[name][there] if name in new else True
        self._next = (self._next + rows) % self.capacity
        self._size = min(self.capacity, self._size + rows)

    def sample(self, size: int) -> dict[str, Array]:
        """Draws `size` rows, B, uniformly and with replacement.

        Returns:
            `[B, ...]` columns, all of them fresh arrays: `obs`, `new_obs` (`obs` where
            terminated), `actions`, `rewards`, `terminateds`, `mean_actions`, `next_mean_actions`,
            and `action_mask` and `next_action_mask` where the environment has masks.
            With several steps, `rewards` `[B, n_step]` are those of the steps, zero behind the
            last one, and `num_steps` `[B]` says how many there are. `terminateds`, `new_obs` and
            `last_mean_actions`, the mean action that the step produced, are of the last step.

        Raises:
            ValueError: there is no row to learn from.
        """
        if not self.num_steps:
            raise ValueError("the memory holds no row to learn from.")
        rows, columns = self._draw(size), self._columns
        batch = {name: columns[name][rows] for name in (*DRAWN, "action_mask") if name in columns}
        if self.n_step > 1:
            rows = self._follow(rows, batch)
        after = self._after(rows)
        batch["new_obs"] = columns["obs"][after]
        if "action_mask" in columns:
            batch["next_action_mask"] = columns["action_mask"][after]
        return batch

    def get_state(self) -> dict[str, Any]:
        """The filled rows and everything needed to go on exactly as before."""
        return {
            "columns": {name: c[: self._size].copy() for name, c in self._columns.items()},
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
                other = f"the checkpoint's memory has {state[name]!r}"
                raise ValueError(f"{name} is {value!r}, but {other}; use the same.")
        self._columns, self._size = {}, 0
        for name, filled in state["columns"].items():
            self._allocate(name, filled.shape[1:], filled.dtype)
            self._columns[name][: len(filled)] = filled
            self._size = len(filled)
        self._next, self.num_steps = state["next"], state["num_steps"]
        self.num_steps_added = state["num_steps_added"]
        self._rng.bit_generator.state = state["rng"]

    def _allocate(self, name: str, shape: tuple[int, ...], kind: Any) -> None:
        new = np.ones if name == "action_mask" else np.zeros
        self._columns[name] = new((self.capacity, *shape), kind)

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
        rows, again = np.zeros(size, np.int64), np.arange(size)
        while len(again):
            rows[again] = self._rng.integers(self._size, size=len(again))
            again = again[~self._columns["loss_mask"][rows[again]]]
        return rows

    def _after(self, rows: Array) -> Array:
        """`[B]`: the rows that hold the next observations; the rows themselves if terminated."""
        return np.asarray((rows + self._columns["distance"][rows]) % self.capacity)

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
            "last_mean_actions": columns["next_mean_actions"][rows],
        }
        return rows


class Memories(dict[str, ReplayMemory]):
    """The memory of every module that learns, by module."""

    def add(self, batches: Mapping[str, Mapping[str, Array]]) -> None:
        """Adds every module's columns to its memory; see `ReplayMemory.add`."""
        for module_id, memory in self.items():
            if module_id in batches:  # else it did not play
                memory.add(batches[module_id])

    def have_been_given(self, rows: int) -> bool:
        """Whether there are rows to learn from, and every memory has been given so many.

        What has been written counts, not what is held: a full memory of short fragments holds many
        closing rows, and may never hold so many others.
        """
        return bool(self) and all(each and each.num_steps_added >= rows for each in self.values())

    def sample(self, size: int) -> dict[str, dict[str, Array]]:
        """Draws rows from every memory; see `ReplayMemory.sample`."""
        return {module_id: memory.sample(size) for module_id, memory in self.items()}

    def get_state(self) -> dict[str, Any]:
        """The state of every memory."""
        return {module_id: memory.get_state() for module_id, memory in self.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_state`; a module that has been frozen since has no memory any more."""
        for module_id, memory in state.items():
            if module_id in self:
                self[module_id].set_state(memory)
