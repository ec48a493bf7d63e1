"""RLlib's old API stack and its new one: the same algorithm, to the last figure."""

import logging
import sys
import time
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle, tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.policy.policy import Policy, PolicySpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from small_battles import (
    MODULES,
    OLD,
    SIZE,
    FaultyBattle,
    memories,
    requests_while_learning,
    same,
    small_battle,
    weights,
)

from rllib_cli.experiments import read_experiments
from rllib_mfq import (
    MFQ,
    MFQConfig,
    MFQRolloutWorker,
    MFQTorchPolicy,
    PopulationError,
    magent2,
)
from rllib_mfq.algorithm import old_stack, validation

pytestmark = pytest.mark.usefixtures("ray_session")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def keys(results, path=()):
    for key, value in results.items():
        if isinstance(value, dict):
            yield from keys(value, (*path, key))
        else:
            yield (*path, key)


def rows_of(runner):
    samples = runner.sample()
    batch = samples if isinstance(samples, MultiAgentBatch) else samples[0]
    return {
        (m, k): v.copy() for m, columns in batch.policy_batches.items() for k, v in columns.items()
    }


SETTINGS = [
    {},
    {"target": "double_q", "mean_action_input": "current", "dueling": True},
    {"target": "max", "neighborhood": "all"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_weights_and_batch_give_the_same_loss_and_gradient(build, settings):
    config = small_battle(**settings).multi_agent(policies=["shared"])
    algo = build(config)
    algo.train()
    learner = algo.learner_group._learner
    module = learner.module["shared"].unwrapped()
    batch = memories(algo)["shared"].sample(64)
    old = small_battle(old=True, **settings).multi_agent(policies=["shared"])
    policy = build(old).get_policy("shared")
    policy.set_weights(weights(algo, "shared"))
    assert same(policy.model.state_dict(), weights(algo, "shared"))

    tensors = MultiAgentBatch({"shared": SampleBatch(dict(batch))}, env_steps=64)
    tensors = learner._convert_batch_type(tensors).policy_batches
    losses = learner.compute_losses(fwd_out=learner.module.forward_train(tensors), batch=tensors)
    learner.compute_gradients(losses)
    policy.compute_gradients(SampleBatch(dict(batch)))
    loss = policy.tower_stats[policy.model]["qf_loss"]
    torch.testing.assert_close(loss, losses["shared"].detach(), rtol=1e-6, atol=1e-6)
    expected = dict(module.q_net.named_parameters())
    for name, parameter in policy.model.q_net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-6, atol=1e-6)
    assert all(p.grad is None for p in policy.model._target_q_net.parameters())


def test_the_same_seed_gives_the_same_first_fragment(build):
    new, old = (build(small_battle(old=old)) for old in (False, True))
    for _ in range(2):
        first, second = rows_of(new.env_runner), rows_of(old.env_runner)
        assert first.keys() == second.keys()
        for key, column in first.items():
            np.testing.assert_array_equal(column, second[key], err_msg=str(key))
            assert column.dtype == second[key].dtype


@pytest.mark.parametrize(
    "settings",
    [
        {"target_network_update_freq": 3, "tau": 0.5},
        {"lr": [[0, 1e-3], [160, 1e-4]], "temperature": [[0, 1.0], [600, 0.1]]},
        {"grad_clip": 1e-3, "grad_clip_by": "global_norm", "mean_action_iterations": 2},
        {"grad_clip": 1e-3, "grad_clip_by": "value"},
    ],
    ids=str,
)
def test_the_same_seed_trains_the_same_weights(build, settings):
    new, old = (build(small_battle(old=old, **settings)) for old in (False, True))
    for algo in (new, old):
        for _ in range(2):
            algo.train()
    for module_id in ("red", "blue"):
        expected = weights(new, module_id)
        for name, value in weights(old, module_id).items():
            # Equal but for a scheduled lr, which the new stack keeps in single precision.
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=5e-6, msg=name)


