"""The memory: a ring of rows that keeps every observation once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_mfq.population.fragment import Link
from rllib_mfq.population.population import Array
from rllib_mfq.replay.priorities import Priorities
from rllib_mfq.replay.sequences import Borders, follow

DRAWN = ("obs", "actions", "rewards", "terminateds", "mean_actions", "next_mean_actions")
REMEMBERED = ("state", "previous_actions", "previous_rewards")  # by recurrent networks
KEPT = (*DRAWN, "action_mask", *REMEMBERED)  # as tensors on the device
NUMBERED = ("loss_mask", "distance")  # as arrays of the host, where rows are numbered and drawn
WRITTEN = (*KEPT, "loss_mask", "next_row")  # what a memory reads of a fragment


def bytes_per_row(
    obs_shape: tuple[int, ...],
    obs_dtype: Any,
    mean_action_dim: int,
    num_actions: int = 0,
    lstm_cells: int = 0,
) -> int:
    """What a row takes in a memory; `num_actions` if the environment has masks, else 0."""
    observation = int(np.prod(obs_shape)) * int(np.dtype(obs_dtype).itemsize)
    others = int(np.dtype("i4,f4,?,?,i4").itemsize)  # action, reward, terminated, acted, distance
    return observation + others + 2 * 4 * (mean_action_dim + lstm_cells) + num_actions


class ReplayMemory:
    """Preallocated columns that are overwritten in the order in which they were written.

    Every row keeps the distance to the row that holds its next observation. That row was written
    later, so it is overwritten later, and a row always finds its next observation.

    Which rows are drawn is decided on the host, so that a seed gives the same draws whatever the
    devices are.

    Args:
        capacity: rows, closing ones included.
        obs_dtype: type to keep observations in (`float16`, `uint8`, ...); None keeps theirs.
        seed: of the draws.
        n_step: how many steps of an agent a drawn row spans; fewer where its life, or what is
            known of it so far, ends before.
        device: where the rows are kept.
        batch_device: where batches are needed; None if where the rows are kept.
        priorities: of its rows, by which they are drawn; None draws all alike.
        max_seq_len: steps that are learned from of the sequence that a drawn row opens, for
            recurrent networks; 0 for single rows.
        burn_in_len: steps of a sequence before those; T is both together.
    """

    def __init__(
        self,
        capacity: int,
        obs_dtype: str | None = None,
        seed: int | list[int] | None = None,
        n_step: int = 1,
        device: str | torch.device = "cpu",
        batch_device: str | torch.device | None = None,
        priorities: Priorities | None = None,
        max_seq_len: int = 0,
        burn_in_len: int = 0,
    ) -> None:
        self.capacity, self.obs_dtype, self.n_step = capacity, obs_dtype, n_step
        self.device = torch.device(device)
        self._batch_device = torch.device(batch_device or device)
        self._rng = np.random.default_rng(seed)
        self._columns: dict[str, Tensor] = {}
        self._acted = np.zeros(capacity, bool)  # the column `loss_mask`
        self._distance = np.zeros(capacity, np.int32)  # from a row to that of its next observation
        self._borders = Borders(capacity)
        self.priorities = priorities
        self.max_seq_len, self.burn_in_len = max_seq_len, burn_in_len
        self._kept: dict[str, Tensor] = {}  # what batches are read into
        self._size = 0  # rows written and not yet overwritten
        self._next = 0  # where the next row goes
        self.num_steps = 0  # of those written and not yet overwritten, rows with an action
        self.num_steps_added = 0  # rows with an action ever written

    def __len__(self) -> int:
        """Rows to learn from (those that only close a life are not counted)."""
        return self.num_steps

    def add(self, columns: Mapping[str, Array], link: Link | None = None) -> None:
        """Copies the rows of a fragment, a sampler's columns, in at most two slices per column.

        The columns may be read-only, as those from Ray's object store are. By the fragment's
        `link`, lives go on from the fragment before; without one they end with the fragment.

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
        for name in KEPT:
            if name in columns and name not in self._columns:
                kind = (self.obs_dtype if name == "obs" else None) or columns[name].dtype
                self._allocate(name, columns[name].shape[1:], kind)
        next_row = columns["next_row"]
        distance = np.where(next_row < 0, 0, next_row - np.arange(rows, dtype=np.int32))
        first = min(rows, self.capacity - self._next)
        ends = slice(self._next, self._next + first), slice(rows - first)
        added = int(np.count_nonzero(columns["loss_mask"]))
        self.num_steps_added += added
        self.num_steps += added
        for here, there in zip(ends, (slice(first), slice(first, rows)), strict=True):
            self.num_steps -= int(np.count_nonzero(self._acted[here]))
            self._acted[here] = columns["loss_mask"][there]
            self._distance[here] = distance[there]
            if self.priorities is not None:
                self.priorities.write(here, columns["loss_mask"][there])
            for name, column in self._columns.items():
                if name in columns:
                    _write(column[here], columns[name][there])
                else:  # an environment may give a mask only sometimes; else everything is legal
                    column[here] = True
        self._borders.join(link or Link("", "", 0), self._next, rows, self._distance)
        self._next = (self._next + rows) % self.capacity
        self._size = min(self.capacity, self._size + rows)

    def draw(self, size: int) -> Array:
        """Draws `size` rows, B, with replacement; returns their numbers, `[B]` int64.

        Raises:
            ValueError: there is no row to learn from.
        """
        if not self.num_steps:
            raise ValueError("the memory holds no row to learn from.")
        if self.priorities is not None and self.priorities.alpha:
            rows = self.priorities.draw(size, self._rng)
        else:
            rows, again = np.zeros(size, np.int64), np.arange(size)
            while len(again):  # a row without an action is drawn again
                rows[again] = self._rng.integers(self._size, size=len(again))
                again = again[~self._acted[rows[again]]]
        if self.priorities is not None:
            self._drawn = rows, self.priorities.generations(rows)
        return rows

    def learned(self, errors: Tensor) -> None:
        """Takes the errors `[B]` of the rows that the last `draw` returned as their priorities."""
        assert self.priorities is not None
        self.priorities.update(*self._drawn, errors.numpy(force=True))

    def read(self, rows: Array) -> dict[str, Tensor]:
        """Reads the rows of the numbers `rows`, `[B]` as `draw` gives them.

        Returns:
            `[B, ...]` columns in tensors that the next `read` overwrites: `obs`, `new_obs` (`obs`
            where terminated), `actions`, `rewards`, `terminateds`, `mean_actions`,
            `next_mean_actions`, and `action_mask` and `next_action_mask` where the environment
            has masks.
            With several steps, `rewards` `[B, n_step]` are those of the steps, zero behind the
            last one, and `num_steps` `[B]` says how many there are. `terminateds`, `new_obs` and
            `last_mean_actions`, the mean action that the step produced, are of the last step.
            With priorities, `weights` `[B]` are the rows' importance weights.

            Sequences have columns `[B, T + n_step, ...]`, since the last step has others behind
            it: `obs`, `actions`, `terminateds`, `mean_actions`, `next_mean_actions`, and
            `action_mask`, `previous_actions` and `previous_rewards` where there are any. `state`
            `[B, 2, C]` is that before the first step. `rewards` `[B, T, n_step]`, `num_steps`
            `[B, T]` as above, and `learned` `[B, T]` bool, which steps exist.
        """
        batch = self._read_sequences(rows) if self.max_seq_len else self._read_rows(rows)
        if self.priorities is not None:
            batch["weights"] = torch.from_numpy(self.priorities.weights(rows))
        return {name: column.to(self._batch_device) for name, column in batch.items()}

    def _read_rows(self, rows: Array) -> dict[str, Tensor]:
        last, batch = self._follow(rows) if self.n_step > 1 else (rows, {})
        at = torch.from_numpy(rows).to(self.device)
        for name in KEPT:
            if name in self._columns and name not in batch:
                batch[name] = self._take(name, name, at)
        after = torch.from_numpy(self._after(last)).to(self.device)
        batch["new_obs"] = self._take("new_obs", "obs", after)
        if "action_mask" in self._columns:
            batch["next_action_mask"] = self._take("next_action_mask", "action_mask", after)
        return batch

    def _read_sequences(self, rows: Array) -> dict[str, Tensor]:
        length, n = self.burn_in_len + self.max_seq_len, self.n_step
        found, going = follow(rows, length + n - 1, self._distance, self._acted)
        at = torch.from_numpy(found).to(self.device)
        batch = {
            name: self._take(name, name, at.flatten())
            for name in KEPT
            if name in self._columns and name not in ("state", "rewards")
        }
        batch = {name: column.view(*at.shape, *column.shape[1:]) for name, column in batch.items()}
        acted = torch.from_numpy(going).to(self.device)
        paid = self._columns["rewards"][at] * acted
        return batch | {
            "state": self._take("state", "state", at[:, 0].contiguous()),
            "rewards": paid.unfold(1, n, 1)[:, :length],
            "num_steps": acted.unfold(1, n, 1)[:, :length].sum(-1),
            "learned": acted[:, :length],
        }

    def sample(self, size: int) -> dict[str, Tensor]:
        """Draws `size` rows and reads them; see `draw` and `read`."""
        return self.read(self.draw(size))

    def get_state(self) -> dict[str, Any]:
        """The filled rows, as arrays, and everything needed to go on exactly as before."""
        columns = {name: c[: self._size].numpy(force=True) for name, c in self._columns.items()}
        numbered = zip(NUMBERED, (self._acted, self._distance), strict=True)
        columns |= {name: c[: self._size] for name, c in numbered if self._columns}
        return {
            "columns": {name: column.copy() for name, column in columns.items()},
            "next": self._next,
            "num_steps": self.num_steps,
            "num_steps_added": self.num_steps_added,
            "replay_capacity": self.capacity,
            "replay_obs_dtype": self.obs_dtype,
            "rng": self._rng.bit_generator.state,
            "priorities": self.priorities and self.priorities.get_state(),
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
        self._columns, self._kept, self._size = {}, {}, 0
        self._borders = Borders(self.capacity)  # which fragments follow is not known any more
        self._acted[:] = False
        for name, filled in state["columns"].items():
            self._size = len(filled)
            if name in NUMBERED:
                (self._acted if name == "loss_mask" else self._distance)[: self._size] = filled
            else:
                self._allocate(name, filled.shape[1:], filled.dtype)
                _write(self._columns[name][: self._size], filled)
        self._next, self.num_steps = state["next"], state["num_steps"]
        self.num_steps_added = state["num_steps_added"]
        self._rng.bit_generator.state = state["rng"]
        if self.priorities is not None:
            self.priorities.write(slice(0, self.capacity), self._acted)
            if state.get("priorities") is not None:  # else it was a memory without
                self.priorities.set_state(state["priorities"])

    def _allocate(self, name: str, shape: tuple[int, ...], kind: Any) -> None:
        new = torch.ones if name == "action_mask" else torch.empty  # which takes no page yet
        dtype = torch.from_numpy(np.empty(0, kind)).dtype
        self._columns[name] = new((self.capacity, *shape), dtype=dtype, device=self.device)

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

    def _take(self, name: str, column: str, rows: Tensor) -> Tensor:
        """The rows `[B]` of a column, in a tensor that is kept under a name of a batch's column.

        A fresh tensor would cost more than the copy: its pages are new to the process.
        """
        source, kept = self._columns[column], self._kept.get(name)
        if kept is None or len(kept) < len(rows):
            pinned = self.device.type == "cpu" and self._batch_device.type == "cuda"
            shape = (len(rows), *source.shape[1:])
            kept = source.new_empty(shape, pin_memory=pinned)
            self._kept[name] = kept
        return torch.index_select(source, 0, rows, out=kept[: len(rows)])

    def _after(self, rows: Array) -> Array:
        """`[B]`: the rows that hold the next observations; the rows themselves if terminated."""
        return np.asarray((rows + self._distance[rows]) % self.capacity)

    def _follow(self, rows: Array) -> tuple[Array, dict[str, Tensor]]:
        """Follows the rows' agents for further steps; returns the last rows, and their columns."""
        found, going = follow(rows, self.n_step - 1, self._distance, self._acted)
        steps = going.sum(1, dtype=np.int32)
        last = found[np.arange(len(rows)), steps - 1]
        paid = self._columns["rewards"][torch.from_numpy(found).to(self.device)]
        at = torch.from_numpy(last).to(self.device)
        return last, {
            "rewards": paid.masked_fill(torch.from_numpy(~going).to(self.device), 0.0),
            "num_steps": torch.from_numpy(steps),
            "terminateds": self._take("terminateds", "terminateds", at),
            "last_mean_actions": self._take("last_mean_actions", "next_mean_actions", at),
        }


def _write(column: Tensor, values: Array) -> None:
    """Copies values into the rows of a column, in its type."""
    if column.device.type == "cpu":
        column.numpy()[...] = values
    else:
        column.copy_(torch.from_numpy(np.array(values)))  # torch warns of read-only arrays
