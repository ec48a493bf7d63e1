"""What the driver and a learner can take: runners that replay a ready fragment, two learners.

python -m benchmarks.scaling
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in learners, too: each has one core

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from benchmarks.measure import rates, ratio, record, speed, timed
from rllib_mfq import MFQ, MFQConfig, MFQEnvRunner
from rllib_mfq.algorithm.fragment_batch import FragmentBatch

REPEATS = 7
ROUNDS = 100  # of fragments, per repeat
UPDATES = 10  # per repeat


class ReplayingRunner(MFQEnvRunner):
    """Plays one fragment and then gives it again and again, at no cost."""

    ready: list[FragmentBatch] | None = None

    def sample(self, **kwargs: Any) -> list[FragmentBatch]:
        """The fragment, which stays in Ray's object store."""
        if self.ready is None:
            self.ready = [batch.put() for batch in super().sample(**kwargs)]
        return self.ready


def battle(num_env_runners: int, num_learners: int) -> MFQConfig:
    return (
        MFQConfig()
        .environment("battle_v4")
        .multi_agent(policies=["shared"])
        .env_runners(num_env_runners=num_env_runners)
        .learners(num_learners=num_learners)
        .training(replay_capacity=40_000, num_steps_sampled_before_learning_starts=1_000)
        .debugging(seed=0)
    )


def driver(num_env_runners: int) -> tuple[list[float], list[float], list[float]]:
    """Driver's processor time and bytes per row, and rows per second, without training.

    The rows of every fragment are written into the memory of a remote learner.
    """
    config = battle(num_env_runners, 1).training(training_intensity=1e-9)
    config.env_runners(env_runner_cls=ReplayingRunner)
    algo = config.build_algo()
    give, seen = algo._memories.give, []

    def watched(played: list[list[FragmentBatch]]) -> list[list[FragmentBatch]]:
        for batch in (batch for fragments in played for batch in fragments):
            arrays = (a for columns in batch.policy_batches.values() for a in columns.values())
            seen.append(sum(np.asarray(array).nbytes for array in arrays))
        return give(played)

    algo._memories.give = watched  # type: ignore[method-assign]
    seconds, through, speeds = [], [], []
    for _ in range(REPEATS):
        seen.clear()
        before, started = algo._agent_steps, (time.process_time(), time.perf_counter())
        for _ in range(ROUNDS):
            algo.training_step()
        rows = algo._agent_steps - before
        seconds.append((time.process_time() - started[0]) / rows * 1e6)
        speeds.append(rows / (time.perf_counter() - started[1]))
        through.append(sum(seen) / rows)
    algo.stop()
    return seconds, through, speeds


def ingest() -> dict[str, Callable[[], float]]:
    """Rows per second that one memory takes, and that memory bandwidth alone would let it take."""
    algo = battle(0, 0).build_algo()
    (batch,) = algo.env_runner.sample()
    columns, links = dict(batch.policy_batches["shared"]), {}
    memories, rows = algo.learner_group._learner.memories, len(columns["actions"])
    for _ in range(40_000 // rows + 1):  # its pages are not new any more
        memories.add({"shared": columns}, links)
    kept = [np.ascontiguousarray(columns[name]) for name in memories["shared"]._columns]
    there = [np.zeros((40_000 // rows, *array.shape), array.dtype) for array in kept]
    for array in there:
        array.fill(1)

    def write() -> int:
        for _ in range(20):
            memories.add({"shared": columns}, links)
        return 20 * rows

    def copy() -> int:
        for turn in range(20):
            for here, array in zip(there, kept, strict=True):
                here[turn % len(here)] = array
        return 20 * rows

    return {"ingest": timed(write), "bandwidth": timed(copy)}


def trained(num_learners: int) -> tuple[MFQ, Callable[[], float]]:
    """Rows trained per second by remote learners, from their own memories."""
    algo = battle(0, num_learners).build_algo()
    while not algo.train()["num_updates"]:
        pass

    def learn() -> int:
        algo._learn(UPDATES)
        return int(UPDATES * algo.config.total_train_batch_size)

    return algo, timed(learn)


def main() -> None:
    ray.init(
        "local", num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    seconds, through, speeds = driver(2)
    memory = rates(ingest(), REPEATS)
    pairs = {f"{n} learners": trained(n) for n in (1, 2)}
    learners = rates({name: measure for name, (_, measure) in pairs.items()}, REPEATS)
    for algo, _ in pairs.values():
        algo.stop()
    ray.shutdown()
    figures = {
        "rows through the driver, remote runners and learners": {
            "value": max(through),
            "unit": "B/row",
            "must": 0,
            "aim": 0,
        },
        "driver's processor time, runners that cost nothing": {
            "value": statistics.median(seconds),
            "unit": "us/row",
            "must": 1.0,
            "aim": 0.3,
        },
        "2 runners that cost nothing into one remote learner's memory": speed(speeds),
        "rows written into one learner's memory": speed(memory["ingest"]),
        "rows written against copying the same arrays": ratio(
            memory["ingest"], memory["bandwidth"], must=0.8, aim=1.0
        ),
        "rows trained by one remote learner": speed(learners["1 learners"]),
        "rows trained by 2 learners against 1, on two cores": ratio(
            learners["2 learners"], learners["1 learners"], must=1.2, aim=1.6
        ),
    }
    record("scaling", figures)


if __name__ == "__main__":
    main()
