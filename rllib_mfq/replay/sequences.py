"""Sequences: what an agent does after the row that was drawn, step by step to the end of its life.

Sequences of a recurrent network and returns of several steps both walk this way.
"""

import numpy as np

from rllib_mfq.population.fragment import Link
from rllib_mfq.population.population import Array


def follow(rows: Array, steps: int, distance: Array, acted: Array) -> tuple[Array, Array]:
    """Walks along the lives of the agents of some rows, all at once.

    A life may go on in a later fragment: then the row that closes it in the earlier fragment has a
    distance, too, and the row at this distance holds the same observation, and an action.

    Args:
        rows: `[B]` rows with an action.
        steps: n, how far to walk at most.
        distance: `[capacity]` from every row to the row of its agent's next observation, around the
            ring; 0 where there is none.
        acted: `[capacity]` bool, which rows have an action.

    Returns:
        `[B, n + 1]` rows and bool, whether the agent acted there. Behind an agent's last action
        stands the row of its last observation, the last row itself where it was terminated.
    """
    found = np.empty((len(rows), steps + 1), rows.dtype)
    going = np.ones((len(rows), steps + 1), bool)
    found[:, 0] = rows
    for step in range(1, steps + 1):
        before = found[:, step - 1]
        after = _after(before, distance)
        # The row that closes a fragment and the first row of the next one are the same step.
        after = np.where(acted[after], after, _after(after, distance))
        found[:, step] = np.where(going[:, step - 1], after, before)
        going[:, step] = going[:, step - 1] & (after != before) & acted[after]
    return found, going


def _after(rows: Array, distance: Array) -> Array:
    return (rows + distance[rows]) % len(distance)


class Borders:
    """Joins the fragments of a sampler where they follow each other in a ring of rows.

    The row that closes one fragment and the first row of the next are the same step of an agent.
    The first of the two gets the distance to the second, and `follow` goes on there.

    Args:
        capacity: rows of the ring.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity, self._written = capacity, 0
        # By the name of a fragment: how many of its rows close it, how many rows had been written
        # before these, and where in the ring they are.
        self._open: dict[str, tuple[int, int, int]] = {}

    def join(self, link: Link, start: int, rows: int, distance: Array) -> None:
        """Joins a fragment that has just been written to the one before, if that is still there.

        Args:
            link: of the fragment.
            start: where in the ring its first row is.
            rows: how many it has.
            distance: `[capacity]` of the ring, see `follow`; changed in place.
        """
        number = self._written
        self._written += rows
        if link.follows in self._open:
            count, first, where = self._open.pop(link.follows)
            overwritten = max(0, self._written - self._capacity - first)
            closing = (where + np.arange(overwritten, count)) % self._capacity
            distance[closing] = number - first
        last = (start + rows - link.rows) % self._capacity
        self._open[link.name] = link.rows, self._written - link.rows, last
        oldest = self._written - self._capacity
        self._open = {name: each for name, each in self._open.items() if each[1] >= oldest}
