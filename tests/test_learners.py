"""Remote learners: rows by reference, equal weights, their checkpoints, and what a death costs."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle, tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from small_battles import FaultyBattle, memories, small_battle

from rllib_mfq.algorithm.learner_memories import LearnerError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def battle(num_learners, num_env_runners):
    config = small_battle(store_replay_in_checkpoints=True, replay_capacity=20_000).multi_agent(
        policies=["shared"]
    )
    # With the filter, for its statistics must be equal on all learners, too.
    runners = {"num_env_runners": num_env_runners, "observation_filter": "MeanStdFilter"}
    config = config.env_runners(**runners)
    return config.learners(num_learners=num_learners)


@pytest.fixture(scope="module")
def pair(ray_session):
    """One algorithm with two learners and one env runner, for all tests of this file, in order."""
    algo = battle(2, 1).build_algo()
    yield algo
    algo.stop()


def on_learners(algo, func):
    return [result.get() for result in algo.learner_group.foreach_learner(func)]


def test_rows_go_by_reference_and_both_learners_learn_from_their_own(pair):
    given, give = [], pair._memories.give

    def spied(played):
        given.extend(batch for fragments in played for batch in fragments)
        return give(played)

    pair._memories.give = spied
    started = 0
    for _ in range(40):
        before = pair._agent_steps
        pair.training_step()
        if pair._rounds:
            started += pair._agent_steps - before
    # Not one row came here, only how many there are.
    assert given and all(isinstance(batch.columns, ray.ObjectRef) for batch in given)
    assert not any(batch.policy_batches for batch in given)
    assert sum(batch.agent_steps() for batch in given) == pair._agent_steps
    held = on_learners(pair, lambda learner: len(learner.memories["shared"]))
    assert sum(held) == pair._agent_steps and min(held) > 0.4 * sum(held)
    drawn = on_learners(pair, lambda learner: learner.memories["shared"].draw(20).tolist())
    assert drawn[0] != drawn[1]
    updates = on_learners(pair, lambda learner: learner._updates)
    assert updates[0] == updates[1] > 0
    trained = updates[0] * pair.config.total_train_batch_size
    assert abs(trained - pair.config.training_intensity * started) < 64  # less than one update
    states = on_learners(pair, lambda learner: learner.module["shared"].unwrapped().state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=0)
    assert states[0]["q_net.observations.count"] == trained  # the rows of both


def test_a_checkpoint_has_a_file_for_each_memory_and_one_learner_takes_over_both(pair, tmp_path):
    pair.save_to_path(tmp_path)
    files = sorted(path.name for path in (tmp_path / "replay").iterdir())
    assert files == ["learner_0.pkl", "learner_1.pkl"]
    alone = battle(0, 0).build_algo()
    alone.restore_from_path(tmp_path)

    def rows(memory):
        """The rewards, of whichever learner: they tell whether all rows have come over."""
        state = memory.get_state()["columns"]
        return np.sort(state["rewards"][state["loss_mask"]])

    parts = on_learners(pair, lambda learner: rows(learner.memories["shared"]))
    both = np.sort(np.concatenate(parts))
    np.testing.assert_array_equal(rows(memories(alone)["shared"]), both)
    assert alone._agent_steps == pair._agent_steps == len(alone._memories)
    theirs = on_learners(pair, lambda learner: learner.module["shared"].unwrapped().state_dict())
    mine = alone.learner_group._learner.module["shared"].unwrapped().state_dict()
    assert all(torch.equal(mine[name], theirs[0][name]) for name in mine)
    alone.training_step()
    # And back: two learners are dealt what one has.
    alone.save_to_path(tmp_path / "one")
    pair.restore_from_path(tmp_path / "one")
    held = on_learners(pair, lambda learner: len(learner.memories["shared"]))
    assert sum(held) == pair._agent_steps == alone._agent_steps and min(held) > 0.4 * sum(held)
    alone.stop()


def test_a_killed_runner_costs_the_fragment_that_it_owned_and_comes_back_up_to_date(pair):
    group, collect = pair.env_runner_group, pair._runners.collect

    def kill_its_owner(state):
        played = collect(state)
        ray.kill(group._worker_manager.actors()[1], no_restart=False)
        time.sleep(1)
        return played

    before, pair._runners.collect = pair._agent_steps, kill_its_owner
    pair.training_step()
    pair._runners.collect = collect
    assert pair._agent_steps == before
    assert pair.metrics.peek("num_fragments_lost_lifetime") == 1
    deadline = time.time() + 120
    while time.time() < deadline and pair._agent_steps == before:
        results = pair.train()
    assert pair._agent_steps > before
    assert results["fault_tolerance"]["num_remote_worker_restarts"] == 1
    pair._runners.drain()
    pair._runners.request(pair._state_for_runners)
    (theirs,) = group.foreach_env_runner(
        lambda runner: runner.module["shared"].state_dict(), local_env_runner=False
    )
    current = pair.env_runner.module["shared"].state_dict()
    assert "temperature" in current
    for name, value in current.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0)


def test_a_killed_learner_ends_the_run_with_one_sentence(pair):
    ray.kill(pair.learner_group._workers[1])
    with pytest.raises(LearnerError, match=r"^a learner has died .* max_failures\.$"):
        for _ in range(20):
            pair.training_step()


class KillsTheLearnerOnce(RLlibCallback):
    """Kills the learner within the third iteration of the first attempt."""

    def on_algorithm_init(self, *, algorithm, **kwargs):
        algorithm.env_runner.algorithm = algorithm

    def on_sample_end(self, *, env_runner, **kwargs):
        told = Path(env_runner.config.env_config["told"])
        algorithm = getattr(env_runner, "algorithm", None)
        if algorithm is not None and algorithm.iteration == 2 and not told.exists():
            told.touch()
            ray.kill(algorithm.learner_group._workers[0])


class ToldBattle(FaultyBattle):
    """A small battle whose `env_config` is for the callback."""

    def __init__(self, context):
        super().__init__({})


def test_tune_resumes_a_run_whose_learner_was_killed(ray_session, tmp_path):
    told = {"told": str(tmp_path / "told")}
    config = battle(1, 0).environment(ToldBattle, env_config=told)
    (result,) = tune.Tuner(
        "MFQ",
        param_space=config.callbacks(KillsTheLearnerOnce),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            stop={"training_iteration": 4},
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            verbose=0,
        ),
    ).fit()
    assert (tmp_path / "told").exists() and result.error is None
    assert result.metrics["training_iteration"] == 4
    # The memory came back with the checkpoint: no row that was sampled is missing.
    assert result.metrics["replay_size"] == result.metrics["agent_steps_sampled_lifetime"]
