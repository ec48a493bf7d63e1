"""MFQ on remote env runners and learners, and what happens when something dies."""

import sys
import time

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from small_battles import FaultyBattle, memories, requests_while_learning, small_battle

from rllib_mfq import PopulationError

pytestmark = pytest.mark.usefixtures("ray_session")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def shared_battle(env="battle_v4", **env_config):
    config = small_battle(env, env_config or None)
    return config.multi_agent(policies=["shared"])


def runner_weights(algo):
    """One number per remote runner that tells its weights."""
    return algo.env_runner_group.foreach_env_runner(
        lambda runner: sum(p.sum().item() for p in runner.module["shared"].parameters()),
        local_env_runner=False,
    )


@pytest.mark.parametrize("runners", [1, 2])
def test_remote_runners_sample_with_weights_at_most_one_round_old(build, runners):
    algo = build(shared_battle().env_runners(num_env_runners=runners))
    results = [algo.train() for _ in range(3)][-1]
    assert results["learners"]["shared"]["qf_loss"] >= 0
    assert results["env_runners"]["episode_len_mean"] == 20
    assert 0 <= results["weights_lag"] <= algo.config.max_weights_lag
    sampled = results["env_runners"]["num_env_steps_sampled_lifetime"]
    assert algo._agent_steps == sampled * 4
    assert len(memories(algo)["shared"]) == algo._agent_steps
    assert algo.env_runner_group.num_in_flight_async_reqs("sample") == runners


def test_the_learner_learns_while_the_runners_sample(build):
    algo = build(shared_battle().env_runners(num_env_runners=1))
    in_flight = requests_while_learning(algo)
    algo.train()
    assert in_flight and set(in_flight) == {1}


def test_a_killed_runner_comes_back_with_current_weights_and_training_goes_on(build):
    algo = build(shared_battle().env_runners(num_env_runners=2))
    algo.train()
    before = algo._agent_steps
    actor = algo.env_runner_group._worker_manager.actors()[1]
    ray.kill(actor, no_restart=False)
    deadline = time.time() + 120
    while time.time() < deadline:
        results = algo.train()
        if results["fault_tolerance"]["num_remote_worker_restarts"] == 1:
            break
    assert results["fault_tolerance"]["num_remote_worker_restarts"] == 1
    algo.train()
    assert algo._agent_steps > before
    assert results["fault_tolerance"]["num_healthy_workers"] == 2
    current = sum(p.sum().item() for p in algo.env_runner.module["shared"].parameters())
    algo._runners.drain()
    algo._runners.request(algo._state_for_runners)
    assert runner_weights(algo) == pytest.approx([current, current], rel=1e-6)


@pytest.mark.parametrize("runners", [0, 1])
def test_an_environment_that_raises_is_made_anew_and_its_partial_fragment_dropped(build, runners):
    config = shared_battle(FaultyBattle, raise_at=27).env_runners(num_env_runners=runners)
    algo = build(config)
    results = algo.train()
    # Both populations of the runner fail at their 27th step: in the third fragment six of
    # their ten steps are lost, and after that each is 4 steps into an episode.
    assert results["env_runners"]["num_env_step_failures"] == 2
    learnable = sum(int(m._acted.sum()) for m in memories(algo).values())
    assert learnable == len(memories(algo)["shared"]) == algo._agent_steps
    assert algo._agent_steps < 4 * results["env_runners"]["num_env_steps_sampled_lifetime"]
    assert algo.train()["learners"]["shared"]["qf_loss"] >= 0


def test_an_environment_that_raises_stops_the_run_if_it_is_not_to_be_restarted(build):
    config = shared_battle(FaultyBattle, raise_at=3)
    algo = build(config.fault_tolerance(restart_failed_sub_environments=False))
    with pytest.raises(RuntimeError, match="the environment broke"):
        algo.train()


@pytest.mark.parametrize("runners", [0, 1])
def test_a_nan_reward_stops_the_run_with_step_and_group_before_the_memory(build, runners):
    algo = build(shared_battle(FaultyBattle, nan_at=5).env_runners(num_env_runners=runners))
    with pytest.raises(PopulationError, match=r"group 'blue', step 5: the reward .* nan"):
        algo.train()
    assert all(len(memory) == 0 for memory in memories(algo).values())


def test_two_learners_make_the_same_update_as_one_and_hold_the_same_weights(build):
    alone = build(shared_battle())
    alone.train()
    batch = memories(alone)["shared"].sample(64)
    config = shared_battle().learners(num_learners=2).training(train_batch_size_per_learner=16)
    pair = build(config)
    assert pair.train()["learners"]["shared"]["qf_loss"] >= 0
    state = alone.learner_group.get_state()
    pair.learner_group.set_state(state)

    def update(algo, minibatch_size):
        algo.learner_group.update(
            batch=MultiAgentBatch({"shared": SampleBatch(dict(batch))}, env_steps=64),
            minibatch_size=minibatch_size,
            timesteps={"num_env_steps_sampled_lifetime": 0},
        )
        states = algo.learner_group.foreach_learner(
            lambda learner: {
                name: value.clone()
                for name, value in learner.module["shared"].unwrapped().state_dict().items()
            }
        )
        return [state.get() for state in states]

    # One step over all rows: two halves of the batch, averaged, are the whole.
    (expected,), (first, second) = update(alone, 64), update(pair, 32)
    before = state["learner"]["rl_module"]["shared"]
    for name, value in expected.items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    assert any((value.numpy() != before[name]).any() for name, value in expected.items())


class SlowBattle(FaultyBattle):
    """A battle whose steps take far longer on the second env runner than on the first."""

    def __init__(self, context):
        super().__init__({})
        self.pause = 0.1 * (context.worker_index == 2)

    def step(self, actions):
        time.sleep(self.pause)
        return super().step(actions)


def test_intensity_and_age_are_exact_over_100_rounds_and_a_slow_runner_delays_nobody(build):
    config = shared_battle(SlowBattle).env_runners(num_env_runners=2)
    algo = build(config.training(training_intensity=0.7, max_weights_lag=1))
    played, fetch, lags, rows = [], algo._runners._fetch, [], 0

    def watched(*args):
        played.append(fetch(*args))
        return played[-1]

    algo._runners._fetch = watched
    dropped = 0
    while len(lags) < 100 or not dropped:  # until the slow runner, too, has given something
        assert len(lags) < 5_000
        before = algo._agent_steps
        algo.training_step()
        lags.append(algo.metrics.peek("weights_lag"))
        if algo._memories.ready(50):
            rows += algo._agent_steps - before
        dropped = algo.metrics.peek("num_agent_steps_dropped_lifetime", default=0)
    fragments = sum(map(len, played))
    assert fragments >= 100 and np.mean([len(each) for each in played]) < 1.5
    assert max(lags) <= 1
    assert algo._agent_steps + dropped == fragments * 10 * 2 * 4
    updates = algo.learner_group._learner._updates
    assert abs(updates * 32 - 0.7 * rows) < 32
