"""What `benchmarks.soak` sees of a run; the soak itself takes half an hour."""

import os

import pytest

from benchmarks import soak

STEPS = "env_runners/num_env_steps_sampled_lifetime"


def row(iteration, steps, **more):
    return {"training_iteration": iteration, "time_total_s": iteration, STEPS: steps, **more}


def test_a_counter_that_goes_back_or_is_missing_is_seen():
    good = [row(1, 10.0), row(2, 10.0), row(3, 30.0)]
    assert list(soak.went_back(good)) == []
    assert list(soak.went_back([*good, row(4, 29.0)])) == [f"{STEPS} in iteration 4"]
    lost = row(4, 40.0)
    del lost[STEPS]
    assert list(soak.went_back([*good, lost])) == [f"{STEPS} in iteration 4"]
    twice = [row(1, 10.0, weights_lag=1.0), row(1, 20.0, weights_lag=0.0)]
    assert list(soak.went_back(twice)) == []  # no count
    assert list(soak.went_back([row(2, 1.0), row(1, 2.0)]))[:1] == [
        "training_iteration in iteration 1"
    ]


def test_every_evaluation_of_the_last_third_counts_once():
    rows = [
        row(i, i) | {soak.WINS + name: float(i // 10 % 2) for name in soak.OPPONENTS}
        for i in range(1, 91)  # evaluated at 10, 20, ...; the rows after it repeat an evaluation
    ]
    assert soak.win_rates(rows) == {name: 0.5 for name in soak.OPPONENTS}  # 60, 70, 80, 90


def test_the_memory_of_this_process_is_seen():
    assert os.getpid() in soak.processes(os.getppid())
    assert soak.resident(os.getpid())["the command"] > 10


def test_a_run_that_grows_or_loses_a_runner_shows():
    held = [{"the command": 100.0, soak.LEARNER: 1_000.0} for _ in range(3)]
    held[2][soak.LEARNER] = 1_200.0
    rows = [row(10, 1.0) | {soak.WINS + name: 1.0 for name in soak.OPPONENTS}]
    rows[0] |= {soak.RESTARTS: 3, soak.AGENT_STEPS: 5}
    found = soak.figures(30, {"disturbed": soak.Soaked(rows, held, kills=4)})
    assert found["disturbed: env runners restarted"] == {
        "value": 3, "unit": "", "must": 4, "aim": 4,
    }  # fmt: skip
    growth = found[f"disturbed: {soak.LEARNER}, at the end against after a third"]
    assert growth["value"] == pytest.approx(1.2) and growth["must"] == soak.GROWTH
    assert found[f"disturbed: {soak.LEARNER}, resident at minute 30"]["value"] == 1_200
