"""The Ising model: learned order against Glauber dynamics and the exact magnetisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rllib_cli.reproduce.runs import Run, train_variants, write_rows
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.envs.ising import GROUP, TRUE_Q, IsingPopulation, exact_magnetization, heat_bath
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.player import Player
from rllib_mfq.population.sampler import Sampler

EXAMPLE = "ising"
HOT = 4.0  # T at which learning begins: all entries are visited
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
            "temperature": [[0, HOT], [800_000, float(temperature)]],
            "seed": seed,
        }
        for temperature in temperatures
        for seed in range(seeds)
    }
    runs = train_variants(EXAMPLE, variants, out / "runs" / "ising", processes=processes)
    rows: list[dict[str, Any]] = []
    for name, run in runs.items():
        seed, temperature = variants[name]["seed"], variants[name]["temperature"][-1][1]
        arguments = {**env_config, "max_cycles": STEPS}
        play = _learned(run, arguments, seed)
        players = {learner: play, "glauber": _glauber(temperature, seed)}
        for method, player in players.items():
            figures = order(player, arguments, seed)
            error = q_error(run, size) if method == learner else None
            rows.append(
                {"temperature": temperature, "seed": seed, "method": method, "size": size}
                | figures
                | {"exact": float(exact_magnetization(temperature)), "q_mse": error}
            )
    write_rows(out / ("ising.csv" if learner == "shared-table" else f"ising_{learner}.csv"), rows)
    return rows


def order(player: Player, arguments: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Order parameter and energy per site, means over lattices and the second half of the time."""
    sampler = Sampler(lambda index: IsingPopulation(**arguments), LATTICES, {GROUP: player}, seed)
    episodes = sampler.sample(num_episodes=LATTICES, keep=False).episodes
    return {
        name: float(np.mean([episode.result[name][GROUP] for episode in episodes]))
        for name in ("order_parameter", "energy")
    }


def q_error(run: Run, size: int) -> float:
    """Mean squared error of the learned Q over actions, numbers of neighbours up, and sites."""
    module = load_opponent("learned", str(run.checkpoint), _groups(run)).modules[GROUP]
    up = torch.arange(5) / 4
    sites = torch.arange(size * size if run.observes_site else 1, dtype=torch.float32)
    obs = sites.repeat_interleave(5)[:, None]
    fields = torch.stack([1 - up, up], dim=1).repeat(len(sites), 1)
    with torch.inference_mode():
        q = module.q_net(obs, fields).reshape(len(sites), 5, 2)
    return float(((q.numpy().transpose(0, 2, 1) - TRUE_Q) ** 2).mean())
