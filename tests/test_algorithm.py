"""MFQ as RLlib runs it, on small battles: training, evaluation, checkpoints, Tune."""

import math

import numpy as np
import pytest
import torch
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from small_battles import MODULES, memories, same, sample, small_battle, weights

import rllib_mfq
from rllib_mfq import MFQ
from rllib_mfq.algorithm.divergence import Diverged

pytestmark = pytest.mark.usefixtures("ray_session")


def leaves(results, path=()):
    for key, value in results.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        elif isinstance(value, int | float | np.number):
            yield (*path, key), float(value)


def test_every_group_has_a_module_unless_policies_say_otherwise(build):
    algo = build(small_battle())
    assert set(algo.env_runner.module.keys()) == {"red", "blue"}
    shared = build(small_battle().multi_agent(policies=["shared"]))
    assert set(shared.env_runner.module.keys()) == {"shared"}
    batch = shared.env_runner.sample()[0]
    assert set(batch.policy_batches) == {"shared"}
    assert set(np.unique(batch.policy_batches["shared"]["group"])) == {0, 1}


def test_results_carry_rllibs_names_and_no_nan_once_an_episode_has_ended(build):
    algo = build(small_battle().evaluation(evaluation_interval=2, evaluation_duration=1))
    for _ in range(3):
        results = algo.train()
    wanted = [
        ("env_runners", "episode_return_mean"),
        ("env_runners", "episode_len_mean"),
        ("env_runners", "group_returns_mean", "red"),
        ("env_runners", "module_episode_returns_mean", "blue"),
        ("env_runners", "kills", "red"),
        ("env_runners", "survivors", "blue"),
        ("env_runners", "win_rate", "red"),
        ("env_runners", "num_env_steps_sampled_lifetime"),
        ("env_runners", "num_agent_steps_sampled_lifetime", "red"),
        ("learners", "red", "qf_mean"),
        ("learners", "red", "temperature"),
        ("evaluation", "env_runners", "episode_return_mean"),
        ("num_env_steps_sampled_lifetime",),
        ("agent_steps_per_second",),
    ]
    found = dict(leaves(results))
    assert [key for key in wanted if key not in found] == []
    assert [key for key, value in found.items() if math.isnan(value)] == []


def test_returns_are_means_over_episodes_of_the_sum_over_agents(build):
    algo = build(small_battle(num_steps_sampled_before_learning_starts=5_000))
    seen = []
    algo.env_runner._callbacks = [
        type(
            "Watch",
            (RLlibCallback,),
            {"on_episode_end": lambda self, *, episode, **kwargs: seen.append(episode)},
        )()
    ]
    results = algo.train()["env_runners"]
    assert len(seen) == 4 and all(episode.length == 20 for episode in seen)
    expected = np.mean([sum(episode.returns.values()) for episode in seen])
    assert results["episode_return_mean"] == pytest.approx(expected)
    assert results["episode_len_mean"] == 20


def test_the_same_seed_gives_the_same_numbers_twice_and_another_seed_others(build):
    def run(seed):
        algo = build(small_battle().debugging(seed=seed))
        results = [algo.train() for _ in range(2)][-1]
        return weights(algo, "red"), results["env_runners"]["episode_return_mean"]

    first, second, other = run(3), run(3), run(4)
    assert same(first[0], second[0]) and first[1] == second[1]
    assert not same(first[0], other[0])


def test_a_frozen_opponent_acts_but_does_not_learn(build):
    algo = build(small_battle().multi_agent(policies={"red", "blue"}, policies_to_train=["red"]))
    before = {m: weights(algo, m) for m in ("red", "blue")}
    results = algo.train()
    assert not same(before["red"], weights(algo, "red"))
    assert same(before["blue"], weights(algo, "blue"))
    assert "qf_loss" not in results["learners"].get("blue", {})
    assert results["env_runners"]["num_agent_steps_sampled"]["blue"] > 0


