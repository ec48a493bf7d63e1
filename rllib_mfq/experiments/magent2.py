"""MAgent2 beyond battle: does a mean field help, and whose?"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rllib_mfq.algorithm.environment import make_creator
from rllib_mfq.algorithm.match import play_episodes
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.arena.statistics import grouped, t_interval
from rllib_mfq.experiments.runs import AGENT_STEPS, Run, Train, variants_of, write_rows
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.population import close

IQL = "IQL"
METHODS: dict[str, dict[str, Any]] = {
    "MFQ, group": {"neighborhood": "group"},
    "MFQ, all": {"neighborhood": "all"},
    "MFQ, radius 6": {"neighborhood": {"radius": 6}},
    IQL: {"neighborhood": "none"},
}
"""What is compared: entries of the config that differ from the example's."""

RANDOM_STEPS = 3  # with which every episode begins, so that greedy play differs
GREEDY, DRAWN = "greedy", "drawn"  # how agents play
FILE = "magent2.csv"


def reproduce(
    train: Train,
    examples: Mapping[str, Mapping[str, Any]],
    out: Path,
    seeds: int = 5,
    episodes: int = 8,
    rows: int | None = None,
    processes: int = 2,
    explore: bool = False,
) -> list[dict[str, Any]]:
    """Trains every method in every environment, then plays each seed against independent learners.

    Figures of an environment are written as soon as it is done, into `magent2.csv`, beside those of
    other environments and of the other way to play; runs that have ended are not repeated.

    Args:
        train: see there.
        examples: by name, with their `config` and `stop`.
        out: folder of the figures and, in `runs/magent2`, of the runs.
        seeds: how many runs of each method and environment.
        episodes: that each seed plays on each side, against the other seeds of independent
            learners in turn.
        rows: that each run trains on; by default the example's. Schedules are stretched.
        processes: that train at a time.
        explore: play as in training at its end, drawing actions from the Boltzmann policies;
            greedily otherwise.
    """
    play = DRAWN if explore else GREEDY
    found: list[dict[str, Any]] = []
    for name, example in examples.items():
        config, stop = example["config"], {AGENT_STEPS: float(example["stop"][AGENT_STEPS])}
        changes: dict[str, Any] = {"evaluation_interval": None, "evaluation_opponents": {}}
        if rows is not None:
            share = rows / stop[AGENT_STEPS]
            stop = {AGENT_STEPS: float(rows)}
            changes["temperature"] = [[steps * share, t] for steps, t in config["temperature"]]
        methods = {method: changes | own for method, own in METHODS.items()}
        variants = variants_of(methods, seeds)
        runs = train(name, variants, out / "runs" / "magent2" / name, stop, processes)
        measured = _measure(name, example["env"], config["env_config"], runs, episodes, play)
        write_rows(out / FILE, measured, keep=functools.partial(_is_of_another, (name, play)))
        found += measured
    return found


def summary(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A line per environment, play, side and method: return over seeds, and its lead over IQL."""
    lines = []
    of = grouped(rows, lambda row: (*_measured(row), row["side"]))
    for (env, play, side), part in of.items():
        returns = {
            method: np.array([float(row["return"]) for row in found])
            for method, found in grouped(part, lambda row: row["method"]).items()
        }
        for method, values in returns.items():
            line = {"environment": env, "play": play, "side": side, "method": method}
            line["return"] = _interval(values)
            lead = values - returns[IQL] if len(values) == len(returns[IQL]) else None
            known = method != IQL and lead is not None
            lines.append(line | {"lead over IQL": _interval(lead) if known else ""})
    return lines


def sides(groups: Sequence[str]) -> list[list[str]]:
    """The groups of each side: `redmelee` and `redranged` fight together."""
    of = {
        group: next((s for s in ("red", "blue") if group.startswith(s)), group) for group in groups
    }
    return list(grouped(groups, lambda group: of[group]).values())


def _measured(row: Mapping[str, Any]) -> tuple[str, str]:
    """The environment of a row, and how it was played: greedily, before there was a choice."""
    return row["env"], row.get("play") or GREEDY


def _is_of_another(measured: tuple[str, str], row: Mapping[str, str]) -> bool:
    return _measured(row) != measured


def _interval(values: Any) -> str:
    mean, half = t_interval(np.asarray(values, float))
    return f"{mean:z.1f}" if np.isnan(half) else f"{mean:z.1f} ± {half:.1f}"


def _measure(
    name: str,
    env: str,
    env_config: Mapping[str, Any],
    runs: Mapping[str, Run],
    episodes: int,
    play: str = GREEDY,
) -> list[dict[str, Any]]:
    """The return of every run as each side; the other sides are independent learners."""
    create = make_creator(env)

    def make(index: int) -> Any:
        return as_population(create(dict(env_config)))

    population = make(0)
    groups = dict(population.groups)
    close(population)
    explore = play == DRAWN
    agents = {
        run: load_opponent(run, str(each.checkpoint), groups, explore) for run, each in runs.items()
    }
    others = [run for run in runs if run.startswith(IQL)]
    rows = []
    for run in runs:
        method, _, seed = run.rpartition("-")
        # None plays itself. Nor does a seed of MFQ play the learner of its number, so that the
        # seeds of all methods that are compared play the same matches.
        rivals = [other for other in others if not other.endswith(f"-{seed}")] or others
        for side in sides(list(groups)):
            returns = []
            for number, rival in enumerate(rivals):
                share = len(range(number, episodes, len(rivals)))
                if not share:
                    continue
                generator = torch.Generator().manual_seed(number)
                mine, theirs = (
                    agents[who].players(generator, RANDOM_STEPS) for who in (run, rival)
                )
                players = {g: (mine if g in side else theirs)[g] for g in groups}
                played = play_episodes(make, players, share, seed=number, side_by_side=8)
                returns += [sum(e.returns[g] for g in side) for e in played]
            row: dict[str, Any] = {
                "env": name,
                "play": play,
                "side": "+".join(side),
                "method": method,
            }
            row |= {"seed": int(seed), "return": round(float(np.mean(returns)), 2)}
            rows.append(row | {"episodes": len(returns)} | runs[run].cost())
    return rows
