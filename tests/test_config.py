"""What MFQ refuses, in one sentence and before any work starts, and what it understands."""

import inspect
import re
import subprocess
import sys
import textwrap
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray import cloudpickle, tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env
from small_battles import SIZE, memories, small_battle

from rllib_cli.experiments import BadInput
from rllib_cli.validation import check
from rllib_mfq import MFQ, Group, MFQConfig, MFQEnvRunner, PopulationError, Rows, magent2
from rllib_mfq.algorithm.old_names import ATTRIBUTES, INSTEAD, OLD_NAMES
from rllib_mfq.algorithm.settings import SETTINGS
from rllib_mfq.algorithm.validation import NEW_STACK
from rllib_mfq.population.magent2 import ENVIRONMENTS, MAgent2Population

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

BATTLE = {"env": "battle_v4", "env_config": SIZE}


def small(env="battle_v4", **training):
    """A fragment is 11 rows of 2 agents in 2 populations."""
    config = small_battle(env, None if env == "battle_v4" else {}, **training)
    return config.reporting(min_sample_timesteps_per_iteration=40)


class OneAgent(gym.Env):
    """A group of one, without positions or edges."""

    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config):
        for name, space in config.items():
            setattr(self, name, space)

    def reset(self, *, seed=None, options=None):
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


class FaultyBattle(MAgent2Population):
    """A small battle whose observation is not a number from a step on, for one group."""

    def __init__(self, config):
        super().__init__(magent2("battle_v4", **BATTLE["env_config"]).parallel_env)
        self.steps, self.nan_at = 0, config["nan_at"]

    def step(self, actions):
        self.steps += 1
        return super().step(actions)

    def observe(self, group, out):
        super().observe(group, out)
        if group == "blue" and self.steps == self.nan_at:
            out[0] = np.nan


def refuses(config, *words, error=ValueError):
    """Building raises one sentence that has all the words, before anything is started."""
    with pytest.raises(error) as raised:
        if isinstance(config, MFQConfig):
            with mock.patch.object(MFQEnvRunner, "__init__", side_effect=AssertionError("started")):
                config.build_algo()
        else:
            config()
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# Settings that are checked without an environment.

INVALID = [
    *(("temperature", x, "it must be a positive number") for x in (0, -1, np.nan, np.inf, None)),
    *(("temperature", x, "[[steps, value], ...]") for x in ([], [0, 1], [[0, 1, 2]], [[0, 0]])),
    ("temperature", True, "it must be a positive number"),
    ("temperature", [[0, 1], [0, 2]], "the steps of a schedule must increase"),
    ("temperature", [[9, 1], [5, 2]], "the steps of a schedule must increase"),
    ("lr", -1e-3, "it must be a number of at least 0"),
    ("lr", [[0, 1e-3], [0, 1e-4]], "the steps of a schedule must increase"),
    ("lr", "fast", "it must be a number of at least 0"),
    ("neighborhood", "gruop", "(did you mean 'group'?); legal are 'group', 'none', 'all'"),
    ("neighborhood", {"radius": 3, "nearest": 3}, "legal are"),
    *(("neighborhood", {"radius": x}, "it must be a positive number") for x in (0, -1)),
    *(("mean_action_iterations", x, "an integer of at least 1") for x in (0, 1.5, True)),
    ("mean_action_input", "now", "legal are previous, current"),
    ("target", "sarsa", "legal are mean_field, double_q, max"),
    ("target", "double", "(did you mean 'double_q'?)"),
    *(("tau", x, "a number above 0 and at most 1") for x in (0, 1.1, np.nan)),
    *(("gamma", x, "a number from 0 to 1") for x in (1.5, -0.1)),
    ("grad_clip", 0, "a number above 0"),
    *(("training_intensity", x, "a number above 0") for x in (0, None)),
    *(("train_batch_size_per_learner", x, "an integer of at least 1") for x in (0, 1.5, None)),
    ("target_network_update_freq", 0, "an integer of at least 1"),
    *(("replay_capacity", x, "an integer of at least 1") for x in (0, 1e5 + 0.5, None)),
    ("num_steps_sampled_before_learning_starts", 5_001, "replay_capacity, which is 5000"),
    ("num_steps_sampled_before_learning_starts", -1, "an integer of at least 0"),
    *(("replay_obs_dtype", x, "'float16' or 'uint8'") for x in ("float12", "object", "U5")),
    ("dueling", "false", "it must be True or False"),
    ("store_replay_in_checkpoints", "no", "it must be True or False"),
]


