"""Sampling speed: the env runner against RLlib's own, and against the bare calls.

python -m benchmarks.sampling
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
from magent2.environments import battle_v4
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.tune.registry import register_env

from benchmarks.measure import rates, ratio, record
from rllib_mfq import MFQConfig, MFQTorchRLModule, magent2
from rllib_mfq.algorithm.env_runner import MFQEnvRunner
from rllib_mfq.population.population import Population

REPEATS = 7
SECONDS = 2.0  # per case and repeat
NUM_ENVS = 8
AGENTS = {162: 45, 3_200: 200, 12_800: 400}
"""Agents on both sides together, and the side of the map that has so many."""

GROUPS = ("red", "blue")


def timed(work: Callable[[], int]) -> float:
    """Rows per second of calls that return how many rows they made."""
    rows, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        rows += work()
    return rows / (time.perf_counter() - started)


def mfq_runner(map_size: int, num_envs: int) -> Callable[[], float]:
    """MFQ's env runner, one module per group, its default network."""
    config = (
        MFQConfig()
        .environment("battle_v4", env_config={"map_size": map_size})
        .env_runners(num_envs_per_env_runner=num_envs)
        .training(replay_capacity=10_000_000)
        .debugging(seed=0)
    )
    runner = MFQEnvRunner(
        config=config, worker_index=0, env_creator=lambda context: magent2("battle_v4", **context)
    )
    runner.sample()
    return lambda: timed(lambda: sum(batch.agent_steps() for batch in runner.sample()))


class StockConfig(AlgorithmConfig):
    """RLlib's own settings with MFQ's network."""

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=MFQTorchRLModule, model_config={})


def stock_runner() -> Callable[[], float]:
    """RLlib's own env runner, the same network, the environment through PettingZoo."""
    register_env("battle_pz", lambda context: ParallelPettingZooEnv(battle_v4.parallel_env()))
    config = (
        StockConfig()
        .environment("battle_pz", disable_env_checking=True)
        .multi_agent(
            policies=set(GROUPS), policy_mapping_fn=lambda agent, *_, **__: agent.rsplit("_", 1)[0]
        )
        .env_runners(num_envs_per_env_runner=1)
        .debugging(seed=0)
    )
    runner = MultiAgentEnvRunner(config=config)
    runner.sample(num_timesteps=2, explore=True)

    def rows() -> int:
        return sum(e.agent_steps() for e in runner.sample(num_timesteps=4, explore=True))

    return lambda: timed(rows)


def bare_environment(num_envs: int) -> Callable[[], float]:
    """MAgent2's batched calls and nothing else, random actions."""
    populations = [magent2("battle_v4") for _ in range(num_envs)]
    observations = np.empty((200, 13, 13, 5), np.float32)
    rng = np.random.default_rng(0)
    living: list[Any] = [None] * num_envs

    def step() -> int:
        return sum(_play(p, living, i, observations, rng) for i, p in enumerate(populations))

    return lambda: timed(step)


def _play(population: Population, living: list[Any], index: int, out: np.ndarray, rng: Any) -> int:
    rows = living[index] or population.reset(seed=index)
    counts = {group: len(r.ids) for group, r in rows.items()}
    for group, count in counts.items():
        population.observe(group, out[:count])
    steps = population.step({g: rng.integers(21, size=n) for g, n in counts.items()})
    after = {group: step.rows for group, step in steps.items()}
    over = any(step.truncated.any() for step in steps.values())
    living[index] = None if over or not any(len(r.ids) for r in after.values()) else after
    return sum(counts.values())


def bare_forward(num_envs: int) -> Callable[[], float]:
    """The default network's forward pass on the rows of one group in all environments."""
    spec = RLModuleSpec(
        module_class=MFQTorchRLModule,
        observation_space=magent2("battle_v4").groups["red"].observation_space,
        action_space=magent2("battle_v4").groups["red"].action_space,
        model_config={},
    )
    network = spec.build().q_net
    obs, mean_actions = torch.rand(81 * num_envs, 13, 13, 5), torch.rand(81 * num_envs, 21)

    def forward() -> int:
        with torch.inference_mode():
            return len(network(obs, mean_actions))

    return lambda: timed(forward)


def main() -> None:
    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    found = rates(
        {
            "MFQ": mfq_runner(45, NUM_ENVS),
            "stock": stock_runner(),
            "environment": bare_environment(NUM_ENVS),
            "forward": bare_forward(NUM_ENVS),
        },
        REPEATS,
    )
    parts = zip(found["environment"], found["forward"], strict=True)
    found["bare"] = [1 / (1 / environment + 1 / forward) for environment, forward in parts]
    sizes = {str(n): mfq_runner(side, 1) for n, side in AGENTS.items()}
    found |= rates(sizes, REPEATS)
    ray.shutdown()
    middle = {name: statistics.median(values) for name, values in found.items()}
    figures = [
        {
            "what": "sampling against RLlib's stock runner with the same network",
            "value": ratio(found, "MFQ", "stock"),
            "unit": "x",
            "must": 13.0,
            "aim": 25.0,
        },
        {
            "what": "sampling against the bare environment plus the bare forward pass",
            "value": ratio(found, "MFQ", "bare"),
            "unit": "x",
            "must": 0.65,
            "aim": 0.85,
        },
        {
            "what": "cost per row with 12,800 agents against 162, one environment",
            "value": 1 / ratio(found, "12800", "162"),
            "unit": "x",
            "must": 1.3,
            "aim": 1.0,
        },
    ]
    rows = {
        "MFQ": "MFQ's env runner, battle_v4 81 against 81",
        "stock": "RLlib's stock runner",
        "environment": "bare environment, random actions",
        "forward": "bare forward pass",
        **{str(n): f"MFQ's env runner, {n:,} agents, one environment" for n in AGENTS},
    }
    figures += [{"what": rows[n], "value": middle[n], "unit": "rows/s"} for n in rows]
    record("sampling", "python -m benchmarks.sampling", figures)


if __name__ == "__main__":
    main()