def test_the_temperature_follows_its_schedule_and_reaches_the_env_runner(build):
    algo = build(small_battle(temperature=[[0, 1.0], [2_000, 0.5], [4_000, 0.5]]))
    for _ in range(2):
        results = algo.train()
    steps = results["agent_steps_sampled_lifetime"]
    assert 0 < steps < 2_000
    expected = 1.0 - 0.5 * steps / 2_000
    assert results["learners"]["red"]["temperature"] == pytest.approx(expected, abs=0.05)
    assert algo.env_runner.module["red"].temperature.item() == pytest.approx(expected, abs=1e-6)


def test_rows_trained_per_row_sampled_is_the_training_intensity(build):
    algo = build(small_battle(training_intensity=0.8, num_steps_sampled_before_learning_starts=0))
    trained = sum(algo.train()["num_updates"] for _ in range(4)) * 32 * 2
    assert trained == pytest.approx(0.8 * algo._agent_steps, abs=64)


def test_the_target_network_moves_by_tau_after_every_update(build):
    algo = build(small_battle(tau=0.25))
    learner = algo.learner_group._learner
    module = learner.module["red"].unwrapped()
    (main, target), *_ = module.get_target_network_pairs()
    expected = [parameter.clone() for parameter in target.parameters()]
    apply = learner.apply_gradients

    def watched(gradients):
        apply(gradients)
        for slow, fast in zip(expected, main.parameters(), strict=True):
            slow.lerp_(fast.detach(), 0.25)

    learner.apply_gradients = watched
    algo.train()
    assert learner._updates > 1
    for slow, parameter in zip(expected, target.parameters(), strict=True):
        torch.testing.assert_close(slow, parameter)


def test_gradients_are_applied_as_rllib_applies_them(build):
    ours, rllibs = (build(small_battle()).learner_group._learner for _ in range(2))
    before = [value.detach().clone() for value in ours._params.values()]
    for learner, kind in ((ours, type(ours)), (rllibs, TorchLearner)):
        gradients = {key: torch.ones_like(value) for key, value in learner._params.items()}
        kind.apply_gradients(learner, gradients)
    both = zip(before, ours._params.values(), rllibs._params.values(), strict=True)
    for old, mine, theirs in both:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert mine.isfinite().all() and not torch.equal(mine, old)


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_and_moves_no_weight(build, spoilt):
    learner = build(small_battle()).learner_group._learner
    before = [value.detach().clone() for value in learner._params.values()]
    gradients = {key: torch.ones_like(value) for key, value in learner._params.items()}
    next(iter(gradients.values())).view(-1)[0] = spoilt
    with pytest.raises(Diverged, match="has diverged at update 1"):
        learner.apply_gradients(gradients)
    assert all(map(torch.equal, before, learner._params.values()))


def test_updates_in_one_call_equal_as_many_calls_of_one_update(build):
    config = small_battle(num_steps_sampled_before_learning_starts=4_000)
    whole, apart = build(config), build(config)
    whole.train()
    columns = sample(memories(whole)["red"], 3 * 32)
    whole.learner_group.update(
        batch=MultiAgentBatch({"red": SampleBatch(columns)}, 96), minibatch_size=32
    )
    for start in (0, 32, 64):
        part = SampleBatch({name: column[start : start + 32] for name, column in columns.items()})
        apart.learner_group.update(batch=MultiAgentBatch({"red": part}, 32), minibatch_size=32)
    assert whole.learner_group._learner._updates == apart.learner_group._learner._updates == 3
    assert same(weights(whole, "red"), weights(apart, "red"))


def test_what_was_trained_is_logged_as_rllib_logs_it(build, monkeypatch):
    algo = build(small_battle(num_steps_sampled_before_learning_starts=4_000))
    algo.train()
    learner = algo.learner_group._learner
    columns = {module_id: sample(memory, 96) for module_id, memory in memories(algo).items()}
    learner.metrics.reduce()

    def logged():
        batch = MultiAgentBatch({m: SampleBatch(c) for m, c in columns.items()}, 96)
        results = learner.update(batch=batch, minibatch_size=32)
        return {
            (part, name): stats.peek()
            for part, found in results.items()
            for name, stats in found.items()
            if "trained" in name or "train_batch" in name
        }

    ours = logged()
    monkeypatch.setattr(
        type(learner), "_log_steps_trained_metrics", Learner._log_steps_trained_metrics
    )
    monkeypatch.setattr(learner, "_log_trained", lambda: None)
    assert ours and logged() == ours