@pytest.mark.parametrize(("key", "value", "legal"), INVALID, ids=str)
def test_an_illegal_value_is_refused_with_its_key_its_value_and_what_would_be_legal(
    key, value, legal
):
    shown = str(value).strip("{}").replace("'", "") if key == "neighborhood" else repr(value)
    with pytest.raises(ValueError) as raised:
        small(**{key: value}).validate()
    message = str(raised.value)
    assert key in message and legal in message and "\n" not in message
    assert shown in message.replace("'", "") or shown in message


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("num_env_runners", -1, "an integer of at least 0"),
        ("num_learners", 1.5, "an integer of at least 0"),
        ("num_envs_per_env_runner", 0, "an integer of at least 1"),
        ("rollout_fragment_length", "long", "an integer of at least 1"),
        ("rollout_fragment_length", 0, "an integer of at least 1"),
        ("metrics_num_episodes_for_smoothing", 0, "an integer of at least 1"),
        ("seed", 1.5, "an integer of at least 0"),
        ("evaluation_interval", -1, "an integer of at least 0"),
        ("evaluation_duration", 0, "must be an int and >0"),
        ("explore", "yes", "True or False"),
        ("framework", "tf2", "'torch'"),
        ("env_config", None, "a dict"),
        ("multiagent", ["red"], "a dict"),
        ("model_config", 3, "a dict"),
        ("evaluation_opponents", "random", "a dict"),
        ("evaluation_opponents", {"old": 3}, "a name such as 'random' or 'rush'"),
    ],
)
def test_rllibs_own_settings_are_refused_in_the_same_way(key, value, legal):
    refuses(lambda: MFQConfig().update_from_dict({key: value}).validate(), key, legal)
    shown = repr(value["old"]) if isinstance(value, dict) else repr(value)
    refuses(lambda: MFQConfig().update_from_dict({key: value}).validate(), shown)


@pytest.mark.parametrize(
    ("key", "value", "number"),
    [
        ("lr", "1e-4", "0.0001"),
        ("lr", [[0, 1e-3], [1_000, "1e-4"]], "0.0001"),
        ("tau", "1e-2", "0.01"),
        ("gamma", "0.9", "0.9"),
        ("temperature", "5e-1", "0.5"),
        ("temperature", [[0, 1.0], ["1e5", 0.1]], "100000.0"),
        ("temperature", [[0, 1.0], [10, "1e-1"]], "0.1"),
        ("replay_capacity", "1e5", "100000 "),
        ("mean_action_iterations", "2", "2 "),
        ("train_batch_size_per_learner", "32", "32 "),
        ("training_intensity", "1", "1.0"),
    ],
    ids=str,
)
def test_a_string_where_a_number_belongs_is_refused_with_the_number_to_write(key, value, number):
    refuses(lambda: small(**{key: value}).validate(), f"{key} has the string", f"write {number}")


@pytest.mark.parametrize("key", ["num_env_runners", "num_learners", "seed", "evaluation_interval"])
def test_a_string_is_refused_for_rllibs_numbers_too(key):
    refuses(lambda: MFQConfig().update_from_dict({key: "1"}).validate(), key, "write 1 ")


IGNORED = """model exploration_config batch_mode clip_rewards
    compress_observations num_epochs minibatch_size shuffle_batch_per_epoch remote_worker_envs
    gym_env_vectorize_mode optimizer preprocessor_pref sample_collector clip_actions
    normalize_actions action_mask_key observation_space action_space observation_fn
    _env_to_module_connector _module_to_env_connector _learner_connector input_ output
    off_policy_estimation_methods render_env policy_map_capacity
    policy_states_are_swappable""".split()