def test_results_have_the_names_and_values_of_the_new_stack_and_those_of_the_old(build):
    results = []
    for old in (False, True):
        config = small_battle(old=old).evaluation(
            evaluation_interval=1,
            evaluation_duration=3,
            evaluation_opponents={"random": "random"},
        )
        algo = build(config)
        results += [[algo.train() for _ in range(2)][-1]]
    new, old = results
    only_new = {
        key
        for key in set(keys(new)) - set(keys(old))
        if key[0] not in ("config", "timers", "perf")  # perf is of iterations that take a second
        and not any("throughput" in part for part in key)
    }
    assert {key[-1] for key in only_new} == {
        "actor_manager_num_outstanding_async_reqs",  # of env_runner_group: at the top, too
        "num_non_trainable_parameters",
        "num_trainable_parameters",
    }
    for path in (
        ("env_runners", "episode_return_mean"),
        ("env_runners", "num_agent_steps_sampled_lifetime"),
        ("env_runners", "group_returns_mean"),
        ("env_runners", "weights_seq_no"),
        ("learners", "red", "qf_loss"),
        ("learners", "blue", "temperature"),
        ("learners", "blue", "weights_seq_no"),
        ("learners", "__all_modules__", "num_module_steps_trained_lifetime"),
        ("evaluation", "env_runners", "win_rate"),
        ("evaluation", "env_runners", "num_episodes"),
        ("num_env_steps_sampled_lifetime",),
        ("agent_steps_sampled_lifetime",),
        ("num_updates",),
    ):
        first, second = new, old
        for key in path:
            first, second = first[key], second[key]
        assert first == pytest.approx(second, rel=1e-5), path
    assert old["env_runners"]["policy_reward_mean"].keys() == {"red", "blue"}
    assert old["info"]["learner"]["red"]["learner_stats"]["qf_loss"] >= 0
    assert old["timesteps_total"] == new["num_env_steps_sampled_lifetime"]


def test_nothing_is_warned_of(caplog, recwarn, tmp_path):
    with caplog.at_level(logging.WARNING):
        algo = small_battle(old=True).build_algo()
        algo.train()
        algo.save_to_path(tmp_path)
        algo.stop()
    assert [record.getMessage() for record in caplog.records] == []
    mine = [w for w in recwarn if "rllib_mfq" in str(w.filename)]
    assert mine == []


def test_a_restored_run_goes_on_exactly_where_it_was(build, tmp_path):
    config = small_battle(old=True, store_replay_in_checkpoints=True, target_network_update_freq=3)
    algo = build(config)
    algo.train()
    algo.save_to_path(tmp_path)
    again = MFQ.from_checkpoint(tmp_path)
    other = build(config.copy(copy_frozen=False).debugging(seed=99))
    other.train()
    other.train()  # further on than the checkpoint: its newer weights must go
    other.restore_from_path(tmp_path)
    for restored in (again, other):
        for module_id in ("red", "blue"):
            assert same(weights(algo, module_id), weights(restored, module_id))
        assert restored.iteration == algo.iteration
        assert restored._agent_steps == algo._agent_steps and restored._owed == algo._owed
        assert restored.env_runner._weights_seq_no == algo.env_runner._weights_seq_no
    for x in (algo, again, other):
        x._learn(4)
    assert same(weights(algo, "red"), weights(again, "red"))
    assert same(weights(algo, "red"), weights(other, "red"))
    results = again.train()
    assert results["training_iteration"] == 2
    assert results["agent_steps_sampled_lifetime"] > algo._agent_steps
    again.stop()


def test_a_frozen_policy_acts_but_does_not_learn_also_after_from_checkpoint(build, tmp_path):
    config = small_battle(old=True).multi_agent(policies={"red", "blue"}, policies_to_train=["red"])
    algo = build(config)
    before = {m: weights(algo, m) for m in ("red", "blue")}
    algo.train()
    algo.save_to_path(tmp_path)
    again = MFQ.from_checkpoint(tmp_path)
    again.train()
    again.train()
    assert not same(weights(algo, "red"), weights(again, "red"))
    assert not same(before["red"], weights(algo, "red"))
    assert same(before["blue"], weights(again, "blue"))
    again.stop()


