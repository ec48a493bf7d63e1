"""Players: who chooses the actions of a group, and what it sees and averages over."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.population import Array

Act = Callable[..., Any]
"""Chooses actions for n agents at once.

Observations `[n, *obs]`, mean actions `[n, width]` and action masks, `[n, A]` bool or None, go
in; `[n]` integer actions come out.
"""


@dataclass(frozen=True)
class Player:
    """Who plays one or several groups.

    Attributes:
        name: names the columns of its rows: the module that learns from them.
        act: chooses its actions.
        neighborhood: whom its mean actions average over.
        mean_action_iterations: M of "Algorithm 1": how often actions and mean actions are
            sampled in turn before the last actions are played.
        act_together: chooses the actions instead of `act`, where agents share their exploration.
            Its fourth argument, `[n]` integers, numbers every agent's group and population.
        carried: further columns that its agents carry from step to step, see `block.CARRIED`.
        remembers: columns that it writes at every step besides the actions, `{name: (shape of an
            agent's value, dtype)}`, for `carried` to take them to the next step: what a recurrent
            network remembers. If there are any, what `carried` names goes in by keyword, and
            `(actions, {name: [n, *shape]})` comes out.
        sees: whether `act` also gets, by the keyword `scene`, a `Scene`. Such a player plays one
            group.
        learns: whether its rows are learned from, and so counted.
    """

    name: str
    act: Act
    neighborhood: Neighborhood
    mean_action_iterations: int = 1
    act_together: Callable[..., Any] | None = None
    carried: Mapping[str, str] = field(default_factory=dict)
    remembers: Mapping[str, tuple[tuple[int, ...], Any]] = field(default_factory=dict)
    sees: bool = False
    learns: bool = True


class Scene:
    """What a player may know besides the observations: who is where, in all populations at once.

    Attributes:
        group: the group that is played.
        steps: `[n]` int32, how many steps the match of each of its agents has had.
        population: `[n]` int64, ascending: which population each of them is in.

    The sampler makes it; `mine` and `theirs` read positions when they are asked for.
    """

    def __init__(
        self,
        group: str,
        steps: Array,
        population: Array,
        mine: Callable[[], tuple[Array, Array]],
        theirs: Callable[[], tuple[Array, Array]],
    ) -> None:
        self.group, self.steps, self.population = group, steps, population
        self._mine, self._theirs = mine, theirs

    @functools.cached_property
    def positions(self) -> Array:
        """`[n, d]`: where each agent of the group is, in the environment's coordinates."""
        return self._mine()[1]

    @functools.cached_property
    def others(self) -> tuple[Array, Array]:
        """`[m]` and `[m, d]`: population and position of every agent of the other groups."""
        return self._theirs()

    @functools.cached_property
    def to_nearest(self) -> Array:
        """`[n, d]` float64: the way to the nearest agent of another group; NaN if all are gone."""
        population, positions = self.others
        way = np.full(self.positions.shape, np.nan)
        if len(positions):
            # Populations are farther from each other than any two agents of one.
            apart = 4.0 * (1.0 + np.abs(np.concatenate([self.positions, positions])).max())
            points = (
                np.column_stack([apart * of, where])
                for of, where in ((population, positions), (self.population, self.positions))
            )
            tree, here = cKDTree(next(points)), next(points)
            nearest = tree.query(here)[1]
            met = population[nearest] == self.population
            way[met] = (positions[nearest] - self.positions)[met]
        return way
