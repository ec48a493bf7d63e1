"""The Ising model: learned order against Glauber dynamics and the exact magnetisation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_cli.reproduce.runs import train_variants, write_rows
from rllib_mfq.algorithm.opponents import find_modules
from rllib_mfq.envs.ising import GROUP, TRUE_Q, IsingPopulation, exact_magnetization, heat_bath
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.player import Player
from rllib_mfq.population.sampler import Sampler

EXAMPLE = "ising"
HOT = 4.0  # T at which learning begins: all entries are visited
HOT_STEPS = 2_000  # of the lattice, until T has fallen to what it stays at
TEMPERATURES = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)
LEARNERS: dict[str, dict[str, Any]] = {
    "shared-table": {},
    "site-tables": {"env_config": {"observe_site": True}, "training_intensity": 1.0},
    "network": {"table_levels": None, "lr": 1e-3, "model_config": {"fcnet_hiddens": [16]}},
}
"""What learns: one table for all sites, a table for each site, or one network for all."""

LATTICES = 4  # per temperature and seed
STEPS = 1_200  # of each, of which the second half counts


def reproduce(
    out: Path,
    learner: str = "shared-table",
    size: int = 20,
    temperatures: Sequence[float] = TEMPERATURES,
    seeds: int = 3,
    processes: int = 2,
) -> list[dict[str, Any]]:
    """Trains at every temperature, then lets learned and Glauber dynamics run from the same start.

    Both start with all spins up, on the same lattices, with the same sites free to choose at
    every step: a start from random spins can freeze in stripes.

    Args:
        out: folder of the results; the runs go into `runs` there.
        learner: one of `LEARNERS`.
        size: L.
        temperatures: in units of reward.
        seeds: how many runs at each.
        processes: how many at a time.

    Returns:
        A row per temperature, seed and method, as they are written to `ising.csv`.
    """
    changes = LEARNERS[learner]
    env_config = {"size": size, "max_cycles": 100, **changes.get("env_config", {})}
    variants = {
        f"{learner}-{size}-T{temperature:g}-seed{seed}": {
            **changes,
            "env_config": env_config,
            "temperature": [[0, HOT], [HOT_STEPS * size**2, float(temperature)]],
            "evaluation_config": {
                "explore": True,
                "env_config": {**env_config, "max_cycles": STEPS},
            },
            "seed": seed,
        }
        for temperature in temperatures
        for seed in range(seeds)
    }
    runs = train_variants(EXAMPLE, variants, out / "runs" / "ising", processes=processes)
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        temperature, seed = variants[name]["temperature"][-1][1], variants[name]["seed"]
        exact = float(exact_magnetization(temperature))
        module = RLModule.from_checkpoint(find_modules(run.checkpoint)[GROUP])
        evaluated = run.result["evaluation"]["env_runners"]
        learned = {key: evaluated[key][GROUP] for key in ("order_parameter", "energy")}
        learned |= {"exact": exact, "size": size, "learner": learner, "q_mse": q_error(module)}
        glauber = order(temperature, {**env_config, "max_cycles": STEPS}, seed)
        glauber |= {"exact": exact, "size": size, "learner": "", "q_mse": ""}
        for method, figures in {"MFQ": learned, "Glauber": glauber}.items():
            rows.append({"temperature": temperature, "seed": seed, "method": method} | figures)
    file = out / ("ising.csv" if learner == "shared-table" else f"ising_{learner}.csv")
    write_rows(file, rows)
    return rows


def order(temperature: float, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Order parameter and energy of Glauber dynamics, of as many lattices as MFQ is given.

    Means over the lattices and the second half of the time.
    """
    player = Player("spins", heat_bath(temperature, seed), Neighborhood("graph"))
    sampler = Sampler(lambda index: IsingPopulation(**arguments), LATTICES, {GROUP: player}, seed)
    episodes = sampler.sample(num_episodes=LATTICES, keep=False).episodes
    return {
        name: float(np.mean([episode.result[name][GROUP] for episode in episodes]))
        for name in ("order_parameter", "energy")
    }


def q_error(module: Any) -> float:
    """Mean squared error of the learned Q over actions, numbers of neighbours up, and sites."""
    sites = np.arange(float(module.observation_space.high[0]) + 1.0, dtype=np.float32)
    obs = torch.from_numpy(sites.repeat(5)[:, None])
    up = (torch.arange(5) / 4).repeat(len(sites))
    with torch.inference_mode():
        q = module.q_net(obs, torch.stack([1 - up, up], dim=1)).reshape(len(sites), 5, 2)
    return float(((q.numpy() - TRUE_Q.T) ** 2).mean())


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A line per temperature: means over seeds."""
    lines = []
    for temperature in sorted({row["temperature"] for row in rows}):
        here = [row for row in rows if row["temperature"] == temperature]
        found = {method: _mean(here, method, "order_parameter") for method in ("MFQ", "Glauber")}
        error = fmean(float(row["q_mse"]) for row in here if row["method"] == "MFQ")
        lines.append(
            {
                "T": f"{temperature:g}",
                "MFQ": f"{found['MFQ']:.3f}",
                "Glauber": f"{found['Glauber']:.3f}",
                "difference": f"{found['MFQ'] - found['Glauber']:+.3f}",
                "exact": f"{float(here[0]['exact']):.3f}",
                "error of Q": f"{error:.1e}",
            }
        )
    return lines


def crossings(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Where each method's order, the mean over seeds, first falls below a half."""
    temperatures = sorted({row["temperature"] for row in rows})
    return {
        method: crossing(
            temperatures,
            [
                _mean([row for row in rows if row["temperature"] == t], method, "order_parameter")
                for t in temperatures
            ],
        )
        for method in ("MFQ", "Glauber")
    }


def _mean(rows: Sequence[Mapping[str, Any]], method: str, key: str) -> float:
    return fmean(float(row[key]) for row in rows if row["method"] == method)


def crossing(temperatures: Sequence[float], orders: Sequence[float], level: float = 0.5) -> float:
    """The temperature at which the order first falls below a level, linear in between.

    NaN if it never does, or is below it from the start.
    """
    for (left, high), (right, low) in itertools.pairwise(zip(temperatures, orders, strict=True)):
        if high >= level > low:
            return left + (right - left) * (high - level) / (high - low)
    return math.nan
