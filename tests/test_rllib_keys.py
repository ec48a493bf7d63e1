"""Every key of RLlib's config acts on MFQ or is refused; those in doubt are shown to act."""

import functools
import os
import time
from unittest import mock

import gymnasium as gym
import pytest
import torch
from ray.rllib.algorithms import algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.torch import torch_learner
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch
from small_battles import small_battle

from rllib_mfq import MFQ, MFQTorchPolicy
from rllib_mfq.algorithm.divergence import Diverged
from rllib_mfq.algorithm.old_stack import KEYS as OLD_STACK
from rllib_mfq.algorithm.validation import NEW_STACK

KEYS = set(vars(AlgorithmConfig()))
STACKS = pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
SPACES = (gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2))


@STACKS
def test_every_key_of_rllib_stands_once_in_the_table_of_a_stack(old):
    table = OLD_STACK if old else NEW_STACK
    found = [key for keys in table for key in keys]
    assert not {key for key in found if found.count(key) > 1}, "these stand there twice"
    assert not KEYS - set(found), "these are missing: do they act on MFQ?"
    assert not set(found) - KEYS, "RLlib does not have these"


# Keys that act, without Ray.


@pytest.mark.parametrize(
    ("old", "key", "value"),
    [
        *((old, "custom_resources_for_main_process", {"x": 1}) for old in (False, True)),
        *((old, "custom_resources_per_env_runner", {"x": 1}) for old in (False, True)),
        *((old, "num_cpus_for_main_process", 2) for old in (False, True)),
        *((old, "num_cpus_per_env_runner", 2) for old in (False, True)),
        *((old, "num_gpus_per_env_runner", 0.5) for old in (False, True)),
        *((old, "placement_strategy", "SPREAD") for old in (False, True)),
        (False, "custom_resources_per_learner", {"x": 1}),
        (False, "num_cpus_per_learner", 2),
        (False, "num_gpus_per_learner", 1),
        (True, "num_gpus", 1),
    ],
)
def test_a_key_of_resources_changes_what_a_trial_asks_for(old, key, value):
    def asked(**settings):
        config = small_battle(old=old).env_runners(num_env_runners=1)
        if not old:
            config.learners(num_learners=1)
        request = MFQ.default_resource_request(config.update_from_dict(settings))
        return request.bundles, request.strategy

    assert asked(**{key: value}) != asked()


def test_the_check_of_rllib_can_be_switched_off():
    config = small_battle().evaluation(evaluation_duration=0)
    with pytest.raises(ValueError, match="evaluation_duration"):
        config.validate()
    config.experimental(_validate_config=False).validate()


def make_learner(**settings):
    config = small_battle().update_from_dict(settings)
    return config.build_learner(spaces={"default_policy": SPACES})


def step(learner, gradient=1.0):
    """The gradients of one step, all of which were the same before they were processed."""
    gradients = {key: torch.full_like(p, gradient) for key, p in learner._params.items()}
    gradients = learner.postprocess_gradients(gradients)
    learner.apply_gradients(gradients)
    return gradients


def test_gradients_are_clipped_as_grad_clip_and_grad_clip_by_say():
    values = step(make_learner(grad_clip=0.25, grad_clip_by="value")).values()
    assert all((gradient == 0.25).all() for gradient in values)
    values = step(make_learner(grad_clip=0.25, grad_clip_by="global_norm")).values()
    assert torch.cat([x.ravel() for x in values]).norm() == pytest.approx(0.25, rel=1e-4)
    assert all((gradient == 1).all() for gradient in step(make_learner()).values())


@pytest.mark.parametrize("log_gradients", [False, True])
def test_the_norm_of_gradients_is_logged_if_log_gradients_says_so(log_gradients):
    learner = make_learner(log_gradients=log_gradients)
    step(learner)
    logged = learner.metrics.reduce().get("default_policy", {})
    assert ("gradients_default_optimizer_global_norm" in logged) is log_gradients


