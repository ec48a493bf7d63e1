"""Battle whose sides begin elsewhere and in another size every time, so that seeking pays."""

from collections.abc import Sequence

import numpy as np
from magent2.environments.battle import battle

from rllib_mfq.population.magent2 import MAgent2Population
from rllib_mfq.population.population import Array, Rows


class VariedBattle(MAgent2Population):
    """`battle_v4`, but the start is drawn at every reset.

    Both sides are squares of the same number of agents, in two halves of the map: left and right
    or top and bottom, either side in either half, each anywhere in its half. In `battle_v4` they
    stand in the middle, eight cells apart, and are always of one size.

    Args:
        widths: agents in a row, `width²` in a side; one is drawn for both sides.
        map_size: cells along each side of the map.
        max_cycles: steps of a match.

    Raises:
        ValueError: a square does not fit into half of the map.
    """

    def __init__(
        self, widths: Sequence[int] = (6, 7, 8), map_size: int = 40, max_cycles: int = 400
    ) -> None:
        fit = map_size // 4
        if not widths or not all(1 <= width <= fit for width in widths):
            raise ValueError(
                f"widths is {widths}; all must be 1 to {fit}, a quarter of map_size {map_size}."
            )
        super().__init__(battle.parallel_env(map_size=map_size, max_cycles=max_cycles))
        self._widths = list(widths)
        self._rng = np.random.default_rng()
        self.parallel_env.generate_map = self._generate_map

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; a seed restarts the draws of starts, too."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        return super().reset(seed=seed)

    def _generate_map(self) -> None:
        env, rng = self.parallel_env, self._rng
        width = int(rng.choice(self._widths))
        turned, swapped = rng.integers(2, size=2)
        for half, handle in enumerate(env.handles[::-1] if swapped else env.handles):
            places = self._square(half, width)
            env.env.add_agents(handle, method="custom", pos=places[:, ::-1] if turned else places)

    def _square(self, half: int, width: int) -> Array:
        """`[width², 2]` places, every second cell, of a square in the first or the second half."""
        size, extent = self.parallel_env.map_size, 2 * width - 1  # the outer cells are a wall
        low, high = ((1, size // 2), (size // 2, size - 1))[half]
        corner = [self._rng.integers(low, high - extent + 1), self._rng.integers(1, size - extent)]
        return np.add(corner, 2 * np.argwhere(np.ones((width, width))))
