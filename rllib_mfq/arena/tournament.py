"""Tournaments: every agent plays every other one, as often on one side as on the other."""

import functools
import itertools
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from ray import cloudpickle
from ray.rllib.env.env_context import EnvContext

from rllib_mfq.algorithm.checkpoint import saved_environment
from rllib_mfq.algorithm.environment import make_creator
from rllib_mfq.algorithm.match import play_episodes
from rllib_mfq.algorithm.opponents import RANDOM, check_opponents, load_opponent
from rllib_mfq.arena.provenance import provenance
from rllib_mfq.arena.statistics import Pair, count, rate
from rllib_mfq.mean_field.legal import check_integer
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.population import Group, Population, close

ENV = "battle_v4"
ENV_CONFIG = {"map_size": 40, "max_cycles": 400}
SIDE_BY_SIDE = 32


@dataclass(frozen=True)
class Tournament:
    """What was played, and how it went.

    Where winning means nothing (see `Episode.has_winner`) there are no `pairs` and `ratings`, but
    `returns`: of each group, by the agent that played it and the one that it met, the mean over
    matches of the sum over the group's agents; `random`, if it plays, has met itself, too.
    """

    agents: list[str]  # names, the best rated first
    pairs: list[Pair]  # of those that met
    ratings: dict[str, float]  # Elo points of each agent
    returns: dict[str, dict[str, dict[str, float]]]
    env: str
    env_config: dict[str, Any]
    seed: int
    matches: int  # of each pair
    explore: bool  # whether the agents drew from their Boltzmann policies
    random_steps: int  # of every match that were played at random

    def content(self) -> dict[str, Any]:
        """Everything, and the provenance, as plain data."""
        return asdict(self) | provenance()


def name_agents(specs: Sequence[str]) -> dict[str, str]:
    """Short names for agents, and the spec of each, as `load_opponent` takes it.

    The name of a folder is the last part of its path that no other path has; the name of anything
    else is the spec itself. Raises a ValueError if two specs are the same.
    """
    paths = {spec: Path(spec).expanduser().resolve() for spec in specs}
    parts = {spec: path.parts if path.is_dir() else (spec,) for spec, path in paths.items()}
    names: dict[str, str] = {}
    for spec in specs:
        if specs.count(spec) > 1 or [*parts.values()].count(parts[spec]) > 1:
            raise ValueError(f"the agent {spec!r} is given twice; every agent plays the others.")
        rest = {part for other in specs if other != spec for part in parts[other]}
        names[next((part for part in reversed(parts[spec]) if part not in rest), spec)] = spec
    return names


