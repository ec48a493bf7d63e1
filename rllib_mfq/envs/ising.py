"""The Ising model: spins on a torus, each an agent that is paid for agreeing with its neighbours.

Source: "Ising model" in the experiments of Yang et al. (2018).

Symbols: spin s_j is -1 or +1 and an agent's action is 0 or 1, s = 2a - 1.  N(j) are the four
sites around site j.  T is the temperature of the Boltzmann policy, in units of reward; it is
half the temperature of physics' textbooks, whose energy counts every bond once.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_mfq.envs.parallel import PopulationParallelEnv
from rllib_mfq.mean_field.legal import check_integer
from rllib_mfq.population.player import Act
from rllib_mfq.population.population import Array, Group, Population, Rows, Step

GROUP = "spin"
CURIE_TEMPERATURE = 1.0 / np.log(1.0 + np.sqrt(2.0))
"""T below which an infinite lattice is ordered (Onsager): 1.1346."""

TRUE_Q = np.array([[2.0, 1.0, 0.0, -1.0, -2.0], [-2.0, -1.0, 0.0, 1.0, 2.0]])
"""`[action, k]`: the reward of an action whose k neighbours of four are up, 1/2 s sum s_k."""


class IsingPopulation(Population):
    """An L x L torus of spins.

    At every step a random subset of the sites may choose anew; the mask leaves the others the
    spin that they have. If all chose at once, the two halves of the chessboard would only answer
    each other, and a perfectly ordered staggered state would count as disorder. In the first step
    nobody may choose, so that the neighbours see the start. Agents observe nothing, or with
    `observe_site` their own site, which gives them table entries of their own. Nobody dies; an
    episode is truncated.

    `result()` gives means over the episode's second half: `order_parameter`, |N_up - N_down| / L^2,
    and `energy`, -1/2 sum over bonds s s' per site, in units of reward (of two equal neighbours
    each is paid 1/2).

    Args:
        size: L, at least 3.
        max_cycles: steps of an episode.
        update_share: probability with which a site may choose, in `(0, 1]`. A sweep, one choice
            per site, takes 1 / update_share steps.
        start: `up`, all spins, or `random`. From random spins a cold lattice can freeze in
            stripes.
        observe_site: observe the site's number instead of a constant.
        seed: of the lattice, if `reset` gives none.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        size: int = 20,
        max_cycles: int = 400,
        update_share: float = 0.25,
        start: str = "up",
        observe_site: bool = False,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_integer("ising: size", size, 3)
        check_integer("ising: max_cycles", max_cycles, 1)
        if not 0 < update_share <= 1:
            must = "it must be above 0 and at most 1"
            raise ValueError(f"ising: update_share is {update_share!r}; {must}.")
        if start not in ("up", "random"):
            raise ValueError(f"ising: start is {start!r}; legal are up, random.")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"ising: render_mode is {render_mode!r}; legal is 'rgb_array'.")
        self.size, self.max_cycles, self.update_share = size, max_cycles, update_share
        self.start, self.observe_site, self.render_mode = start, observe_site, render_mode
        self._ids = np.arange(size * size, dtype=np.int32)
        highest = float(self._ids[-1]) if observe_site else 0.0
        box = gym.spaces.Box(0.0, highest, (1,), np.float32)
        self.groups = {GROUP: Group(box, gym.spaces.Discrete(2))}
        self._edges = _torus(size)
        self._rng = np.random.default_rng(seed)
        self._spins = np.ones((size, size), np.int8)
        self._figures: list[tuple[float, float]] = []

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; a seed restarts the random numbers."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._spins = np.ones((self.size, self.size), np.int8)
        if self.start == "random":
            self._spins = (2 * self._rng.integers(2, size=self._spins.shape) - 1).astype(np.int8)
        self._free = np.zeros(len(self._ids), bool)
        self._figures = [self._measure()]
        return {GROUP: self._rows()}

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Sets the spins of the sites that may choose; the actions of the others do nothing."""
        chosen = (2 * actions[GROUP] - 1).reshape(self._spins.shape).astype(np.int8)
        self._spins = np.where(self._free.reshape(self._spins.shape), chosen, self._spins)
        rewards = 0.5 * self._spins * self.field()
        self._figures.append(self._measure())
        n, over = len(self._ids), len(self._figures) > self.max_cycles
        self._free = self._rng.random(n) < self.update_share
        ended, cut = np.zeros(n, bool), np.full(n, over)
        return {GROUP: Step(rewards.ravel().astype(np.float32), ended, cut, self._rows())}

    def observe(self, group: str, out: Array) -> None:
        """Writes `[n, 1]`: the site, or zero."""
        out[:, 0] = self._ids if self.observe_site else 0.0

    def result(self) -> dict[str, dict[str, float]]:
        """Order parameter and energy, means over the second half of the episode so far."""
        figures = np.array(self._figures[len(self._figures) // 2 :] or [self._measure()])
        order, energy = figures.mean(axis=0).tolist()
        return {"order_parameter": {GROUP: order}, "energy": {GROUP: energy}}

    def render(self) -> Array:
        """`[h, w, 3]` uint8: up is orange, down is blue, some 400 pixels wide."""
        up, down = np.array([230, 159, 0], np.uint8), np.array([0, 114, 178], np.uint8)
        picture = np.where(self._spins[..., None] > 0, up, down)
        scale = max(1, 400 // self.size)
        return picture.repeat(scale, axis=0).repeat(scale, axis=1)

    def field(self) -> Array:
        """`[L, L]`: the sum of the four spins around each site."""
        around = self._spins.ravel()[self._edges[:, 1]].reshape(4, self.size, self.size)
        total: Array = around.sum(axis=0, dtype=np.int8)  # an eighth of four rolls' time
        return total

    def _measure(self) -> tuple[float, float]:
        """Order parameter and energy of the spins as they are."""
        energy = -0.25 * float((self._spins * self.field()).mean())
        return abs(float(self._spins.mean())), energy

    def _rows(self) -> Rows:
        mask = np.repeat(self._free[:, None], 2, axis=1)
        mask[self._ids, (self._spins.ravel() > 0).astype(int)] = True
        return Rows(self._ids, action_mask=mask, edges=self._edges)


def parallel_env(**arguments: Any) -> PopulationParallelEnv:
    """The Ising model as a PettingZoo ParallelEnv; the arguments are `IsingPopulation`'s."""
    return PopulationParallelEnv(IsingPopulation(**arguments), "ising_v0")


