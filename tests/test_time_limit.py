"""The time limit, which holds within an iteration, and what a restored run still knows."""

import pytest
from small_battles import small_battle

from rllib_cli.hooks import hooks


@pytest.mark.parametrize("old", [False, True])
def test_an_iteration_ends_in_time_and_the_config_stays_what_it_was(build, old):
    config = small_battle(old=old).reporting(min_sample_timesteps_per_iteration=10**9)
    algo = build(config.training(time_limit_s=1.0))
    result = algo.train()
    assert 1.0 <= result["time_total_s"] and result["training_iteration"] == 1
    assert algo.config.min_sample_timesteps_per_iteration == 10**9
    # The limit counts all iterations: of the next one, one training step is made.
    again = algo.train()
    steps = "num_training_step_calls_per_iteration"
    assert again[steps] == 1 < result[steps]


def test_the_command_sets_the_limit_from_stop():
    assert hooks("MFQ").limits({"time_total_s": 60.0, "x": 1}) == {"time_limit_s": 60.0}
    assert hooks("MFQ").limits({"x": 1}) == hooks("PPO").limits({"time_total_s": 60.0}) == {}


def test_the_last_evaluation_is_carried_over_when_a_run_is_restored(build, tmp_path):
    config = small_battle()
    config.evaluation(
        evaluation_interval=2, evaluation_duration=2, evaluation_opponents={"random": "random"}
    )
    algo = build(config)
    algo.train()
    known = algo.train()["evaluation"]
    algo.save_to_path(tmp_path / "saved")
    restored = build(config)
    restored.restore_from_path(str(tmp_path / "saved"))
    result = restored.train()  # the third iteration, which does not evaluate
    assert result["evaluation"]["env_runners"]["win_rate"] == known["env_runners"]["win_rate"]
