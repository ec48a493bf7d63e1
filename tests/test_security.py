"""What an experiment's file may name, and what happens to it: nothing but environments is called.

Every path here would leave the file `touched` if it were called.
"""

import itertools
import json
import os
import time

import gymnasium as gym
import pytest
import yaml
from click.testing import CliRunner
from ray.rllib.callbacks.callbacks import RLlibCallback
from torch import nn

from rllib_cli import command
from rllib_cli.experiments import DEEPEST, BadInput, parse
from rllib_mfq import MFQConfig
from rllib_mfq.algorithm.class_paths import check_class_paths
from rllib_mfq.algorithm.environment import make_creator
from rllib_mfq.mean_field.legal import class_of, find

CALLED = []


def call(*args, **kwargs):
    """Stands for any function that a file must not reach."""
    CALLED.append((args, kwargs))


class Called:
    """Stands for any class that a file must not reach."""

    def __init__(self, *args, **kwargs):
        call(*args, **kwargs)


class Mapping(Called):
    """A `policy_mapping_fn` as a file may give it."""

    def __call__(self, agent_id, *args, **kwargs):
        return agent_id.rpartition("_")[0]


class Callbacks(RLlibCallback):
    pass


def annotated() -> gym.Env: ...


class Lives:
    """No base class, but the methods of a Population."""

    def reset(self, *, seed=None): ...
    def step(self, actions): ...
    def observe(self, group, out): ...


FUNCTION, CLASS = f"{__name__}.call", f"{__name__}.Called"


@pytest.fixture(autouse=True)
def nothing_is_called(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    CALLED.clear()
    yield
    assert not CALLED


def train(tmp_path, content, *options):
    path = tmp_path / "x.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    result = CliRunner().invoke(command.main, ["train", "file", str(path), *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result):
    """The one sentence of a command that refused its input."""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("note:")]
    assert result.exit_code == 2 and line.startswith("Error: "), result.stderr
    return line


@pytest.mark.parametrize("algorithm", ["MFQ", "PPO"])
@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("os.system", {"command": "touch {touched}"}),
        ("subprocess.Popen", {"args": ["touch", "{touched}"]}),
        ("pathlib.Path.touch", {}),
        (FUNCTION, {}),
        (CLASS, {}),
        ("os:system", {}),
        ("{{type: os.system, command: touch {touched}}}", {}),
        ("{folder}/env.yaml", {}),
    ],
)
def test_an_env_is_called_only_if_it_is_one(ray_session, tmp_path, algorithm, path, config):
    touched = tmp_path / "touched"
    kinds = {"type": "os.system", "command": f"touch {touched}"}
    (tmp_path / "env.yaml").write_text(yaml.safe_dump(kinds))
    filled = {"folder": str(tmp_path), "touched": str(touched)}
    path = path.format(**filled)
    config = json.loads(json.dumps(config).replace("{touched}", str(touched)))
    experiment = {"run": algorithm, "env": path, "config": {"env_config": config}}
    line = refused(train(tmp_path, {"x": experiment}))
    assert "x: env is" in line and path in line
    inner = {"evaluation_interval": 1, "evaluation_config": {"env": path, "env_config": config}}
    experiment = {"run": algorithm, "env": "CartPole-v1", "config": inner}
    assert "env is" in refused(train(tmp_path, {"x": experiment}))
    time.sleep(0.2)  # a process may take a while
    assert not touched.exists()


@pytest.mark.parametrize(
    "path",
    [
        "gymnasium.envs.classic_control.CartPoleEnv",
        "ray.rllib.examples.envs.classes.multi_agent.MultiAgentCartPole",
        "magent2.environments.battle_v4.parallel_env",
        "magent2.environments.battle.battle._parallel_env",
        "mpe2.simple_spread_v3.parallel_env",
        "rllib_mfq.IsingPopulation",
        "rllib_mfq.envs.ising.parallel_env",
        f"{__name__}.Lives",
        f"{__name__}.annotated",
    ],
)
def test_paths_of_every_kind_of_environment_are_legal(path):
    make_creator(path)


