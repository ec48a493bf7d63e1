"""Scripted opponents for the battles of MAgent2, `battle_v4` and `battlefield_v5`.

They play by what MAgent2 tells: health and neighbours by the observation, and positions of all. The
21 actions of a soldier are 13 moves, to the cells within 2 of its own and by rows, and 8 attacks,
on the cells around it and by rows; `get_view2attack` of the engine says the same of the attacks.
"""

from collections.abc import Mapping

import numpy as np

from rllib_mfq.population.opponent_policy import OpponentPolicy
from rllib_mfq.population.player import Scene
from rllib_mfq.population.population import Array, Group

VIEW, CENTRE = (13, 13, 5), 6
WALL, FRIENDS, ENEMIES, ENEMY_HEALTH = 0, 1, 3, 4
"""Channels of the view, which is indexed by y and x; health is a share of the full 10 points."""


def _cells(reach: float, centre: bool) -> Array:
    """`[k, 2]` steps in x and y to the cells within reach, by rows."""
    way = range(-2, 3)
    steps = [(x, y) for y in way for x in way if x * x + y * y <= reach**2]
    return np.array([step for step in steps if centre or step != (0, 0)])


MOVES = _cells(2.0, centre=True)
ATTACKS = _cells(1.5, centre=False)
STAY = int(np.flatnonzero((MOVES == 0).all(axis=1))[0])


class Still(OpponentPolicy):
    """Does nothing. The base of the other scripts."""

    def __init__(self, group: str, groups: Mapping[str, Group]) -> None:
        super().__init__(group, groups)
        space, actions = self.spaces
        if space.shape != VIEW or int(actions.n) != len(MOVES) + len(ATTACKS):
            raise ValueError(
                f"it plays MAgent2's battles, whose groups observe {list(VIEW)} and have "
                f"{len(MOVES) + len(ATTACKS)} actions; group {group!r} observes "
                f"{list(space.shape)} and has {int(actions.n)}."
            )

    def act(
        self,
        obs: Array,
        mean_actions: Array,
        action_mask: Array | None,
        scene: Scene,
        rng: np.random.Generator,
    ) -> Array:
        """See `OpponentPolicy`."""
        return self.choose(obs, scene, rng)

    def choose(self, obs: Array, scene: Scene, rng: np.random.Generator) -> Array:
        """`[n]` actions; a script looks at nothing else."""
        return np.full(len(obs), STAY)


class Hold(Still):
    """Stays where it is and hits whoever comes near, the weakest first."""

    def choose(self, obs: Array, scene: Scene, rng: np.random.Generator) -> Array:
        """See `Still`."""
        at = _seen(obs, ATTACKS)
        there = at[..., ENEMIES] > 0
        target = np.where(there, at[..., ENEMY_HEALTH], np.inf).argmin(axis=1)
        return np.where(there.any(axis=1), len(MOVES) + target, self.move(obs, scene, rng))

    def move(self, obs: Array, scene: Scene, rng: np.random.Generator) -> Array:
        """`[n]`: where those go that have nobody to hit."""
        return np.full(len(obs), STAY)


class Rush(Hold):
    """Runs to the nearest enemy, wherever it is, and hits it."""

    def move(self, obs: Array, scene: Scene, rng: np.random.Generator) -> Array:
        """See `Hold`."""
        return _towards(scene.to_nearest, obs, rng)


class Flee(Still):
    """Keeps away from the nearest enemy, and never hits."""

    def choose(self, obs: Array, scene: Scene, rng: np.random.Generator) -> Array:
        """See `Still`."""
        return _towards(scene.to_nearest, obs, rng, away=True)


SCRIPTS: dict[str, type[OpponentPolicy]] = {
    "still": Still,
    "rush": Rush,
    "hold": Hold,
    "flee": Flee,
}
"""By the names that users give them."""


def _seen(obs: Array, steps: Array) -> Array:
    """`[n, k, channels]`: what is seen at so many steps from one's own place."""
    return obs[:, CENTRE + steps[:, 1], CENTRE + steps[:, 0]]


def _towards(way: Array, obs: Array, rng: np.random.Generator, away: bool = False) -> Array:
    """The moves that bring one nearest to (or farthest from) the end of a way, `[n, 2]`.

    Among equally good ones a draw decides. Nobody moves where somebody stands, or a wall.
    """
    left = np.linalg.norm(way[:, None] - MOVES, axis=2)  # [n, 13]
    draw = rng.random(left.shape)
    cost = (-left if away else left) + 1e-3 * draw
    taken = np.logical_or.reduce(_seen(obs, MOVES)[..., [WALL, FRIENDS, ENEMIES]] > 0, axis=2)
    taken[:, STAY] = False
    cost[taken | np.isnan(cost)] = np.inf
    return np.where(np.isfinite(cost).any(axis=1), cost.argmin(axis=1), STAY)