@pytest.mark.parametrize("key", IGNORED)
def test_a_setting_of_rllib_that_mfq_would_ignore_is_refused_with_what_to_do_instead(key):
    config = small()
    old = getattr(config, key)
    if isinstance(old, bool):
        new = not old
    else:
        new = old + 1 if isinstance(old, int) else {"x": 1} if isinstance(old, dict) else "x"
    setattr(config, key, new)
    refuses(config.validate, f"{key.strip('_')} has no effect on MFQ; {NEW_STACK.refused[key]}.")


def test_evaluation_settings_are_checked_like_the_others():
    def evaluate(**overrides):
        return small().evaluation(evaluation_config=overrides).validate

    refuses(evaluate(explor=True), "'explor' (did you mean 'explore'?)")
    refuses(evaluate(gamma="0.9"), "gamma has the string '0.9'")
    refuses(evaluate(clip_rewards=True), "clip_rewards has no effect")
    small().evaluation(evaluation_interval=1, evaluation_config={"explore": True}).validate()


def test_evaluation_stays_greedy_until_it_is_told_to_explore():
    config = MFQConfig().evaluation(evaluation_config=None)
    assert config.get_evaluation_config_object().explore is False
    config.evaluation(evaluation_config={"explore": True})
    config.evaluation(evaluation_config={"gamma": 0.9})
    assert config.get_evaluation_config_object().explore is True


def test_the_batch_of_several_learners_is_theirs_times_their_number():
    config = small(train_batch_size_per_learner=33).learners(num_learners=2)
    config.validate()
    assert config.total_train_batch_size == 66


# Names.


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("temprature", "'temperature'"),
        ("neighbourhood", "'neighborhood'"),
        ("num_worker", "'num_workers'"),
        ("rollout_fragment_lenght", "'rollout_fragment_length'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key, near):
    sentence = f"MFQ has no config key {key!r} (did you mean {near}?)."
    for make in (
        lambda: MFQConfig().update_from_dict({key: 1}),
        lambda: MFQ(config=BATTLE | {key: 1}),
    ):
        refuses(make, sentence)


@pytest.mark.parametrize("key", sorted(INSTEAD))
def test_a_key_of_dqn_is_refused_with_what_to_set_instead(key):
    assert key in {*vars(DQNConfig()), "num_atoms"} and not hasattr(MFQConfig(), key)
    refuses(
        lambda: MFQConfig().update_from_dict({key: 1}),
        f"MFQ has no config key {key!r}; {INSTEAD[key]}.",
    )
    with pytest.raises(TypeError, match=re.escape(f"no argument {key!r}; {INSTEAD[key]}.")):
        MFQConfig().training(**{key: 1})
    with pytest.raises(BadInput, match=re.escape(f"MFQ has no config key {key!r}; {INSTEAD[key]}")):
        check("x", {"run": "MFQ", "stop": {}, "config": {"env": "battle_v4", key: 1}})


@pytest.mark.parametrize("key", [5, "_x", "__x", "class", "lambda", "buffer_size"])
def test_no_unknown_key_passes_unseen(key):
    refuses(lambda: MFQConfig().update_from_dict({key: 1}), f"no config key {key!r}")


def test_an_unknown_keyword_is_refused_with_the_nearest_one():
    config = MFQConfig()
    refuses(lambda: config.training(temprature=1), "'temprature'", "'temperature'", error=TypeError)
    refuses(
        lambda: config.evaluation(evaluation_interva=1),
        "'evaluation_interva'",
        "'evaluation_interval'",
        error=TypeError,
    )
    refuses(lambda: config.env_runners(num_runners=1), "num_runners", error=TypeError)


def test_an_unknown_key_within_multiagent_is_refused():
    refuses(lambda: MFQConfig().update_from_dict({"multiagent": {"polices": []}}), "'policies'")


@pytest.mark.parametrize(
    ("model_config", "words"),
    [
        ({"conv_filter": []}, ["no key 'conv_filter' (did you mean 'conv_filters'?)"]),
        ({"dueling": True}, ["'dueling', which MFQ sets", "training()"]),
        ({"lstm_cell_size": 8}, ["'lstm_cell_size', which has no effect without use_lstm"]),
        ({"head_fcnet_hiddens": [8]}, ["'head_fcnet_hiddens', which has no effect"]),
        (DefaultModelConfig(vf_share_layers=False), ["'vf_share_layers', which has no effect"]),
    ],
)
def test_a_key_of_the_model_config_that_does_nothing_is_refused(model_config, words):
    refuses(small().rl_module(model_config=model_config).validate, "model_config", *words)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("env", "model_config", "words"),
    [
        ("battle_v4", {"fcnet_hiddens": [8]}, ["'fcnet_hiddens'", "(13, 13, 5)", "conv_filters"]),
        (OneAgent, {"conv_filters": [[8, 3, 1]]}, ["'conv_filters'", "(3,)", "fcnet_hiddens"]),
        ("battle_v4", {"conv_filters": [[8, 30, 1, "valid"]]}, ["30", "no network can be made"]),
        (OneAgent, {"fcnet_hiddens": "64"}, ["'64'", "no network can be made"]),
    ],
)
def test_a_network_that_does_not_fit_the_observations_is_refused(env, model_config, words):
    refuses(small(env).rl_module(model_config=model_config), "model_config", *words)


