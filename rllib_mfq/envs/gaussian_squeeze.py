"""The Gaussian squeeze: many agents must add up to a resource without using too much of it.

Source: "Gaussian squeeze" in the experiments of Yang et al. (2018).

Symbols: agent j of a group of N plays a_j in {0, .., A - 1}; x = sum of a_j over the group; all
of the group receive G(x) = x exp(-(x - mu)^2 / sigma^2).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_mfq.envs.parallel import PopulationParallelEnv
from rllib_mfq.mean_field.legal import check_integer, is_number
from rllib_mfq.population.population import Array, Group, Population, Rows, Step


class GaussianSqueezePopulation(Population):
    """The squeeze, played over and over.

    Agents observe nothing (a constant). Every step pays; an episode is `max_cycles` steps and
    is truncated. With several `mu` there are as many groups, each squeezed on its own.

    `result()` gives the figures of the last step: `squeeze`, G(x), and `total`, x.

    Args:
        num_agents: N, of every group.
        num_actions: A.
        mu: centre of the squeeze; a list makes one group of each.
        sigma: its width; a list of the same length, or one for all groups.
        max_cycles: steps of an episode.

    Raises:
        ValueError: an argument outside its range, or lists of different lengths.
    """

    def __init__(
        self,
        num_agents: int = 100,
        num_actions: int = 10,
        mu: float | Sequence[float] = 400.0,
        sigma: float | Sequence[float] = 200.0,
        max_cycles: int = 10,
    ) -> None:
        check_integer("gaussian_squeeze: num_agents", num_agents, 1)
        check_integer("gaussian_squeeze: num_actions", num_actions, 2)
        check_integer("gaussian_squeeze: max_cycles", max_cycles, 1)
        centres = list(mu) if isinstance(mu, Sequence) else [mu]
        widths = list(sigma) if isinstance(sigma, Sequence) else [sigma] * len(centres)
        for name, values in (("mu", centres), ("sigma", widths)):
            if not values or not all(is_number(value, 0) and value for value in values):
                must = "it must be a positive number or a list of such"
                raise ValueError(f"gaussian_squeeze: {name} is {values}; {must}.")
        if len(centres) != len(widths):
            found = f"mu has {len(centres)} values and sigma {len(widths)}"
            raise ValueError(f"gaussian_squeeze: {found}; give equally many, or one sigma for all.")
        names = ["squeeze"] if len(centres) == 1 else [f"squeeze{i}" for i in range(len(centres))]
        self.num_agents, self.max_cycles = num_agents, max_cycles
        self.squeezes = dict(zip(names, zip(centres, widths, strict=True), strict=True))
        space = Group(gym.spaces.Box(0.0, 0.0, (1,), np.float32), gym.spaces.Discrete(num_actions))
        self.groups = dict.fromkeys(names, space)
        self._ids = np.arange(num_agents, dtype=np.int32)
        self.reset()

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; nothing is random."""
        self._steps = 0
        self._total = dict.fromkeys(self.groups, 0.0)  # x of the last step
        return {group: Rows(self._ids) for group in self.groups}

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Pays every agent the squeeze of its group's total."""
        self._steps += 1
        n, over = self.num_agents, self._steps >= self.max_cycles
        steps = {}
        for group, (mu, sigma) in self.squeezes.items():
            self._total[group] = float(np.sum(actions[group]))
            reward = np.full(n, squeeze(self._total[group], mu, sigma), np.float32)
            steps[group] = Step(reward, np.zeros(n, bool), np.full(n, over), Rows(self._ids))
        return steps

    def observe(self, group: str, out: Array) -> None:
        """Writes zeros, `[n, 1]`."""
        out[:] = 0.0

    def result(self) -> dict[str, dict[str, float]]:
        """G(x) and x of the last step."""
        paid = {group: squeeze(self._total[group], *self.squeezes[group]) for group in self.groups}
        return {"squeeze": paid, "total": dict(self._total)}


def parallel_env(**arguments: Any) -> PopulationParallelEnv:
    """As a PettingZoo ParallelEnv; the arguments are `GaussianSqueezePopulation`'s."""
    return PopulationParallelEnv(GaussianSqueezePopulation(**arguments), "gaussian_squeeze_v0")


def squeeze(total: float, mu: float, sigma: float) -> float:
    """G(x) = x exp(-(x - mu)^2 / sigma^2)."""
    return total * math.exp(-((total - mu) ** 2) / sigma**2)


def optimum(mu: float, sigma: float) -> tuple[float, float]:
    """The total x at which G is largest, and G there; x need not be a whole number.

    0 = G'(x) = (1 - 2 x (x - mu) / sigma^2) exp(..)   at   x = (mu + sqrt(mu^2 + 2 sigma^2)) / 2
    """
    total = (mu + math.sqrt(mu**2 + 2 * sigma**2)) / 2
    return total, squeeze(total, mu, sigma)
