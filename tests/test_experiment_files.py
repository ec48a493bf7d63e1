"""Experiments as files and options spell them: kinds of values, nested keys, names of classes."""

import copy
import json

import pytest
import yaml

from rllib_cli import session, train
from rllib_cli.experiments import BadInput, read_experiments
from rllib_cli.hooks import MFQHooks, hooks
from rllib_cli.options import Options, apply_options, cluster
from rllib_cli.translation import translate
from rllib_cli.validation import plain_configs, with_spaces
from rllib_mfq import MFQ
from rllib_mfq.experiments.runs import finished


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scheduler", 3),
        ("scheduler", ["pbt"]),
        ("scheduler_config", [1]),
        ("scheduler_config", "metric"),
        ("checkpoint_config", 5),
        ("checkpoint_config", ["num_to_keep"]),
        ("stop", 7),
        ("num_samples", "three"),
        ("max_failures", True),
        ("storage_path", 1),
        ("run", {"type": "MFQ"}),
        ("env", 4),
    ],
)
def test_a_key_of_the_wrong_type_is_one_sentence(tmp_path, key, value):
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"x": {"run": "MFQ", "env": "battle_v4", key: value}}))
    with pytest.raises(BadInput, match=f"'{key}' of experiment 'x' .* it must be"):
        read_experiments(path)


def test_a_score_of_checkpoints_that_is_no_text_is_refused():
    experiment = {"run": "MFQ", "env": "battle_v4", "config": {"env_config": {"map_size": 12}}}
    experiment["checkpoint_config"] = {"checkpoint_score_attribute": 3}
    with pytest.raises(BadInput, match="checkpoint_score_attribute is 3"):
        train.prepare({"x": experiment}, Options())


@pytest.mark.parametrize("bounds", [[0.5, 1], [0, 1], [1, 2]])
def test_a_range_of_real_numbers_may_have_whole_bounds(bounds):
    config = with_spaces({"tau": {"uniform": bounds}}, "config")
    assert [each["tau"] for each in plain_configs(config)] == bounds
    whole = with_spaces({"n_step": {"randint": [1, 5]}}, "config")
    assert [each["n_step"] for each in plain_configs(whole)] == [1, 4]


def test_num_gpus_is_the_old_stacks_own_key():
    old = {"enable_rl_module_and_learner": False, "enable_env_runner_and_connector_v2": False}
    experiment = {"run": "MFQ", "env": "battle_v4", "config": {"num_gpus": 1, **old}}
    config = translate("x", experiment)[0]["config"]
    assert config["num_gpus"] == 1 and "num_gpus_per_learner" not in config
    experiment["config"] = {"num_gpus": 1}
    config = translate("x", experiment)[0]["config"]
    assert "num_gpus" not in config and config["num_gpus_per_learner"] == 1


class MyMFQ(MFQ):
    pass


@pytest.mark.parametrize(
    "run", ["MFQ", "rllib_mfq.MFQ", "rllib_mfq.algorithm.mfq.MFQ", MFQ, f"{__name__}.MyMFQ"]
)
def test_mfq_has_its_hooks_under_every_name(run):
    assert isinstance(hooks(run), MFQHooks)
    experiment = {"run": run, "env": "battle_v4", "config": {"buffer_size": 9}}
    if isinstance(run, str):
        assert translate("x", experiment)[0]["config"]["replay_capacity"] == 9


@pytest.mark.parametrize("run", ["PPO", "no.such.Thing", "os.path", "nothing"])
def test_everything_else_has_generic_hooks(run):
    assert not isinstance(hooks(run), MFQHooks)


def test_set_changes_no_other_experiment():
    shared = {"env_config": {"map_size": 12}}
    experiments = {name: {"run": "MFQ", "config": shared} for name in "ab"}
    before = copy.deepcopy(experiments)
    applied = apply_options(experiments, Options(assignments=("env_config.map_size=20",)))
    assert applied["a"]["config"]["env_config"]["map_size"] == 20
    assert experiments == before


class Started(Exception):
    pass


def test_reproductions_have_a_ray_of_their_own_where_a_cluster_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    asked = []

    def start(options):
        asked.append(options)
        raise Started

    monkeypatch.setattr(session, "start_ray", start)
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)  # other tests still need their Ray
    with pytest.raises(Started):
        train.train_variants("ising", {"cold": {"seed": 1}}, tmp_path)
    assert cluster(asked[0]) is None and asked[0].ray_num_cpus == 2


def write_run(folder, rows):
    (folder / "checkpoint_000000").mkdir(parents=True)
    lines = [json.dumps({"agent_steps_sampled_lifetime": n}) for n in rows]
    (folder / "result.json").write_text("\n".join(lines) + "\n")
    (folder / "params.json").write_text(json.dumps({"env": "ising_v0", "num_env_runners": 0}))


@pytest.mark.parametrize(
    ("rows", "ended"),
    [([100, 200], True), ([250], True), ([50, 100], False), ([100, 200, 300], False)],
)
def test_a_run_of_another_length_is_not_taken_for_one_of_this(tmp_path, monkeypatch, rows, ended):
    stop = {"agent_steps_sampled_lifetime": 150}
    write_run(tmp_path / "runs" / "cold", rows)
    assert finished(tmp_path / "runs" / "cold").ended_at(stop) is ended
    monkeypatch.setattr(session, "start_ray", lambda options: pytest.fail("it trained"))
    base = {"x": {"run": "MFQ", "env": "ising_v0", "stop": {}, "config": {}}}
    monkeypatch.setattr(train, "read_experiments", lambda path: copy.deepcopy(base))

    def again():
        return train.train_variants("ising", {"cold": {}}, tmp_path / "runs", stop)

    if ended:
        assert again()["cold"].result["agent_steps_sampled_lifetime"] == rows[-1]
    else:
        with pytest.raises(BadInput, match=f"cold did not end at stop .* after {rows[-1]} rows"):
            again()