def test_settings_of_one_module_are_checked_like_the_others():
    def override(**overrides):
        return small().rl_module(algorithm_config_overrides_per_module=overrides)

    refuses(override(red={"dueling": True}).validate, "'red'", "'dueling'", "legal are gamma")
    refuses(override(red={"tau": 2}).validate, "tau is 2")
    override(red={"tau": 0.5}).validate()


# Settings that are checked against the environment.


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("batle_v4", ["'batle_v4' (did you mean 'battle_v4'?)"]),
        ("CartPol-v1", ["'CartPol-v1' (did you mean 'CartPole-v1'?)"]),
        ("registered_fro_this", ["(did you mean 'registered_for_this'?)"]),
        ("no_module:Environment-v0", ["'no_module:Environment-v0'"]),
        ("no.such.Class", ["'no.such.Class'", "there is no module no.such"]),
        (None, ["env is None", "environment('battle_v4')"]),
    ],
)
def test_an_environment_that_does_not_exist_is_refused_with_the_nearest_name(env, words):
    register_env("registered_for_this", OneAgent)
    refuses(small(env), "env is", *words)


@pytest.mark.usefixtures("ray_session")
def test_an_argument_that_the_environment_does_not_have_is_refused_with_the_nearest_one():
    config = small().environment(env_config={"map_sise": 12})
    refuses(config, "battle_v4 has no argument 'map_sise' (did you mean 'map_size'?)")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ({"action_space": gym.spaces.Box(0, 1, (2,))}, ["action space Box", "must be Discrete"]),
        (
            {"observation_space": gym.spaces.Sequence(gym.spaces.Discrete(3))},
            ["observation space Sequence", "must be a Box"],
        ),
        ({"observation_space": gym.spaces.Box(0, 1, (4, 4))}, ["(4, 4)", "[n] or [height"]),
    ],
)
def test_a_space_that_mfq_cannot_handle_is_refused(spaces, words):
    refuses(small(OneAgent).environment(env_config=spaces), "group 'agent'", *words)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("env", "neighborhood", "needs"),
    [
        (OneAgent, {"radius": 3}, "positions"),
        (OneAgent, {"nearest": 3}, "positions"),
        ("battle_v4", "graph", "edges"),
    ],
)
def test_a_neighborhood_whose_data_the_environment_lacks_is_refused(env, neighborhood, needs):
    refuses(small(env, neighborhood=neighborhood), str(neighborhood), f"needs {needs}", "'group'")