@pytest.mark.parametrize(
    "config",
    [
        {"callbacks": FUNCTION},
        {"callbacks_class": CLASS},
        {"callbacks_class": ["os.abort"]},
        {"env_runner_cls": FUNCTION},
        {"learner_class": CLASS},
        {"policy_mapping_fn": {"type": "os.system", "command": "ls"}},
        {"policy_mapping_fn": {"type": CLASS}},
        {"policy_mapping_fn": {"type": "{type: os.abort}"}},
        {"policy_mapping_fn": {"command": "ls"}},
        {"multiagent": {"policy_mapping_fn": {"type": FUNCTION}}},
        {"multiagent": {"policies": {"red": {"config": {"callbacks": FUNCTION}}}}},
        {"exploration_config": {"type": CLASS}},
        {"exploration_config": {"type": "Curiosity", "sub_exploration": {"type": FUNCTION}}},
        {"replay_buffer_config": {"type": FUNCTION}},
        {"replay_buffer_config": {"type": "{type: os.abort}"}},
        {"off_policy_estimation_methods": {"is": {"type": FUNCTION}}},
        {"model": {"custom_model": FUNCTION}},
        {"sample_collector": CLASS},
        {"input_": FUNCTION},
        {"evaluation_config": {"callbacks_class": FUNCTION}},
        {"evaluation_config": {"env": FUNCTION}},
    ],
    ids=str,
)
def test_every_key_that_names_a_class_is_checked_by_its_base(config):
    with pytest.raises(ValueError, match=r"^\w+ (is|has the type) .*; (it|a path) must "):
        check_class_paths(config)
    with pytest.raises(ValueError):
        MFQConfig().update_from_dict(config)


def test_paths_of_the_right_classes_are_legal_and_arguments_are_not_looked_at():
    callbacks = f"{__name__}.Callbacks"
    check_class_paths(
        {
            "callbacks_class": callbacks,
            "env": "battle_v4",
            "env_config": {"type": FUNCTION, "env": "os.system", "callbacks": 3},
            "env_runner_cls": "rllib_mfq.MFQEnvRunner",
            "exploration_config": {"type": "EpsilonGreedy", "epsilon_schedule": {"type": "Linear"}},
            "input_": ["/tmp/some.files/x.json"],
            "lr": [[0, 1e-3], [10, 1e-4]],
            "policies": {"type": None, "input": None},
            "policy_mapping_fn": {"type": f"{__name__}.Mapping"},
            "replay_buffer_config": {
                "type": "ray.rllib.utils.replay_buffers.EpisodeReplayBuffer",
            },
        }
    )
    assert MFQConfig().update_from_dict({"callbacks": callbacks}).callbacks_class is Callbacks


def test_a_scheduler_is_a_name_of_tunes_and_its_functions_come_from_python(ray_session, tmp_path):
    base = {"run": "MFQ", "env": "ising_v0", "config": {"lr": {"loguniform": [1e-4, 1e-3]}}}
    assert "scheduler is 'os.system'" in refused(
        train(tmp_path, {"x": base | {"scheduler": "os.system"}})
    )
    settings = {"hyperparam_mutations": {"lr": {"uniform": [1e-4, 1e-3]}}}
    settings["custom_explore_fn"] = FUNCTION
    line = refused(
        train(tmp_path, {"x": base | {"scheduler": "pbt", "scheduler_config": settings}})
    )
    assert "custom_explore_fn is" in line and "Python" in line


def test_an_algorithm_is_a_class_of_rllibs_and_a_file_restores_nothing(ray_session, tmp_path):
    for run in ("os.system", CLASS, "nowhere.MFQ", "rllib_mfq.MFQConfig"):
        line = refused(train(tmp_path, {"x": {"run": run, "env": "battle_v4"}}))
        assert f"there is no algorithm {run!r}" in line
    line = refused(train(tmp_path, {"x": {"run": "MFQ", "env": "ising_v0", "restore": "/tmp/y"}}))
    assert "would unpickle /tmp/y" in line and "--restore" in line


