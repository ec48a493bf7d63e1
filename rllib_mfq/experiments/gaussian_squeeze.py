"""The Gaussian squeeze: what crowds reach of the optimum, exploring together or each alone."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rllib_mfq.algorithm.config import MFQConfig
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.envs.gaussian_squeeze import GaussianSqueezePopulation, optimum
from rllib_mfq.experiments.runs import AGENT_STEPS, Train, check_alike, play, write_rows

EXAMPLE = "gaussian_squeeze"
CROWD = 1_000  # agents that the example's numbers of rows are for
POPULATIONS = (100, 500, 1_000)
METHODS: dict[str, dict[str, Any]] = {
    "MFQ": {},
    "IQL": {"neighborhood": "none"},
    "MFQ, exploring alone": {"shared_exploration": 0.0},
    "IQL, exploring alone": {"neighborhood": "none", "shared_exploration": 0.0},
}
"""What is compared: entries of the config that differ from the example's."""

EPISODES = 32  # that are played with what was learned


def reproduce(
    train: Train,
    base: Mapping[str, Any],
    out: Path,
    populations: Sequence[int] = POPULATIONS,
    seeds: int = 5,
    mu: float = 400.0,
    sigma: float = 200.0,
    processes: int = 2,
) -> list[dict[str, Any]]:
    """Trains every method on crowds of several sizes, then plays what it learned.

    A crowd of N agents gets N / 1000 of the example's rows, and its schedules are shortened by
    the same factor, so that all crowds take equally many steps. Temperatures are in units of the
    optimum for (400, 200). The learned policies play without the shared exploration.

    `base` is the example, with its `config` and `stop`; `populations` are numbers of agents.
    Raises a ValueError, before anything is trained, if the file has figures of another squeeze.
    """
    file = out / "gaussian_squeeze.csv"
    check_alike(file, mu=mu, sigma=sigma)
    best = optimum(mu, sigma)[1]
    unit = best / optimum(400.0, 200.0)[1]
    rows = []
    for agents in dict.fromkeys(populations):
        share = agents / CROWD
        squeeze = {**base["config"]["env_config"], "num_agents": agents, "mu": mu, "sigma": sigma}
        config = _scaled(base["config"], share, unit) | {"env_config": squeeze}
        stop = {AGENT_STEPS: share * base["stop"][AGENT_STEPS]}
        ending = f"-N{agents}-mu{mu:g}-sigma{sigma:g}-seed"
        variants = {
            f"{method}{ending}{seed}": {**config, **changes, "seed": seed}
            for method, changes in METHODS.items()
            for seed in range(seeds)
        }
        runs = train(EXAMPLE, variants, out / "runs" / "gaussian_squeeze", stop, processes)
        make = functools.partial(GaussianSqueezePopulation, **squeeze)
        for name, run in runs.items():
            seed = variants[name]["seed"]
            learned = load_opponent("learned", str(run.checkpoint), make().groups, explore=True)
            players = learned.players(torch.Generator().manual_seed(seed))
            figures = play(make, players, EPISODES, seed)
            row = {
                "method": name.partition("-N")[0],
                "num_agents": agents,
                "seed": seed,
                "mu": mu,
                "sigma": sigma,
                "squeeze": round(figures["squeeze"], 4),
                "share_of_optimum": round(figures["squeeze"] / best, 4),
                "total": round(figures["total"], 1),
            }
            rows.append(row | run.cost())
    write_rows(file, rows, keep=lambda row: int(row["num_agents"]) not in populations)
    return rows


def _scaled(config: Mapping[str, Any], share: float, unit: float) -> dict[str, Any]:
    """The example's config for another number of agents and another optimum."""
    scaled = dict(config)
    for key, factor in (("temperature", unit), ("shared_exploration", 1.0)):
        scaled[key] = [[steps * share, value * factor] for steps, value in config[key]]
    for key in ("train_batch_size_per_learner", "replay_capacity"):
        scaled[key] = max(1, round(config[key] * share))
    begin = MFQConfig().num_steps_sampled_before_learning_starts
    scaled["num_steps_sampled_before_learning_starts"] = min(begin, scaled["replay_capacity"])
    return scaled
