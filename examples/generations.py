"""A crowd whose agents die and are born, and whose actions are not always legal.

cd examples
rllib train --run MFQ --env generations.Walkers --stop '{time_total_s: 60}'
"""
# ruff: noqa: D102 - the methods are PettingZoo's

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv


class Walkers(ParallelEnv):
    """The nearer to the middle of all, the better. Who is far away ten times dies; others come."""

    metadata = {"name": "walkers", "render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, size=20, steps=40, render_mode=None):
        self.size, self.steps, self.render_mode = size, steps, render_mode
        self.possible_agents = [f"walker_{number}" for number in range(size + steps)]
        self.sees = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.does = gym.spaces.Discrete(3)  # left, stay, right
        self.random = np.random.default_rng()

    def observation_space(self, agent):
        return self.sees

    def action_space(self, agent):
        return self.does

    def reset(self, seed=None, options=None):
        self.random = self.random if seed is None else np.random.default_rng(seed)
        self.agents, self.t, self.born = [], 0, 0
        self.places, self.far_away = np.zeros(0), np.zeros(0, int)
        self._enter(self.size)
        return self._see()

    def step(self, actions):
        moves = np.array([actions[agent] - 1 for agent in self.agents])
        self.places, self.t = np.clip(self.places + 0.05 * moves, 0, 1), self.t + 1
        distances = np.abs(self.places - self.places.mean())
        rewards = dict(zip(self.agents, (0.5 - distances).tolist(), strict=True))
        self.far_away += distances > 0.3
        if self.t % 4 == 0:  # a birth: a new name, which acts from the next step on
            self._enter(1)
            rewards[self.agents[-1]] = 0.0
        dead, late = self.far_away == 10, self.t == self.steps
        observations, infos = self._see()  # the dead see their last step, too
        deaths = dict(zip(self.agents, dead.tolist(), strict=True))
        cuts = dict.fromkeys(self.agents, late)
        self.places, self.far_away = self.places[~dead], self.far_away[~dead]
        self.agents = [] if late else [agent for agent in self.agents if not deaths[agent]]
        return observations, rewards, deaths, cuts, infos

    def render(self):
        picture = np.full((30, 201, 3), 255, np.uint8)
        picture[5:25, (200 * self.places).astype(int)] = (0, 114, 178)
        return picture

    def _enter(self, number):
        self.agents += self.possible_agents[self.born : self.born + number]
        self.born += number
        self.places = np.append(self.places, self.random.uniform(size=number))
        self.far_away = np.append(self.far_away, np.zeros(number, int))

    def _see(self):
        # Where one is, and how far everybody is on average; masks, for nobody leaves the line.
        seen = np.stack([self.places, self.places.mean() - self.places], axis=1)
        legal = np.stack([self.places > 0, self.places >= 0, self.places < 1], axis=1)
        infos = {
            agent: {"action_mask": mask} for agent, mask in zip(self.agents, legal, strict=True)
        }
        return dict(zip(self.agents, seen.astype(np.float32), strict=True)), infos
