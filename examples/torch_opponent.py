"""An opponent of one's own: plays a plain torch module that was trained elsewhere.

    NETWORK=net.pt rllib tournament examples.torch_opponent:TorchOpponent rush --env battle_v4

`net.pt` is a module that TorchScript has saved and that turns observations, [n, 13, 13, 5], into a
value of each action, [n, 21]. Without NETWORK an untrained one plays.
"""

import os
from collections.abc import Mapping

import numpy as np
import torch

from rllib_mfq import Group, OpponentPolicy, Scene


class TorchOpponent(OpponentPolicy):
    """Takes the action that the module values most, for all agents of all matches at once."""

    def __init__(self, group: str, groups: Mapping[str, Group]) -> None:
        super().__init__(group, groups)
        obs, actions = self.spaces
        if "NETWORK" in os.environ:
            self.network = torch.jit.load(os.environ["NETWORK"]).eval()
        else:
            size, num_actions = int(np.prod(obs.shape)), int(actions.n)
            self.network = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(size, num_actions)
            )

    def act(
        self,
        obs: np.ndarray,
        mean_actions: np.ndarray,
        action_mask: np.ndarray | None,
        scene: Scene,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """See `OpponentPolicy`."""
        with torch.inference_mode():
            return self.network(torch.from_numpy(obs)).argmax(dim=1).numpy()