def test_policies_modules_and_opponents_come_from_an_old_stack_checkpoint(build, tmp_path):
    algo = build(small_battle(old=True).multi_agent(policies=["shared"]))
    algo.train()
    algo.save_to_path(tmp_path)
    batch = algo.env_runner.sample(explore=False).policy_batches["shared"]
    acting = np.flatnonzero(batch["loss_mask"])
    given = {key: batch[key][acting] for key in ("obs", "mean_actions")}
    policy = Policy.from_checkpoint(str(tmp_path))["shared"]
    chosen = policy.compute_actions_from_input_dict(given, explore=False)[0]
    assert chosen.tolist() == batch["actions"][acting].tolist()
    module = RLModule.from_checkpoint(tmp_path / MODULES / "shared")
    module = module.forward_inference({k: torch.from_numpy(v) for k, v in given.items()})
    assert module["actions"].tolist() == chosen.tolist()
    rival = small_battle().evaluation(
        evaluation_interval=1,
        evaluation_duration=2,
        evaluation_opponents={"old": str(tmp_path)},
    )
    results = build(rival).train()["evaluation"]["env_runners"]
    assert results["num_episodes"] == 2 and "old" in results["win_rate"]


def test_callbacks_of_the_old_stack_fire_and_their_metrics_are_reported(build):
    calls = []

    class Watch(RLlibCallback):
        def on_sub_environment_created(self, *, worker, sub_environment, env_context, **kwargs):
            calls.append(("environment", env_context.vector_index))

        def on_episode_end(self, *, worker, policies, episode, env_index, **kwargs):
            calls.append(("end", sorted(policies.keys())))
            episode.custom_metrics["steps"] = episode.length

        def on_sample_end(self, *, worker, samples, **kwargs):
            calls.append(("sample", type(worker).__name__))
            assert samples.env_steps() == 20

        def on_learn_on_batch(self, *, policy, train_batch, result, **kwargs):
            calls.append(("learn", len(train_batch)))

    results = build(small_battle(old=True).callbacks(Watch)).train()
    assert calls[:2] == [("environment", 0), ("environment", 1)]
    assert ("end", ["blue", "red"]) in calls and ("sample", "MFQRolloutWorker") in calls
    assert calls.count(("learn", 32)) == 2 * results["num_updates"] > 0
    assert results["env_runners"]["custom_metrics"]["steps_mean"] == 20


def test_two_workers_survive_a_kill_and_evaluate_remotely_exactly_as_asked(build):
    config = (
        small_battle(old=True)
        .env_runners(num_env_runners=2)
        .multi_agent(policies=["shared"])
        .evaluation(
            evaluation_interval=1,
            evaluation_duration=3,
            evaluation_num_env_runners=2,
            evaluation_opponents={"random": "random"},
        )
    )
    algo = build(config)
    in_flight = requests_while_learning(algo)
    for _ in range(2):
        results = algo.train()
    assert set(in_flight) == {2}  # both sample while the policies learn
    assert 0 <= results["weights_lag"] <= algo.config.max_weights_lag
    sampled = results["env_runners"]["num_env_steps_sampled_lifetime"]
    assert algo._agent_steps == 4 * sampled == len(memories(algo)["shared"])
    assert results["timesteps_total"] == sampled
    found = results["env_runners"]
    ours = [round(figures["episode_return_mean",], 6) for figures in algo._episodes]
    theirs = [round(value, 6) for value in found["hist_stats"]["episode_reward"]]
    assert found["episode_return_mean"] == pytest.approx(np.mean(ours))
    assert found["episode_reward_mean"] == pytest.approx(np.mean(theirs))
    # RLlib asks for the episodes of the fragments that are still under way, too: of each worker one
    # fragment, of half an episode in two environments.
    more = Counter(theirs) - Counter(ours)
    assert not Counter(ours) - Counter(theirs) and more.total() <= 2 * 2
    evaluated = results["evaluation"]["env_runners"]
    assert evaluated["num_episodes"] == 3 and evaluated["num_episodes_lifetime"] == 6
    assert len(evaluated["hist_stats"]["episode_lengths"]) == 3
    assert 0 <= evaluated["win_rate"]["random"] <= 1

    ray.kill(algo.env_runner_group._worker_manager.actors()[1], no_restart=False)
    deadline = time.time() + 120
    while time.time() < deadline:
        results = algo.train()
        if results["fault_tolerance"]["num_remote_worker_restarts"] == 1:
            break
    assert results["fault_tolerance"]["num_remote_worker_restarts"] == 1
    assert results["fault_tolerance"]["num_healthy_workers"] == 2
    algo._runners.drain()
    algo._runners.request(algo._state_for_runners)
    current = [sum(p.sum().item() for p in algo.get_policy("shared").model.q_net.parameters())]
    theirs = algo.env_runner_group.foreach_env_runner(
        lambda worker: sum(p.sum().item() for p in worker.module["shared"].q_net.parameters()),
        local_env_runner=False,
    )
    assert theirs == pytest.approx(current * 2, rel=1e-6)


