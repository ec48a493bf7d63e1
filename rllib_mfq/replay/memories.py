"""The memories of all modules that learn, and the pieces in which others can take them over."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_mfq.population.fragment import Link
from rllib_mfq.population.population import Array
from rllib_mfq.replay.memory import ReplayMemory

PIECES = 64  # into which a memory is cut, if it can be


class Memories(dict[str, ReplayMemory]):
    """One learner's memory of every module that learns, by module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.errors: dict[str, list[Tensor]] = {}  # of the batches that are being learned from

    def add(self, batches: Mapping[str, Mapping[str, Array]], links: Mapping[str, Link]) -> None:
        """Adds every module's columns to its memory; see `ReplayMemory.add`."""
        for module_id, memory in self.items():
            if module_id in batches:  # else it did not play
                memory.add(batches[module_id], links.get(module_id))

    def batches(
        self, size: int, count: int, modules: Collection[str]
    ) -> Iterator[dict[str, dict[str, Tensor]]]:
        """Draws `count` batches of `size` rows from the memories of some modules, all at once.

        Of sequences there are so many that they have as many steps to learn from. Each batch is in
        tensors that the next one overwrites; see `ReplayMemory.read`. Whoever learns from them
        puts the errors of every batch into `errors`, which become priorities in the end.
        """
        self.errors = {module_id: [] for module_id in modules}
        sizes = {m: max(1, size // max(1, self[m].max_seq_len)) for m in modules}
        drawn = {module_id: self[module_id].draw(n * count) for module_id, n in sizes.items()}
        for k in range(count):
            rows = {m: drawn[m][k * n : (k + 1) * n] for m, n in sizes.items()}
            yield {module_id: self[module_id].read(rows[module_id]) for module_id in modules}
        for module_id, errors in self.errors.items():
            if errors:
                self[module_id].learned(torch.cat(errors))

    def weigh(self, beta: float) -> None:
        """Sets how far importance weights make up for priorities."""
        for memory in self.values():
            if memory.priorities is not None:
                memory.priorities.beta = beta

    def get_state(self) -> dict[str, Any]:
        """The state of every memory."""
        return {module_id: memory.get_state() for module_id, memory in self.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_state`; a module that has been frozen since has no memory any more."""
        for module_id, memory in state.items():
            if module_id in self:
                self[module_id].set_state(memory)


def pieces(state: Mapping[str, Any], longest: int) -> Iterator[dict[str, Array]]:
    """Cuts the rows of a memory's state into fragments that `ReplayMemory.add` understands.

    The oldest come first. No row is cut off from the row of its next observation, but lives end
    with the fragment that they came in.

    Args:
        state: `ReplayMemory.get_state`.
        longest: rows that a piece may have.

    Raises:
        ValueError: more than `longest` rows cannot be cut apart.
    """
    columns = state["columns"]
    size = len(columns["actions"]) if columns else 0
    oldest = state["next"] if size == state["replay_capacity"] else 0
    order = (oldest + np.arange(size)) % max(size, 1)
    # Rows that close a fragment may lead to its successor, which may go elsewhere.
    distance = (columns["distance"] * columns["loss_mask"])[order] if size else order
    leads_to = np.arange(size) + distance
    # Behind a row that leads, as do all before it, to none behind it.
    cuts = np.flatnonzero(np.maximum.accumulate(leads_to) <= np.arange(size)) + 1
    start, wanted = 0, -(-size // PIECES)
    while start < size:
        legal = cuts[(cuts > start) & (cuts <= start + longest)]
        if not len(legal):
            together = cuts[cuts > start][0] - start
            raise ValueError(
                f"replay_capacity gives a learner's memory {longest} rows, but {together} rows of "
                "the checkpoint's memory belong together; raise it or use fewer learners."
            )
        stop = int(legal[min(int(np.searchsorted(legal, start + wanted)), len(legal) - 1)])
        here = slice(start, stop)
        next_row = np.where(distance[here] > 0, leads_to[here] - start, -1)
        yield {name: column[order[here]] for name, column in columns.items()} | {
            "next_row": next_row
        }
        start = stop
