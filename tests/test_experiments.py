"""Experiments: reading them, putting old ones into today's words, refusing what cannot run."""

import copy
import math

import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune.search.sample import Categorical, Float, Integer

from rllib_cli.experiments import BadInput, parse, read_experiments, set_values
from rllib_cli.hooks import Hooks, MFQHooks, _to_play
from rllib_cli.options import Options, apply_options, experiment_from_options
from rllib_cli.results import is_goal
from rllib_cli.translation import CONFIG, REPLAY_BUFFERS, metric, translate
from rllib_cli.validation import check, plain_configs, searched, with_spaces
from rllib_mfq import GaussianSqueezePopulation, MFQConfig
from rllib_mfq.algorithm.checkpoint import check_checkpoint
from rllib_mfq.algorithm.roster import group_mapping

SMALL_BATTLE = {"env_config": {"map_size": 12, "max_cycles": 20}}


def checked(run="MFQ", env="battle_v4", stop=None, config=None, **rest):
    experiment = {"run": run, "env": env, "stop": stop or {}, "config": config or {}, **rest}
    translated, _ = translate("x", experiment)
    return check("x", translated)


def refused(**experiment):
    with pytest.raises(BadInput) as caught:
        checked(**experiment)
    message = caught.value.message
    assert "\n" not in message and caught.value.exit_code == 2
    return message


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.yaml", "x:\n  run: MFQ\n   env: b\n", "line 3, column 7"),
        ("x.yaml", "x:\n  run: MFQ\nx:\n  run: PPO\n", "'x' appears twice, first in line 1"),
        ("x.yaml", "x:\n  run: MFQ\n  config: {lr: 1, lr: 2}\n", "'lr' appears twice"),
        ("x.yaml", "x:\n  env: battle_v4\n", "'x' in .* has no 'run'"),
        ("x.yaml", "x: 3\n", "has no 'run'"),
        ("x.yaml", "x: {run: MFQ, config: 3}\n", "'config' of .* is 3"),
        ("x.yaml", "", "has no experiments"),
        ("x.yaml", "x: !!python/object/apply:os.getcwd []\n", "line 1, column 4"),
        ("x.json", '{"x": {"run": "MFQ",}}', "not valid JSON: line 1, column 21"),
        ("x.json", '{"x": {"run": "MFQ"}, "x": {}}', "'x' appears twice"),
        ("x.txt", "x: {run: MFQ}", "legal are .yaml, .yml, .json and .py"),
        ("x.py", "stop = {}", "defines no 'config'"),
        ("x.py", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=words):
        read_experiments(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        read_experiments(tmp_path / "nope.yaml")
    with pytest.raises(BadInput, match="is no file"):
        read_experiments(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-2E5", -2e5), (".5e3", 500.0), ("1.0e-4", 1e-4), ("1_0e2", 1000.0)],
)
def test_exponents_are_numbers_and_quoted_ones_are_not(text, value):
    assert parse(text, "x") == value and isinstance(parse(text, "x"), float)
    assert parse(f"'{text}'", "x") == text


def test_words_that_only_look_like_numbers_stay_words():
    assert [parse(word, "x") for word in ("e5", "1e", "v1e4", "battle_v4")] == [
        "e5", "1e", "v1e4", "battle_v4",
    ]  # fmt: skip


def test_anchors_and_merges_work_although_keys_may_not_repeat():
    text = "a: &a {run: MFQ, config: {lr: 1}}\nb: {<<: *a, env: x}\nc: {<<: *a, run: PPO}"
    assert parse(text, "x")["b"] == {"run": "MFQ", "config": {"lr": 1}, "env": "x"}
    assert parse(text, "x")["c"]["run"] == "PPO"


def test_set_takes_dotted_keys_and_yaml_values():
    config = {"env_config": {"map_size": 40}}
    set_values(config, ("env_config.map_size=12", "lr=1e-4", "a.b.c=[x, null]", "name='1'"))
    assert config["env_config"] == {"map_size": 12}
    assert config["lr"] == 1e-4 and config["a"] == {"b": {"c": ["x", None]}}
    assert config["name"] == "1"
    with pytest.raises(BadInput, match="must be key=value"):
        set_values({}, ("lr",))
    with pytest.raises(BadInput, match="'lr' is 1, not a mapping"):
        set_values({"lr": 1}, ("lr.x=2",))


def test_options_go_before_the_file_and_leave_the_rest_of_it():
    experiment = {
        "run": "MFQ",
        "stop": {"training_iteration": 9},
        "checkpoint_config": {"checkpoint_frequency": 5, "num_to_keep": 3},
        "local_dir": "old",
        "config": {"lr": 1, "num_workers": 4},
    }
    options = Options(
        stop="{time_total_s: 1}", checkpoint_freq=2, storage_path="new", seed=3, local_mode=True
    )
    changed, _ = translate("x", apply_options({"x": experiment}, options)["x"])
    assert changed["stop"] == {"time_total_s": 1}
    assert changed["checkpoint_config"] == {"checkpoint_frequency": 2, "num_to_keep": 3}
    assert changed["storage_path"] == "new" and "local_dir" not in changed
    assert changed["config"]["lr"] == 1 and changed["config"]["seed"] == 3
    assert changed["config"]["num_env_runners"] == changed["config"]["num_learners"] == 0
    assert experiment["config"] == {"lr": 1, "num_workers": 4}  # as it was read


def test_a_name_fits_one_experiment_only():
    both = {"a": {"run": "MFQ"}, "b": {"run": "MFQ"}}
    with pytest.raises(BadInput, match="there are 2 experiments: a, b"):
        apply_options(both, Options(experiment_name="c"))
    assert list(apply_options({"a": {"run": "MFQ"}}, Options(experiment_name="c"))) == ["c"]
    with pytest.raises(BadInput, match="nothing to train"):
        experiment_from_options(None, None, None, Options())


@pytest.mark.parametrize("key", sorted(CONFIG | REPLAY_BUFFERS))
def test_every_new_name_in_the_tables_is_one_that_rllib_reads(key):
    new = (CONFIG | REPLAY_BUFFERS)[key].split("/")[0]
    configs = [vars(ALGORITHMS[name]()[1]) for name in ("PPO", "DQN", "IMPALA", "APPO")]
    assert any(new in config and config[new] != -1 for config in configs)
    dead = [c for c in configs if key in c and c[key] not in (-1, c.get(new))]
    assert not dead, "the old name still means something"


@pytest.mark.parametrize("key", sorted(MFQHooks.old_names))
def test_every_new_name_for_mfq_is_one_of_its_own(key):
    assert hasattr(MFQConfig(), MFQHooks.old_names[key])


def test_an_old_ppo_file_means_the_same_today():
    experiment, notices = translate(
        "ppo",
        {
            "run": "PPO",
            "env": "CartPole-v1",
            "stop": {"sampler_results/episode_reward_mean": 150, "timesteps_total": 100_000},
            "local_dir": "~/results",
            "checkpoint_freq": 5,
            "checkpoint_at_end": False,
            "keep_checkpoints_num": 2,
            "checkpoint_score_attr": "min-episode_len_mean",
            "config": {
                "framework": "tf",
                "num_workers": 2,
                "num_envs_per_worker": 3,
                "evaluation_num_workers": 1,
                "num_sgd_iter": 6,
                "sgd_minibatch_size": 64,
                "num_gpus": 2,
                "observation_filter": "MeanStdFilter",
                "model": {"fcnet_hiddens": [32], "vf_share_layers": True, "dim": 84},
                "lr": {"grid_search": [1e-3, 1e-4]},
            },
        },
    )
    config = experiment["config"]
    connector = config.pop("_env_to_module_connector")
    assert "MeanStdFilter" in type(connector(None)).__name__
    assert config == {
        "env": "CartPole-v1",
        "num_env_runners": 2,
        "num_envs_per_env_runner": 3,
        "evaluation_num_env_runners": 1,
        "num_epochs": 6,
        "minibatch_size": 64,
        "num_learners": 2,
        "num_gpus_per_learner": 1,
        "_model_config": {"fcnet_hiddens": [32], "vf_share_layers": True},
        "lr": {"grid_search": [1e-3, 1e-4]},
    }
    assert experiment["stop"] == {
        "env_runners/episode_return_mean": 150,
        "num_env_steps_sampled_lifetime": 100_000,
    }
    assert experiment["storage_path"] == "~/results"
    assert experiment["checkpoint_config"] == {
        "checkpoint_frequency": 5,
        "checkpoint_at_end": False,
        "num_to_keep": 2,
        "checkpoint_score_attribute": "env_runners/episode_len_mean",
        "checkpoint_score_order": "min",
    }
    told = " ".join(notices)
    for word in ("num_workers is now num_env_runners", "'tf'", "model.dim", "num_gpus"):
        assert word in told
    check("ppo", experiment)


def test_an_old_dqn_file_means_the_same_today():
    old = {
        "buffer_size": 20_000,
        "prioritized_replay": True,
        "prioritized_replay_alpha": 0.5,
        "learning_starts": 500,
        "exploration_config": {"epsilon_timesteps": 5000, "final_epsilon": 0.02},
        "timesteps_per_iteration": 250,
    }
    config = translate("x", {"run": "DQN", "config": old})[0]["config"]
    assert config["replay_buffer_config"] == {
        "capacity": 20_000,
        "alpha": 0.5,
        "type": "PrioritizedEpisodeReplayBuffer",
    }
    assert config["num_steps_sampled_before_learning_starts"] == 500
    assert config["epsilon"] == [[0, 1.0], [5000, 0.02]]
    assert config["min_sample_timesteps_per_iteration"] == 250


def test_what_was_read_is_not_changed():
    experiment = {
        "run": "PPO",
        "env": "CartPole-v1",
        "checkpoint_freq": 1,
        "checkpoint_config": {"num_to_keep": 2},
        "config": {"num_workers": 1, "model": {"fcnet_hiddens": [8]}},
    }
    before = copy.deepcopy(experiment)
    translate("x", experiment)
    assert experiment == before


def test_old_names_mean_the_same_for_mfq():
    old = {"num_workers": 1, "buffer_size": 9000, "train_batch_size": 64, "lambda": 1}
    config = translate("x", {"run": "MFQ", "config": old})[0]["config"]
    assert config["num_env_runners"] == 1 and config["replay_capacity"] == 9000
    assert config["train_batch_size_per_learner"] == 64


@pytest.mark.parametrize("old_stack", [False, True])
def test_an_old_replay_buffer_means_the_same_for_mfq(old_stack):
    buffer = {
        "type": "MultiAgentPrioritizedReplayBuffer",
        "capacity": 9000,
        "prioritized_replay_alpha": 0.5,
        "beta": 0.5,
        "prioritized_replay_eps": 1.0e-3,
        "learning_starts": 700,
        "replay_burn_in": 5,
        "storage_unit": "timesteps",
    }
    old = {"replay_buffer_config": buffer}
    if old_stack:
        old |= {"enable_rl_module_and_learner": False, "enable_env_runner_and_connector_v2": False}
    experiment, notices = translate("x", {"run": "MFQ", "config": old})
    new = {
        "replay_capacity": 9000,
        "prioritized_replay": True,
        "prioritized_replay_alpha": 0.5,
        "prioritized_replay_beta": 0.5,
        "prioritized_replay_eps": 1e-3,
        "num_steps_sampled_before_learning_starts": 700,
        "burn_in_len": 5,
    }
    assert {k: v for k, v in experiment["config"].items() if "enable" not in k} == new
    assert "is now prioritized_replay: True" in " ".join(notices)
    MFQConfig().update_from_dict(experiment["config"]).validate()


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        ({"worker_side_prioritization": True}, "has 'worker_side_prioritization'; MFQ's memory"),
        ({"type": "ReplayBuffer", "prioritized_replay": True}, "give one of the two"),
    ],
)
def test_what_a_memory_of_mfq_does_not_have_is_refused(buffer, message):
    with pytest.raises(BadInput, match=message):
        translate("x", {"run": "MFQ", "config": {"replay_buffer_config": buffer}})


