"""The Ising model: learned order against Glauber dynamics and the exact magnetisation."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from rllib_mfq.algorithm.checkpoint import load_modules
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.arena.statistics import grouped, t_interval
from rllib_mfq.envs.ising import GROUP, TRUE_Q, IsingPopulation, exact_magnetization, heat_bath
from rllib_mfq.experiments.runs import Train, check_alike, play, write_rows
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Array

EXAMPLE = "ising"
HOT = 4.0  # T at which learning begins, so that all entries are visited
HOT_STEPS = 2_000  # of the lattice, until T has fallen to its final value
TEMPERATURES = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)
LEARNERS: dict[str, dict[str, Any]] = {
    "shared-table": {},
    "site-tables": {"env_config": {"observe_site": True}, "training_intensity": 1.0},
    "network": {"table_levels": None, "lr": 1e-3, "model_config": {"fcnet_hiddens": [16]}},
}
"""What learns: one table for all sites, a table for each site, or one network for all."""

METHODS = ("MFQ", "Glauber")
LATTICES, STEPS = 8, 1_200  # per temperature and seed; the second half of the steps counts
NEAR, LATTICES_NEAR, STEPS_NEAR = (1.05, 1.45), 24, 3_600  # where lattices are slow
TURNING, LATTICES_TURNING = (1.15, 1.25), 240  # where one takes thousands of steps to turn over


def reproduce(
    train: Train,
    out: Path,
    learner: str = "shared-table",
    size: int = 20,
    temperatures: Sequence[float] = TEMPERATURES,
    seeds: int = 5,
    processes: int = 2,
) -> list[dict[str, Any]]:
    """Trains at every temperature, then compares the learned dynamics with Glauber dynamics.

    Both run on the same lattices and start with all spins up: a start from random spins can
    freeze in stripes. At every step the same sites may choose, and both draw with the same random
    numbers, so that their difference is what was learned wrong and not the luck of a draw.

    `learner` is one of `LEARNERS`, `size` the sites per side; T is in units of reward. Raises a
    ValueError, before anything is trained, if the file has figures of another size.
    """
    file = file_in(out, learner)
    check_alike(file, size=size)
    changes = LEARNERS[learner]
    env_config = {"size": size, "max_cycles": 100, **changes.get("env_config", {})}
    variants = {
        f"{learner}-{size}-T{temperature:g}-seed{seed}": {
            **changes,
            "env_config": env_config,
            "temperature": [[0, HOT], [HOT_STEPS * size**2, float(temperature)]],
            "evaluation_interval": None,
            "seed": seed,
        }
        for temperature in temperatures
        for seed in range(seeds)
    }
    runs = train(EXAMPLE, variants, out / "runs" / "ising", processes=processes)
    rows = []
    for name, run in runs.items():
        temperature, seed = variants[name]["temperature"][-1][1], variants[name]["seed"]
        exact = float(exact_magnetization(temperature))
        lattices, steps = effort(temperature)
        make = functools.partial(IsingPopulation, **{**env_config, "max_cycles": steps})
        agent = load_opponent(name, str(run.checkpoint), make().groups, explore=True)
        spins = agent.players(torch.Generator().manual_seed(seed))
        learned = play(make, spins, lattices, seed)
        learned |= {"exact": exact, "size": size, "learner": learner}
        learned["q_mse"] = q_error(load_modules(run.checkpoint)[GROUP])
        spins = {GROUP: Player("spins", heat_bath(temperature, seed), Neighborhood("graph"))}
        glauber = play(make, spins, lattices, seed)
        glauber |= {"exact": exact, "size": size, "learner": "", "q_mse": ""}
        for method, figures in {"MFQ": learned, "Glauber": glauber}.items():
            rows.append({"temperature": temperature, "seed": seed, "method": method} | figures)
    fresh = {row["temperature"] for row in rows}
    write_rows(file, rows, keep=lambda row: float(row["temperature"]) not in fresh)
    return rows


def file_in(out: Path, learner: str) -> Path:
    """Where the figures of a learner are."""
    return out / ("ising.csv" if learner == "shared-table" else f"ising_{learner}.csv")


def effort(temperature: float) -> tuple[int, int]:
    """How many lattices are averaged over, and their steps: more where each takes long to turn."""
    if TURNING[0] < temperature < TURNING[1]:
        return LATTICES_TURNING, STEPS_NEAR
    return (LATTICES_NEAR, STEPS_NEAR) if NEAR[0] < temperature < NEAR[1] else (LATTICES, STEPS)


def q_error(module: Any) -> float:
    """Mean squared error of the learned Q over sites, actions, and how many neighbours are up."""
    sites = np.arange(float(module.observation_space.high[0]) + 1.0, dtype=np.float32)
    obs = torch.from_numpy(sites.repeat(5)[:, None])
    up = (torch.arange(5) / 4).repeat(len(sites))
    with torch.inference_mode():
        q = module.q_net(obs, torch.stack([1 - up, up], dim=1)).reshape(len(sites), 5, 2)
    return float(((q.numpy() - TRUE_Q.T) ** 2).mean())


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A line per temperature: means over seeds, and half their 95 % intervals."""
    mfq, glauber = (_orders(rows, method) for method in METHODS)
    exact, errors = _means(rows, "MFQ", "exact"), _means(rows, "MFQ", "q_mse")
    return [
        {
            "T": f"{temperature:g}",
            "MFQ": _interval(mfq[temperature]),
            "Glauber": _interval(glauber[temperature]),
            "difference": _interval(mfq[temperature] - glauber[temperature], "+z.4f"),
            "exact": f"{exact[temperature]:.3f}",
            "error of Q": f"{errors[temperature]:.1e}",
        }
        for temperature in mfq
    ]