def test_classes_of_torchs_schedulers_set_the_learning_rate():
    halve = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    learner = make_learner(_torch_lr_scheduler_classes=[halve], lr=0.1)
    step(learner)
    learner.after_gradient_based_update(timesteps={})
    optimizer = learner.get_optimizer("default_policy")
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_class_of_torchs_scaler_scales_the_loss():
    learner = make_learner(_torch_grad_scaler_class=functools.partial(torch.amp.GradScaler, "cpu"))
    weight = next(iter(learner._params.values()))
    learner.compute_gradients({"default_policy": 2.0 * weight.sum()})
    assert (weight.grad == 2 * learner._grad_scalers["default_policy"].get_scale()).all()


def test_the_arguments_of_torchs_ddp_reach_it_if_there_are_several_learners():
    with mock.patch.object(torch_learner, "TorchDDPRLModule", side_effect=RuntimeError) as wrap:
        with pytest.raises(RuntimeError):
            make_learner(torch_ddp_kwargs={"bucket_cap_mb": 1}, num_learners=2)
    assert wrap.call_args.kwargs == {"bucket_cap_mb": 1}


def test_a_learner_reads_learner_config_dict():
    assert make_learner(learner_config_dict={"mine": 5}).config.learner_config_dict["mine"] == 5


@pytest.mark.parametrize("skip", [False, True])
def test_the_old_stacks_policy_makes_a_dummy_batch_unless_told_not_to(skip):
    config = {"_disable_initialize_loss_from_dummy_batch": skip}
    policy = MFQTorchPolicy(*SPACES, config)
    assert hasattr(policy, "_dummy_batch") is not skip


# Keys that are refused because Ray 2.60 does not do what it says: if these fail, they may act.


def test_ray_makes_the_step_of_nan_gradients_that_torch_skip_nan_gradients_says_it_skips():
    learner = make_learner()
    learner.config.torch_skip_nan_gradients = True
    with pytest.raises(Diverged):  # MFQ makes no such step
        step(learner, float("nan"))
    gradients = {key: torch.full_like(p, torch.nan) for key, p in learner._params.items()}
    torch_learner.TorchLearner.apply_gradients(learner, gradients)
    assert all(torch.isnan(parameter).all() for parameter in learner._params.values())


def test_ray_compiles_no_module_of_a_learner():
    config = small_battle()
    config.torch_compile_learner = True
    with mock.patch.object(TorchRLModule, "compile") as compiled:
        config.build_learner(spaces={"default_policy": SPACES})
    compiled.assert_not_called()


# Keys that act, with Ray.


def cart_pole(old=False, **settings):
    config = small_battle("CartPole-v1", {}, old=old, num_steps_sampled_before_learning_starts=20)
    return config.update_from_dict(settings)


@STACKS
@pytest.mark.parametrize("explore", [False, True])
def test_runners_are_greedy_unless_explore_is_true(build, old, explore):
    runner = build(cart_pole(old, explore=explore)).env_runner
    samples = runner.sample()
    batch = samples if isinstance(samples, MultiAgentBatch) else samples[0]
    columns = batch.policy_batches["default_policy"]
    module = runner.module["default_policy"].unwrapped()
    inputs = {key: torch.as_tensor(columns[key]) for key in ("obs", "mean_actions")}
    greedy = module.q(inputs).argmax(1).numpy() == columns["actions"]
    assert greedy[columns["loss_mask"].astype(bool)].all() != explore


@STACKS
@pytest.mark.parametrize(("by", "rows"), [("env_steps", 800), ("agent_steps", 216)])
def test_an_iteration_counts_what_count_steps_by_says(build, old, by, rows):
    """200 steps of four agents, in fragments of 20; or 200 rows, in fragments of 20, thus of 24."""
    config = small_battle(old=old).multi_agent(count_steps_by=by)
    algo = build(config.reporting(min_sample_timesteps_per_iteration=200))
    algo.train()
    assert algo._agent_steps == rows


@STACKS
def test_an_iteration_goes_on_until_min_train_timesteps_per_iteration_are_trained(build, old):
    settings = {"min_train_timesteps_per_iteration": 400, "min_sample_timesteps_per_iteration": 1}
    results = build(cart_pole(old, **settings)).train()
    learner = results["learners"]["__all_modules__"]
    assert 400 <= learner["num_env_steps_trained_lifetime"] < 600