def test_what_would_change_the_run_is_refused_with_the_modern_name():
    for key, value, word in [
        ("resources_per_trial", {"cpu": 2}, "num_env_runners"),
        ("config", {"horizon": 200}, "TimeLimit"),
        ("config", {"model": {"custom_model": "mine"}}, "RLModule"),
        ("config", {"num_workers": 1, "num_env_runners": 2}, "one of the two"),
    ]:
        with pytest.raises(BadInput, match=word):
            translate("x", {"run": "PPO", key: value})
    with pytest.raises(BadInput, match="epsilon only"):
        translate("x", {"run": "DQN", "config": {"exploration_config": {"type": "SoftQ"}}})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("episode_reward_mean", "env_runners/episode_return_mean"),
        ("sampler_results/episode_reward_max", "env_runners/episode_return_max"),
        ("evaluation/episode_reward_mean", "evaluation/env_runners/episode_return_mean"),
        (
            "evaluation/sampler_results/episode_reward_mean",
            "evaluation/env_runners/episode_return_mean",
        ),
        ("timesteps_total", "num_env_steps_sampled_lifetime"),
        ("policy_reward_mean/p0", "env_runners/module_episode_return_mean/p0"),
        ("training_iteration", "training_iteration"),
        ("env_runners/win_rate/red", "env_runners/win_rate/red"),
    ],
)
def test_old_metrics_have_todays_names(old, new):
    assert metric(old) == new
    assert metric(new) == new


