"""Neighbourhoods: which living agents an agent's mean action averages over.

An agent is never its own neighbour, and the dead are nobody's neighbours.  Mean actions of a group
are computed at once for all rows of many populations (copies of an environment): in O(rows) for
`group`, `none` and `all`, in O(rows log rows + pairs) for the spatial ones, and in O(pairs) beside
what a function of one's own takes.

Axes: n rows of one group, P populations, A actions.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from scipy.spatial import cKDTree

from rllib_mfq.mean_field.legal import did_you_mean, find, is_number

Array = np.ndarray[Any, Any]

NAMES = ("group", "none", "all", "graph")
SIZED = {"radius": "a positive number", "nearest": "a whole number of at least 1"}


class GroupActions(NamedTuple):
    """What the agents of one group just played, over all populations.

    Attributes:
        actions: `[n]` integers in `[0, num_actions)`.
        num_actions: A.
        population: `[n]` integers, ascending: the population a row belongs to.
        positions: `[n, d]` coordinates, or None; read by `radius`, `nearest` and functions.
        edges: `[p, 2]` rows, or None; read by `graph` and functions: agent `edges[i, 0]` has the
            neighbour `edges[i, 1]`.
    """

    actions: Array
    num_actions: int
    population: Array
    positions: Array | None = None
    edges: Array | None = None


@dataclass(frozen=True)
class Neighborhood:
    """The neighbourhood N(j) of every agent j (the paper's "mean field approximation").

    Attributes:
        kind: `group`: all other living agents of one's own group. `none`: nobody, which makes
            MFQ independent Q-learning. `all`: `group`, and beside it the mean of every other
            group (multi-type mean field). `radius`: those of `group` within `size` (Euclidean).
            `nearest`: the `size` closest of `group`; among equally distant ones the choice is
            arbitrary, but always the same. `graph`: those that the environment names. The name
            of a function: those that it returns.
        size: the radius or the number of neighbours; None for the other kinds.
        function: takes the `GroupActions` of a group and returns `[p, 2]` rows, agent and
            neighbour; a pair that comes twice counts twice. None for the other kinds.
    """

    kind: str
    size: float | None = None
    function: Callable[[GroupActions], Array] | None = None

    @classmethod
    def parse(cls, spec: object) -> Neighborhood:
        """Reads the config key `neighborhood`.

        Args:
            spec: one of `NAMES`, `{radius: r}`, `{nearest: k}`, or a function or the path of one,
                whose first parameter is annotated as `GroupActions`. A path comes perhaps from a
                file of someone else: nothing else than such a function is ever called.

        Raises:
            ValueError: for anything else; the message names what would be legal.
        """
        if isinstance(spec, Neighborhood):
            return spec
        if isinstance(spec, str) and spec in NAMES:
            return cls(spec)
        if isinstance(spec, Mapping) and len(spec) == 1 and next(iter(spec)) in SIZED:
            kind, size = next(iter(spec.items()))
            if not is_number(size, 0) or not size or (kind == "nearest" and size != int(size)):
                raise ValueError(f"neighborhood {{{kind}: {size!r}}}: it must be {SIZED[kind]}.")
            return cls(kind, float(size))
        function: Any = find(spec) if isinstance(spec, str) else spec
        if _takes_actions(function):
            return cls(function.__qualname__, function=function)
        raise ValueError(
            f"neighborhood is {spec!r}{did_you_mean(str(spec), [*NAMES, *SIZED])}; legal are "
            f"{', '.join(map(repr, NAMES))}, {{radius: r}}, {{nearest: k}}, and a function, or its "
            "path, whose first parameter is annotated as rllib_mfq.GroupActions."
        )

    @property
    def needs(self) -> str | None:
        """What the environment must provide for it: `positions`, `edges` or None."""
        return {"radius": "positions", "nearest": "positions", "graph": "edges"}.get(self.kind)

    @property
    def reads(self) -> tuple[str, ...]:
        """What it reads besides actions: `needs`; a function may read whatever there is."""
        if self.function is not None:
            return ("positions", "edges")
        return (self.needs,) if self.needs else ()

    def width(self, group: str, num_actions: Mapping[str, int]) -> int:
        """Length of a mean action of `group`; `num_actions` has every group's number of actions."""
        return sum(num_actions.values()) if self.kind == "all" else num_actions[group]

    def mean_actions(self, own: GroupActions, others: Sequence[GroupActions] = ()) -> Array:
        """Averages the one-hot actions of every row's neighbours.

            mean[j] = 1/|N(j)| * sum over k in N(j) of onehot(a[k])

        Args:
            own: the group whose mean actions are wanted.
            others: the other groups in the environment's order; only `all` reads them.

        Returns:
            `[n, A]` float32 (`all`: own A first, then the other groups' side by side). A block
            sums to one, or is all zero where there is no neighbour.

        Raises:
            ValueError: the environment lacks the positions or edges this kind needs, or a
                function returned something else than pairs of rows of one population.
        """
        if self.needs and getattr(own, self.needs) is None:
            raise ValueError(
                f"neighborhood {self.kind!r} needs an environment that gives {self.needs}; this "
                "one does not, so use 'group', 'none' or 'all'."
            )
        if self.kind == "none":
            return np.zeros((len(own.actions), own.num_actions), np.float32)
        if self.function is not None:
            return _mean_over_pairs(own, self._own_pairs(own))
        if self.needs:
            return _mean_over_pairs(own, self._pairs(own))
        groups = [own, *others] if self.kind == "all" else [own]
        return np.concatenate([_mean_of_group(own, group) for group in groups], axis=1)

    def _pairs(self, own: GroupActions) -> Array:
        """`[p, 2]` rows (agent, neighbour), over all populations."""
        if self.kind == "graph":
            return np.asarray(own.edges)
        starts = np.flatnonzero(np.diff(own.population, prepend=-1))
        pairs = [np.zeros((0, 2), np.int64)]
        for start, end in itertools.pairwise([*starts, len(own.population)]):
            assert own.positions is not None and self.size is not None
            tree = cKDTree(own.positions[start:end])
            if self.kind == "radius":
                one_way = tree.query_pairs(self.size, output_type="ndarray")
                pairs.append(np.concatenate([one_way, one_way[:, ::-1]]) + start)
            else:
                pairs.append(_nearest_pairs(tree, int(self.size)) + start)
        return np.concatenate(pairs)

    def _own_pairs(self, own: GroupActions) -> Array:
        """`[p, 2]`: what the function returned, checked."""
        assert self.function is not None
        pairs = np.asarray(self.function(own))
        if not pairs.size:
            return np.zeros((0, 2), np.int64)
        problem = ""
        if pairs.dtype.kind not in "iu" or pairs.ndim != 2 or pairs.shape[1] != 2:
            problem = f"an array of {pairs.dtype}, {list(pairs.shape)}"
        elif pairs.min() < 0 or pairs.max() >= len(own.actions):
            problem = f"the rows {pairs.min()} to {pairs.max()}, of {len(own.actions)}"
        elif (bad := pairs[:, 0] == pairs[:, 1]).any():
            problem = f"row {pairs[bad][0, 0]} as its own neighbour"
        elif (bad := np.diff(np.asarray(own.population)[pairs]).ravel() != 0).any():
            problem = f"the rows {pairs[bad][0].tolist()}, which are of two populations"
        if problem:
            raise ValueError(
                f"the neighborhood {self.kind!r} returned {problem}; it must return an array of "
                "integers, [p, 2]: rows of agents, and of other agents of the same population."
            )
        return pairs


def _takes_actions(function: Any) -> bool:
    """Whether something is a function whose first parameter is annotated as `GroupActions`."""
    if not callable(function) or isinstance(function, type):
        return False
    try:
        first = next(iter(inspect.signature(function).parameters), "")
        return get_type_hints(function).get(first) is GroupActions
    except (NameError, TypeError, ValueError):  # no signature, or annotations that mean nothing
        return False


def _mean_of_group(own: GroupActions, group: GroupActions) -> Array:
    """`[n, A of group]`: the mean over a group for every row of `own`, which leaves itself out.

    (sum over the group - own action) / (living - 1): what a mask would give, in O(rows).
    """
    last = max(own.population.max(initial=-1), group.population.max(initial=-1))
    cells = group.population * group.num_actions + group.actions
    flat = np.bincount(cells, minlength=(last + 1) * group.num_actions).astype(np.float32)
    counts: Array = flat.reshape(-1, group.num_actions)  # [P, A]
    living: Array = counts.sum(1)
    mean = counts.take(own.population, axis=0)
    if group is own:
        mean.ravel()[np.arange(len(mean)) * own.num_actions + own.actions] -= 1.0
        living -= 1.0
    mean /= np.maximum(living, 1.0)[own.population, None]
    return mean


def _nearest_pairs(tree: cKDTree, k: int) -> Array:
    """`[p, 2]` rows (agent, neighbour) of one population, whose positions stand in `tree`."""
    ranks = np.arange(1, min(k + 1, tree.n) + 1)
    found = np.asarray(tree.query(tree.data, k=ranks)[1])  # [n, <= k + 1]
    agent = np.arange(tree.n)[:, None]
    # The k + 1 agents that are found include the agent itself, which is removed. Where others
    # stand on the same cell the agent may be missing among them; then the last one is removed,
    # so that k neighbours are left.
    mask = found != agent
    mask[:, -1] &= ~mask.all(axis=1)
    return np.stack([np.broadcast_to(agent, found.shape)[mask], found[mask]], axis=1)


def _mean_over_pairs(own: GroupActions, pairs: Array) -> Array:
    n, num_actions = len(own.actions), own.num_actions
    cells = pairs[:, 0] * num_actions + np.asarray(own.actions)[pairs[:, 1]]
    sums = np.bincount(cells.astype(np.int64), minlength=n * num_actions).reshape(n, num_actions)
    mean: Array = sums / np.maximum(sums.sum(1, keepdims=True), 1)
    return mean.astype(np.float32)
