"""Evaluation by several runners: means over all episodes, and what is said when none answers."""

import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from ray import cloudpickle
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from small_battles import small_battle

from rllib_mfq import MFQConfig, OpponentPolicy
from rllib_mfq.algorithm.checkpoint import load_modules
from rllib_mfq.algorithm.figures import log_figures
from rllib_mfq.algorithm.runner_failures import RunnerError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def test_a_mean_is_over_all_episodes_and_not_over_runners():
    lookup = MFQConfig().stats_cls_lookup
    root = MetricsLogger(root=True, stats_cls_lookup=lookup)
    names = [("win_rate", "x"), ("episode_return_min",), ("episode_return_max",)]
    for runners in ([[1.0, 1.0, 1.0], [0.0]], [[0.25], [0.5, 1.0]]):  # two evaluations
        parts = []
        for values in runners:
            logger = MetricsLogger(stats_cls_lookup=lookup)
            log_figures(logger, [dict.fromkeys(names, value) for value in values])
            parts.append(logger.reduce())
        root.aggregate(parts, key="evaluation")
        found = root.peek("evaluation", latest_merged_only=True)
        values = np.concatenate(runners)
        assert found["win_rate"]["x"] == pytest.approx(values.mean())
        assert found["episode_return_min"] == values.min()
        assert found["episode_return_max"] == values.max()
    state = root.get_state()  # as a checkpoint keeps it
    again = MetricsLogger(root=True, stats_cls_lookup=lookup)
    again.set_state(state)
    assert again.get_state().keys() == state.keys()


@pytest.mark.parametrize("duration", [1, 5])
def test_two_runners_play_so_many_matches_as_are_asked_for_and_no_more(build, duration):
    config = small_battle().evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=2,
        evaluation_duration=duration,
        evaluation_opponents={"a": "random", "b": "random"},
    )
    found = build(config.env_runners(num_envs_per_env_runner=4)).train()["evaluation"]
    assert found["env_runners"]["num_episodes"] == 2 * duration
    for rate in found["env_runners"]["win_rate"].values():  # a draw counts a half
        assert 2 * duration * rate == pytest.approx(round(2 * duration * rate))


def test_a_users_own_reductions_stay_beside_those_of_mfq():
    config = small_battle().reporting(custom_stats_cls_lookup={"mine": dict})
    config.validate()
    assert {"mine", "pooled_mean"} <= config.stats_cls_lookup.keys()


class Slow(MultiAgentEnv):
    """Two agents, whose episode does not end; a step takes as long as `env_config` says."""

    def __init__(self, config):
        super().__init__()
        self.agents = self.possible_agents = ["a_0", "a_1"]
        self.observation_spaces = dict.fromkeys(self.agents, gym.spaces.Box(-1, 1, (2,)))
        self.action_spaces = dict.fromkeys(self.agents, gym.spaces.Discrete(2))
        self.seconds = config.get("seconds", 0.0)

    def reset(self, *, seed=None, options=None):
        return {agent: np.zeros(2, np.float32) for agent in self.agents}, {}

    def step(self, actions):
        time.sleep(self.seconds)
        obs, rewards = self.reset()[0], dict.fromkeys(actions, 0.0)
        return obs, rewards, {"__all__": False}, {"__all__": False}, {}


def test_an_evaluation_that_nobody_answers_in_time_ends_the_run_and_says_so(build):
    config = (
        MFQConfig()
        .environment(Slow)
        .reporting(min_sample_timesteps_per_iteration=4)
        .evaluation(
            evaluation_interval=1,
            evaluation_num_env_runners=1,
            evaluation_duration=1,
            evaluation_sample_timeout_s=1.0,
            evaluation_config={"env_config": {"seconds": 0.2}},
        )
    )
    with pytest.raises(RunnerError, match="within 1 s, which is evaluation_sample_timeout_s"):
        build(config).train()


class Boom(OpponentPolicy):
    """Plays nothing."""

    def act(self, obs, mean_actions, action_mask, scene, rng):
        raise RuntimeError("boom")


@pytest.mark.parametrize("where", ["others", "evaluation"])
def test_an_opponent_that_cannot_play_is_refused_before_the_run(build, where):
    path = f"{__name__}:Boom"
    config = small_battle()
    if where == "others":
        config.training(self_play={"opponent": "latest", "others": {path: 0.1}})
    else:
        config.evaluation(evaluation_interval=3, evaluation_opponents={"mine": path})
    with pytest.raises(ValueError, match=r"cannot play battle_v4: .*boom"):
        build(config)


def test_a_module_explores_from_the_start_as_the_overrides_for_it_say(build):
    own = {"temperature": 3.0, "shared_exploration": 0.7}
    config = small_battle(num_steps_sampled_before_learning_starts=1_000)
    algo = build(config.multi_agent(algorithm_config_overrides_per_module={"red": own}))
    algo.train()
    for runner in (algo.env_runner, algo.learner_group._learner):
        red, blue = (runner.module[name].unwrapped() for name in ("red", "blue"))
        assert red.temperature.item() == 3.0 and blue.temperature.item() != 3.0
        assert red.shared_exploration.item() == pytest.approx(0.7)
        assert blue.shared_exploration is None


def test_a_checkpoint_keeps_that_a_network_has_no_activation(build, tmp_path):
    config = MFQConfig().environment("CartPole-v1")
    algo = build(config.rl_module(model_config={"fcnet_activation": None}))
    algo.save_to_path(tmp_path)
    (module,) = load_modules(str(tmp_path)).values()
    assert module.model_config["fcnet_activation"] is None
    algo.restore_from_path(str(tmp_path))
