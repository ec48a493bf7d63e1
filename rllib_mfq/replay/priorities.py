"""Priorities: rows whose error was large are drawn more often.

Schaul, Quan, Antonoglou, Silver, "Prioritized Experience Replay", ICLR 2016; the "proportional"
variant. Row i is drawn with probability P(i), and its error counts w_i times:

    p_i = |error_i| + eps,    P(i) = p_i^alpha / sum over j of p_j^alpha,
    w_i = (N P(i))^-beta / max over the drawn rows of the same.

One cumulative sum and one search per draw; for 100,000 rows this is cheaper than any tree of
Python's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from rllib_mfq.population.population import Array


class Priorities:
    """The priorities of the rows of a ring.

    Args:
        capacity: rows of the ring.
        alpha: how much the errors decide; 0 draws uniformly.
        eps: what is added to an error, above 0, so that every row can be drawn.

    Attributes:
        beta: how far the weights make up for drawing some rows more often; 1 is in full.
    """

    def __init__(self, capacity: int, alpha: float, eps: float) -> None:
        self.alpha, self.eps, self.beta = alpha, eps, 1.0
        self._priorities = np.zeros(capacity)  # p; 0 for what cannot be drawn
        self._powers = np.zeros(capacity)  # p^alpha, or 0
        self._generations = np.zeros(capacity, np.int64)  # how often each row has been written
        self._largest = 1.0  # p of every row so far

    def write(self, rows: slice, drawable: Array) -> None:
        """Gives rows that were written anew the largest priority so far.

        Args:
            rows: of the ring, n.
            drawable: `[n]` bool, which of them may be drawn.
        """
        self._priorities[rows] = np.where(drawable, self._largest, 0.0)
        self._powers[rows] = np.where(drawable, self._largest**self.alpha, 0.0)
        self._generations[rows] += 1

    def draw(self, size: int, rng: np.random.Generator) -> Array:
        """Draws `[size]` rows, with replacement."""
        cumulative = self._powers.cumsum()
        drawn = rng.random(size) * cumulative[-1]
        # The first row whose sum exceeds the number: never one of priority 0.
        return np.asarray(cumulative.searchsorted(drawn, side="right"))

    def weights(self, rows: Array) -> Array:
        """Importance weights of drawn rows, `[n]` float32, the largest of them 1.

        The normalisation by the largest takes N and the sum of all priorities out.
        """
        powers = self._powers[rows]
        return np.asarray((powers / powers.min()) ** -self.beta, np.float32)

    def generations(self, rows: Array) -> Array:
        """`[n]` what `update` needs to know of rows that were drawn."""
        return np.asarray(self._generations[rows])

    def update(self, rows: Array, generations: Array, errors: Array) -> None:
        """Sets the priorities of rows that were learned from.

        Args:
            rows: `[n]` as drawn; of a row that is there twice, the last error counts.
            generations: `[n]`, theirs when they were drawn; one that was overwritten meanwhile
                keeps the priority of what stands there now.
            errors: `[n]` of any sign.
        """
        same = self._generations[rows] == generations
        new = np.abs(errors[same]).astype(np.float64) + self.eps
        self._priorities[rows[same]], self._powers[rows[same]] = new, new**self.alpha
        self._largest = max(self._largest, float(new.max(initial=0.0)))

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on exactly as before."""
        return {"priorities": self._priorities.copy(), "largest": self._largest}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_state`, of a ring of the same capacity; `alpha` may be another one."""
        self._priorities[:], self._largest = state["priorities"], state["largest"]
        known = self._priorities > 0
        self._powers[:] = np.where(known, self._priorities**self.alpha, 0.0)
        self._generations += 1


def of_sequences(errors: Tensor, learned: Tensor) -> Tensor:
    """The errors of sequences, by which they are drawn: 0.9 max + 0.1 mean of their steps' errors.

    Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning", ICLR
    2019 (R2D2). `errors` are `[M]`, of the steps for which `learned`, `[B, T]` bool, is true; `[B]`
    results, 0 for a sequence without any.
    """
    size = errors.new_zeros(learned.shape)
    size[learned] = errors.abs()
    return 0.9 * size.amax(1) + 0.1 * size.sum(1) / learned.sum(1).clamp(min=1)