def test_a_nan_reward_stops_the_run_before_the_memory(build):
    config = small_battle(FaultyBattle, {"nan_at": 45}, old=True)
    algo = build(config)
    with pytest.raises(PopulationError, match=r"group 'blue', step 5: the reward .* nan"):
        for _ in range(3):
            algo.train()


def test_tune_runs_it_by_name_with_both_keys_false(tmp_path):
    config = OLD | {
        "env": "battle_v4",
        "env_config": {"map_size": 12, "max_cycles": 20},
        "num_workers": 0,
        "multiagent": {"policies": ["shared"]},
        "num_envs_per_worker": 2,
        "train_batch_size": 32,
        "model_config": {"conv_filters": [[8, 3, 2, "valid"]]},
        "num_steps_sampled_before_learning_starts": 100,
        "min_sample_timesteps_per_iteration": 40,
    }
    analysis = tune.run(
        "MFQ",
        config=config,
        stop={"training_iteration": 2},
        storage_path=str(tmp_path),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        verbose=0,
    )
    (trial,) = analysis.trials
    assert trial.last_result["learners"]["shared"]["qf_loss"] >= 0
    restored = MFQ.from_checkpoint(trial.checkpoint.path)
    assert isinstance(restored.env_runner, MFQRolloutWorker) and restored.iteration == 2
    assert restored.config.train_batch_size_per_learner == 32
    restored.stop()


@pytest.mark.parametrize(
    ("old", "key", "value"),
    [
        (True, "num_learners", 1),
        (True, "num_gpus_per_learner", 1),
        (True, "algorithm_config_overrides_per_module", {"red": {"lr": 0.1}}),
        (False, "num_gpus", 1),
        (False, "keep_per_episode_custom_metrics", True),
    ],
)
def test_a_key_without_meaning_on_a_stack_raises_and_says_where_it_works(old, key, value):
    assert key in (old_stack.KEYS if old else validation.NEW_STACK).other_stack
    config = small_battle(old=old)
    setattr(config, key, value)
    with pytest.raises(ValueError, match=f"{key} is .* the {'new' if old else 'old'} API stack"):
        config.validate()
    small_battle(old=not old).update_from_dict({key: value}).validate()


def test_a_learning_rate_schedule_is_checked_on_the_old_stack_too():
    with pytest.raises(ValueError, match="lr"):
        small_battle(old=True, lr=[[100, 1e-3], [200, 1e-4]]).validate()


class Rows(gym.Env):
    """128 numbers, which RLlib's preprocessors take for an Atari console's memory."""

    observation_space = gym.spaces.Box(0, 255, (128,), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config=None):
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        return np.full(128, 7, np.uint8), {}

    def step(self, action):
        self.steps += 1
        return np.full(128, 7, np.uint8), float(action), False, self.steps % 5 == 0, {}


def test_a_gymnasium_environment_is_played_with_the_observations_it_gives(build):
    config = small_battle(old=True).environment(Rows, env_config={})
    algo = build(config)
    assert algo.get_policy().observation_space == Rows.observation_space
    results = algo.train()
    assert results["learners"]["default_policy"]["qf_loss"] >= 0
    assert (memories(algo)["default_policy"].sample(8)["obs"] == 7).all()


@pytest.mark.slow
def test_the_tuned_battle_wins_on_the_old_stack(tmp_path):
    yaml = Path(__file__).parents[1] / "tuned_examples" / "battle_small.yaml"
    (experiment,) = read_experiments(yaml).values()
    experiment["config"] |= OLD | {"seed": 0}
    experiment["storage_path"] = str(tmp_path)
    (trial,) = tune.run_experiments({"battle-small": experiment}, verbose=0)
    result = trial.last_result
    assert result["evaluation"]["env_runners"]["win_rate"]["random"] >= 0.95
    assert result["time_total_s"] <= 240


