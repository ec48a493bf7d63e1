"""Tournaments: everybody plays everybody, as often on the one side as on the other."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import choix
import numpy as np
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_context import EnvContext
from scipy.stats import binomtest

from rllib_mfq.algorithm.opponents import RANDOM, load_opponent, saved_settings
from rllib_mfq.arena.provenance import environment
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.population import Array, Group, Population
from rllib_mfq.population.sampler import Sampler

ENV = "battle_v4"
ENV_CONFIG = {"map_size": 40, "max_cycles": 400}
SIDE_BY_SIDE = 32
ELO_PER_NAT = 400 / math.log(10)


@dataclass(frozen=True)
class Pair:
    """How the matches of two agents went.

    Attributes:
        a: name of one agent.
        b: name of the other.
        matches: how many they played, half of them with `a` as the first group.
        wins: of `a`.
        draws: of both.
        losses: of `a`.
        wins_first: those of `wins` that `a` played as the first group.
        distinct: how many matches differ in length or returns; few of many mean that nothing
            in them was drawn, so that they say no more than one.
        win_rate: of `a`; a draw counts a half.
        wilson_low: lower end of Wilson's 95 % interval of the share `wins / matches`, for these
            two agents: matches tell nothing about others that were trained in the same way.
        wilson_high: its upper end.
        kills_a: mean per match, None where the environment counts no kills.
        kills_b: as `kills_a`.
        survivors_a: as `kills_a`.
        survivors_b: as `kills_a`.
        returns_a: mean sum of the rewards of all its agents in a match.
        returns_b: as `returns_a`.
    """

    a: str
    b: str
    matches: int
    wins: int
    draws: int
    losses: int
    wins_first: int
    distinct: int
    win_rate: float
    wilson_low: float
    wilson_high: float
    kills_a: float | None
    kills_b: float | None
    survivors_a: float | None
    survivors_b: float | None
    returns_a: float
    returns_b: float


@dataclass(frozen=True)
class Tournament:
    """What was played, and how it went.

    Attributes:
        agents: their names, the best rated first.
        pairs: of those that met.
        ratings: Elo points of each agent.
        env: name of the environment.
        env_config: its arguments.
        seed: of the tournament.
        matches: of each pair.
        explore: whether the agents drew from their Boltzmann policies.
    """

    agents: list[str]
    pairs: list[Pair]
    ratings: dict[str, float]
    env: str
    env_config: dict[str, Any]
    seed: int
    matches: int
    explore: bool

    def content(self) -> dict[str, Any]:
        """Everything, and the provenance, as plain data."""
        return asdict(self) | environment()


def name_agents(specs: Sequence[str]) -> dict[str, str]:
    """Short names for agents.

    Args:
        specs: what `load_opponent` takes.

    Returns:
        The spec of each name: of a folder the last part of its path that is in no other's,
        and anything else as it is.

    Raises:
        ValueError: two specs are the same.
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
    processes: int | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    on_matches: Callable[[int, int], None] = lambda done, total: None,
) -> Tournament:
    """Plays every pair of agents, and rates the agents.

    The same seeds are played on both sides, so that neither a different order of the agents nor
    the number of processes changes the result of a pair.

    Args:
        agents: the spec, as `load_opponent` takes it, of each name.
        env: name or class of an environment with two groups; by default what the first
            checkpoint among the agents was trained in, or else `ENV`.
        env_config: its arguments; where `env` is the default, changes of the default's.
        matches: of each pair, an even number.
        seed: of the environments and draws.
        explore: whether agents draw from their Boltzmann policies; greedy otherwise.
        processes: how many play; by default one per core. More than one are started anew, so
            a script must guard its start by `if __name__ == "__main__"`.
        pairs: places in `agents` of those that meet; all pairs by default.
        on_matches: called as `on_matches(done, total)`, first with 0.

    Raises:
        ValueError: something cannot be played; raised before the first match.
    """
    _check_numbers(matches, seed, processes)
    names, specs = list(agents), list(agents.values())
    pairs = _checked_pairs(names, pairs)
    env, arguments = _environment(specs, env, env_config)
    described = env if isinstance(env, str) else f"{env.__module__}.{env.__qualname__}"
    make = _maker(env, arguments)
    groups = _check_agents(agents, make, described, explore)
    creator = cloudpickle.dumps(make)  # other processes know no registered environments
    halves = {
        (pair, side): (creator, groups, first, second, matches // 2, _seed(seed, pair), explore)
        for pair in pairs
        for side, (first, second) in enumerate(
            [(specs[pair[0]], specs[pair[1]]), (specs[pair[1]], specs[pair[0]])]
        )
    }
    episodes: dict[tuple[tuple[int, int], int], list[Episode]] = {}
    on_matches(0, len(pairs) * matches)
    for half, played in _played(halves, min(processes or os.cpu_count() or 1, len(pairs))):
        episodes[half] = played
        on_matches(len(episodes) * matches // 2, len(pairs) * matches)
    counted = [
        count(names[pair[0]], names[pair[1]], episodes[pair, 0], episodes[pair, 1])
        for pair in pairs
    ]
    anchor = next((name for name, spec in agents.items() if spec == RANDOM), None)
    ratings = rate(names, counted, anchor)
    names.sort(key=lambda name: -ratings[name])
    return Tournament(names, counted, ratings, described, arguments, seed, matches, explore)


def count(a: str, b: str, first: Sequence[Episode], second: Sequence[Episode]) -> Pair:
    """Counts the matches that `a` played as the first group, and those as the second."""
    sides: list[tuple[Episode, str, str]] = []  # the match, the group of `a` and that of `b`
    for episode in first:
        one, other = episode.returns
        sides.append((episode, one, other))
    for episode in second:
        one, other = episode.returns
        sides.append((episode, other, one))
    shares = [episode.shares()[mine] for episode, mine, _ in sides]
    wins, matches = shares.count(1.0), len(shares)
    interval = binomtest(wins, matches).proportion_ci(method="wilson")

    def means(name: str) -> tuple[float | None, float | None]:
        found = [(e.result[name][m], e.result[name][t]) for e, m, t in sides if name in e.result]
        mine, theirs = zip(*found, strict=True) if found else ((), ())
        return (fmean(mine), fmean(theirs)) if found else (None, None)

    return Pair(
        a,
        b,
        matches,
        wins,
        shares.count(0.5),
        shares.count(0.0),
        shares[: len(first)].count(1.0),
        sum(len({(e.length, *e.returns.values()) for e in half}) for half in (first, second)),
        fmean(shares),
        float(interval.low),
        float(interval.high),
        *means("kills"),
        *means("survivors"),
        fmean(episode.returns[mine] for episode, mine, _ in sides),
        fmean(episode.returns[theirs] for episode, _, theirs in sides),
    )


def rate(names: Sequence[str], pairs: Sequence[Pair], anchor: str | None) -> dict[str, float]:
    """Bradley-Terry ratings on the Elo scale, where 400 points are odds of 10 to 1.

    A draw counts a half for each. Every two agents are taken to have drawn one match more than
    they played, which keeps the rating of an agent that won all of its matches finite, and
    joins agents that no matches connect.

    Args:
        names: of all agents.
        pairs: how they played.
        anchor: whose rating is 0; without one, the mean is.
    """
    place = {name: index for index, name in enumerate(names)}
    won = np.full((len(names), len(names)), 0.5)
    np.fill_diagonal(won, 0.0)
    for pair in pairs:
        won[place[pair.a], place[pair.b]] += pair.wins + pair.draws / 2
        won[place[pair.b], place[pair.a]] += pair.losses + pair.draws / 2
    points = ELO_PER_NAT * choix.ilsr_pairwise_dense(won, max_iter=10_000)
    points -= points[place[anchor]] if anchor else points.mean()
    return dict(zip(names, points.tolist(), strict=True))


def win_rates(names: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> Array:
    """`[n, n]`: of the agent of the row against that of the column; NaN where none was played."""
    place = {name: index for index, name in enumerate(names)}
    rates = np.full((len(names), len(names)), np.nan)
    for pair in pairs:
        a, b = place[pair["a"]], place[pair["b"]]
        rates[a, b], rates[b, a] = pair["win_rate"], 1 - pair["win_rate"]
    return rates


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
    if pairs is None:
        return list(itertools.combinations(range(len(names)), 2))
    for a, b in pairs:
        if a == b or not {a, b} <= set(range(len(names))):
            raise ValueError(
                f"pairs has ({a}, {b}); it must be two different numbers below {len(names)}."
            )
    if not pairs or len({frozenset(pair) for pair in pairs}) < len(pairs):
        raise ValueError(f"pairs is {list(pairs)}; it must name some pairs, each of them once.")
    return list(pairs)


def _environment(
    specs: Sequence[str], env: str | type | None, env_config: Mapping[str, Any] | None
) -> tuple[str | type, dict[str, Any]]:
    settings = next((s for s in map(saved_settings, specs) if s), None)
    settings = settings or {"env": ENV, "env_config": ENV_CONFIG}
    default = settings["env_config"] if env in (None, settings["env"]) else {}
    return env or settings["env"], {**default, **(env_config or {})}


def _maker(env: str | type, arguments: Mapping[str, Any]) -> Callable[[int], Population]:
    # RLlib asks the config only about classes: whether they become Ray actors.
    _, create = Algorithm._get_env_id_and_creator(env, {"remote_worker_envs": False})

    def make(index: int) -> Population:
        return as_population(create(EnvContext(arguments, worker_index=0, vector_index=index)))

    return make


def _check_agents(
    agents: Mapping[str, str], make: Callable[[int], Population], env: str, explore: bool
) -> dict[str, Group]:
    """The groups, once every agent has played one step as either."""
    try:
        population = make(0)
    except Exception as error:
        raise ValueError(f"the environment {env} cannot be made: {error}") from error
    try:
        groups = dict(population.groups)
        if len(groups) != 2:
            raise ValueError(f"{env} has the groups {list(groups)}; a match is between two.")
        generator = torch.Generator().manual_seed(0)
        for name, spec in agents.items():
            players = load_opponent(name, spec, groups, explore).players(generator)
            try:
                Sampler(lambda index: population, 1, players, 0).sample(num_steps=1, keep=False)
            except Exception as error:
                raise ValueError(f"{name} cannot play {env}: {error}") from error
    finally:
        getattr(population, "close", lambda: None)()
    return groups


def _seed(seed: int, pair: tuple[int, int]) -> int:
    return int(np.random.SeedSequence([seed, *sorted(pair)]).generate_state(1)[0])


def _played(halves: Mapping[Any, tuple[Any, ...]], processes: int) -> Iterator[tuple[Any, Any]]:
    """The episodes of every half, as they are played."""
    if processes == 1:
        for half, arguments in halves.items():
            yield half, _play_half(*arguments)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    die = (signal.SIGINT, signal.SIG_DFL)  # at Ctrl-C, instead of playing on what is queued
    with ProcessPoolExecutor(processes, context, signal.signal, die) as executor:
        futures: dict[Future[list[Episode]], Any] = {
            executor.submit(_play_half, *arguments): half for half, arguments in halves.items()
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _play_half(
    creator: bytes,
    groups: Mapping[str, Group],
    first: str,
    second: str,
    matches: int,
    seed: int,
    explore: bool,
) -> list[Episode]:
    """Plays the matches of one agent as the first group and another one as the second."""
    make = cloudpickle.loads(creator)
    generator = torch.Generator().manual_seed(seed)
    players = {
        group: load_opponent(spec, spec, groups, explore).players(generator)[group]
        for group, spec in zip(groups, (first, second), strict=True)
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # there are as many processes as cores
    sampler = Sampler(make, min(matches, SIDE_BY_SIDE), players, seed)
    try:
        return sampler.sample(num_episodes=matches, keep=False).episodes
    finally:
        sampler.close()
        torch.set_num_threads(threads)
