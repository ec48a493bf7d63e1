"""Environments of Gymnasium and PettingZoo that need a package more: the extras of the package."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
from small_battles import memories

from rllib_mfq import MFQConfig
from rllib_mfq.algorithm.environment import make_creator, probe
from rllib_mfq.envs.atari import atari
from rllib_mfq.population.adapters import as_population

SMALL = {"train_batch_size_per_learner": 8, "num_steps_sampled_before_learning_starts": 20}


def test_an_atari_game_is_seen_as_a_stack_of_bytes():
    pytest.importorskip("ale_py")
    game = atari("Pong")
    group = game.groups["agent"]
    assert group.observation_space.shape == (4, 84, 84)
    assert group.observation_space.dtype == np.uint8 and group.action_space.n == 6
    game.reset(seed=0)
    seen = np.zeros((1, 4, 84, 84), np.uint8)
    for _ in range(20):
        game.step({"agent": np.array([2])})
    game.observe("agent", seen)
    assert seen.max() > 100 and (seen[0, 0] != seen[0, -1]).any()
    assert game.render().shape == (210, 160, 3)


@pytest.mark.parametrize(("clip", "largest"), [(False, 30.0), (True, 1.0)])
def test_rewards_of_a_game_may_be_clipped(clip, largest):
    pytest.importorskip("ale_py")
    game, found = atari("SpaceInvaders", screen_size=20, clip_rewards=clip), {0.0}
    game.reset(seed=0)
    rng = np.random.default_rng(0)
    while max(found) < largest:
        step = game.step({"agent": rng.integers(6, size=1)})["agent"]
        found.add(float(step.rewards[0]))
        if step.terminated.any():
            game.reset()
    assert (found == {0.0, 1.0}) is clip


@pytest.mark.parametrize("framestack", [None, 4])
def test_rllibs_own_atari_wrapper_works_as_in_its_examples(build, framestack):
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)

    class Wrapped(gym.Wrapper):
        def __init__(self, config):
            made = gym.make("ALE/Pong-v5", **config)
            super().__init__(wrap_atari_for_new_api_stack(made, framestack=framestack))

    arguments = {"frameskip": 1, "full_action_space": False, "repeat_action_probability": 0.0}
    algo = build(MFQConfig().environment(Wrapped, env_config=arguments).training(**SMALL))
    while not algo.train()["num_updates"]:
        pass
    (memory,) = memories(algo).values()
    assert memory.sample(2)["obs"].shape == (2, 64, 64, framestack or 1)


def test_simple_spread_is_played_without_a_warning(recwarn):
    simple_spread = pytest.importorskip("mpe2.simple_spread_v3")
    recwarn.clear()
    population = as_population(simple_spread.parallel_env())
    rows = population.reset(seed=0)["agent"]
    assert len(rows.ids) == 3 and population.groups["agent"].observation_space.shape == (18,)
    for step in range(25):
        rows = population.step({"agent": np.zeros(3, int)})["agent"]
        assert rows.truncated.all() == (step == 24)
    assert not [each for each in recwarn if "deprecated" in str(each.message)]


@pytest.mark.parametrize(
    ("env", "env_config", "package", "extra"),
    [
        ("atari", {"game": "Pong"}, "ale_py", "atari"),
        ("atari", {"game": "Pong"}, "cv2", "atari"),
        ("ale_py:ALE/Pong-v5", {}, "ale_py", "atari"),
        ("ALE/Pong-v5", {}, "ale_py", "atari"),
        ("LunarLander-v3", {}, "Box2D", "box2d"),
        ("mpe2.simple_spread_v3.parallel_env", {}, "mpe2", "mpe"),
    ],
)
def test_a_missing_package_is_one_sentence_with_its_extra(
    monkeypatch, env, env_config, package, extra
):
    for name in list(sys.modules):
        if name.partition(".")[0] == package or name.startswith("gymnasium.envs.box2d"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in gym.registry if name.startswith("ALE/")]:
        monkeypatch.delitem(gym.registry, name)
    with pytest.raises(ValueError) as error:
        probe(make_creator(env), env_config)
    said = str(error.value)
    assert f"pip install 'rllib_mfq[{extra}]'" in said and env in said and "\n" not in said


@pytest.mark.parametrize(
    ("example", "package"),
    [("lunarlander", "Box2D"), ("pong", "ale_py"), ("simple_spread", "mpe2")],
)
def test_a_tuned_example_that_needs_an_extra_starts(build, example, package):
    pytest.importorskip(package)
    path = Path(__file__).parents[1] / "tuned_examples" / f"{example}.yaml"
    (experiment,) = yaml.safe_load(path.read_text()).values()
    small = {"num_env_runners": 0, "min_sample_timesteps_per_iteration": 8, "replay_capacity": 999}
    small |= {"evaluation_interval": None, "train_batch_size_per_learner": 32}
    small |= {"num_steps_sampled_before_learning_starts": 100, "training_intensity": 1}
    small |= {"env": experiment["env"]}
    algo = build(MFQConfig().update_from_dict(experiment["config"] | small))
    while not algo.train()["num_updates"]:
        pass
    last = algo.train()["learners"]
    assert all(np.isfinite(module["qf_loss"]) for name, module in last.items() if "all" not in name)
