"""Learning speed: the learner against a bare torch loop, two processes against one.

python -m benchmarks.learning
"""

import copy
from collections.abc import Callable

import ray
import torch

from benchmarks.measure import rates, ratio, record, speed, start_ray, timed
from rllib_mfq import MFQ, MFQConfig
from rllib_mfq.algorithm.learner_memories import update
from rllib_mfq.mean_field.objective import mfq_loss, next_value

REPEATS = 7
UPDATE_REPEATS = 51  # of half a second each; one differs from the next by 8 %
UPDATES = 40
SECONDS = 8.0  # of training per repeat


def battle(num_env_runners: int) -> MFQConfig:
    return (
        MFQConfig()
        .environment("battle_v4")
        .multi_agent(policies=["shared"])
        .env_runners(num_env_runners=num_env_runners)
        .training(num_steps_sampled_before_learning_starts=1_000)
        .debugging(seed=0)
    )


def learner_updates(algo: MFQ) -> dict[str, Callable[[], float]]:
    """Rows trained per second by the learner, and by a bare loop, from the same memory."""
    config, learner = algo.config, algo.learner_group._learner
    size = config.train_batch_size_per_learner
    module = copy.deepcopy(learner.module["shared"].unwrapped())
    network, target = module.q_net, module._target_q_net
    optimizer = torch.optim.Adam(network.parameters(), config.lr)

    def ours() -> int:
        update(algo.learner_group, timesteps={}, updates=UPDATES, modules=["shared"])
        return size * UPDATES

    def bare() -> int:
        for batches in learner.memories.batches(size, UPDATES, ["shared"]):
            part = batches["shared"]
            with torch.no_grad():
                q_next = target(part["new_obs"], part["next_mean_actions"])
                value = next_value("mean_field", q_next, module.temperature)
            q = network(part["obs"], part["mean_actions"])
            loss, _ = mfq_loss(
                q, part["actions"], part["rewards"], part["terminateds"], value, config.gamma
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for old, new in zip(target.parameters(), network.parameters(), strict=True):
                    old.lerp_(new, config.tau)
        return size * UPDATES

    return {"learner": timed(ours), "bare torch loop": timed(bare)}


def training(algo: MFQ) -> Callable[[], float]:
    """Rows sampled per second while training, learner and all."""

    def train() -> int:
        before = algo._agent_steps
        algo.train()
        return algo._agent_steps - before

    return timed(train, SECONDS)


def main() -> None:
    start_ray()
    one, two = battle(0).build_algo(), battle(1).build_algo()
    for algo in (one, two):
        while not algo.train()["num_updates"]:
            pass
    found = rates(learner_updates(one), UPDATE_REPEATS)
    found |= rates({"one process": training(one), "two processes": training(two)}, REPEATS)
    for algo in (one, two):
        algo.stop()
    ray.shutdown()
    figures = {
        "learner updates against a bare torch loop, same network and memory": ratio(
            found["learner"], found["bare torch loop"], must=1.0, aim=1.15
        ),
        "rows trained by the learner": speed(found["learner"]),
        "1 remote env runner and a learner against both in one process": ratio(
            found["two processes"], found["one process"], must=1.7, aim=1.9
        ),
        "training in one process, battle_v4 81 against 81": speed(found["one process"]),
        "training with 1 remote env runner": speed(found["two processes"]),
    }
    record("learning", figures)


if __name__ == "__main__":
    main()