@pytest.mark.parametrize(
    ("mean_action_input", "column"),
    [("previous", "mean_actions"), ("current", "next_mean_actions")],
)
def test_q_is_learned_at_the_mean_action_that_mean_action_input_names(
    build, mean_action_input, column
):
    algo = build(small_battle(mean_action_input=mean_action_input))
    algo.train()
    module = algo.learner_group._learner.module["red"].unwrapped()
    batch = memories(algo)["red"].sample(64)
    assert not torch.equal(batch["mean_actions"], batch["next_mean_actions"])
    expected = module.q_net(batch["obs"], batch[column])
    torch.testing.assert_close(module.forward_train(batch)["q"], expected)


def test_evaluation_is_greedy_and_plays_exactly_the_episodes_asked_for(build):
    algo = build(small_battle().evaluation(evaluation_interval=1, evaluation_duration=3))
    results = algo.train()["evaluation"]["env_runners"]
    assert results["num_episodes"] == 3
    assert algo.eval_env_runner.config.explore is False
    assert results["num_env_steps_sampled"] == 3 * 20


def test_opponents_are_played_on_both_sides_and_random_against_itself_draws(build, tmp_path):
    rival = build(small_battle().multi_agent(policies=["shared"]))
    rival.save_to_path(tmp_path / "rival")
    config = small_battle().evaluation(
        evaluation_interval=1,
        evaluation_duration=4,
        evaluation_opponents={"random": "random", "rival": str(tmp_path / "rival")},
    )
    algo = build(config)
    sides = []
    runner = algo.eval_env_runner
    assign = runner._sampler.assign

    def watched(players):
        sides.append({group: player.name for group, player in players.items()})
        assign(players)

    runner._sampler.assign = watched
    results = algo.train()["evaluation"]["env_runners"]
    assert results["num_episodes"] == 8
    assert set(results["win_rate"]) == {"random", "rival"}
    assert all(0 <= rate <= 1 for rate in results["win_rate"].values())
    assert sides[:4] == [
        {"red": "red", "blue": "opponent random/blue"},
        {"red": "opponent random/red", "blue": "blue"},
        {"red": "red", "blue": "opponent rival/blue"},
        {"red": "opponent rival/red", "blue": "blue"},
    ]


def test_a_restored_run_goes_on_exactly_where_it_was(build, tmp_path):
    config = small_battle(store_replay_in_checkpoints=True)
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
            runner = restored.env_runner.module[module_id].state_dict()
            assert same(runner, algo.env_runner.module[module_id].state_dict())
        assert restored.iteration == algo.iteration
        assert restored._agent_steps == algo._agent_steps and restored._owed == algo._owed
        learner, original = restored.learner_group._learner, algo.learner_group._learner
        assert learner._updates == original._updates
        moments = [
            next(iter(x._named_optimizers["red_default_optimizer"].state.values()))["exp_avg"]
            for x in (learner, original)
        ]
        assert torch.equal(*moments)
        for module_id, memory in memories(algo).items():
            drawn = [m.get_state()["columns"] for m in (memory, memories(restored)[module_id])]
            assert all(np.array_equal(drawn[0][k], drawn[1][k]) for k in drawn[0])
    # From here on the same rows give the same updates.
    for x in (algo, again):
        x._learn(3)
    assert same(weights(algo, "red"), weights(again, "red"))
    results = again.train()
    assert results["training_iteration"] == 2
    assert results["agent_steps_sampled_lifetime"] > algo._agent_steps
    again.stop()


def test_two_resumes_from_one_checkpoint_end_in_equal_weights(build, tmp_path):
    algo = build(small_battle(store_replay_in_checkpoints=True))
    algo.train()
    algo.save_to_path(tmp_path)
    ends = []
    for _ in range(2):
        again = MFQ.from_checkpoint(tmp_path)
        assert again.train()["num_updates"]
        ends.append(weights(again, "red"))
        again.stop()
    assert same(*ends)


