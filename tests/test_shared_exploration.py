"""Exploration that the agents of a crowd share."""

import numpy as np
import pytest
import torch
from small_battles import OLD, same, weights

from rllib_mfq import MFQConfig

N = 50


def squeeze(**training):
    return (
        MFQConfig()
        .environment("gaussian_squeeze_v0", env_config={"num_agents": N, "max_cycles": 5})
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=5)
        .training(
            **{
                "shared_exploration": 30.0,
                "gamma": 0.0,
                "train_batch_size_per_learner": 64,
                "num_steps_sampled_before_learning_starts": 200,
            }
            | training
        )
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .reporting(min_sample_timesteps_per_iteration=20)
        .debugging(seed=1)
    )


def crowds(columns, mine=True):
    """The actions of every crowd at every step, `[steps, N]`; `mine` picks the rows of a group."""
    moments = {}
    acted = columns["loss_mask"] & mine
    for eps, t, action in zip(
        columns["eps_id"][acted], columns["t"][acted], columns["actions"][acted], strict=True
    ):
        moments.setdefault((eps, t), []).append(action)
    return np.array(list(moments.values()))


def test_a_strong_preference_makes_a_crowd_play_as_one_and_crowds_and_steps_differ(build):
    algo = build(squeeze())
    (batch,) = algo.env_runner.sample()
    actions = crowds(batch.policy_batches["squeeze"])
    assert actions.shape == (20, N)  # 4 crowds, 5 steps
    alike = np.mean([np.bincount(crowd).max() / N for crowd in actions])
    assert alike > 0.95
    assert len(set(actions[:, 0])) > 4


def test_without_it_agents_of_a_crowd_explore_independently(build):
    algo = build(squeeze(shared_exploration=0.0, temperature=1e6))
    (batch,) = algo.env_runner.sample()
    actions = crowds(batch.policy_batches["squeeze"])
    assert np.std(actions.mean(1)) == pytest.approx(np.sqrt(8.25 / N), rel=0.5)
    assert algo.env_runner.module["squeeze"].shared_exploration is None


def test_groups_of_one_population_do_not_share_with_each_other(build):
    config = squeeze().environment(env_config={"mu": [100.0, 200.0]})
    algo = build(config.multi_agent(policies=["shared"]))
    (batch,) = algo.env_runner.sample()
    columns = batch.policy_batches["shared"]
    played = [crowds(columns, columns["group"] == group) for group in (0, 1)]
    most = [[np.bincount(crowd).argmax() for crowd in actions] for actions in played]
    assert np.mean(np.equal(*most)) < 0.5  # by chance a tenth


def test_its_strength_follows_the_schedule_and_greedy_play_has_none(build):
    algo = build(squeeze(shared_exploration=[[0, 30.0], [2_000, 1.0]]))
    while algo.train()["agent_steps_sampled_lifetime"] < 3_000:
        pass
    module = algo.env_runner.module["squeeze"]
    assert module.shared_exploration.item() == 1.0
    obs, means = np.zeros((6, 1), np.float32), np.zeros((6, 10), np.float32)
    crowd = np.arange(6)
    greedy = module.act(obs, means, None, explore=False, crowd=crowd)
    assert len(set(greedy)) == 1


def test_evaluation_plays_the_policy_without_it_also_when_it_draws(build):
    config = squeeze(temperature=1e6).evaluation(
        evaluation_interval=1, evaluation_config={"explore": True}
    )
    (batch,) = build(config).eval_env_runner.sample(num_episodes=24)
    totals = [episode.result["total"]["squeeze"] for episode in batch.episodes]
    assert np.std(totals) < 2 * np.sqrt(8.25 * N)  # together they would scatter by 2.9 N


def test_what_is_added_to_the_logits_has_the_strength_as_its_deviation(build):
    module = build(squeeze(shared_exploration=2.0)).env_runner.module["squeeze"]
    crowd = np.arange(20_000).repeat(2)
    drawn = module._preferences(crowd, torch.Generator().manual_seed(0)).numpy()
    assert np.array_equal(drawn[::2], drawn[1::2])
    assert drawn.std() == pytest.approx(2.0, rel=0.01) and abs(drawn.mean()) < 0.02


def test_both_api_stacks_explore_and_learn_the_same(build):
    new, old = build(squeeze()), build(squeeze().api_stack(**OLD))
    for algo in (new, old):
        algo.train()
    mine, theirs = (weights(algo, "squeeze") for algo in (new, old))
    assert mine["shared_exploration"].item() == 30.0
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-5) for name in mine)


def test_a_run_goes_on_from_a_checkpoint_with_the_same_preferences(build, tmp_path):
    first = build(squeeze(store_replay_in_checkpoints=True))
    first.train()
    path = first.save_to_path(tmp_path / "checkpoint")
    again = build(squeeze(store_replay_in_checkpoints=True))
    again.restore_from_path(path)
    for algo in (first, again):
        algo.env_runner._sampler.assign(algo.env_runner._players())  # both start episodes anew
        algo.train()
    assert same(weights(first, "squeeze"), weights(again, "squeeze"))


@pytest.mark.parametrize("value", [-1.0, "much", [[0, 1.0], [0, 2.0]]])
def test_a_strength_that_cannot_be_is_refused(value):
    with pytest.raises(ValueError, match="shared_exploration"):
        squeeze(shared_exploration=value).validate()
