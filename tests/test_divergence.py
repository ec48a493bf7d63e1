"""A network that diverges stops the run with one sentence, and is never saved."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from ray import cloudpickle, tune
from small_battles import same, small_battle, weights

from rllib_mfq import MFQ
from rllib_mfq.algorithm.divergence import Diverged
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule

pytestmark = pytest.mark.usefixtures("ray_session")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
STACKS = pytest.mark.parametrize("old", [False, True])


class Loud(gym.Env):
    """One agent, whose observations are as large as told from the 50th step on."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config):
        self.size, self.steps = config["size"], 0

    def reset(self, *, seed=None, options=None):
        return np.ones(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        size = self.size if self.steps > 50 else 1.0
        return np.full(3, size, np.float32), 1.0, False, self.steps % 10 == 0, {}


@STACKS
@pytest.mark.parametrize("rates", [{"lr": 1e30}, {"lr": 1e12, "grad_clip": 1.0}])
def test_a_diverging_network_stops_the_run_before_a_checkpoint_of_it(build, tmp_path, old, rates):
    algo = build(small_battle(old=old, **rates))
    with pytest.raises(
        Diverged, match=r"'(red|blue)' has diverged at update \d+ .*; lower lr or"
    ) as e:
        for _ in range(10):
            algo.train()
    assert "\n" not in str(e.value)
    finite = [
        value.isfinite().all() for m in ("red", "blue") for value in weights(algo, m).values()
    ]
    if old and not all(finite):
        with pytest.raises(Diverged, match="no checkpoint is written"):
            algo.save_to_path(str(tmp_path))
        assert not [*tmp_path.iterdir()]
    else:  # on the new stack no gradient that is not finite moves a weight
        assert all(finite)


@STACKS
def test_observations_that_no_network_can_take_are_named(build, old):
    config = small_battle(Loud, {"size": 3e38}, old=old)
    algo = build(config.rl_module(model_config={"fcnet_activation": "relu"}))
    with pytest.raises(Diverged, match=r"not finite on observations from .*e\+38: scale"):
        for _ in range(10):
            algo.train()


@pytest.mark.parametrize("explore", [False, True])
def test_a_network_without_numbers_does_not_act(explore):
    module = MFQTorchRLModule(
        observation_space=gym.spaces.Box(0, 1, (3,)),
        action_space=gym.spaces.Discrete(21),
        model_config={},
    )
    obs, means = np.ones((5, 3), np.float32), np.zeros((5, 21), np.float32)
    module.act(obs, means, None, explore=explore)
    for parameter in module.q_net.parameters():
        parameter.data.fill_(np.nan)
    with pytest.raises(Diverged, match="Q is not finite on observations from 1 to 1"):
        module.act(obs, means, None, explore=explore)


@STACKS
def test_the_last_good_checkpoint_stays_and_goes_on(build, tmp_path, old):
    algo = build(small_battle(old=old))
    algo.train()
    good = algo.save_to_path(str(tmp_path / "good"))
    before = weights(algo, "red")
    state = algo.env_runner.module.get_state()
    for arrays in state.values():
        for name in arrays:
            arrays[name] = np.full_like(arrays[name], np.nan)
    algo.env_runner.module.set_state(state)
    if not old:
        algo.learner_group.set_state({"learner": {"rl_module": state}})
    with pytest.raises(Diverged, match="is not finite; no checkpoint is written"):
        algo.save_to_path(good)
    again = MFQ.from_checkpoint(good)
    assert same(weights(again, "red"), before)
    again.stop()


@pytest.mark.slow
def test_tune_reports_the_sentence_and_keeps_the_checkpoints_before_it(tmp_path):
    config = small_battle(lr=1e30, num_steps_sampled_before_learning_starts=600)
    analysis = tune.run(
        "MFQ",
        config=config.to_dict(),
        stop={"training_iteration": 50},
        storage_path=str(tmp_path),
        checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
        raise_on_failed_trial=False,
        verbose=0,
    )
    (trial,) = analysis.trials
    assert trial.status == "ERROR" and "has diverged at update" in str(trial.get_error())
    algo = MFQ.from_checkpoint(trial.checkpoint.path)
    assert all(value.isfinite().all() for value in weights(algo, "red").values())
    algo.stop()