@pytest.mark.usefixtures("ray_session")
def test_one_module_for_groups_of_different_spaces_is_refused():
    config = small("adversarial_pursuit_v4").multi_agent(policies=["shared"])
    refuses(config, "'predator'", "'prey'", "'shared'", "leave policies out")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policies": {"red", "green"}}, ["'blue'", "['green', 'red']"]),
        ({"policies": {"red", "blue", "green"}}, ["no group maps to policy 'green'"]),
        (
            {"policies": ["red", "blue"], "policy_mapping_fn": lambda *args: "grene"},
            ["maps to policy 'grene'", "['blue', 'red']"],
        ),
        ({"policies_to_train": ["rde"]}, ["policies_to_train", "'rde' (did you mean 'red'?)"]),
        ({"policies": ["a", "b"], "policies_to_train": ["c"]}, ["policies_to_train", "'c'"]),
    ],
)
def test_policies_that_do_not_match_the_groups_are_refused(settings, words):
    refuses(small().multi_agent(**settings), *words)


@pytest.mark.usefixtures("ray_session")
def test_settings_of_a_module_that_does_not_exist_are_refused():
    overrides = {"rde": {"lr": 1e-3}}
    config = small().rl_module(algorithm_config_overrides_per_module=overrides)
    refuses(config, "'rde'", "['blue', 'red']")


@pytest.mark.usefixtures("ray_session")
def test_a_memory_smaller_than_a_fragment_is_refused(build):
    rows = {"num_steps_sampled_before_learning_starts": 20}
    refuses(small(replay_capacity=43, **rows), "replay_capacity is 43", "44 rows", "'blue'")
    build(small(replay_capacity=44, **rows))


@pytest.mark.usefixtures("ray_session")
def test_a_share_of_the_memory_smaller_than_a_fragment_is_refused_before_learners_start():
    rows = {"num_steps_sampled_before_learning_starts": 20}
    config = small(replay_capacity=87, **rows).learners(num_learners=2)
    refuses(config, "replay_capacity is 87 for 2 learners", "44 rows")


@pytest.mark.usefixtures("ray_session")
def test_a_memory_that_cannot_fit_is_refused_with_the_largest_that_does():
    refuses(small(replay_capacity=10**12), "replay_capacity is 1,000,000,000,000", "at most")


def test_a_device_that_is_not_there_is_refused():
    refuses(small(replay_device="gpu").validate, "replay_device is 'gpu'", "auto, cpu, cuda")
    refuses(small(replay_device="cuda").validate, "num_gpus_per_learner is 0")
    if not torch.cuda.is_available():
        config = small(replay_device="cuda").learners(num_gpus_per_learner=1)
        refuses(config.validate, "torch finds no GPU on this node")


def test_learners_are_refused_on_the_old_stack():
    config = small_battle(old=True).learners(num_learners=2)
    refuses(config.validate, "num_learners is 2", "new API stack")


@pytest.mark.usefixtures("ray_session")
def test_a_config_used_before_is_checked_against_its_new_environment(build):
    config = build(small()).config.copy(copy_frozen=False)
    refuses(config.environment("adversarial_pursuit_v4"), "'predator'", "['blue', 'red']")


# Opponents and checkpoints.


@pytest.fixture(scope="module")
def checkpoints(ray_session, tmp_path_factory):
    """One checkpoint per kind of network or environment."""
    root = tmp_path_factory.mktemp("checkpoints")
    kinds = {
        "battle": small(),
        "dueling": small(dueling=True),
        "filters": small().rl_module(model_config={"conv_filters": [[4, 3, 2]]}),
        "shared": small().multi_agent(policies=["shared"]),
        "one": small(OneAgent),
        "hiddens": small(OneAgent).rl_module(model_config={"fcnet_hiddens": [8]}),
        "pursuit": small("adversarial_pursuit_v4").env_runners(num_envs_per_env_runner=1),
    }
    for name, config in kinds.items():
        algo = config.build_algo()
        algo.save_to_path(root / name)
        algo.stop()
    return root


def state_of(algo):
    return {
        (module_id, name): value.clone()
        for module_id, module in algo.learner_group._learner.module.items()
        for name, value in module.unwrapped().state_dict().items()
    }


