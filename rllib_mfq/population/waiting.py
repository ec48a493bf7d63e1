"""Agents that wait: they acted, live on, and do not observe yet.

An agent may skip observations, as where agents take turns. The row in which it acted then stays
open until it observes again or ends; it is learned from in the fragment in which that happens.
"""

import numpy as np

from rllib_mfq.population.population import Array, PopulationError, Step


class Waiting:
    """The open rows of one block, by the population and the group of their agents."""

    def __init__(self) -> None:
        self._open: dict[tuple[int, str], tuple[Array, Array]] = {}  # ids and rows, `[w]` each

    def rows(self) -> Array:
        """`[w]`: all open rows."""
        return np.concatenate([np.zeros(0, np.int64), *(rows for _, rows in self._open.values())])

    def move(self, first: int) -> None:
        """Tells that the open rows, in the order of `rows`, begin at `first` now."""
        for key, (ids, _) in self._open.items():
            self._open[key] = ids, np.arange(first, first + len(ids))
            first += len(ids)

    def forget(self, index: int | None = None) -> None:
        """Forgets the open rows of one population, or of all."""
        self._open = {k: v for k, v in self._open.items() if index not in (None, k[0])}

    def settle(
        self, index: int, group: str, step: Step, acted: slice, data: dict[str, Array], where: str
    ) -> tuple[Array, Array, int]:
        """Opens the rows of agents that wait, and completes those of agents that have waited.

        Args:
            index: of the agents' population.
            group: of the agents.
            step: what it did to them.
            acted: the rows in which they acted.
            data: the block's columns.
            where: how an error begins.

        Returns:
            For every row of `step.rows` the row that its agent comes from, -1 for one that enters,
            and whether it only closes a life; and how many more rows there are to learn from.

        Raises:
            PopulationError: `step.late` names an agent that did not wait or does not observe.
        """
        alive = ~step.terminated
        waits = np.zeros_like(alive) if step.waiting is None else step.waiting & alive
        stay = np.flatnonzero(alive & ~waits)
        entered = step.rows.ids[len(stay) :]
        source = np.append(stay + acted.start, np.full(len(entered), -1))
        closing = np.append(step.truncated[stay], np.zeros(len(entered), bool))
        ids, rows = self._open.get((index, group), (np.zeros(0, np.int64),) * 2)
        late = step.late
        if late is not None:
            found, back = _places(ids, late.ids), _places(late.ids, entered)
            known, returns = found >= 0, back[back >= 0]
            if not known.all():
                raise PopulationError(f"{where}: agent {late.ids[~known][0]} did not wait.")
            if sorted(returns) != np.flatnonzero(~late.terminated).tolist():
                raise PopulationError(f"{where}: not all late agents that live on observe.")
            theirs = rows[found]
            data["rewards"][theirs], data["terminateds"][theirs] = late.rewards, late.terminated
            data["loss_mask"][theirs] = True
            source[len(stay) :][back >= 0] = theirs[returns]
            closing[len(stay) :][back >= 0] = late.truncated[returns]
            open_ = np.isin(ids, late.ids, invert=True)
            ids, rows = ids[open_], rows[open_]
        data["loss_mask"][acted][waits] = False
        self._open[index, group] = (
            np.append(ids, data["agent_index"][acted][waits]),
            np.append(rows, np.flatnonzero(waits) + acted.start),
        )
        return source, closing, (0 if late is None else len(late.ids)) - int(np.sum(waits))


def _places(ids: Array, wanted: Array) -> Array:
    """Where each of the wanted ids stands in `ids`, -1 where it does not."""
    if not len(ids):
        return np.full(len(wanted), -1)
    order = np.argsort(ids)
    found = order[np.searchsorted(ids[order], wanted).clip(max=len(ids) - 1)]
    return np.where(ids[found] == wanted, found, -1)
