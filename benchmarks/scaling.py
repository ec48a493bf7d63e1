"""What driver, memory and learner can take: 1 to 16 runners, 1 and 2 learners, and the model.

The runners give a ready fragment again and again, so that two cores can carry many of them.

python -m benchmarks.scaling
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in learners, too: each has one core

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from benchmarks import learning
from benchmarks.cluster_model import Cost, picture, worst
from benchmarks.measure import RESULTS, rates, ratio, record, speed, timed
from rllib_mfq import MFQ, MFQConfig, MFQEnvRunner
from rllib_mfq.algorithm.environment import make_creator
from rllib_mfq.algorithm.fragment_batch import FragmentBatch

REPEATS = 5
SECONDS = 1.5  # per repeat
UPDATES = 10  # per repeat
POINTS = [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (2, 2), (8, 2), (16, 2)]  # runners, learners
INTENSITY = 0.5  # the default


class ReplayingRunner(MFQEnvRunner):
    """Plays one fragment and then gives it again and again, at no cost."""

    ready: list[FragmentBatch] | None = None

    def sample(self, **kwargs: Any) -> list[FragmentBatch]:
        """The fragment, which stays in Ray's object store."""
        if self.ready is None:
            self.ready = [batch.put() for batch in super().sample(**kwargs)]
        return self.ready


def battle(num_env_runners: int, num_learners: int) -> MFQConfig:
    settings = {"replay_capacity": 40_000, "training_intensity": INTENSITY}
    config = learning.battle(num_env_runners).learners(num_learners=num_learners)
    return config.training(max_weights_lag=1_000, **settings)


def points(runners: int, learners: int) -> list[dict[str, Any]]:
    """Rows per second without and with training, and what the driver and a runner do for a row."""
    config = battle(runners, learners)
    algo = config.env_runners(env_runner_cls=ReplayingRunner).build_algo()
    give, seen = algo._memories.give, []

    def watched(played: list[list[FragmentBatch]]) -> list[list[FragmentBatch]]:
        for batch in (batch for fragments in played for batch in fragments):
            arrays = (a for columns in batch.policy_batches.values() for a in columns.values())
            seen.append(sum(np.asarray(array).nbytes for array in arrays))
        return give(played)

    def busy() -> float:
        """Seconds of the processor that all runners have used."""
        group = algo.env_runner_group
        return sum(group.foreach_env_runner(lambda _: time.process_time(), local_env_runner=False))

    algo._memories.give = watched  # type: ignore[method-assign]
    found = []
    for intensity in (0.0, INTENSITY):
        algo.config = config.copy(copy_frozen=False).training(training_intensity=intensity or 1e-9)
        for _ in range(3):
            algo.training_step()
        rounds = []
        for _ in range(REPEATS):
            seen.clear()
            before, replayed = algo._agent_steps, busy()
            driver, started = time.process_time(), time.perf_counter()
            while time.perf_counter() - started < SECONDS:
                algo.training_step()
            seconds = (
                time.perf_counter() - started,
                time.process_time() - driver,
                busy() - replayed,
            )
            rows = algo._agent_steps - before
            rounds.append([each / rows for each in (*seconds, sum(seen))])
        wall, driver, runner, through = map(statistics.median, zip(*rounds, strict=True))
        found.append(
            {
                "runners": runners,
                "learners": learners,
                "intensity": intensity,
                "measured": 1 / wall,
                "driver": driver,
                "runner": runner,
                "bytes": through,
            }
        )
    algo.stop()
    return found


def ingest() -> dict[str, Callable[[], float]]:
    """Rows per second that a memory takes, that bandwidth alone lets it take, that are played."""
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

    runner = MFQEnvRunner(
        config=battle(0, 0).env_runners(num_envs_per_env_runner=8),
        worker_index=0,
        env_creator=make_creator("battle_v4"),
    )

    def play() -> int:
        return sum(batch.agent_steps() for batch in runner.sample())

    return {"ingest": timed(write), "bandwidth": timed(copy), "play": timed(play, SECONDS)}


def written(algo: MFQ) -> Callable[[], float]:
    """Rows per second that a remote learner writes, from Ray's object store into its memory."""
    fragments = algo.env_runner.sample()
    ready = [batch.put() for batch in fragments]
    rows = sum(batch.agent_steps() for batch in fragments)

    def write() -> int:
        algo._memories.give([ready] * 50)
        return 50 * rows

    return timed(write, SECONDS)


def asked(algo: MFQ) -> Callable[[], float]:
    """Calls per second to a remote learner that has nothing to write."""

    def ask() -> int:
        algo._memories.give([])
        return 1

    return timed(ask, SECONDS)


def trained(algo: MFQ, updates: int) -> Callable[[], float]:
    """Rows trained per second by remote learners, from their own memories."""

    def learn() -> int:
        algo._learn(updates)
        return int(updates * algo.config.total_train_batch_size)

    return timed(learn, SECONDS)


def main() -> None:
    ray.init(
        "local", num_cpus=20, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    memory = rates(ingest(), REPEATS)
    one, two = (battle(0, n).build_algo() for n in (1, 2))
    for algo in (one, two):
        while not algo.train()["num_updates"]:
            pass
    cases = {"1": trained(one, UPDATES), "2": trained(two, UPDATES), "update": trained(one, 1)}
    learners = rates(cases | {"write": written(one), "ask": asked(one)}, REPEATS)
    for algo in (one, two):
        algo.stop()
    found = [point for case in POINTS for point in points(*case)]
    ray.shutdown()
    rate = {name: statistics.median(values) for name, values in {**memory, **learners}.items()}
    batch = MFQConfig().train_batch_size_per_learner
    idle = [point for point in found if not point["intensity"]]
    cost = Cost(
        runner=1 / rate["play"],
        driver=max(point["driver"] for point in idle),
        write=1 / rate["write"],
        train=1 / rate["1"],
        exchange=max(0.0, 2 / rate["2"] - 1 / rate["1"]),
        ask=1 / rate["ask"],
        update=batch / rate["update"] - batch / rate["1"],
    )
    cores = len(os.sched_getaffinity(0))
    for point in found:
        free = Cost(**vars(cost) | {"driver": point["driver"], "runner": point["runner"]})
        case = (point[name] for name in ("runners", "learners", "intensity"))
        point["model"] = free.rows_per_second(*case, cores)
    figures = {
        "rows through the driver, remote runners and learners": {
            "value": max(point["bytes"] for point in found),
            "unit": "B/row",
            "must": 0,
            "aim": 0,
        },
        "driver's processor time, runners that cost nothing, the most of all cases": {
            "value": max(point["driver"] for point in idle) * 1e6,
            "unit": "us/row",
            "must": 1.0,
            "aim": 0.3,
        },
        "rows written into one learner's memory": speed(memory["ingest"]),
        "rows written against copying the same arrays": ratio(
            memory["ingest"], memory["bandwidth"], must=0.8, aim=1.0
        ),
        "rows written by a remote learner, from the object store": speed(learners["write"]),
        "rows trained by one remote learner": speed(learners["1"]),
        f"rows trained by 2 learners against 1, on {cores} cores": ratio(
            learners["2"], learners["1"], must=1.2, aim=1.6
        ),
    }
    record("scaling", figures, cost=vars(cost), points=found)
    print("seconds:", {name: float(f"{value:.3g}") for name, value in vars(cost).items()})
    for point in found:
        print({name: float(f"{value:.3g}") for name, value in point.items()})
    print(f"the model is off by a factor of at most {worst(found):.2f}")
    picture(json.loads((RESULTS / "scaling.json").read_text()))


if __name__ == "__main__":
    main()
