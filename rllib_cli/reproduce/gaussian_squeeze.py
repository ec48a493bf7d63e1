"""The Gaussian squeeze: what crowds reach of the optimum, exploring together or each alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_cli import examples
from rllib_cli.experiments import read_experiments
from rllib_cli.reproduce.runs import Run, train_variants, write_rows
from rllib_mfq.algorithm.opponents import find_modules
from rllib_mfq.envs.gaussian_squeeze import GaussianSqueezePopulation, optimum
from rllib_mfq.population.player import Player
from rllib_mfq.population.sampler import Sampler

EXAMPLE = "gaussian_squeeze"
CROWD = 1_000  # agents that the example's numbers of rows are for
POPULATIONS = (100, 500, 1_000)
METHODS: dict[str, dict[str, Any]] = {
    "MFQ": {},
    "IQL": {"neighborhood": "none"},
    "MFQ, exploring alone": {"shared_exploration": 0.0},
    "IQL, exploring alone": {"neighborhood": "none", "shared_exploration": 0.0},
}
"""Entries of the config that differ from the example's."""

EPISODES = 32  # that are played with what was learned


def reproduce(
    out: Path,
    populations: Sequence[int] = POPULATIONS,
    seeds: int = 5,
    mu: float = 400.0,
    sigma: float = 200.0,
    processes: int = 2,
) -> list[dict[str, Any]]:
    """Trains every method on crowds of several sizes, then plays what it learned.

    A crowd of N gets N / 1000 of the example's rows, and its schedules are shortened alike, so
    that all crowds take as many steps; temperatures are in units of the optimum for (400, 200).
    What is played are the learned policies themselves, without what was added to explore.

    Args:
        out: folder of the results; the runs go into `runs` there.
        populations: numbers of agents.
        seeds: runs of each method and number.
        mu: centre of the squeeze.
        sigma: its width.
        processes: how many are trained at a time.

    Returns:
        A row per method, number of agents and seed, as written to `gaussian_squeeze.csv`.
    """
    (base,) = read_experiments(examples.find(EXAMPLE)).values()
    best = optimum(mu, sigma)[1]
    unit = best / optimum(400.0, 200.0)[1]
    rows: list[dict[str, Any]] = []
    for agents in populations:
        share = agents / CROWD
        config = _scaled(base["config"], share, unit)
        config["env_config"] = {**config["env_config"], "num_agents": agents, "mu": mu}
        config["env_config"]["sigma"] = sigma
        variants = {
            f"{method}-N{agents}-mu{mu:g}-sigma{sigma:g}-seed{seed}": {
                **config,
                **changes,
                "seed": seed,
            }
            for method, changes in METHODS.items()
            for seed in range(seeds)
        }
        rows_each = share * base["stop"]["agent_steps_sampled_lifetime"]
        runs = train_variants(
            EXAMPLE,
            variants,
            out / "runs" / "gaussian_squeeze",
            {"agent_steps_sampled_lifetime": rows_each},
            processes,
        )
        for name, run in runs.items():
            paid, total = play(run, config["env_config"], variants[name]["seed"])
            rows.append(
                {
                    "method": name.partition("-N")[0],
                    "num_agents": agents,
                    "seed": variants[name]["seed"],
                    "mu": mu,
                    "sigma": sigma,
                    "squeeze": round(paid, 4),
                    "share_of_optimum": round(paid / best, 4),
                    "total": round(total, 1),
                    "agent_steps": run.result["agent_steps_sampled_lifetime"],
                    "seconds": round(run.result["time_total_s"]),
                }
            )
    write_rows(out / "gaussian_squeeze.csv", rows)
    return rows


def play(run: Run, env_config: dict[str, Any], seed: int) -> tuple[float, float]:
    """Mean G(x) and mean x of the last steps of episodes played by a run's policy."""
    (folder,) = find_modules(run.checkpoint).values()
    module: Any = RLModule.from_checkpoint(folder)
    generator = torch.Generator().manual_seed(seed)
    act = functools.partial(module.act, explore=True, generator=generator)
    population = GaussianSqueezePopulation(**env_config)
    (group,) = population.groups
    players = {group: Player("learned", act, module.neighborhood)}
    sampler = Sampler(lambda index: GaussianSqueezePopulation(**env_config), 8, players, seed)
    episodes = sampler.sample(num_episodes=EPISODES, keep=False).episodes
    paid, total = (
        float(np.mean([episode.result[key][group] for episode in episodes]))
        for key in ("squeeze", "total")
    )
    return paid, total


def _scaled(config: dict[str, Any], share: float, unit: float) -> dict[str, Any]:
    """The example's config for another number of agents and another optimum."""
    scaled = dict(config)
    for key, factor in (("temperature", unit), ("shared_exploration", 1.0)):
        scaled[key] = [[steps * share, value * factor] for steps, value in config[key]]
    for key in ("train_batch_size_per_learner", "replay_capacity"):
        scaled[key] = round(config[key] * share)
    return scaled
