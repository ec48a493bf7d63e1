"""An encoder of one's own: attention over the positions of the nearest neighbours.

    python -m examples.attention

Agents in the plane want to meet. Each sees where its six nearest neighbours are, in no order: a
set, of which `NeighbourAttention` gives the same features in whatever order it comes.
"""

import argparse

import gymnasium as gym
import numpy as np
from scipy.spatial import cKDTree
from torch import Tensor, nn

from rllib_mfq import Group, MFQConfig, Population, Rows, Step

AGENTS, NEIGHBOURS, STEPS, STRIDE = 20, 6, 25, 0.05
MOVES = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]) * STRIDE


class NeighbourAttention(nn.Module):
    """Maps observations `[B, k, 2]`, k neighbours' offsets, to features `[B, width]`.

    Args:
        observation_space: the environment's, of shape `[k, 2]`.
        width: of the features.
        heads: of the attention.
    """

    def __init__(self, observation_space: gym.spaces.Box, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(observation_space.shape[1], width), nn.ReLU())
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, obs: Tensor) -> Tensor:
        """Features: what each neighbour becomes beside the others, averaged over them."""
        neighbours = self.embedding(obs)
        return self.attention(neighbours, neighbours, neighbours, need_weights=False)[0].mean(1)


class Meeting(Population):
    """Agents in the unit square, rewarded for coming closer to their nearest neighbours."""

    def __init__(self, config: object = None) -> None:
        offsets = gym.spaces.Box(-1, 1, (NEIGHBOURS, 2))
        self.groups = {"walker": Group(offsets, gym.spaces.Discrete(len(MOVES)))}
        self.rng = np.random.default_rng()

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Places everybody at random."""
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.places, self.time = self.rng.random((AGENTS, 2)), 0
        return {"walker": self._rows()}

    def step(self, actions: dict[str, np.ndarray]) -> dict[str, Step]:
        """Moves everybody; the reward is by how many strides one's neighbours came closer."""
        before = self.distances.mean(1)
        self.places = np.clip(self.places + MOVES[actions["walker"]], 0, 1)
        self.time += 1
        rows = self._rows()
        closer = (before - self.distances.mean(1)) / STRIDE
        over = np.full(AGENTS, self.time == STEPS)
        return {"walker": Step(closer, np.zeros(AGENTS, bool), over, rows)}

    def observe(self, group: str, out: np.ndarray) -> None:
        """Writes the neighbours' offsets in a random order."""
        order = self.rng.permuted(np.tile(np.arange(NEIGHBOURS), (AGENTS, 1)), axis=1)
        nearest = np.take_along_axis(self.nearest, order, axis=1)
        out[:] = self.places[nearest] - self.places[:, None]

    def _rows(self) -> Rows:
        found = cKDTree(self.places).query(self.places, k=NEIGHBOURS + 1)
        self.distances, self.nearest = found[0][:, 1:], found[1][:, 1:]
        return Rows(np.arange(AGENTS), positions=self.places)


def config() -> MFQConfig:
    """Mean field Q-learning with the encoder above.

    In a YAML: `model_config: {encoder: examples.attention.NeighbourAttention}`.
    """
    return (
        MFQConfig()
        .environment(Meeting)
        .rl_module(model_config={"encoder": NeighbourAttention, "encoder_config": {"heads": 2}})
        .training(
            neighborhood={"nearest": NEIGHBOURS},
            temperature=[[0, 1.0], [60_000, 0.05]],
            gamma=0.8,
            lr=1e-3,
            num_steps_sampled_before_learning_starts=2_000,
        )
        .reporting(min_sample_timesteps_per_iteration=500)
    )


def main() -> None:
    """Trains for some iterations and prints what the agents of an episode earn together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=12)
    algo = config().build_algo()
    for number in range(1, parser.parse_args().iterations + 1):
        result = algo.train()
        print(f"iteration {number}: return {result['env_runners']['episode_return_mean']:.1f}")
    algo.stop()


if __name__ == "__main__":
    main()