def largest_difference(rows: Sequence[Mapping[str, Any]]) -> float:
    """Between the orders of both methods, means over seeds, at any temperature."""
    mfq, glauber = (_means(rows, method, "order_parameter") for method in METHODS)
    return max(abs(mfq[temperature] - glauber[temperature]) for temperature in mfq)


def _orders(rows: Sequence[Mapping[str, Any]], method: str) -> dict[float, Array]:
    """A method's order at each temperature, ascending, `[seeds]`."""
    mine = sorted((r for r in rows if r["method"] == method), key=lambda row: int(row["seed"]))
    orders = grouped(mine, lambda row: float(row["temperature"]))
    return {t: np.array([float(r["order_parameter"]) for r in orders[t]]) for t in sorted(orders)}


def _interval(values: Array, form: str = "z.3f") -> str:  # z: no -0.000
    mean, half = t_interval(values)
    return f"{mean:{form}}" if np.isnan(half) else f"{mean:{form}} ± {half:{form.strip('+')}}"


def crossings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Where each method's order, the mean over seeds, first falls below a half."""
    orders = {method: _means(rows, method, "order_parameter") for method in METHODS}
    return {method: crossing([*means], [*means.values()]) for method, means in orders.items()}


def _means(rows: Sequence[Mapping[str, Any]], method: str, column: str) -> dict[float, float]:
    """A method's mean over seeds at each temperature, ascending."""
    mine = grouped((r for r in rows if r["method"] == method), lambda row: row["temperature"])
    return {t: fmean(float(row[column]) for row in here) for t, here in sorted(mine.items())}


def crossing(temperatures: Sequence[float], orders: Sequence[float], level: float = 0.5) -> float:
    """The temperature at which the order first falls below a level, interpolated linearly.

    NaN if the order never falls below the level, or is below it from the start.
    """
    for (left, high), (right, low) in itertools.pairwise(zip(temperatures, orders, strict=True)):
        if high >= level > low:
            return left + (right - left) * (high - level) / (high - low)
    return math.nan
