"""A crowd of one's own in arrays: sheep that graze, starve and have lambs.

    python -m examples.population

A `Population` steps all agents at once, without a loop and without an object per agent, so ten
thousand of them cost some 14 times as much as a hundred. `docs/environments.md` has the contract.
"""

import argparse

import gymnasium as gym
import numpy as np

from rllib_mfq import Group, MFQConfig, Population, Rows, Step

LEFT, EAT, RIGHT = range(3)


class Pasture(Population):
    """Grass grows on a ring of cells; whoever eats shares its cell's grass with others there.

    Args:
        sheep: how many there are at the start.
        cells: of the ring.
        steps: of an episode.
    """

    def __init__(self, sheep: int = 50, cells: int = 100, steps: int = 100) -> None:
        seen = gym.spaces.Box(0, 3, (4,), np.float32)  # the grass around oneself, one's energy
        self.groups = {"sheep": Group(seen, gym.spaces.Discrete(3))}
        self.sheep, self.cells, self.steps = sheep, cells, steps
        self.random = np.random.default_rng()

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Places everybody at random."""
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.ids, self.born, self.time = np.arange(self.sheep), self.sheep, 0
        self.places = self.random.integers(self.cells, size=self.sheep)
        self.energy, self.grass = np.ones(self.sheep), np.ones(self.cells)
        return {"sheep": self._rows()}

    def step(self, actions: dict[str, np.ndarray]) -> dict[str, Step]:
        """Moves or feeds everybody; the reward is what one ate."""
        self.places = (self.places + actions["sheep"] - EAT) % self.cells
        eats = actions["sheep"] == EAT
        eaters = np.bincount(self.places[eats], minlength=self.cells)
        meal = np.where(eats, self.grass[self.places] / np.maximum(eaters[self.places], 1), 0.0)
        self.grass = np.where(eaters, 0.0, np.minimum(self.grass + 0.05, 1.0))
        self.energy, self.time = np.minimum(self.energy + meal - 0.05, 3.0), self.time + 1
        dead, over = self.energy <= 0, self.time == self.steps
        self._stay(~dead)  # the survivors keep their order ...
        if not over:
            self._lamb()  # ... and those who enter come behind them
        return {"sheep": Step(meal, dead, np.full(len(dead), over), self._rows())}

    def observe(self, group: str, out: np.ndarray) -> None:
        """Writes `[n, 4]`."""
        around = (self.places[:, None] + [-1, 0, 1]) % self.cells
        out[:, :3], out[:, 3] = self.grass[around], self.energy

    def result(self) -> dict[str, dict[str, float]]:
        """Figures of an episode, which are reported as `survivors/sheep` and `born/sheep`."""
        alive, born = float(len(self.ids)), float(self.born - self.sheep)
        return {"survivors": {"sheep": alive}, "born": {"sheep": born}}

    def _rows(self) -> Rows:
        mask = np.ones((len(self.ids), 3), bool)
        mask[:, EAT] = self.grass[self.places] > 0
        return Rows(self.ids, action_mask=mask)

    def _stay(self, who: np.ndarray) -> None:
        self.ids, self.places, self.energy = (
            column[who] for column in (self.ids, self.places, self.energy)
        )

    def _lamb(self) -> None:
        parents = np.flatnonzero(self.energy >= 2)
        self.energy[parents] /= 2
        lambs = np.arange(self.born, self.born + len(parents))
        self.born += len(parents)
        self.ids = np.append(self.ids, lambs)
        self.places = np.append(self.places, self.places[parents])
        self.energy = np.append(self.energy, self.energy[parents])


def config() -> MFQConfig:
    """In a YAML: `env: examples.population.Pasture`, `env_config: {sheep: 50}`."""
    return (
        MFQConfig()
        .environment(Pasture, env_config={"sheep": 50})
        .training(temperature=[[0, 0.5], [100_000, 0.02]], gamma=0.9)
    )


def main() -> None:
    """Trains for some iterations and prints how the flock is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=10)
    algo = config().build_algo()
    for number in range(1, parser.parse_args().iterations + 1):
        found = algo.train()["env_runners"]
        ate, born = found["episode_return_mean"], found["born"]["sheep"]
        print(f"iteration {number}: the flock ate {ate:.0f} and had {born:.0f} lambs")
    algo.stop()


if __name__ == "__main__":
    main()
