"""Atari games as DQN's users know them: four stacked grey frames of 84 x 84 bytes."""

from typing import Any

import gymnasium as gym
import numpy as np

from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.population import Population


def atari(
    game: str, screen_size: int = 84, frame_stack: int = 4, clip_rewards: bool = False
) -> Population:
    """One Atari game (Bellemare et al., JAIR 2013), preprocessed by Gymnasium's own wrappers.

    Every action is played for four frames, of which the brighter of the last two is seen; an
    episode starts with up to 30 frames without action (Mnih et al., Nature 2015).

    Args:
        game: such as `Pong`, in the spelling of `ALE/Pong-v5`.
        screen_size: of the frames that are observed, `[frame_stack, screen_size, screen_size]`.
        frame_stack: how many of the latest frames are observed.
        clip_rewards: reward -1, 0 or 1; returns count the clipped ones.

    Raises:
        ImportError: the extra `atari` is not installed.
    """
    import ale_py
    import cv2  # noqa: F401  (Gymnasium's wrapper needs it, and would say so only later)

    gym.register_envs(ale_py)
    name = f"ALE/{game}-v5"
    env: Any = gym.make(name, frameskip=1, repeat_action_probability=0.0, render_mode="rgb_array")
    env = gym.wrappers.AtariPreprocessing(env, screen_size=screen_size)
    env = gym.wrappers.FrameStackObservation(env, frame_stack)
    if clip_rewards:
        env = gym.wrappers.TransformReward(env, lambda reward: np.sign(float(reward)))
    return as_population(env)