def test_without_the_memory_a_restored_run_refills_before_it_learns(build, tmp_path):
    algo = build(small_battle(num_steps_sampled_before_learning_starts=60))
    algo.train()
    algo.save_to_path(tmp_path)
    other = build(small_battle(num_steps_sampled_before_learning_starts=60))
    other.restore_from_path(tmp_path)
    assert all(len(memory) == 0 for memory in memories(other).values())
    other.training_step()
    assert other.learner_group._learner._updates == algo.learner_group._learner._updates


def test_a_module_from_a_checkpoint_plays(build, tmp_path):
    algo = build(small_battle())
    algo.train()
    algo.save_to_path(tmp_path)
    module = RLModule.from_checkpoint(tmp_path / MODULES / "red")
    batch = algo.env_runner.sample(explore=False)[0].policy_batches["red"]
    acting = np.flatnonzero(batch["loss_mask"])
    out = module.forward_inference(
        {
            "obs": torch.from_numpy(batch["obs"][acting]),
            "mean_actions": torch.from_numpy(batch["mean_actions"][acting]),
        }
    )
    assert out["actions"].tolist() == batch["actions"][acting].tolist()


def test_callbacks_fire_as_rllib_users_expect(build):
    calls = []

    class Watch(RLlibCallback):
        def on_algorithm_init(self, **kwargs):
            calls.append("init")

        def on_environment_created(self, *, env, env_context, **kwargs):
            calls.append("environment")

        def on_episode_created(self, *, episode, **kwargs):
            calls.append("created")

        def on_episode_start(self, *, episode, **kwargs):
            calls.append("start")

        def on_episode_step(self, *, episode, **kwargs):
            calls.append("step")

        def on_episode_end(self, *, episode, metrics_logger, env, env_index, **kwargs):
            calls.append("end")
            metrics_logger.log_value("my_metric", episode.get_return(), window=10)

        def on_sample_end(self, *, samples, **kwargs):
            calls.append("sample")
            assert samples[0].agent_steps() == 10 * 2 * 4

        def on_train_result(self, **kwargs):
            calls.append("result")

    algo = build(small_battle(num_steps_sampled_before_learning_starts=4_000).callbacks(Watch))
    results = algo.train()
    assert {name: calls.count(name) for name in set(calls)} == {
        "init": 1,
        "environment": 1,
        "created": 6,
        "start": 6,
        "step": 80,
        "end": 4,
        "sample": 4,
        "result": 1,
    }
    assert "my_metric" in results["env_runners"]


def test_tune_runs_it_by_name_from_an_old_style_config_dict(tmp_path):
    config = {
        "env": "battle_v4",
        "env_config": {"map_size": 12, "max_cycles": 20},
        "num_workers": 0,
        "multiagent": {"policies": ["shared"]},
        "num_envs_per_worker": 2,
        "train_batch_size": 32,
        "num_steps_sampled_before_learning_starts": 100,
        "min_sample_timesteps_per_iteration": 40,
        "lr": tune.grid_search([1e-3, 1e-4]),
    }
    stop = {"training_iteration": 1}
    storage = str(tmp_path)
    analysis = tune.run("MFQ", config=dict(config), stop=stop, storage_path=storage, verbose=0)
    assert len(analysis.trials) == 2
    assert {trial.last_result["config"]["lr"] for trial in analysis.trials} == {1e-3, 1e-4}
    del config["lr"]
    results = tune.Tuner(
        "MFQ",
        param_space=config,
        run_config=tune.RunConfig(
            stop=stop,
            storage_path=storage,
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    ).fit()
    assert not results.errors
    restored = MFQ.from_checkpoint(results[0].checkpoint.path)
    assert restored.iteration == 1
    restored.stop()


def test_registering_again_is_harmless():
    rllib_mfq.register()
    rllib_mfq.register()
    assert tune.registry._global_registry.contains(tune.registry.TRAINABLE_CLASS, "MFQ")