def exact_magnetization(temperature: Array) -> Array:
    """Onsager's and Yang's magnetisation of an infinite lattice.

        (1 - sinh(1 / T)^-4)^(1/8) below the Curie temperature, 0 above

    `temperature` is T in units of reward, of any shape. The result has the same shape and is in
    `[0, 1]`.
    """
    temperature = np.asarray(temperature, float)
    with np.errstate(over="ignore"):
        inside = 1.0 - np.sinh(1.0 / temperature) ** -4.0
    return np.clip(inside, 0.0, None) ** 0.125


def heat_bath(temperature: float, seed: int | None = None) -> Act:
    """Glauber dynamics: the Boltzmann policy of the true rewards, without any learning.

        P(up) = 1 / (1 + exp(-sum over k in N(j) of s_k / T))

    `temperature` is T in units of reward; `seed` is that of the draws: one uniform number per site
    and step, used as `sample_actions` uses it, so that a learned policy with the same seed differs
    only where it has learned something else. The result is a player's `act` for any Ising
    population, with the neighbourhood `graph`.
    """
    generator = torch.Generator()
    generator.manual_seed(generator.seed() if seed is None else seed)

    def act(obs: Array, mean_actions: Array, action_mask: Array | None) -> Array:
        field = 4.0 * (mean_actions[:, 1] - mean_actions[:, 0])  # zero before there is a mean
        drawn = torch.rand(len(field), generator=generator).numpy()
        up: Array = drawn >= 1.0 / (1.0 + np.exp(field / temperature))
        if action_mask is not None:
            up = np.where(action_mask.all(axis=1), up, action_mask[:, 1])
        return up.astype(np.int64)

    return act


def _torus(size: int) -> Array:
    """`[4 L^2, 2]`: every site and each of its four neighbours."""
    sites = np.arange(size * size).reshape(size, size)
    around = [np.roll(sites, shift, axis) for axis in (0, 1) for shift in (1, -1)]
    pairs = [np.stack([sites.ravel(), other.ravel()], axis=1) for other in around]
    return np.concatenate(pairs)
