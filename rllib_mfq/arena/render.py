"""Pictures of a match."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_context import EnvContext

from rllib_mfq.algorithm.opponents import RANDOM, load_opponent, saved_settings
from rllib_mfq.arena.output import check_output, replacing
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.population import Array
from rllib_mfq.population.sampler import Sampler

WRITERS = {".gif": "PIL", ".mp4": "imageio_ffmpeg"}


def film_match(
    checkpoint: str,
    opponent: str | None = None,
    env_config: Mapping[str, Any] | None = None,
    seed: int = 0,
    explore: bool = False,
) -> tuple[list[Array], Episode]:
    """Plays one match and takes a picture before every step.

    Args:
        checkpoint: path of an algorithm's checkpoint, which plays the first group, in the
            environment that it was trained in.
        opponent: plays the other groups, as `load_opponent` takes it; random by default.
        env_config: overrides of the environment's own, such as another `map_size`.
        seed: of the environment and of draws.
        explore: whether checkpoints draw from their Boltzmann policies; greedy otherwise.

    Returns:
        The pictures, `[h, w, 3]` uint8 each, and the match.

    Raises:
        ValueError: there is no such checkpoint, it cannot play this environment, or that has
            no pictures, or no other group although there is an opponent.
    """
    settings = saved_settings(checkpoint)
    if not settings:
        raise ValueError(f"{checkpoint!r} is not the folder of an algorithm's checkpoint.")
    _, make = Algorithm._get_env_id_and_creator(settings["env"], settings)
    arguments = {**settings["env_config"], **(env_config or {}), "render_mode": "rgb_array"}
    population = as_population(make(EnvContext(arguments, worker_index=0)))
    generator = torch.Generator().manual_seed(seed)
    groups = population.groups
    mine, *others = groups
    if opponent and not others:
        raise ValueError(f"opponent is {opponent!r}, but {mine!r} is the environment's only group.")
    players = load_opponent("opponent", opponent or RANDOM, groups, explore).players(generator)
    players |= {
        mine: load_opponent("checkpoint", checkpoint, groups, explore).players(generator)[mine]
    }
    pictures: list[Array] = []

    def photograph(event: str, episode: Episode) -> None:
        if event in ("start", "step"):
            picture = getattr(population, "render", lambda: None)()
            if picture is None:
                raise ValueError(f"{settings['env']} has no pictures: its render() returns None.")
            pictures.append(picture)

    sampler = Sampler(lambda index: population, 1, players, seed, on_event=photograph)
    try:
        episode = sampler.sample(num_episodes=1, keep=False).episodes[0]
    finally:
        sampler.close()
    return pictures, episode


def check_animation(path: Path) -> None:
    """Raises a ValueError or an ImportError unless an animation can be written there."""
    check_output(path, tuple(WRITERS))
    for package in ("imageio", WRITERS[path.suffix]):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'{path} needs {package}: pip install "rllib_mfq[render]".')


def write_animation(pictures: list[Array], path: Path, frames_per_second: float = 12.0) -> None:
    """Writes pictures as an animation; the suffix, one of `WRITERS`, decides on the format."""
    import imageio.v3 as imageio

    last = [pictures[-1]] * int(1.5 * frames_per_second)  # so that a loop shows how it ended
    with replacing(path) as part:
        if path.suffix == ".gif":
            duration = 1000 / frames_per_second
            imageio.imwrite(part, pictures + last, duration=duration, loop=0)
        else:
            height, width, _ = pictures[0].shape
            margins = ((0, height % 2), (0, width % 2), (0, 0))  # the codec halves the colours
            frames = [np.pad(picture, margins, mode="edge") for picture in pictures + last]
            imageio.imwrite(part, frames, fps=frames_per_second, macro_block_size=2)
