"""Pictures of a match."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rllib_mfq.algorithm.checkpoint import saved_environment
from rllib_mfq.algorithm.environment import make_creator, probe
from rllib_mfq.algorithm.match import play_episodes
from rllib_mfq.algorithm.opponents import RANDOM, load_opponent
from rllib_mfq.arena.output import check_output, replacing
from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.population import Array, Population

FRAMES_PER_SECOND = 12.0
WRITERS = {".gif": "PIL", ".mp4": "imageio_ffmpeg"}


def frames_per_second(env: Any) -> float:
    """The speed at which an environment wants to be shown; `FRAMES_PER_SECOND` if it says none."""
    for holder in (env, getattr(env, "parallel_env", None), getattr(env, "env", None)):
        for each in (holder, getattr(holder, "_env", None)):
            speed = (getattr(each, "metadata", None) or {}).get("render_fps")
            if speed:
                return float(speed)
    return FRAMES_PER_SECOND


def film_match(
    checkpoint: str,
    opponent: str | None = None,
    env_config: Mapping[str, Any] | None = None,
    seed: int = 0,
    explore: bool = False,
) -> tuple[list[Array], Episode]:
    """Plays one match and takes a picture at the start and after every step.

    `checkpoint` plays the first group of the environment that it was trained in, and `opponent`,
    as `load_opponent` takes it, the others; random by default. `env_config` holds the arguments
    that differ from its training, such as another `map_size`.

    Returns:
        The pictures, `[h, w, 3]` uint8 each, and the match, whose `custom_data` has the
        environment's own `frames_per_second`.

    Raises:
        ValueError: there is no such checkpoint, it cannot play this environment, the
            environment has no pictures, or an opponent is given and there is only one group.
    """
    settings = saved_environment(checkpoint)
    if not settings:
        raise ValueError(f"{checkpoint!r} is not the folder of an algorithm's checkpoint.")
    population = _make(settings["env"], {**settings["env_config"], **(env_config or {})})
    generator = torch.Generator().manual_seed(seed)
    groups = population.groups
    mine, *others = groups
    if opponent and not others:
        raise ValueError(f"opponent is {opponent!r}, but {mine!r} is the environment's only group.")
    players = load_opponent("opponent", opponent or RANDOM, groups, explore).players(generator)
    own = load_opponent("checkpoint", checkpoint, groups, explore).players(generator)
    players[mine] = own[mine]
    pictures: list[Array] = []

    def photograph(event: str, episode: Episode) -> None:
        if event in ("start", "step"):
            picture = getattr(population, "render", lambda: None)()
            if picture is None:
                raise ValueError(f"{settings['env']} has no pictures: its render() returns None.")
            pictures.append(picture)

    (match,) = play_episodes(lambda _: population, players, 1, seed=seed, on_event=photograph)
    match.custom_data["frames_per_second"] = frames_per_second(population)
    return pictures, match


def _make(env: str, arguments: Mapping[str, Any]) -> Population:
    """Makes an environment that draws; one that takes no `render_mode` needs none to do so."""
    create, first = make_creator(env), None
    for mode in ({"render_mode": "rgb_array"}, {}):
        try:
            return probe(create, {**arguments, **mode})
        except Exception as error:
            first = first or error
    raise ValueError(f"{env} cannot be made: {type(first).__name__}: {first}") from first


def check_animation(path: Path) -> None:
    """Raises a ValueError or an ImportError unless an animation can be written there."""
    check_output(path, tuple(WRITERS))
    for package in ("imageio", WRITERS[path.suffix]):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f'{path} needs {package}: pip install "rllib_mfq[render]".')


def write_animation(pictures: list[Array], path: Path, speed: float = FRAMES_PER_SECOND) -> None:
    """Writes pictures as an animation; the suffix, one of `WRITERS`, decides on the format.

    `speed` is in pictures per second.
    """
    import imageio.v3 as imageio

    last = [pictures[-1]] * int(1.5 * speed)  # a loop stops at how the match ended
    with replacing(path) as part:
        if path.suffix == ".gif":
            imageio.imwrite(part, pictures + last, duration=1000 / speed, loop=0)
        else:
            height, width, _ = pictures[0].shape
            margins = ((0, height % 2), (0, width % 2), (0, 0))  # the codec halves the colours
            frames = [np.pad(picture, margins, mode="edge") for picture in pictures + last]
            imageio.imwrite(part, frames, fps=speed, macro_block_size=2)
