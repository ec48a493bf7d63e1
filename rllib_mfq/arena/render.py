"""Pictures of a match."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_context import EnvContext

from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.population import Array
from rllib_mfq.population.sampler import Sampler


def film_match(
    checkpoint: str,
    opponent: str = "random",
    env_config: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[list[Array], Episode]:
    """Plays one match greedily and takes a picture before every step.

    Args:
        checkpoint: path of an algorithm's checkpoint, which plays the first group, in the
            environment that it was trained in.
        opponent: `random` or the path of a checkpoint, which plays the other groups.
        env_config: overrides of the environment's own, such as another `map_size`.
        seed: of the environment and of random play.

    Returns:
        The pictures, `[h, w, 3]` uint8 each, and the match.

    Raises:
        ValueError: there is no such checkpoint, or it cannot play this environment.
    """
    path = Path(checkpoint).expanduser() / "class_and_ctor_args.pkl"
    if not path.is_file():
        raise ValueError(f"{checkpoint!r} is not the folder of an algorithm's checkpoint.")
    settings = pickle.loads(path.read_bytes())["ctor_args_and_kwargs"][0][0]
    _, make = Algorithm._get_env_id_and_creator(settings["env"], settings)
    arguments = {**settings["env_config"], **(env_config or {}), "render_mode": "rgb_array"}
    population = as_population(make(EnvContext(arguments, worker_index=0)))
    generator = torch.Generator().manual_seed(seed)
    mine, *_ = population.groups
    players = load_opponent("opponent", opponent, population.groups).players(generator)
    players |= {
        mine: load_opponent("checkpoint", checkpoint, population.groups).players(generator)[mine]
    }
    pictures: list[Array] = []

    def photograph(event: str, episode: Episode) -> None:
        if event in ("start", "step"):
            pictures.append(population.render())  # type: ignore[attr-defined]

    sampler = Sampler(lambda index: population, 1, players, seed, on_event=photograph)
    episode = sampler.sample(num_episodes=1, keep=False).episodes[0]
    sampler.close()
    return pictures, episode


def write_animation(pictures: list[Array], path: str, frames_per_second: float = 12.0) -> None:
    """Writes pictures as an animation; the suffix (`.gif`, `.mp4`) decides on the format."""
    import imageio.v3 as imageio

    last = [pictures[-1]] * int(1.5 * frames_per_second)  # so that a loop shows how it ended
    if path.endswith(".gif"):
        options: dict[str, Any] = {"duration": 1000 / frames_per_second, "loop": 0}
    else:
        options = {"fps": frames_per_second}
    imageio.imwrite(path, pictures + last, **options)