@pytest.mark.parametrize(
    ("env", "kind", "words"),
    [
        ("battle_v4", "dueling", ["'blue'", "q_net", "has shape", "none here"]),
        ("battle_v4", "filters", ["'blue'", "cnn", "has shape"]),
        ("battle_v4", "shared", ["['shared']", "['blue', 'red']"]),
        ("battle_v4", "pursuit", ["['predator', 'prey']", "['blue', 'red']"]),
        (OneAgent, "hiddens", ["'default_policy'", "has shape (8,) there and (256,) here"]),
        ("battle_v4", "missing", ["is not the folder of an algorithm's checkpoint"]),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(
    build, checkpoints, env, kind, words
):
    algo = build(small(env))
    before = state_of(algo)
    refuses(lambda: algo.restore_from_path(checkpoints / kind), str(checkpoints / kind), *words)
    after = state_of(algo)
    assert all(torch.equal(before[key], after[key]) for key in before | after)


def test_a_module_of_another_network_is_refused_and_changes_nothing(build, checkpoints):
    algo = build(small().debugging(seed=8))
    before = state_of(algo)
    component = "learner_group/learner/rl_module/blue"
    folder = checkpoints / "dueling" / component
    refuses(lambda: algo.restore_from_path(folder, component=component), "another network")
    after = state_of(algo)
    assert all(torch.equal(before[key], after[key]) for key in before | after)
    algo.restore_from_path(checkpoints / "battle" / component, component=component)
    assert not all(torch.equal(before[key], value) for key, value in state_of(algo).items())


def test_a_memory_of_another_capacity_is_refused_and_changes_nothing(build, tmp_path):
    keep = {"store_replay_in_checkpoints": True}
    algo = build(small(**keep))
    algo.train()
    algo.save_to_path(tmp_path)
    other = build(small(replay_capacity=4_000, **keep))
    before = state_of(other)
    refuses(lambda: other.restore_from_path(tmp_path), "replay_capacity is 4000", "5000")
    after = state_of(other)
    assert other._agent_steps == 0 and other.iteration == 0
    assert all(torch.equal(before[key], after[key]) for key in before | after)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pursuit", ["no module for group", "['predator', 'prey']"]),
        ("one", ["plays", "but group"]),
        ("missing", ["neither one of random, still, rush, hold, flee"]),
        (".", ["neither one of random, still, rush, hold, flee"]),
    ],
)
def test_an_opponent_that_cannot_play_is_refused_before_the_env_runners_start(
    checkpoints, kind, words
):
    config = small().evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=1,
        evaluation_opponents={"old": str(checkpoints / kind)},
    )
    refuses(config, "'old'", *words)


class ThreeGroups:
    """A population of three groups of one agent."""

    def __init__(self, config):
        self.groups = dict.fromkeys("abc", Group(OneAgent.observation_space, OneAgent.action_space))

    def reset(self, *, seed=None):
        return {group: Rows(np.zeros(1, int)) for group in self.groups}

    def step(self, actions):
        raise NotImplementedError

    def observe(self, group, out):
        out[:] = 0


@pytest.mark.usefixtures("ray_session")
def test_opponents_need_two_groups_and_an_evaluation_interval():
    opponents = {"evaluation_opponents": {"random": "random"}}
    refuses(small().evaluation(**opponents), "set evaluation_interval")
    for env, groups in ((OneAgent, "['agent']"), (ThreeGroups, "['a', 'b', 'c']")):
        config = small(env).evaluation(evaluation_interval=1, **opponents)
        refuses(config, "two groups", groups)
    config = small().evaluation(evaluation_interval=1, evaluation_random_steps=3)
    refuses(config, "evaluation_random_steps is 3", "no evaluation_opponents")


# Values from the environment.