def test_search_spaces_are_tunes():
    config = with_spaces(
        {
            "lr": {"loguniform": [1e-5, 1e-3]},
            "tau": {"uniform": [0.1, 0.5]},
            "size": {"randint": [1, 4]},
            "n": {"choice": ["group", {"radius": 3}]},
            "nested": {"target": {"grid_search": ["mean_field", "max"]}},
            "env_config": {"map_size": 12},
            "steps": [[0, {"choice": [1.0, 2.0]}]],
        },
        "x",
    )
    lr, tau, size, n = (config[key] for key in ("lr", "tau", "size", "n"))
    assert isinstance(lr, Float) and (lr.lower, lr.upper) == (1e-5, 1e-3)
    assert type(lr.sampler).__name__ == "_LogUniform"
    assert isinstance(tau, Float) and type(tau.sampler).__name__ == "_Uniform"
    assert isinstance(size, Integer) and isinstance(n, Categorical)
    assert config["nested"]["target"] == tune.grid_search(["mean_field", "max"])
    assert config["env_config"] == {"map_size": 12}
    assert searched(config) == ["lr", "tau", "size", "n", "nested/target", "steps/0/1"]
    plain = plain_configs(config)
    assert len(plain) == 1 + 6
    assert plain[0]["n"] == "group" and plain[0]["size"] == 1
    assert {"radius": 3} in [each["n"] for each in plain]
    assert {each["size"] for each in plain} == {1, 3}
    assert {each["steps"][0][1] for each in plain} == {1.0, 2.0}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"grid_search": []}, "needs a list of values"),
        ({"choice": "ab"}, "needs a list of values"),
        ({"uniform": [1]}, "two numbers"),
        ({"uniform": [2, 1]}, "smaller one first"),
        ({"loguniform": [0, 1]}, "above 0"),
        ({"randint": ["a", 2]}, "two numbers"),
        ({"eval": "__import__('os').getcwd()"}, "code in experiments is not run"),
        ({"choice": [{"eval": "1"}]}, "code in experiments is not run"),
    ],
)
def test_impossible_spaces_and_code_are_refused(space, words):
    with pytest.raises(BadInput, match=words):
        with_spaces({"lr": space}, "x")