def test_half_a_stack_is_refused():
    with pytest.raises(ValueError, match="both"):
        MFQConfig().api_stack(enable_env_runner_and_connector_v2=False).validate()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("runners", [0, 1])
def test_evaluate_on_demand_is_the_evaluation_of_every_iteration(build, old, runners):
    def figures(results):
        names = ("episode_return_mean", "episode_len_mean", "num_episodes", "win_rate")
        return {name: results["env_runners"][name] for name in names}

    config = small_battle(old=old).env_runners(num_env_runners=runners)
    config.evaluation(evaluation_duration=3)
    asked, told = build(config.copy()), build(config.copy().evaluation(evaluation_interval=1))
    with_evaluation = told.train()["evaluation"]
    assert "evaluation" not in asked.train()
    on_demand = asked.evaluate()
    assert asked.eval_env_runner.config.explore is False and asked.env_runner.config.explore
    assert figures(on_demand)["num_episodes"] == 3
    assert figures(on_demand)["episode_len_mean"] == 20
    if runners:  # fragments come when they come
        return
    assert figures(on_demand) == figures(with_evaluation)
    # The run goes on as if nobody had asked, and reports the latest evaluation as always.
    later = [asked.train() for _ in range(2)][-1]
    told.train()
    told.train()
    assert figures(later["evaluation"]) == figures(on_demand)
    assert same(weights(asked, "red"), weights(told, "red"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (PolicySpec(config={"gamma": 0.5}), r"'red' with config .* algorithm_config_overrides"),
        (PolicySpec(policy_class=MFQTorchPolicy), "'red' with policy_class .* set rl_module"),
        ((None, None, None, {"gamma": 0.5}), r"'red' with config"),
    ],
)
def test_what_a_policy_spec_has_for_the_old_stack_is_refused_on_the_new_one(spec, words):
    config = small_battle().multi_agent(policies={"red": spec, "blue": PolicySpec()})
    with pytest.raises(ValueError, match=words):
        config.validate()


def test_the_config_of_a_policy_spec_acts_on_the_old_stack(build):
    red = PolicySpec(config={"gamma": 0.5, "lr": 0.25, "neighborhood": "none"})
    config = small_battle(old=True).multi_agent(policies={"red": red, "blue": PolicySpec()})
    algo = build(config)
    algo.train()
    red, blue = algo.get_policy("red"), algo.get_policy("blue")
    assert (red.config["gamma"], blue.config["gamma"]) == (0.5, 0.95)
    assert red._optimizers[0].param_groups[0]["lr"] == 0.25
    assert red.model.neighborhood.kind == "none" and blue.model.neighborhood.kind == "group"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"gamma": 7}, "gamma is 7"),
        ({"num_env_runners": 2}, "policy 'red' has no key 'num_env_runners'"),
        ({"gama": 0.5}, "policy 'red' has no key 'gama' .did you mean 'gamma'"),
    ],
)
def test_what_cannot_act_in_the_config_of_a_policy_spec_is_refused(config, words):
    policies = {"red": PolicySpec(config=config), "blue": PolicySpec()}
    with pytest.raises(ValueError, match=words):
        small_battle(old=True).multi_agent(policies=policies).validate()


OTHER = gym.spaces.Box(0, 1, (7,))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("part", ["observation_space", "action_space"])
def test_spaces_of_a_policy_spec_must_be_those_of_the_environment(build, old, part):
    group = small_battle(old=old)
    group.resolve_groups(lambda: magent2("battle_v4", **SIZE))
    right = getattr(group.groups["red"], part)
    for space in (right, OTHER if part == "observation_space" else gym.spaces.Discrete(7)):
        policies = {"red": PolicySpec(**{part: space}), "blue": PolicySpec()}
        config = small_battle(old=old).multi_agent(policies=policies)
        if space is right:
            build(config).train()
        else:
            with pytest.raises(ValueError, match=f"'red' with {part} .*7.*'red' of the env"):
                build(config)
