"""An environment that cannot be played without a memory."""

import sys

import gymnasium as gym
import numpy as np
from ray import cloudpickle

from rllib_mfq.population.population import Group, Rows, Step

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

CUES, DELAY = 4, 10


class Cue:
    """Every agent sees a cue of its own at the first step, and is asked for it ten steps later.

    The right action then pays 1 and ends its life; no other step pays or shows anything.
    """

    def __init__(self, config=None):
        self.agents = (config or {}).get("agents", 32)
        space = gym.spaces.Box(0, 1, (CUES + 1,), np.float32)
        self.groups = {"red": Group(space, gym.spaces.Discrete(CUES))}

    def reset(self, *, seed=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t, self.cues = 0, self.rng.integers(CUES, size=self.agents)
        return {"red": Rows(np.arange(self.agents))}

    def step(self, actions):
        asked = self.t == DELAY
        self.t += 1
        rewards = (actions["red"] == self.cues).astype(np.float32) * asked
        over = np.full(self.agents, asked)
        rows = Rows(np.arange(0 if asked else self.agents))
        return {"red": Step(rewards, over, np.zeros(self.agents, bool), rows)}

    def observe(self, group, out):
        out[:] = 0
        if self.t == 0:
            out[np.arange(self.agents), self.cues] = 1
        out[:, CUES] = self.t == DELAY