@pytest.mark.parametrize(("runners", "nan_at"), [(0, 0), (0, 5), (1, 5)])
def test_a_nan_observation_stops_the_run_with_step_and_group_before_the_memory(
    build, runners, nan_at
):
    register_env("faulty_observations", FaultyBattle)
    config = small("faulty_observations").environment(env_config={"nan_at": nan_at})
    algo = build(config.env_runners(num_env_runners=runners))
    with pytest.raises(
        PopulationError, match=rf"group 'blue', step {nan_at}: the observation .* not finite"
    ):
        algo.train()
    assert all(len(memory) == 0 for memory in memories(algo).values())


def test_a_nan_on_a_remote_evaluation_runner_stops_the_run_too(build):
    register_env("faulty_observations", FaultyBattle)
    config = small("faulty_observations").environment(env_config={"nan_at": None})
    config.evaluation(
        evaluation_interval=1,
        evaluation_duration=2,
        evaluation_num_env_runners=1,
        evaluation_config={"env_config": {"nan_at": 5}},
    )
    with pytest.raises(PopulationError, match="group 'blue', step 5: the observation"):
        build(config).train()


# What is understood.


def test_old_names_mean_what_the_new_ones_do():
    old = {
        "num_workers": 2,
        "num_envs_per_worker": 3,
        "num_cpus_per_worker": 0.5,
        "train_batch_size": 64,
        "evaluation_num_workers": 1,
        "evaluation_interval": 1,
        "framework": "torch",
        "env": "battle_v4",
        "env_config": {"map_size": 12},
        "multiagent": {"policies": ["shared"]},
        "timesteps_per_iteration": 100,
        "model_config": {"conv_filters": [[8, 3, 2]]},
    }
    config = MFQConfig().update_from_dict(old)
    config.validate()
    assert config.num_env_runners == 2
    assert config.num_envs_per_env_runner == 3
    assert config.num_cpus_per_env_runner == 0.5
    assert config.train_batch_size_per_learner == config.total_train_batch_size == 64
    assert config.evaluation_num_env_runners == 1
    assert config.framework_str == "torch"
    assert (config.env, config.env_config) == ("battle_v4", {"map_size": 12})
    assert set(config.policies) == {"shared"}
    assert config.min_sample_timesteps_per_iteration == 100
    assert config.model_config["conv_filters"] == [[8, 3, 2]]
    assert MFQConfig().training(train_batch_size=64).train_batch_size_per_learner == 64


def test_the_order_of_the_modules_does_not_depend_on_the_process(build):
    names = {f"m{i}" for i in range(9)}  # in sets, strings come in another order in each process
    assert list(MFQConfig().multi_agent(policies=names).policies) == sorted(names)
    assert list(build(small()).config.policies) == ["blue", "red"]


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("num_workers", "num_env_runners", 2),
        ("train_batch_size", "train_batch_size_per_learner", 64),
        ("num_envs_per_worker", "num_envs_per_env_runner", 3),
        ("framework", "framework_str", "torch"),
    ],
)
def test_an_old_and_a_new_name_with_different_values_are_refused(old, new, value):
    config = MFQConfig().update_from_dict({old: value, new: value})
    assert getattr(config, new) == value
    refuses(lambda: config.update_from_dict({old: value, new: 1}), old, new, "1", repr(value))


def test_every_default_is_a_documented_argument():
    for key in SETTINGS:
        (method,) = (
            m
            for m in (MFQConfig.training, MFQConfig.evaluation)
            if key in inspect.signature(m).parameters
        )
        assert inspect.signature(method).parameters[key].default is NotProvided
        assert re.search(rf"^ +{key}: ", method.__doc__, re.MULTILINE), key


@pytest.mark.parametrize("changed", [False, True])
def test_a_config_survives_its_dict_and_its_copy(changed):
    config = MFQConfig()
    if changed:
        config = small(neighborhood={"radius": 3}, temperature=[[0, 1.0], [9, 0.1]], tau=0.5)
        config.multi_agent(policies=["red", "blue"], policies_to_train=["red"])
        config.evaluation(evaluation_interval=2, evaluation_opponents={"random": "random"})
        config.rl_module(model_config={"conv_filters": [[8, 3, 2]]})
    again = MFQConfig().update_from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    again.validate()
    assert again.train_batch_size_per_learner == config.train_batch_size_per_learner
    copied = config.copy(copy_frozen=False)
    assert copied.to_dict() == config.to_dict()
    copied.temperature = copied.evaluation_opponents["x"] = 1
    assert copied.temperature != config.temperature
    assert (
        "x" not in config.evaluation_opponents
        and "x" not in SETTINGS["evaluation_opponents"].default
    )


