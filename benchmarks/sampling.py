"""Sampling speed: the env runner against RLlib's own, and against the bare calls.

python -m benchmarks.sampling
"""

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

from benchmarks.measure import rates, ratio, record, speed, start_ray, timed
from rllib_mfq import MFQConfig, MFQTorchRLModule, magent2
from rllib_mfq.algorithm.env_runner import MFQEnvRunner
from rllib_mfq.algorithm.environment import make_creator

REPEATS = 7
SECONDS = 2.0  # per case and repeat
NUM_ENVS = 8
AGENTS = {162: 45, 3_200: 200, 12_800: 400}  # agents on both sides: the map's side in cells


def mfq_runner(map_size: int, num_envs: int) -> Callable[[], float]:
    """MFQ's env runner, one module per group, its default network."""
    config = (
        MFQConfig()
        .environment("battle_v4", env_config={"map_size": map_size})
        .env_runners(num_envs_per_env_runner=num_envs)
        .training(replay_capacity=10_000_000)
        .debugging(seed=0)
    )
    create = make_creator("battle_v4")
    runner = MFQEnvRunner(config=config, worker_index=0, env_creator=create)
    runner.sample()
    return timed(lambda: sum(batch.agent_steps() for batch in runner.sample()), SECONDS)


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
            policies={"red", "blue"}, policy_mapping_fn=lambda agent, *_, **__: agent.split("_")[0]
        )
        .env_runners(num_envs_per_env_runner=1)
        .debugging(seed=0)
    )
    runner = MultiAgentEnvRunner(config=config)
    runner.sample(num_timesteps=2, explore=True)

    return timed(
        lambda: sum(e.agent_steps() for e in runner.sample(num_timesteps=4, explore=True)), SECONDS
    )


def bare_environment(num_envs: int) -> Callable[[], float]:
    """MAgent2's own batched calls and nothing else, random actions."""
    environments = [battle_v4.parallel_env() for _ in range(num_envs)]
    rng = np.random.default_rng(0)

    def begin(env: Any) -> None:
        env.env.reset()
        env.frames = 0
        env.generate_map()

    def step(env: Any) -> int:
        engine, rows = env.env, 0
        for handle in env.handles:
            engine.get_observation(handle)
            rows += (count := engine.get_num(handle))
            engine.set_action(handle, rng.integers(21, size=count, dtype=np.int32))
        over = engine.step()
        for handle in env.handles:
            for read in (engine.get_reward, engine.get_alive, engine.get_agent_id):
                read(handle)
        engine.clear_dead()
        env.frames += 1
        if over or env.frames >= env.max_cycles:
            begin(env)
        return rows

    for env in environments:
        begin(env)
    return timed(lambda: sum(map(step, environments)), SECONDS)


def bare_forward(num_envs: int) -> Callable[[], float]:
    """The default network's forward pass on the rows of one group in all environments."""
    spaces = magent2("battle_v4").groups["red"]
    spec = RLModuleSpec(MFQTorchRLModule, *spaces, model_config={})
    network = spec.build().q_net
    obs, mean_actions = torch.rand(81 * num_envs, 13, 13, 5), torch.rand(81 * num_envs, 21)

    def forward() -> int:
        with torch.inference_mode():
            return len(network(obs, mean_actions))

    return timed(forward, SECONDS)


def main() -> None:
    torch.set_num_threads(1)
    start_ray()
    found = rates(
        {
            "MFQ": mfq_runner(45, NUM_ENVS),
            "stock": stock_runner(),
            "environment": bare_environment(NUM_ENVS),
            "forward": bare_forward(NUM_ENVS),
            **{str(n): mfq_runner(side, 1) for n, side in AGENTS.items()},
        },
        REPEATS,
    )
    parts = zip(found["environment"], found["forward"], strict=True)
    found["bare"] = [1 / (1 / environment + 1 / forward) for environment, forward in parts]
    ray.shutdown()
    figures = {
        "sampling against RLlib's stock runner with the same network": ratio(
            found["MFQ"], found["stock"], must=18.0, aim=25.0
        ),
        "sampling against the bare environment plus the bare forward pass": ratio(
            found["MFQ"], found["bare"], must=0.85, aim=0.92
        ),
        "cost per row, 12,800 agents in one environment against 162 in each of eight": ratio(
            found["MFQ"], found["12800"], must=1.0, aim=0.8
        ),
        "MFQ's env runner, battle_v4 81 against 81": speed(found["MFQ"]),
        "RLlib's stock runner": speed(found["stock"]),
        "bare environment, random actions": speed(found["environment"]),
        "bare forward pass": speed(found["forward"]),
    }
    for n in AGENTS:
        figures[f"MFQ's env runner, {n:,} agents, one environment"] = speed(found[str(n)])
    record("sampling", figures)


if __name__ == "__main__":
    main()