def test_a_module_that_fails_says_how(ray_session, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    with pytest.raises(ImportError, match="No module named 'no_such_package'"):
        find("needs_more.Env")
    with pytest.raises(ZeroDivisionError):
        make_creator("breaks.Env")
    line = refused(train(tmp_path, {"x": {"run": "breaks.MFQ", "env": "ising_v0"}}))
    assert "run is 'breaks.MFQ', whose module fails: division by zero" in line
    line = refused(train(tmp_path, {"x": {"run": "MFQ", "env": "needs_more.Env"}}))
    assert "x: ModuleNotFoundError: No module named 'no_such_package'" in line
    assert find("needs_no_module") is find("nowhere.at.All") is find("os.path.x") is None
    assert find("os.path.join.__call__") is find("a b.c") is find("..x") is find("os.") is None


def test_a_class_may_stand_for_itself():
    assert class_of("encoder", nn.Linear, nn.Module) is nn.Linear
    assert class_of("encoder", "torch.nn.Linear", nn.Module) is nn.Linear
    for wrong in (
        "torch.nn.functional.relu",
        "os.system",
        "Linear",
        gym.Env,
        None,
        3,
        nn.Linear(1, 1),
    ):
        with pytest.raises(
            ValueError, match=r"encoder is .* must be a class that derives from torch\.nn"
        ):
            class_of("encoder", wrong, nn.Module)


def bomb(line):
    """Nine lines, each with nine aliases of the one above: 9 ** 9 values."""
    pairs = itertools.pairwise("abcdefghij")
    return "a: &a {x: 1}\n" + "".join(
        f"{new}: &{new} {line % ', '.join([f'*{old}'] * 9)}\n" for old, new in pairs
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: " + "[" * 3000 + "]" * 3000, "nested more than 50 levels"),
        ("".join(f"{' ' * depth}k:\n" for depth in range(3000)), "nested more than 50 levels"),
        (bomb("[%s]"), "more than 100000 values"),
        (bomb("{<<: [%s]}"), "more than 100000 values"),
        ("a: &a [*a]", "within its own value"),
        ("a: &a {<<: *a}", "within its own value"),
        ("x: {config: {1: 2}}", "line 1, column 14, the key '1' is no text"),
        ("on: 1", "the key 'on' is no text"),
        ("? [a]\n: 1", "is no text"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_yaml_would_choke_on_is_refused_by_one_sentence(tmp_path, text, problem):
    started = time.process_time()
    assert problem in refused(train(tmp_path, text))
    assert time.process_time() - started < 5  # 30 s and more without the limits


def test_json_and_options_have_the_same_limits(tmp_path):
    for depth in (DEEPEST + 1, 500, 100_000):
        with pytest.raises(BadInput, match="x is not valid JSON: it is nested more than"):
            parse("[" * depth + "]" * depth, "x", as_json=True)
    many = {str(number): number for number in range(50_000)}
    assert parse(json.dumps(many), "x", as_json=True) == many
    arguments = ["train", "--run", "MFQ", "--env", "ising_v0"]
    for options in (
        ["--config", "{1: 2}"],
        ["--config", "{a: " + "[" * 99 + "]" * 99 + "}"],
        ["--set", ".".join("a" * 99) + "=1"],
        ["--stop", bomb("[%s]")],
    ):
        refused(CliRunner().invoke(command.main, [*arguments, *options]))


def test_aliases_and_merges_still_work():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: 1e-4"
    found = parse(text, "x")
    assert found["b"] == {"x": 1, "y": 3} and found["c"] == [{"x": 1, "y": 2}] * 2
    assert found["d"] == 1e-4