def public_names():
    """Every argument of RLlib's methods whose attribute in a config has the name with a `_`."""
    methods = [m for n, m in inspect.getmembers(AlgorithmConfig, inspect.isfunction) if n[0] != "_"]
    arguments = {name for method in methods for name in inspect.signature(method).parameters}
    attributes = vars(MFQConfig())
    return {n for n in arguments if f"_{n}" in attributes and n not in attributes}


def test_the_dict_of_a_config_has_the_names_that_its_methods_take():
    names = public_names()
    assert {"train_batch_size_per_learner", "model_config", "learner_class"} <= names
    config = MFQConfig().to_dict()
    assert names <= config.keys()
    assert not {f"_{name}" for name in names} & config.keys()


@pytest.mark.parametrize("name", sorted({*OLD_NAMES, *ATTRIBUTES, *public_names()}))
def test_any_name_of_a_key_changes_it_in_a_whole_config(name):
    attribute = OLD_NAMES.get(name, name)
    attribute = ATTRIBUTES.get(attribute, attribute)
    value = {"train_batch_size": 24, "train_batch_size_per_learner": 24}.get(name, object())
    value = {"evaluation_num_episodes": 3, "callbacks": RLlibCallback}.get(name, value)
    config = {**small().to_dict(), name: value}
    assert getattr(MFQConfig().update_from_dict(config), attribute) is value
    # A dict that is no whole config gives a key once.
    if name not in small().to_dict() and attribute in config:
        with pytest.raises(ValueError, match="give one of them"):
            MFQConfig().update_from_dict({attribute: 1, name: value})


def test_policies_may_stand_in_multiagent_or_beside_it():
    both = {"policies": ["a"], "multiagent": {"policies": ["b"]}}
    refuses(lambda: MFQConfig().update_from_dict(both), "policies is ['a']", "['b']", "one of them")
    same = {"policies": ["a"], "multiagent": {"policies": ["a"]}}
    whole = {**small().to_dict(), "multiagent": {"policies": ["a"]}}
    for config in (same, whole):
        assert set(MFQConfig().update_from_dict(config).policies) == {"a"}


def test_the_dict_of_an_algorithms_config_builds_the_same_algorithm(build):
    config = build(small().multi_agent(policies=["shared"])).config.to_dict()
    algo = MFQ(config=config)
    assert set(algo.env_runner.module.keys()) == {"shared"}
    assert algo.config.train_batch_size_per_learner == 32
    algo.stop()


# Registration.


def test_the_import_registers_mfq_and_all_magent2_environments():
    assert _global_registry.contains(tune.registry.TRAINABLE_CLASS, "MFQ")
    assert len(ENVIRONMENTS) == 6
    assert all(_global_registry.contains(ENV_CREATOR, name) for name in ENVIRONMENTS)


def run_apart(script):
    """Runs a script in a Python of its own; what it printed, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr, done.returncode


def test_it_builds_in_a_second_ray_session_and_tune_shows_an_unknown_key():
    output, code = run_apart(
        f"""
        import ray
        from ray import tune
        from rllib_mfq import MFQConfig, register

        start = dict(num_cpus=2, include_dashboard=False, logging_level="ERROR")
        ray.init(**start)
        ray.shutdown()
        ray.init(**start)
        config = MFQConfig().environment("battle_v4", env_config={BATTLE["env_config"]})
        config.build_algo().stop()
        print("built", flush=True)
        register()
        tune.run("MFQ", config={{"env": "battle_v4", "temprature": 1}}, verbose=0)
        """
    )
    assert "built" in output, output
    assert code != 0
    assert "MFQ has no config key 'temprature' (did you mean 'temperature'?)." in output