def test_strings_are_refused_where_numbers_belong_and_whole_floats_are_integers():
    strings = [("lr", "1e-4", "0.0001"), ("num_env_runners", "1", "1")]
    for key, text, number in [*strings, ("rollout_fragment_length", "10", "10")]:
        message = refused(config={**SMALL_BATTLE, key: text})
        assert f"{key} has the string {text!r} where a number belongs; write {number} " in message
    config = {**SMALL_BATTLE, "replay_capacity": 2e4, "train_batch_size_per_learner": 64.0}
    kept = checked(config=config).experiment["config"]
    assert kept["replay_capacity"] == 20_000 and kept["train_batch_size_per_learner"] == 64
    for key in ("replay_capacity", "train_batch_size_per_learner"):
        assert isinstance(kept[key], int)
    ppo = checked("PPO", "CartPole-v1", config={"rollout_fragment_length": "auto"})
    assert ppo.experiment["config"]["rollout_fragment_length"] == "auto"


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ({"run": "MFK"}, "no algorithm 'MFK' (did you mean 'MFQ'?)"),
        ({"run": "ppo"}, "(did you mean 'PPO'?)"),
        ({"run": "no.such.Class"}, "no algorithm 'no.such.Class'"),
        ({"run": "collections.OrderedDict"}, "no algorithm"),
        ({"env": "batle_v4"}, "(did you mean 'battle_v4'?)"),
        ({"env": "CartPole-v8"}, "(did you mean 'CartPole-v1'?)"),
        ({"env": None}, "there is no env"),
        ({"config": {"temprature": 1}}, "(did you mean 'temperature'?)"),
        ({"run": "PPO", "env": "CartPole-v1", "config": {"gama": 1}}, "(did you mean 'gamma'?)"),
        ({"num_sample": 3}, "(did you mean 'num_samples'?)"),
        ({"config": {"tau": 3}}, "tau is 3"),
        ({"config": {"neighborhood": {"choice": ["group", "grup"]}}}, "'grup'"),
        ({"config": {"tau": {"uniform": [0.5, 1.5]}}}, "tau is 1.5"),
        ({"config": {"env_config": {"map_sise": 3}}}, "(did you mean 'map_size'?)"),
        ({"stop": {"training_iteration": "soon"}}, "must be a number"),
        ({"stop": {"env_runners/kill/red": 1}}, "(did you mean 'env_runners/kills/red'?)"),
        ({"stop": {"episode_reward": 1}}, "never reports"),
        ({"stop": {"env_runners/win_rate/green": 1}}, "never reports"),
        ({"stop": {"learners/green/qf_loss": 1}}, "never reports"),
        ({"stop": {"evaluation/env_runners/win_rate/random": 1}}, "set evaluation_interval"),
        ({"checkpoint_config": {"checkpoint_score_attribute": "reward"}}, "never reports"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_the_nearest_name(experiment, words):
    if experiment.get("run", "MFQ") == "MFQ":
        experiment["config"] = {**SMALL_BATTLE, **experiment.get("config", {})}
    assert words in refused(**experiment)


def test_keys_that_rllib_only_pretends_to_take_are_named_and_left_out():
    result = checked("PPO", "CartPole-v1", config={"enable_connectors": True})
    assert "enable_connectors" not in result.experiment["config"]
    assert "enable_connectors is left out" in result.notices[0]


def test_callbacks_may_report_anything():
    stop = {"env_runners/my_metric": 1}
    assert "never reports" in refused(stop=stop, config=SMALL_BATTLE)
    callbacks = {"callbacks": "ray.rllib.callbacks.callbacks.RLlibCallback"}
    assert "never reports" in refused(stop=stop, config=SMALL_BATTLE | callbacks)  # says nothing
    callbacks = {"callbacks": f"{__name__}.Listener"}
    assert checked(stop=stop, config=SMALL_BATTLE | callbacks).experiment["stop"] == stop
    stop = {"evaluation/env_runners/my_metric": 1}  # but not where nothing is evaluated
    assert "set evaluation_interval" in refused(stop=stop, config=SMALL_BATTLE | callbacks)


def test_a_goal_is_something_to_reach_and_a_limit_is_not():
    assert is_goal("env_runners/episode_return_mean")
    assert is_goal("evaluation/env_runners/win_rate/random")
    for limit in ("training_iteration", "time_total_s", "num_env_steps_sampled_lifetime"):
        assert not is_goal(limit)
    assert not is_goal("env_runners/num_episodes_lifetime")


def test_other_algorithms_report_agents_by_name():
    run = Hooks().run(PPOConfig().evaluation(evaluation_interval=1))
    assert run.reports("env_runners/agent_episode_return_mean/agent_7")
    assert run.reports("evaluation/env_runners/module_episode_return_mean/p")
    assert not run.reports("env_runners/agent_episode_return/agent_7")
    assert not run.reports("group_returns_mean/red")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        check_checkpoint(str(tmp_path / "nope"))
    with pytest.raises(ValueError, match="is no checkpoint of an RLlib algorithm"):
        check_checkpoint(str(tmp_path))
    (tmp_path / "checkpoint_000007").mkdir()
    with pytest.raises(ValueError, match="checkpoint_000007"):
        check_checkpoint(str(tmp_path))
    old = tmp_path / "checkpoint-12"
    old.write_bytes(b"")
    with pytest.raises(ValueError, match="older RLlib"):
        check_checkpoint(str(old))
    assert check_checkpoint("s3://bucket/run") == "s3://bucket/run"


@pytest.mark.parametrize("framework", ["torch", "tf", "tf2", "tfe"])
def test_every_old_framework_ends_up_with_torch(framework):
    config = {"framework": framework, **SMALL_BATTLE}
    assert "framework" not in checked(config=config).experiment["config"]


def test_nothing_is_said_of_an_experiment_of_today():
    experiment = {"run": "MFQ", "env": "battle_v4", "stop": {"time_total_s": 1}, "config": {}}
    assert translate("x", experiment)[1] == []
    assert math.isclose(experiment["stop"]["time_total_s"], 1)


class Listener(RLlibCallback):
    """Reports what it likes."""


def test_iql_is_said_to_be_the_other_one():
    data = {"dataset_num_iters_per_learner": 1, "input_": ["data"], "evaluation_interval": 1}
    (note,) = [each for each in checked("IQL", "Pendulum-v1", config=data).notices if "IQL" in each]
    assert "implicit Q-learning" in note and "MFQ with neighborhood: none" in note
    # RLlib asks for its data before anything runs.
    assert refused(run="IQL", env="Pendulum-v1").endswith(note.removeprefix("x:"))
    assert not any("IQL" in each for each in checked(config=SMALL_BATTLE).notices)


class Late(GaussianSqueezePopulation):
    """Knows its figures at the end of an episode only."""

    def result(self):
        raise RuntimeError("the episode is not over")


def test_figures_that_an_environment_has_at_the_end_only_may_stand_in_stop():
    config = {"env_config": {"num_agents": 5}, "table_levels": 1}
    stop = {"env_runners/share/squeeze": 0.5}
    assert checked(env=Late, stop=stop, config=config).experiment["stop"] == stop


def test_one_module_plays_all_groups_whatever_they_are_called():
    about = {"env": "battle_v4", "env_config": {}}
    for modules, default in (({"a": "one", "b": "one"}, True), ({"a": "x", "b": "y"}, False)):
        config = _to_play(about, modules, {key: {} for key in modules.values()})
        assert (config.policy_mapping_fn is group_mapping) == default
