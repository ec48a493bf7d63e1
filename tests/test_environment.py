"""Environments by name, class, function or path: found, called and sent to other processes."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from ray import cloudpickle
from ray.rllib.env.env_context import EnvContext

from rllib_mfq import MFQConfig
from rllib_mfq.algorithm.environment import call_maker, make_creator

CROWD = '''
import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv


class Crowd(ParallelEnv):
    """Agents on a line that are paid for standing left."""

    metadata = {"name": "crowd"}

    def __init__(self, size=3, render_mode=None):
        self.render_mode = render_mode
        self.possible_agents = [f"walker_{i}" for i in range(size)]

    def observation_space(self, agent):
        return gym.spaces.Box(-1, 1, (2,), np.float32)

    def action_space(self, agent):
        return gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.agents, self.steps = list(self.possible_agents), 0
        return self.see(), {agent: {} for agent in self.agents}

    def step(self, actions):
        self.steps += 1
        everyone, done = self.agents, self.steps == 5
        self.agents = [] if done else everyone
        pay = {agent: float(actions[agent] == 0) for agent in everyone}
        ends = dict.fromkeys(everyone, False), dict.fromkeys(everyone, done)
        return self.see(everyone), pay, *ends, {agent: {} for agent in everyone}

    def see(self, agents=None):
        return {a: np.zeros(2, np.float32) for a in agents or self.agents}

    def render(self):
        return np.full((32, 48, 3), 40 * self.steps, np.uint8)


class RLlibCrowd(Crowd):
    def __init__(self, config):
        super().__init__(config.get("size", 3))


def make(size=3, **more) -> Crowd:
    return Crowd(size, **more)
'''


class Takes:
    """Remembers what it was called with."""

    def __init__(self, **given):
        self.given = given


class TakesKeywords(Takes):
    def __init__(self, size=3, speed=1.0):
        super().__init__(size=size, speed=speed)


class TakesConfig(Takes):
    def __init__(self, config=None):
        super().__init__(config=config)


class TakesAny(Takes):
    def __init__(self, something):
        super().__init__(something=something)


class TakesContext(Takes):
    def __init__(self, about: "EnvContext | None" = None, more=None):
        super().__init__(about=about)


class TakesNothing(Takes):
    def __init__(self):
        super().__init__()


CONTEXT = EnvContext({"size": 7}, worker_index=2)
NONE = EnvContext({}, worker_index=2)


@pytest.mark.parametrize(
    ("maker", "config", "given"),
    [
        (TakesKeywords, CONTEXT, {"size": 7, "speed": 1.0}),
        (TakesKeywords, NONE, {"size": 3, "speed": 1.0}),
        (TakesConfig, CONTEXT, {"config": CONTEXT}),
        (TakesConfig, NONE, {"config": NONE}),
        (TakesConfig, EnvContext({"config": 3}, 0), {"config": 3}),
        (TakesAny, CONTEXT, {"something": CONTEXT}),
        (TakesAny, EnvContext({"something": 1}, 0), {"something": 1}),
        (TakesContext, CONTEXT, {"about": CONTEXT}),
        (TakesNothing, NONE, {}),
        (lambda **given: Takes(**given), CONTEXT, {"size": 7}),
        (lambda *args, **given: Takes(args=args, **given), CONTEXT, {"args": (), "size": 7}),
        (lambda env_config: Takes(it=env_config), CONTEXT, {"it": CONTEXT}),
        (lambda _: Takes(it=_), CONTEXT, {"it": CONTEXT}),
        (functools.partial(TakesKeywords, speed=2.0), CONTEXT, {"size": 7, "speed": 2.0}),
    ],
)
def test_the_signature_says_whether_env_config_is_one_argument_or_many(maker, config, given):
    made = call_maker(maker, config)
    assert made.given == given
    for value in made.given.values():
        if isinstance(value, EnvContext):  # RLlib's classes read more of it than its entries
            assert value.worker_index == 2


@pytest.mark.parametrize("maker", [TakesKeywords, TakesNothing])
def test_an_argument_that_a_maker_does_not_have_is_refused(maker):
    with pytest.raises(ValueError, match=f"{maker.__name__} has no argument 'sise'.*legal are"):
        call_maker(maker, EnvContext({"sise": 7}, 0))


@pytest.fixture
def crowd(tmp_path, monkeypatch):
    """A folder with `crowd.py`, the current one, which can be imported from."""
    (tmp_path / "crowd.py").write_text(CROWD)
    (tmp_path / "broken.py").write_text("import no_such_package\n\nclass Crowd: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("crowd", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("as_path", [True, False])
@pytest.mark.parametrize("name", ["Crowd", "RLlibCrowd", "make"])
def test_a_path_and_what_it_names_are_called_alike(crowd, name, as_path):
    path = f"crowd.{name}"
    module, _, attribute = path.partition(".")
    env = path if as_path else getattr(__import__(module), attribute)
    made = make_creator(env)(EnvContext({"size": 7}, 0))
    assert len(made.possible_agents) == 7


def test_an_error_inside_a_module_is_not_taken_for_a_missing_environment(crowd):
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        make_creator("broken.Crowd")
    for path, why in {
        "crowd.Crowds": "the module crowd has no 'Crowds' .did you mean 'Crowd'",
        "crwd.Crowd": f"no module crwd, neither in the current folder, {os.getcwd()}, nor",
        "crowd.sub.Crowd": "no module crowd.sub",
        "no such.Crowd": "must be a name",
        "crowd:Crowd": "did you mean 'crowd.Crowd'",
    }.items():
        with pytest.raises(ValueError, match=f"env is '{path}'.*{why}"):
            make_creator(path)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (
            "ALE/NoSuchGame-v5",
            ["pip install 'rllib_mfq[atari]'", "ale_py:ALE/NoSuchGame-v5", "--import ale_py"],
        ),
        ("My/Crowd-v0", ["the namespace 'My'", "MODULE:My/Crowd-v0", "--import MODULE"]),
        ("no_such_package:Crowd-v0", ["needs a package", "no_such_package"]),
        ("Crowd-v0", ["must be a name", "MODULE:Crowd-v0", "--import MODULE"]),
        ("CartPole-v9", ["did you mean 'CartPole-v1'"]),
    ],
)
def test_what_is_missing_for_an_environment_is_named(env, words):
    with pytest.raises(ValueError) as raised:
        make_creator(env)
    for word in ["env is", *words]:
        assert word in str(raised.value)


def test_an_environment_whose_package_is_missing_names_the_package():
    gym.register("Needs-v0", entry_point="no_such_package.envs:Needs")
    with pytest.raises(ValueError, match=r"env is 'Needs-v0', which needs a package.*no_such_p"):
        make_creator("Needs-v0")


def test_a_maker_works_in_a_process_in_which_nothing_is_registered(crowd):
    """As in remote env runners, and in the processes of a tournament."""
    (crowd / "registers.py").write_text(
        "import gymnasium as gym\ngym.register('Mine-v0', entry_point='registers:Mine')\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Mine(CartPoleEnv):\n    pass\n"
    )
    context = EnvContext({}, 0)
    makers = [make_creator(env) for env in ("registers:Mine-v0", "Mine-v0", "crowd.make")]
    (crowd / "makers").write_bytes(cloudpickle.dumps([(each, context) for each in makers]))
    script = (
        "import cloudpickle, pathlib\n"
        "for make, context in cloudpickle.loads(pathlib.Path('makers').read_bytes()):\n"
        "    print(type(getattr(make(context), 'unwrapped', 0)).__name__)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=crowd, check=True
    )
    assert told.stdout.split() == ["Mine", "Mine", "Crowd"]


def test_an_agent_trains_in_a_class_with_keyword_arguments(crowd, build):
    import crowd as module

    config = MFQConfig().environment(module.Crowd, env_config={"size": 4})
    config.training(num_steps_sampled_before_learning_starts=100, replay_capacity=1_000)
    algo = build(config.reporting(min_sample_timesteps_per_iteration=20))
    algo.train()
    assert np.isfinite(algo.train()["env_runners"]["episode_return_mean"])


def test_an_import_and_the_current_folder_reach_every_process(crowd):
    (crowd / "registers.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    # -P: as the script `rllib`, for which Python does not look into the current folder.
    words = [sys.executable, "-P", "-m", "rllib_cli", "train", "--run", "MFQ", "--env", "Mine-v0"]
    words += ["--import", "registers", "--stop", "{training_iteration: 1}", "--ray-num-cpus", "2"]
    words += ["--set", "num_env_runners=1", "--storage-path", str(crowd)]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(words, capture_output=True, text=True, cwd=crowd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    words[words.index("registers")] = "broken"
    done = subprocess.run(words, capture_output=True, text=True, cwd=crowd, env=environment)
    assert done.returncode == 2
    assert "--import broken fails: No module named 'no_such_package'" in done.stderr


def test_the_error_of_a_remote_runner_is_the_one_that_is_raised(build, crowd):
    (crowd / "remote.py").write_text(
        "from crowd import Crowd\n\n\nclass Broken(Crowd):\n    def __init__(self, config):\n"
        "        assert config.worker_index == 0, 'my own fault'\n        super().__init__()\n"
    )
    config = MFQConfig().environment("remote.Broken").env_runners(num_env_runners=1)
    with pytest.raises(AssertionError, match="my own fault"):
        build(config)