@STACKS
def test_rows_that_are_trained_are_counted_where_count_steps_by_says_so(build, old):
    """It went on for ever on the new stack."""
    config = small_battle(old=old).multi_agent(count_steps_by="agent_steps")
    settings = {"min_train_timesteps_per_iteration": 400, "min_sample_timesteps_per_iteration": 1}
    algo = build(config.reporting(**settings))
    results = algo.train()
    learner = results["learners"]["__all_modules__"]
    assert 400 <= learner["num_module_steps_trained_lifetime"] < 600  # of both modules


@STACKS
@pytest.mark.parametrize("log_sys_usage", [False, True])
def test_the_machine_is_watched_if_log_sys_usage_says_so(build, old, log_sys_usage):
    assert build(cart_pole(old, log_sys_usage=log_sys_usage))._monitor.is_alive() is log_sys_usage


@pytest.fixture(scope="module")
def group(ray_session):
    """One remote runner, and a local one."""
    settings = {"num_env_runners": 1, "max_requests_in_flight_per_env_runner": 3}
    algo = cart_pole(**settings).build_algo()
    yield algo.env_runner_group
    algo.stop()


def test_a_remote_runner_has_so_many_requests_as_the_config_allows(group):
    for _ in range(5):
        group.foreach_env_runner_async(lambda runner: time.sleep(0.1), tag="wait")
    assert group.num_in_flight_async_reqs("wait") == 3


@pytest.mark.parametrize(
    ("merge", "send"), [(False, False), (False, True), ("training_only", False)], ids=str
)
def test_remote_runners_are_told_all_steps_unless_nothing_is_merged_and_sent(group, merge, send):
    config = cart_pole(merge_env_runner_states=merge, broadcast_env_runner_states=send)
    steps = 1_000 + 2 * bool(merge) + send  # another number each time
    group.sync_env_runner_states(config=config, env_steps_sampled=steps)
    told = group.foreach_env_runner(
        lambda runner: runner.num_env_steps_sampled_lifetime, local_env_runner=False
    )
    assert (told == [steps]) is bool(merge or send)


@pytest.mark.usefixtures("ray_session")  # RLlib asks it for GPUs, and would start one
def test_the_local_learner_takes_the_gpu_of_local_gpu_idx():
    with mock.patch("torch.cuda.device_count", return_value=1):
        with pytest.raises(AssertionError, match="local_gpu_idx 3 is not a valid GPU ID"):
            make_learner(num_gpus_per_learner=1, local_gpu_idx=3)


def test_the_old_stack_sets_variables_of_the_driver(build, monkeypatch):
    monkeypatch.setenv("MFQ_DRIVER", "0")  # and back to what it was after the test
    build(cart_pole(True, extra_python_environs_for_driver={"MFQ_DRIVER": "1"}))
    assert os.environ["MFQ_DRIVER"] == "1"


def test_the_old_stack_learns_on_the_cpu_as_if_it_were_a_gpu(build):
    assert str(build(cart_pole(True, num_gpus=1, _fake_gpus=True)).get_policy().device) == "cpu"


def test_the_old_stack_writes_the_checkpoint_that_its_keys_say(build, tmp_path):
    config = small_battle(old=True).multi_agent(policies=["red", "blue"], policies_to_train=["red"])
    config.checkpointing(export_native_model_files=True, checkpoint_trainable_policies_only=True)
    build(config).save_to_path(tmp_path)
    assert [path.name for path in (tmp_path / "policies").iterdir()] == ["red"]
    assert (tmp_path / "policies" / "red" / "model" / "model.pt").is_file()


def test_the_old_stack_waits_for_episodes_as_long_as_its_key_says(build):
    algo = build(cart_pole(True, metrics_episode_collection_timeout_s=7.0))
    collect = algorithm.collect_episodes
    with mock.patch.object(algorithm, "collect_episodes", side_effect=collect) as collecting:
        algo.train()
    assert collecting.call_args.kwargs["timeout_seconds"] == 7
