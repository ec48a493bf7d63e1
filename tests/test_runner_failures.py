"""Remote runners that fail: errors that come back reach the user, others cost a fragment."""

import sys
import time

import pytest
from ray import cloudpickle
from small_battles import SIZE, small_battle

from rllib_mfq import PopulationError, magent2
from rllib_mfq.algorithm.divergence import Diverged
from rllib_mfq.algorithm.runner_failures import (
    TOLERATED,
    Failure,
    RunnerError,
    RunnerFailures,
    attempt,
)
from rllib_mfq.population.magent2 import MAgent2Population

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
STACKS = pytest.mark.parametrize("old", [False, True])


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


class BrokenBattle(MAgent2Population):
    """A small battle whose every step from a certain one on raises, or never returns."""

    def __init__(self, config):
        super().__init__(magent2("battle_v4", **SIZE).parallel_env)
        self.does, self.at, self.steps = config["does"], config["at"], 0

    def step(self, actions):
        self.steps += 1
        if self.steps >= self.at and self.does == "hang":
            time.sleep(600)
        elif self.steps >= self.at:
            raise {"KeyError": KeyError, "odd": lambda key: Unpicklable(key, 1)}[self.does](
                "health"
            )
        return super().step(actions)


def broken(does, at=1, **settings):
    return small_battle(BrokenBattle, {"does": does, "at": at}, **settings)


@STACKS
def test_an_error_that_comes_back_reaches_the_user(build, old):
    algo = build(broken("KeyError", old=old).env_runners(num_env_runners=1))
    with pytest.raises(RunnerError, match=r"runner 1 failed 3 times .* KeyError: 'health'") as e:
        algo.train()
    assert "\n" not in str(e.value)


def test_an_error_that_cannot_be_unpickled_reaches_the_user(build):
    algo = build(broken("odd").env_runners(num_env_runners=1))
    with pytest.raises(RunnerError, match="at last with Unpicklable: health 1"):
        algo.train()


@STACKS
def test_an_environment_that_hangs_is_named_after_the_timeout(build, old):
    config = broken("hang", at=15, old=old).env_runners(num_env_runners=1, sample_timeout_s=3)
    algo = build(config)
    started = time.monotonic()
    with pytest.raises(RunnerError, match=r"runner 1 .* 3 s, which is sample_timeout_s: step or"):
        for _ in range(5):
            algo.train()
    assert time.monotonic() - started < 60


@STACKS
def test_an_error_of_a_remote_evaluation_reaches_the_user_once(build, old):
    config = broken("KeyError", at=10**9, old=old).evaluation(
        evaluation_interval=1,
        evaluation_duration=2,
        evaluation_num_env_runners=1,
        evaluation_config={"env_config": {"does": "KeyError", "at": 3}},
    )
    algo = build(config)
    with pytest.raises(RunnerError, match="runner that evaluates failed with KeyError: 'health'"):
        algo.evaluate()
    runners = algo.eval_env_runner_group
    assert runners.foreach_env_runner(lambda r: r.take_failure(), local_env_runner=False) == [None]


# Counting, without Ray.


class Runner:
    def __init__(self, errors):
        self.errors, self.made = list(errors), 0

    def make_env(self):
        self.made += 1

    def play(self):
        if error := self.errors.pop(0):
            raise error
        return "fragment"


def test_failures_are_counted_in_a_row_and_runners_get_new_environments():
    failures = RunnerFailures(None, 60.0)
    row = [KeyError("a")] * (TOLERATED - 1)
    runner = Runner([*row, None, *row, None, *row, OSError("b")])
    got = []
    with pytest.raises(RunnerError, match="OSError: b"):
        while True:
            got += failures.sort_out([(7, attempt(runner, runner.play))], [])
    assert got == ["fragment", "fragment"] and not runner.errors
    assert runner.made == 3 * (TOLERATED - 1) + 1


@pytest.mark.parametrize("error", [PopulationError("nan"), Diverged("nan")])
def test_an_error_that_must_come_back_is_raised_at_once(error):
    runner = Runner([error])
    result = attempt(runner, runner.play)
    assert isinstance(result, Failure) and runner.made == 0
    with pytest.raises(type(error), match="nan"):
        RunnerFailures(None, 60.0).sort_out([(2, "other"), (1, result)], [])


def test_nobody_answers_is_an_error_and_one_who_does_not_is_restarted(monkeypatch):
    now, killed = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("ray.kill", lambda actor, no_restart: killed.append(actor))

    class Group:
        class _worker_manager:
            actors = staticmethod(lambda: {1: "first", 2: "second"})

    failures = RunnerFailures(Group, 60.0)
    failures.asked([1, 2])
    now[0] = 59.0
    assert failures.sort_out([(2, "a")], [1]) == ["a"] and not killed
    failures.asked([1, 2])
    now[0] = 61.0
    assert failures.sort_out([(2, "b")], [1]) == ["b"] and killed == ["first"]
    failures.asked([1, 2])
    now[0] = 130.0
    with pytest.raises(RunnerError, match="env runner 1, 2 has given no fragment for 60 s"):
        failures.sort_out([], [1, 2])
    failures.begin()
    now[0] += 170.0
    assert failures.sort_out([], []) == []
    now[0] += 20.0
    with pytest.raises(RunnerError, match="all of them die"):
        failures.sort_out([], [])