def play_tournament(
    agents: Mapping[str, str],
    env: str | type | None = None,
    env_config: Mapping[str, Any] | None = None,
    *,
    matches: int = 20,
    seed: int = 0,
    explore: bool = False,
    random_steps: int = 0,
    processes: int | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    on_matches: Callable[[int, int], None] = lambda done, total: None,
) -> Tournament:
    """Plays every pair of agents, and rates the agents.

    Both sides are played with the same seeds. Neither the order of the agents nor the number of
    processes changes the result of a pair.

    Args:
        agents: name and spec of each agent, the spec as `load_opponent` takes it.
        env: name or class of an environment with two groups; by default that of the training of
            the first checkpoint among the agents, or `ENV` without checkpoints.
        env_config: arguments of the environment; of the default one, those that differ.
        matches: of each pair, an even number.
        seed: of the environments and of draws.
        explore: whether agents draw from their Boltzmann policies; greedy otherwise.
        random_steps: how many steps both sides play at random when a match begins. Greedy agents
            else play much the same match again and again, and many of them say little more than
            one: `seed` and this are the seeds of execution, apart from those of training.
        processes: how many play; by default one per core. Two or more are started with
            `spawn`, so that a script needs `if __name__ == "__main__"` around its start.
        pairs: those that meet, by their places in `agents`; all pairs by default.
        on_matches: called as `on_matches(done, total)`, first with 0.

    Raises:
        ValueError: something cannot be played; raised before the first match.
    """
    _check_numbers(matches, seed, processes)
    check_integer("random_steps", random_steps, 0)
    names, specs = list(agents), list(agents.values())
    pairs = _checked_pairs(names, pairs)
    ours = {"env": ENV, "env_config": ENV_CONFIG}
    trained: Mapping[str, Any] = next(filter(None, map(saved_environment, specs)), ours)
    default = trained["env_config"] if env in (None, trained["env"]) else {}
    env, arguments = env or trained["env"], {**default, **(env_config or {})}
    described = env if isinstance(env, str) else f"{env.__module__}.{env.__qualname__}"
    create = make_creator(env)

    def make(index: int) -> Population:
        return as_population(create(EnvContext(arguments, worker_index=0, vector_index=index)))

    groups = _check_agents(agents, make, described, explore)
    maker = cloudpickle.dumps(make)  # other processes do not know the registered environments
    play = functools.partial(_play_half, maker, groups, explore, random_steps, matches // 2)
    halves = {
        (a, b): functools.partial(play, _seed(seed, names[a], names[b]), specs[a], specs[b])
        for pair in pairs
        for a, b in (pair, pair[::-1])
    }
    episodes: dict[tuple[int, int], list[Episode]] = {}
    on_matches(0, len(pairs) * matches)
    for half, played in _played(halves, min(processes or os.cpu_count() or 1, len(halves))):
        episodes[half] = played
        on_matches(len(episodes) * matches // 2, len(pairs) * matches)
    anchor = next((name for name, spec in agents.items() if spec == RANDOM), None)
    told: tuple[Any, ...] = (described, arguments, seed, matches, explore, random_steps)
    if not all(match.has_winner for half in episodes.values() for match in half):
        if anchor:
            place = names.index(anchor)
            episodes[place, place] = play(_seed(seed, anchor, anchor), RANDOM, RANDOM)
        return Tournament(names, [], {}, _returns(names, episodes), *told)
    counted = [count(names[a], names[b], episodes[a, b], episodes[b, a]) for a, b in pairs]
    ratings = rate(names, counted, anchor)
    names.sort(key=lambda name: -ratings[name])
    return Tournament(names, counted, ratings, {}, *told)


def _returns(
    names: Sequence[str], episodes: Mapping[tuple[int, int], Sequence[Episode]]
) -> dict[str, dict[str, dict[str, float]]]:
    """See `Tournament.returns`; `episodes` are those of the first group's and the other's agent."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for pair, matches in sorted(episodes.items()):
        for group, mine, other in zip(matches[0].returns, pair, reversed(pair), strict=True):
            mean = fmean(match.returns[group] for match in matches)
            found.setdefault(group, {}).setdefault(names[mine], {})[names[other]] = float(mean)
    return found


def _check_numbers(matches: int, seed: int, processes: int | None) -> None:
    if matches < 2 or matches % 2:
        raise ValueError(f"matches is {matches}; it must be even and at least 2: half per side.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0.")
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1.")


def _checked_pairs(
    names: Sequence[str], pairs: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    if len(names) < 2:
        raise ValueError(f"the agents are {list(names)}; a tournament needs two at least.")
    legal = list(itertools.combinations(range(len(names)), 2))
    if pairs is None:
        return legal
    some = {frozenset(pair) for pair in pairs} & set(map(frozenset, legal))
    if not some or len(some) < len(pairs):
        raise ValueError(
            f"pairs is {list(pairs)}; it must name some pairs, each of them once, by two different "
            f"numbers below {len(names)}."
        )
    return list(pairs)


def _check_agents(
    agents: Mapping[str, str], make: Callable[[int], Population], env: str, explore: bool
) -> dict[str, Group]:
    """The groups of the environment; every agent has played one step as each of them."""
    try:
        population = make(0)
    except Exception as error:
        raise ValueError(f"the environment {env} cannot be made: {error}") from error
    try:
        groups = dict(population.groups)
        if len(groups) != 2:
            raise ValueError(f"{env} has the groups {list(groups)}; a match is between two.")
        check_opponents(agents, population, env, explore)
    finally:
        close(population)
    return groups


def _seed(seed: int, *names: str) -> int:
    """The seed of a pair's matches, whoever else plays and in whatever order."""
    numbers = sorted(zlib.crc32(name.encode()) for name in names)
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])


def _begin_process() -> None:
    """Lets a process that plays end at Ctrl-C, and with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it may have more to play
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _played(
    halves: Mapping[tuple[int, int], Callable[[], list[Episode]]], processes: int
) -> Iterator[tuple[tuple[int, int], list[Episode]]]:
    """Plays every half of the matches; yields each of them when it has ended."""
    if processes == 1:
        yield from ((half, play()) for half, play in halves.items())
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    others = {*multiprocessing.active_children()}
    with ProcessPoolExecutor(processes, context, _begin_process) as executor:
        futures = {executor.submit(play): half for half, play in halves.items()}
        playing = {*multiprocessing.active_children()} - others
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException as error:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in playing:  # else leaving this block waits for their matches
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ValueError(
                    f"one of {processes} processes that play was ended, perhaps for its memory; "
                    "let fewer of them play."
                ) from error
            raise


def _play_half(
    maker: bytes,
    groups: Mapping[str, Group],
    explore: bool,
    random_steps: int,
    matches: int,
    seed: int,
    first: str,
    second: str,
) -> list[Episode]:
    """Plays the matches of one agent as the first group and another one as the second."""
    make = cloudpickle.loads(maker)
    generator = torch.Generator().manual_seed(seed)
    players = {
        group: load_opponent(spec, spec, groups, explore).players(generator, random_steps)[group]
        for group, spec in zip(groups, (first, second), strict=True)
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # there are as many processes as cores
    try:
        return play_episodes(make, players, matches, seed=seed, side_by_side=SIDE_BY_SIDE)
    finally:
        torch.set_num_threads(threads)
