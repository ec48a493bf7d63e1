"""Running mean and standard deviation against numpy's, whatever the pieces they come in."""

from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from small_battles import small_battle

from rllib_mfq import MFQConfig
from rllib_mfq.mean_field.network import TargetUpdate
from rllib_mfq.mean_field.observations import Observations


@pytest.mark.parametrize("sizes", [[100], [1, 99], [1] * 20, [7, 0, 40, 1]])
@pytest.mark.parametrize("shape", [(3,), (4, 4, 2)])
def test_mean_and_deviation_are_those_of_all_rows_in_whatever_pieces_they_come(sizes, shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(50, 3, (sum(sizes), *shape)).astype(np.float32)
    seen = Observations(shape, normalise=True)
    for piece in np.split(rows, np.cumsum(sizes)[:-1]):
        seen.update(torch.from_numpy(piece))
    expected = (rows - rows.mean(0)) / rows.std(0, ddof=1)
    np.testing.assert_allclose(seen(torch.from_numpy(rows)), expected.clip(-10, 10), atol=1e-3)
    assert seen.count == len(rows)


def test_before_any_row_nothing_changes_and_what_never_varies_becomes_zero():
    seen, rows = Observations((2,), normalise=True), torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    torch.testing.assert_close(seen(rows), rows)
    seen.update(rows)
    torch.testing.assert_close(seen(rows)[:, 1], torch.zeros(2))
    assert seen(torch.tensor([[1e9, 5.0]]))[0, 0] == 10


def test_bytes_are_scaled_before_they_are_normalised():
    rows = torch.randint(256, (50, 3), dtype=torch.uint8)
    of_bytes = Observations((3,), 1 / 255, normalise=True)
    of_floats = Observations((3,), normalise=True)
    of_bytes.update(rows)
    of_floats.update(rows / 255)
    torch.testing.assert_close(of_bytes(rows), of_floats(rows / 255))


def test_a_target_network_takes_the_statistics_over():
    online, target = (Observations((3,), normalise=True) for _ in range(2))
    online.update(torch.randn(10, 3))
    TargetUpdate(target, online)(0.01)
    for name, value in online.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value)


def test_without_statistics_there_is_no_state():
    assert not Observations((3,), 0.5).state_dict()


# In training.


def filtered(kind="MeanStdFilter", **settings):
    config = small_battle(**settings).env_runners(observation_filter=kind)
    return config.evaluation(evaluation_interval=1, evaluation_duration=2)


def statistics(algo):
    """Of the runner that evaluates, the one that samples and the learner."""
    runners = algo.eval_env_runner_group.local_env_runner, algo.env_runner
    modules = [runner.module["red"] for runner in runners]
    modules.append(algo.learner_group._learner.module["red"].unwrapped())
    return [module.q_net.observations.state_dict() for module in modules]


def test_all_rows_that_were_learned_from_count_and_all_play_with_the_learners_statistics(build):
    algo, rows = build(filtered()), []
    update = Observations.update

    def record(observations, obs):
        rows.append(obs.clone())
        update(observations, obs)

    with mock.patch.object(Observations, "update", record):
        while len(rows) < 40:
            algo.train()
    algo.evaluate()
    evaluating, sampling, learned = statistics(algo)
    for other in (evaluating, sampling):  # as the learner's, whatever they have seen
        for name, value in learned.items():
            torch.testing.assert_close(other[name], value)
    assert learned["count"] == sum(map(len, rows)) / 2  # the other half is blue's
    assert learned["std"].std() > 0.01


def test_the_statistics_are_in_the_checkpoint(build, tmp_path):
    algo = build(filtered())
    for _ in range(3):
        algo.train()
    algo.evaluate()
    algo.save_to_path(tmp_path)
    again = build(filtered())
    again.restore_from_path(tmp_path)
    again.evaluate()  # which gives its runner the weights
    for before, after in zip(statistics(algo), statistics(again), strict=True):
        for name, value in before.items():
            torch.testing.assert_close(after[name], value)
    with pytest.raises(ValueError, match="observation_filter"):
        build(small_battle()).restore_from_path(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "MeanFilter"}, "legal are NoFilter, MeanStdFilter"),
        ({"old": True}, "new API stack only"),
        ({"table_levels": 1}, "no effect with table_levels"),
    ],
)
def test_a_filter_that_would_have_no_effect_is_refused(ray_session, settings, words):
    with pytest.raises(ValueError, match=words):
        filtered(**settings).build_algo()


class OtherUnits(gym.ObservationWrapper):
    """CartPole, each number of an observation in a unit of its own and shifted."""

    def __init__(self, config=None):
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def observation(self, obs):
        return (obs * [1000, 0.01, 100, 0.001] + [5000, -1, 300, 7]).astype(np.float32)


@pytest.mark.slow
def test_what_is_observed_in_other_units_can_be_learned_with_the_filter_only(build):
    def greedy_return(kind):
        config = MFQConfig().environment(OtherUnits).env_runners(observation_filter=kind)
        config.env_runners(num_envs_per_env_runner=4, rollout_fragment_length=4)
        config.training(temperature=[[0, 1.0], [15_000, 0.1]], gamma=0.99, tau=0.005)
        config.training(train_batch_size_per_learner=64, training_intensity=16)
        config.training(num_steps_sampled_before_learning_starts=1_000)
        config.reporting(min_sample_timesteps_per_iteration=2_000).debugging(seed=0)
        algo = build(config.evaluation(evaluation_interval=100, evaluation_duration=20))
        for _ in range(8):
            algo.train()
        return algo.evaluate()["env_runners"]["episode_return_mean"]

    assert greedy_return("NoFilter") < 30 and greedy_return("MeanStdFilter") > 60
