"""An environment of one's own: walkers on a line who are paid for meeting.

cd examples
rllib train --run MFQ --env crowd.Crowd --set env_config.size=30 --stop '{time_total_s: 60}'
rllib evaluate CHECKPOINT       # `train` ends with this line and the checkpoint's path
rllib render CHECKPOINT -o crowd.gif
"""
# ruff: noqa: D102 - the methods are PettingZoo's

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv


class Crowd(ParallelEnv):
    """Agents see how far they are from the middle of all, which they are paid to be near."""

    metadata = {"name": "crowd", "render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, size=20, steps=40, render_mode=None):
        self.possible_agents = [f"walker_{number}" for number in range(size)]
        self.steps, self.render_mode, self.random = steps, render_mode, np.random.default_rng()
        self.sees = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.does = gym.spaces.Discrete(3)  # left, stay, right

    def observation_space(self, agent):
        return self.sees

    def action_space(self, agent):
        return self.does

    def reset(self, seed=None, options=None):
        self.random = self.random if seed is None else np.random.default_rng(seed)
        self.agents, self.t = list(self.possible_agents), 0
        self.places = self.random.uniform(size=len(self.agents))
        return self._see(), {agent: {} for agent in self.agents}

    def step(self, actions):
        moves = np.array([actions[agent] - 1 for agent in self.agents])
        self.places, self.t = np.clip(self.places + 0.05 * moves, 0, 1), self.t + 1
        rewards = dict(zip(self.agents, -np.abs(self.places - self.places.mean()), strict=True))
        alive, late = (dict.fromkeys(self.agents, x) for x in (False, self.t == self.steps))
        result = self._see(), rewards, alive, late, {agent: {} for agent in self.agents}
        if self.t == self.steps:
            self.agents = []
        return result

    def render(self):
        picture = np.full((30, 201, 3), 255, np.uint8)
        picture[5:25, (200 * self.places).astype(int)] = (0, 114, 178)
        return picture

    def _see(self):  # where it is, and how far everybody is on average
        seen = np.stack([self.places, self.places.mean() - self.places], axis=1)
        return dict(zip(self.agents, seen.astype(np.float32), strict=True))
