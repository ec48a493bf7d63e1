"""What the package relies on in Ray 2.60 beyond its public API: an upgrade of Ray breaks it here.

Every entry says what breaks in this package if Ray changes that place.
"""

import ast
import contextlib
import copy
import importlib
import inspect
import logging
import os
import pkgutil
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from pyarrow.fs import LocalFileSystem
from ray import cloudpickle, tune
from ray._common import deprecation
from ray._private import accelerators
from ray._private import utils as ray_utils
from ray._private.authentication import authentication_token_setup
from ray.air.constants import EXPR_RESULT_FILE
from ray.air.execution import FixedResourceManager, ResourceRequest
from ray.air.execution._internal import RayActorManager
from ray.rllib.algorithms import algorithm_config
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.evaluation.episode_v2 import EpisodeV2
from ray.rllib.evaluation.metrics import RolloutMetrics
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.policy.policy import Policy, PolicySpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.policy.torch_policy_v2 import TorchPolicyV2
from ray.rllib.utils import metrics
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.from_config import from_config
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.serialization import deserialize_type
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext, _FilesystemSyncer
from ray.train.constants import RAY_CHDIR_TO_TRIAL_DIR
from ray.tune import Checkpoint, PlacementGroupFactory
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.experiment import Trial
from ray.tune.experimental.output import get_air_verbosity
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.registry import ENV_CREATOR, TRAINABLE_CLASS, _global_registry
from ray.tune.result import TRIAL_INFO
from ray.tune.schedulers import SCHEDULER_IMPORT, TrialScheduler, create_scheduler
from ray.tune.tune import _setup_signal_catching
from ray.tune.utils import flatten_dict
from ray.tune.utils.callback import _create_default_callbacks
from ray.util import debug
from small_battles import small_battle

import rllib_cli
import rllib_mfq
from rllib_cli import hooks, resume, rows, translation, validation
from rllib_cli.session import Interrupt, be_quiet, kept_errors, released_results
from rllib_cli.storage import Storage, StoredExperiment
from rllib_mfq import MFQEnvRunner, MFQRolloutWorker, MFQTorchPolicy, MFQTorchRLModule
from rllib_mfq.algorithm.checkpoint import CLASS, MODULES, STATE, saved_class_and_settings
from rllib_mfq.algorithm.old_stack.algorithm import OldStackAlgorithm
from rllib_mfq.population.fragment import Episode

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

CONFIG = AlgorithmConfig()
EVENTS = ["on_environment_created", "on_sample_end"]
EVENTS += [f"on_episode_{what}" for what in ("created", "start", "step", "end")]

# Names: (what has it, the name, what breaks here without it).
NAMES = [
    (
        _global_registry,
        "_registered",
        "make_creator finds no environment that Tune already flushed",
    ),
    (
        _global_registry,
        "_to_flush",
        "make_creator finds no environment registered before Ray starts",
    ),
    (
        Algorithm,
        "_get_env_id_and_creator",
        "an Algorithm makes environments by RLlib's rules, not by `make_creator`",
    ),
    (Algorithm, "_evaluate_on_local_env_runner", "the old stack plays one episode at a time"),
    (Algorithm, "_evaluate_with_fixed_duration", "old remote workers play more than was asked for"),
    (
        Algorithm,
        "_compile_iteration_results_old_api_stack",
        "the old stack's results lack all names of the new one",
    ),
    (Algorithm, "_time_total", "a run's time limit is noticed only at the end of an iteration"),
    (
        StorageContext,
        "_update_checkpoint_index",
        "a half-written checkpoint has a whole one's name",
    ),
    (_FilesystemSyncer, "_sync_up_command", "Tune's own files are half there after a kill"),
    (TuneExperiment, "_storage_context_cls", "runs of the command keep checkpoints as Tune does"),
    (Learner, "_log_steps_trained_metrics", "rows are logged after every update"),
    (StorageContext, "_check_validation_file", "a folder of results is not checked on its node"),
    (torch, "_foreach_lerp_", "target networks do not move"),
    (torch, "_foreach_norm", "a gradient that is not finite is not noticed"),
    (Algorithm, "_counters", "on the old stack an iteration never ends, and reports no steps"),
    (CONFIG, "_model_config", "try_networks and validation read another network's settings"),
    (CONFIG, "_model_config_auto_includes", "modules do not learn neighborhood, temperature, ..."),
    (CONFIG, "_prior_exploration_config", "the old stack warns that nothing explores"),
    (
        CONFIG,
        "_rl_module_spec",
        "spaces in a spec of modules that are not the environment's go unnoticed",
    ),
    (CONFIG, "_train_batch_size_per_learner", "train_batch_size and its default 512 are lost"),
    (
        CONFIG,
        "_validate_multi_agent_settings",
        "policies_to_train is refused before there are groups",
    ),
    (CONFIG, "_value_error", "errors have several lines and say how to switch checks off"),
    (CONFIG, "_learner_class", "a path that names the learner's class is not checked"),
    (CONFIG, "_is_frozen", "the config of a Python file is frozen again in the run"),
    (CONFIG, "_env_to_module_connector", "observation_filter of old YAML files is lost"),
    (CONFIG, "_disable_preprocessor_api", "old workers see flattened observations"),
    (CONFIG, "_validate_config", "RLlib's checks cannot be switched off"),
    (Checkpointable, "_check_component", "the env runner cannot tell what to save"),
    (Checkpointable, "_get_subcomponents", "the env runner cannot save single modules"),
    (Learner, "_create_iterator_if_necessary", "minibatches are copied, in another order"),
    (TorchLearner, "_grad_scalers", "scaled gradients are applied as they are"),
    (TorchLearner, "_lr_scheduler_classes", "schedulers of torch are never made"),
    (Learner, "_params", "gradients cannot be handed to their parameters"),
    (Learner, "_optimizer_parameters", "no optimizer makes a step"),
    (Learner, "_learner_index", "all learners read the same fragments and draw the same rows"),
    (EnvRunnerGroup, "_worker_manager", "a slow runner delays all others"),
    (FaultTolerantActorManager, "_in_flight_req_to_actor_id", "a slow runner delays all others"),
    (RayActorManager, "_actor_task_resolved", "the command keeps every result"),
    (RayActorManager, "_actor_task_events", "the command keeps every result"),
    (RayActorManager, "_tracked_actors_to_task_futures", "the command keeps every result"),
    (ray_utils, "estimate_available_memory", "a memory that cannot fit is not refused"),
    (Learner, "_weights_seq_no", "a learner keeps its weights when older ones are restored"),
    (EnvRunner, "_seed", "a seed reaches neither populations nor draws"),
    (Policy, "_create_exploration", "RLlib makes an exploration that our module does not fit"),
    (Policy, "_initialize_loss_from_dummy_batch", "the policy cannot be made"),
    (TorchPolicyV2, "_optimizers", "the old stack's learning rate stays as it was at the start"),
    (MFQTorchRLModule.__mro__[1], "_forward_exploration", "no action is drawn"),
    (MFQTorchRLModule.__mro__[1], "_forward_inference", "no action is chosen"),
    (MFQTorchRLModule.__mro__[1], "_forward_train", "the loss has no Q values"),
    (MultiAgentEnv, "_agent_ids", "the order of RLlib's agents changes from process to process"),
    (Algorithm, "env_creator", "MFQ.setup cannot learn the groups"),
    (Learner, "should_module_be_updated", "target networks of frozen modules move"),
    (RolloutWorker, "policy_map", "old workers have no modules"),
    (RolloutWorker, "callbacks", "callbacks of the old stack do not fire"),
    (RolloutWorker, "input_reader", "RLlib evaluates no old worker"),
    (RolloutWorker, "get_policies_to_train", "a restored frozen policy gets a memory"),
    (TorchPolicyV2, "tower_stats", "the old stack reports no losses"),
    (EpisodeV2, "user_data", "chunks of an episode forget the mean action before them"),
    (EpisodeV2, "agent_index", "nobody knows whose chunk a batch is"),
    (EpisodeV2, "get_agents", "nobody knows whose chunk a batch is"),
    (RLlibCallback, "on_episode_step", "a callback of every step is never called"),
    (RLlibCallback, "on_sub_environment_created", "old callbacks miss the environments"),
    *((CONFIG, f"callbacks_{event}", "a function as callback is never called") for event in EVENTS),
]

# RLlib's keys beginning with an underscore that the tables of keys name; test_rllib_keys checks
# that they exist, in both directions.
TABLES = {"keys.py", "old_names.py"}


def has(owner, name):
    """Whether Ray's class or object has an attribute, or sets one on itself."""
    kinds = owner.__mro__ if isinstance(owner, type) else ()
    return hasattr(owner, name) or any(
        re.search(rf"self\.{name}(\b[^=\n]*|: \w+\[[^=]*\] )=[^=]", inspect.getsource(kind))
        for kind in kinds
        if kind.__module__.startswith("ray")
    )


@pytest.mark.parametrize(("owner", "name", "breaks"), NAMES, ids=[each[1] for each in NAMES])
def test_ray_still_has_what_the_package_reads_or_overrides(owner, name, breaks):
    assert has(owner, name), breaks


# Overriding a method has an effect only while Ray calls it: (who calls, what, what breaks).
CALLS = [
    (
        Algorithm.__init__,
        "self._env_id, self.env_creator = self._get_env_id_and_creator(",
        "MFQ.setup has no env_creator to learn the groups with",
    ),
    (Algorithm.evaluate, "self._evaluate_on_local_env_runner(", "one old episode at a time"),
    (Algorithm.evaluate, "self._evaluate_with_fixed_duration()", "too many old episodes"),
    (Algorithm.step, "self._compile_iteration_results_old_api_stack(", "old results lack names"),
    (Algorithm.step, "self.evaluate(", "PopulationError of a remote runner is never raised"),
    (Algorithm.load_checkpoint, "self.restore_from_path(", "MFQ checks nothing before a restore"),
    (Algorithm.load_checkpoint, "self.__setstate__(", "old checkpoints restore no memory"),
    (Algorithm.save_checkpoint, "self.__getstate__()", "old checkpoints hold no memory"),
    (AlgorithmConfig.validate, "self._validate_multi_agent_settings()", "RLlib checks policies"),
    (AlgorithmConfig.validate, "if not self._validate_config:", "checks cannot be switched off"),
    (AlgorithmConfig.api_stack, "self._prior_exploration_config is not None", "RLlib warns"),
    (AlgorithmConfig.model_config.fget, "self._model_config_auto_includes |", "modules lack T"),
    (Learner.update, "self._create_iterator_if_necessary(", "minibatches are copied"),
    (Learner.update, "self._log_steps_trained_metrics(", "rows are logged after every update"),
    (TorchLearner._uncompiled_update, "self.apply_gradients(", "gradients are looked at twice"),
    (Learner.set_state, "self._weights_seq_no < weights_seq_no", "older weights are ignored"),
    (TorchPolicyV2.__init__, "self._create_exploration()", "RLlib explores, too"),
    (RolloutWorker.__init__, "config._disable_preprocessor_api", "observations are flattened"),
    (EnvRunnerGroup.sync_weights, '"set_state"', "remote runners play with old weights"),
    (EnvRunnerGroup.sync_weights, "dict(state=", "runners call their argument `state`"),
    (EnvRunnerGroup.sync_env_runner_states, "dict(state=", "runners call their argument `state`"),
]


@pytest.mark.parametrize(("caller", "call", "breaks"), CALLS, ids=[each[1] for each in CALLS])
def test_ray_still_calls_what_the_package_overrides(caller, call, breaks):
    assert call in inspect.getsource(inspect.unwrap(caller)), breaks


# Keywords that the package passes: (function, keywords, what breaks).
ARGUMENTS = [
    (LearnerGroup.update, "batch batches timesteps", "no update"),
    (LearnerGroup.foreach_learner, "func remote_actor_ids", "no learner is given a fragment"),
    (Learner.update, "minibatch_size timesteps", "the whole memory is one minibatch"),
    (Learner._create_iterator_if_necessary, "minibatch_size", "minibatches have a wrong size"),
    (LearnerGroup.get_state, "components", "runners get no weights"),
    (Learner.before_gradient_based_update, "timesteps", "T follows no schedule"),
    (EnvRunnerGroup.foreach_env_runner_async, "tag kwargs", "no fragments are requested"),
    (EnvRunnerGroup.fetch_ready_async_reqs, "tags timeout_seconds", "no fragments come back"),
    (EnvRunnerGroup.num_in_flight_async_reqs, "tag", "busy runners are asked again"),
    (
        EnvRunnerGroup.foreach_env_runner,
        "local_env_runner remote_worker_ids timeout_seconds",
        "old evaluation asks the wrong workers",
    ),
    (
        RolloutWorker.__init__,
        "spaces default_policy_class worker_index",
        "old workers do not start",
    ),
    (EnvRunner.__init__, "config", "runners do not start"),
    (MetricsLogger.peek, "key default latest_merged_only", "old evaluation reports all iterations"),
    (MetricsLogger.log_value, "key value reduce window with_throughput", "nothing is reported"),
    (MetricsLogger.log_dict, "key window", "losses are not reported"),
    (MetricsLogger.aggregate, "key", "results of runners are not reported"),
    (MetricsLogger.__init__, "root", "old learners report nothing"),
    (make_callback, "callbacks_objects callbacks_functions kwargs", "callbacks do not fire"),
    (AlgorithmConfig.get_multi_rl_module_spec, "spaces inference_only", "runners have no module"),
    (Catalog.build_encoder, "framework", "no network"),
    (AlgorithmConfig.copy, "copy_frozen", "groups cannot be set in a frozen config"),
    (AlgorithmConfig.experimental, "_disable_preprocessor_api _validate_config", "old workers"),
    (Algorithm.get_state, "components not_components", "checkpoints lack MFQ's progress"),
    (Algorithm.restore_from_path, "path", "MFQ checks nothing before a restore"),
    (
        tune.run,
        "scheduler verbose progress_reporter callbacks resume raise_on_failed_trial",
        "`rllib train` cannot start",
    ),
    (
        tune.Experiment,
        "name run stop config num_samples restore max_failures time_budget_s "
        "log_to_file storage_path checkpoint_config trial_dirname_creator",
        "`rllib train` fails",
    ),
    (tune.ProgressReporter.should_report, "trials done", "no progress on a terminal"),
    (tune.ProgressReporter.report, "trials done", "no progress on a terminal"),
    (tune.Callback.on_step_end, "iteration trials", "Ctrl-C never ends a run"),
    (TrialScheduler.on_trial_result, "trial result", "Ctrl-C pauses no trial"),
    (
        ray.init,
        "num_cpus num_gpus object_store_memory include_dashboard log_to_driver logging_level",
        "the command cannot start Ray",
    ),
]


@pytest.mark.parametrize(
    ("function", "names", "breaks"), ARGUMENTS, ids=[each[0].__qualname__ for each in ARGUMENTS]
)
def test_a_function_of_ray_still_takes_these_arguments(function, names, breaks):
    legal = inspect.signature(function).parameters
    assert set(names.split()) <= set(legal), breaks


# Text in this package that must be spelled as Ray spells it: (here, there).
SPELLINGS = [
    (CLASS, Path(Checkpointable.CLASS_AND_CTOR_ARGS_FILE_NAME).stem),
    (STATE, Algorithm.STATE_FILE_NAME),
    ("module_state", MFQTorchRLModule.STATE_FILE_NAME),
    ("__env__", INPUT_ENV_SPACES),
    ("__all_modules__", ray.rllib.core.ALL_MODULES),
    ("result.json", EXPR_RESULT_FILE),
    ("experiment_state-{}.json", TuneController.CKPT_FILE_TMPL),
    ("__trial_info__", TRIAL_INFO),
    ("RAY_CHDIR_TO_TRIAL_DIR", RAY_CHDIR_TO_TRIAL_DIR),
    ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", accelerators.RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR),
    ("RAY_ADDRESS", ray._private.ray_constants.RAY_ADDRESS_ENVIRONMENT_VARIABLE),
    ("obs", Columns.OBS),
    ("new_obs", Columns.NEXT_OBS),
    ("actions", Columns.ACTIONS),
    ("rewards", Columns.REWARDS),
    ("terminateds", Columns.TERMINATEDS),
    ("eps_id", Columns.EPS_ID),
    ("t", Columns.T),
    ("agent_index", SampleBatch.AGENT_INDEX),
    ("loss_mask", Columns.LOSS_MASK),
]


@pytest.mark.parametrize(("ours", "rays"), SPELLINGS, ids=[each[0] for each in SPELLINGS])
def test_ray_still_spells_it_so(ours, rays):
    assert ours == rays


def test_ray_reads_from_this_variable_how_to_authenticate():
    # Else the command shows no token to a cluster. Only 2.59 and later have a name for the text.
    assert "`RAY_AUTH_MODE` environment variable" in inspect.getsource(authentication_token_setup)


def test_what_the_command_calls_a_figure_is_what_rllib_calls_it():
    # Otherwise `stop` is refused although the run reports its key, or never comes true.
    names = {value for value in vars(metrics).values() if isinstance(value, str)}
    names.add(ray.rllib.core.ALL_MODULES)
    assert names >= hooks.RUNNER
    assert {"episode_duration_sec_mean", "time_between_sampling"} <= names
    assert {"num_agent_steps_sampled", "num_module_steps_sampled"} <= names
    per_agent = inspect.getsource(SingleAgentEnvRunner)
    assert (
        '"agent_episode_return_mean"' in per_agent and '"module_episode_return_mean"' in per_agent
    )
    for key in translation.METRICS.values():
        assert set(key.split("/")) <= names, key
    assert metrics.ENV_RUNNER_RESULTS == "env_runners"
    assert metrics.EVALUATION_RESULTS == "evaluation" and metrics.LEARNER_RESULTS == "learners"
    assert metrics.NUM_TRAINABLE_PARAMETERS.endswith("trainable_parameters")
    assert metrics.NUM_NON_TRAINABLE_PARAMETERS.endswith("trainable_parameters")


# The tables above are complete.


def files():
    for package in (rllib_mfq, rllib_cli):
        yield from sorted(Path(package.__file__).parent.rglob("*.py"))


def defined(tree):
    """Names beginning with an underscore that a file itself defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                        yield part.attr


def uses(tree):
    """Attributes beginning with one underscore that a file reads or sets."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            yield node.attr


def test_the_table_has_every_private_attribute_that_the_package_does_not_define_itself():
    trees = [ast.parse(path.read_text()) for path in files()]
    own = {name for tree in trees for name in defined(tree)}
    own -= {name for _, name, _ in NAMES}
    used = {name for tree in trees for name in uses(tree)}
    assert used - own - {name for _, name, _ in NAMES} == set()


def test_the_table_has_every_key_of_rllib_beginning_with_an_underscore():
    mine = {name for _, name, _ in NAMES}
    for path in files():
        if path.name in TABLES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) else None
            assert (
                not isinstance(text, str)
                or text not in vars(CONFIG)
                or text[0] != "_"
                or (text in mine)
            ), (path, text)


def test_no_private_method_of_the_package_hides_one_of_ray_by_accident():
    # A new Ray may give a base class a method or an attribute that the package calls the same.
    known = {name for _, name, _ in NAMES} | {"_abc_impl"}
    modules = [
        importlib.import_module(found.name)
        for package in (rllib_mfq, rllib_cli)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not found.name.endswith("__main__")
    ]
    classes = {c for m in modules for c in vars(m).values() if isinstance(c, type)}
    checked = 0
    for kind in classes:
        own = [c for c in kind.__mro__ if c.__module__.startswith(("rllib_mfq", "rllib_cli"))]
        bases = [c for c in kind.__mro__ if c.__module__.startswith("ray.")]
        if kind not in own or not bases:
            continue
        source = "\n".join(map(inspect.getsource, bases))
        for each in own:
            names = {name for name in vars(each) if re.match(r"_[a-z]", name)}
            names |= set(re.findall(r"self\.(_[a-z]\w*)\b[^=\n(]*=[^=]", inspect.getsource(each)))
            for name in names - known:
                hidden = any(name in vars(base) for base in bases)
                assert not hidden and not re.search(rf"self\.{name}\b", source), (kind, name)
            checked += len(names)
    assert checked > 20


def test_of_rays_private_modules_only_these_are_imported():
    # Tune resumes from a folder that it has deleted unless its storage and checkpoints are ours.
    resuming = {f"ray.train._internal.{m}" for m in ("checkpoint_manager", "session", "storage")}
    found = set()
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {m for m in modules if m.startswith("ray.") and "._" in m}
    seen = "ray.air.execution._internal"  # Tune keeps all results unless the command releases them
    assert found <= {"ray._common.deprecation", "ray._private.utils", seen, *resuming}


# Configs.


def test_minus_one_still_marks_a_deprecated_key():
    # Else `old_names.attributes` and `rllib train` take keys without meaning for real ones.
    assert deprecation.DEPRECATED_VALUE == -1
    assert algorithm_config.DEPRECATED_VALUE is deprecation.DEPRECATED_VALUE
    assert CONFIG.enable_connectors == CONFIG.simple_optimizer == -1


def test_a_configs_state_names_its_class_and_leaves_out_the_algorithm():
    # `MFQConfig.to_dict` takes `class` out, and `load_config` makes a config of a checkpoint's.
    state = CONFIG.get_state()
    assert state["class"] is AlgorithmConfig and "algo_class" not in state
    assert type(AlgorithmConfig.from_state(DQNConfig().get_state())) is DQNConfig


def test_a_config_keeps_the_batch_size_under_the_private_name():
    config = AlgorithmConfig().training(train_batch_size_per_learner=7)
    assert config._train_batch_size_per_learner == 7


def test_a_config_dict_sets_private_attributes_by_their_names():
    # `rllib train` hands over `_model_config` and `_env_to_module_connector` like this.
    config = AlgorithmConfig().update_from_dict({"_model_config": {"fcnet_hiddens": [3]}})
    assert config.model_config["fcnet_hiddens"] == [3]


def test_rllib_says_under_this_key_that_an_algorithm_is_on_the_new_stack():
    # `MFQConfig.validate` takes the key first, so that nothing is said of MFQ.
    debug.reset_log_once("DQN_on_new_api_stack")
    DQNConfig().environment("CartPole-v1").validate()
    assert not debug.log_once("DQN_on_new_api_stack")


def test_rllib_warns_of_its_own_modules_under_this_key():
    # rl_module.py takes the key first; else every module that is made warns.
    key = "RLModule(config=[RLModuleConfig object])"
    debug.reset_log_once(key)
    module()
    assert not debug.log_once(key)


def test_the_registry_keeps_a_name_until_ray_starts():
    # `make_creator` looks for what was meant in both places.
    registry = type(_global_registry)()
    with mock.patch("ray.tune.registry._internal_kv_initialized", return_value=False):
        registry.register(ENV_CREATOR, "made_up", str)
        assert registry.contains(ENV_CREATOR, "made_up")
        assert (ENV_CREATOR, "made_up") in registry._to_flush


def test_the_registry_moves_names_when_ray_starts(ray_session):
    rllib_mfq.register()
    assert (ENV_CREATOR, "battle_v4") in _global_registry._registered
    assert _global_registry.contains(TRAINABLE_CLASS, "MFQ")


def test_the_algorithms_of_rllib_are_functions_that_give_class_and_config():
    assert ALGORITHMS["DQN"]()[0] is DQNConfig().algo_class


# Modules and policies.


def module(**kwargs):
    box, actions = gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(2)
    return MFQTorchRLModule(
        observation_space=box, action_space=actions, model_config={"fcnet_hiddens": [8]}, **kwargs
    )


def test_rllibs_encoder_takes_a_dict_and_gives_features_of_the_catalogs_size():
    box, actions = gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(2)
    catalog = Catalog(box, actions, {"fcnet_hiddens": [8]})
    features = catalog.build_encoder(framework="torch")({Columns.OBS: torch.zeros(3, 4)})
    assert features[ENCODER_OUT].shape == (3, *catalog.latent_dims) == (3, 8)


def test_a_modules_state_for_playing_leaves_out_the_target_network():
    # Else runners wait for twice the weights.
    made = module()
    made.make_target_networks()
    assert any(name.startswith("_target") for name in made.get_state())
    assert not any(name.startswith("_target") for name in made.get_state(inference_only=True))


def test_the_notice_that_is_filtered_is_the_one_that_rllib_gives(monkeypatch):
    # Else every checkpoint on the old stack warns of the policy's name.
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("ray.rllib.policy.policy")
    monkeypatch.setattr(logger, "level", logging.WARNING)  # the command may have hidden it
    logger.manager._clear_cache()
    foreign = type("Foreign", (TorchPolicyV2,), {})
    logger.addHandler(handler)
    try:
        for kind in (MFQTorchPolicy, foreign):
            box, actions = gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2)
            PolicySpec(kind, box, actions, {}).serialize()
    finally:
        logger.removeHandler(handler)
    assert len(said) == 1 and "Foreign" in said[0]
    assert "durable policy name for <class" in said[0]


def test_a_metric_of_an_old_episode_has_its_fields_in_this_order():
    # The old worker gives them by position.
    fields = ("episode_length", "episode_reward", "agent_rewards", "custom_metrics")
    assert RolloutMetrics._fields[:4] == fields


@pytest.mark.parametrize("kind", [MFQEnvRunner, MFQRolloutWorker])
def test_a_worker_adds_its_number_to_the_seed_exactly_once(kind):
    # RLlib adds it on the new stack only; the old worker does so itself.
    config = small_battle(old=kind is MFQRolloutWorker)
    creator = Algorithm._get_env_id_and_creator("battle_v4", config)[1]
    runner = kind(config=config, env_creator=creator, worker_index=3, num_workers=3)
    runner.stop()
    assert runner._seed == config.seed + 3


# Running algorithms.


def train(old, folder):
    """An algorithm after one iteration, its results and its checkpoint."""
    algo = small_battle(old=old).build_algo()
    results = algo.train()
    saved = Path(algo.save_to_path(str(folder / "checkpoint")))
    yield SimpleNamespace(algo=algo, results=results, folder=saved)
    algo.stop()


@pytest.fixture(scope="module")
def new(ray_session, tmp_path_factory):
    yield from train(False, tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def old(ray_session, tmp_path_factory):
    yield from train(True, tmp_path_factory.mktemp("old"))


@pytest.fixture(params=["new", "old"])
def trained(request):
    return request.getfixturevalue(request.param)


def test_a_checkpoint_has_its_modules_where_opponents_are_found(trained):
    groups = {path.name for path in (trained.folder / MODULES).glob("*/")}
    assert groups == {"blue", "red"}
    assert all(any((trained.folder / MODULES / g).glob("module_state.*")) for g in groups)
    assert any(trained.folder.glob(f"{STATE}.*"))


def test_a_checkpoint_of_the_new_stack_only_keeps_class_and_config_in_a_pickle(new, old):
    # `rllib evaluate` makes the algorithm of it, and says by it that one is of the old stack.
    kind, settings = saved_class_and_settings(new.folder)
    assert kind is rllib_mfq.MFQ and settings["env"] == "battle_v4"
    assert saved_class_and_settings(old.folder) == (None, {})


def test_the_weights_of_a_learner_group_are_arrays_by_module_beside_their_number(trained):
    state = trained.algo.learner_group.get_state(
        components="learner/rl_module", inference_only=True
    )
    weights = state["learner"]["rl_module"]
    assert set(weights) == {"blue", "red"}
    # `SelfPlay` mixes them with NumPy; a buffer of one number may be a float.
    kinds = {type(x) for tensors in weights.values() for x in tensors.values()}
    assert np.ndarray in kinds and kinds <= {np.ndarray, np.float32, float}
    assert state["learner"]["weights_seq_no"] >= 1


def test_one_call_of_the_learner_group_makes_one_step_per_minibatch(new):
    assert new.algo.learner_group._learner._updates == new.results["num_updates"] > 1


def test_the_number_of_parameters_is_among_the_results(new):
    # `figures.keep_known` keeps it, since RLlib reports it once.
    assert new.results["learners"]["blue"]["num_trainable_parameters"] > 0


def test_the_results_of_the_old_stack_have_the_names_that_are_read_from_them(old):
    names = {"num_healthy_workers", "num_remote_worker_restarts"}
    assert names | {"num_env_runners_dropped_lifetime"} <= set(old.results)
    info = old.results["info"]["learner"]["blue"]["learner_stats"]
    assert "allreduce_latency" in info  # `PolicyLearnerGroup` takes it out
    counted = old.algo._counters["num_env_steps_sampled"]
    assert old.results["num_env_steps_sampled"] == counted > 0


def test_rllib_steps_the_optimizer_whose_learning_rate_the_old_stack_sets(old):
    policy = old.algo.get_policy("blue")
    stepped = {p for group in policy._optimizers[0].param_groups for p in group["params"]}
    assert stepped == set(policy.model.q_net.parameters())


def test_the_states_of_the_old_stack_have_the_keys_that_are_read_from_them(old):
    # `MFQRolloutWorker.set_state` tells RLlib's own state from new weights by `policy_states`.
    assert "policy_states" in old.algo.env_runner.get_state()
    assert {"algorithm_class", "worker", "counters"} <= set(Algorithm.__getstate__(old.algo))


def test_an_evaluation_counts_the_steps_that_the_samples_say():
    # `sample()` returns fragments, no episodes; RLlib asks them for nothing else.
    runner = SimpleNamespace(
        sample=lambda num_timesteps, num_episodes: [Sample() for _ in range(num_episodes)],
        get_metrics=lambda: MetricsLogger(root=False).reduce(),
    )
    config = AlgorithmConfig().evaluation(evaluation_duration=3)
    algo = SimpleNamespace(
        config=config, evaluation_config=config, metrics=MetricsLogger(root=True)
    )
    _, env_steps, agent_steps, _ = Algorithm._evaluate_on_local_env_runner(algo, runner)
    assert (env_steps, agent_steps) == (15, 60)
    for function in (
        Algorithm._evaluate_with_auto_duration,
        Algorithm._evaluate_with_fixed_duration,
    ):
        asked = set(re.findall(r"\be\.(\w+)", inspect.getsource(function)))
        assert asked == {"env_steps", "agent_steps"}
    assert MultiAgentBatch({}, 5).env_steps() == 5
    assert Episode(0, 0, {}).env_steps() == 0  # `rllib evaluate` asks RLlib's episodes, too


class Sample:
    def env_steps(self):
        return 5

    def agent_steps(self):
        return 20


def test_an_actor_whose_class_changes_goes_on_with_the_methods_of_the_new_class(ray_session):
    # `adapt` changes the class of an algorithm in `setup`, which Tune runs in an actor. Ray calls
    # methods of the class that it was given; those must find the new class's by themselves.
    class Plain:
        def setup(self):
            own = type(self)
            self.__class__ = type(own.__name__, (Other, own), {"__module__": own.__module__})

        def train(self):
            return self.step()

        def step(self):
            return "plain"

    class Other:
        def step(self):
            return f"other, then {super().step()}"

    actor = ray.remote(num_cpus=0)(Plain).remote()
    ray.get(actor.setup.remote())
    assert ray.get(actor.train.remote()) == "other, then plain"
    ray.kill(actor)


def test_tune_asks_its_actors_for_no_method_that_the_old_stack_overrides():
    # Ray would call the method of the class that it was given, `MFQ`'s.
    source = inspect.getsource(TuneController)
    asked = set(re.findall(r'method_name = ?"(\w+)"|method_name="(\w+)"', source))
    asked = {name for pair in asked for name in pair if name} | {"stop"}
    assert {"train", "save", "restore", "reset"} <= asked
    assert not asked & set(vars(OldStackAlgorithm))


# Tune.


class Counting(tune.Trainable):
    def step(self):
        return {"folder": os.getcwd(), "done": self.iteration >= 5}

    def save_checkpoint(self, checkpoint_dir):
        Path(checkpoint_dir, "data").write_text("")

    def load_checkpoint(self, checkpoint_dir):
        pass


class CtrlC(tune.Callback):
    def __init__(self, interrupt):
        self.interrupt = interrupt

    def on_trial_start(self, iteration, trials, trial, **info):
        self.interrupt.requested = True

    def __getstate__(self):
        return {}


@pytest.fixture
def quiet():
    """The environment variables of the command, taken back afterwards."""
    with mock.patch.dict(os.environ):
        be_quiet(1)
        yield


@pytest.fixture(scope="module")
def paused(ray_session, tmp_path_factory):
    """A trial in which Ctrl-C was pressed before its first result."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    storage = tmp_path_factory.mktemp("tune")
    scheduler = create_scheduler("fifo")
    experiment = tune.Experiment(
        "run",
        Counting,
        storage_path=str(storage),
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
    )
    with mock.patch.dict(os.environ), Interrupt(scheduler) as interrupt:
        be_quiet(1)
        found = tune.run(
            [experiment],
            scheduler=scheduler,
            verbose=0,
            callbacks=[interrupt, CtrlC(interrupt)],
            raise_on_failed_trial=False,
        )
    for number, handler in signals.items():
        signal.signal(number, handler)
    (trial,) = found.trials
    return SimpleNamespace(trial=trial, experiment=experiment, folder=storage / "run")


def test_a_trial_that_the_replaced_methods_of_the_scheduler_pause_is_saved(paused):
    # Ctrl-C: a paused trial has a checkpoint; SIGUSR1 ended the run, or it would not be here.
    assert paused.trial.status == Trial.PAUSED
    assert paused.trial.last_result["training_iteration"] == 1
    assert paused.trial.checkpoint is not None


def test_a_run_leaves_the_files_that_are_looked_for(paused):
    # `--resume` looks for the first, `finished` and `plot` for the others, `check_checkpoint`
    # names the last.
    assert any(paused.folder.glob("experiment_state-*"))
    (trial,) = paused.folder.glob("*/result.json")
    assert any(trial.parent.glob("checkpoint_*"))


def test_a_trial_tells_where_it_is_and_what_it_saved(paused):
    trial = paused.trial
    assert Path(trial.storage.experiment_fs_path) == paused.folder
    assert trial.storage.experiment_dir_name == "run"
    assert paused.experiment.storage.experiment_fs_path == trial.storage.experiment_fs_path
    assert hasattr(paused.experiment.storage, "storage_filesystem")
    (best,) = trial.run_metadata.checkpoint_manager.best_checkpoint_results
    assert best.metrics["training_iteration"] == 1 and Path(best.checkpoint.path).is_dir()
    assert trial.trial_id.rpartition("_")[2].isdigit() and trial.get_error() is None


def test_a_trial_stays_in_the_folder_of_the_command(paused):
    # RAY_CHDIR_TO_TRIAL_DIR: paths in experiments are relative to that folder.
    assert paused.trial.last_result["folder"] == os.getcwd()


def test_tune_leaves_ctrl_c_alone_and_listens_to_sigusr1(quiet):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        ended = _setup_signal_catching()
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
        signal.raise_signal(signal.SIGUSR1)
        assert ended.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_tune_uses_the_reporter_that_it_is_given(quiet):
    # RAY_AIR_NEW_OUTPUT: the new output takes no reporter.
    assert get_air_verbosity(1) is None


def test_a_result_without_the_schedulers_metric_is_no_error(quiet, monkeypatch):
    # TUNE_DISABLE_STRICT_METRIC_CHECKING: there is no win rate before the first evaluation.
    controller = SimpleNamespace(_metric="win_rate")
    TuneController._validate_result_metrics(controller, {"a": 1, "b": 2})
    monkeypatch.delenv("TUNE_DISABLE_STRICT_METRIC_CHECKING")
    controller._scheduler_alg = controller._search_alg = SimpleNamespace(metric="win_rate")
    with pytest.raises(ValueError, match="win_rate"):
        TuneController._validate_result_metrics(controller, {"a": 1, "b": 2})


def test_rays_token_is_where_use_token_looks_for_it():
    found = authentication_token_setup._get_default_token_path()
    assert found == Path.home() / ".ray" / "auth_token"


def test_every_scheduler_has_a_name_that_makes_it_or_a_function_that_imports_it():
    # `make_scheduler` reads legal settings off the class.
    assert {"fifo", "pbt", *validation.SHORT.values()} <= set(SCHEDULER_IMPORT)
    for kind in SCHEDULER_IMPORT.values():
        assert inspect.isfunction(kind) or issubclass(kind, TrialScheduler)
    pbt = SCHEDULER_IMPORT["pbt"]
    assert {"metric", "mode", "hyperparam_mutations", "require_attrs"} <= set(
        inspect.signature(pbt).parameters
    )
    assert type(create_scheduler("fifo")) is SCHEDULER_IMPORT["fifo"]


def test_a_search_space_tells_its_values_and_bounds():
    # `plain_configs` puts each of them in the place of its space and validates the config.
    assert list(tune.choice([1, 2]).categories) == [1, 2]
    assert tune.grid_search([1, 2]) == {"grid_search": [1, 2]}
    uniform, whole = tune.loguniform(0.1, 1.0), tune.randint(1, 9)
    assert (uniform.lower, uniform.upper, whole.lower, whole.upper) == (0.1, 1.0, 1, 9)


def test_rllib_calls_whatever_a_path_in_a_config_names():
    # This is why `check_class_paths` looks at every path first.
    assert from_config({"type": "builtins.dict", "a": 1}) == {"a": 1}
    mapping = {"type": "collections.OrderedDict", "a": 1}
    config = AlgorithmConfig().multi_agent(policy_mapping_fn=mapping)
    assert config.policy_mapping_fn == {"a": 1}
    assert deserialize_type("os.path.join") is os.path.join


def test_tune_flattens_results_with_slashes():
    # `stop`, metrics and plots name results by them.
    assert flatten_dict({"a": {"b": 1}}) == {"a/b": 1}


def test_an_algorithm_says_what_a_trial_needs_before_there_is_one():
    # `check_resources` refuses what this machine cannot run.
    request = rllib_mfq.MFQ.default_resource_request({"env": "battle_v4", "num_env_runners": 2})
    assert request.required_resources["CPU"] == 3


def test_tune_adds_no_logger_that_writes_the_files_of_ours():
    # It would write into a temporary folder, whose copy is put over the rows every few seconds.
    loggers = _create_default_callbacks([rows.Rows(), rows.Table()])
    for kind, mine in ((JsonLoggerCallback, rows.Rows), (CSVLoggerCallback, rows.Table)):
        assert [type(each) for each in loggers if isinstance(each, kind)] == [mine]


def test_tunes_own_files_are_copied_whole(tmp_path, monkeypatch):
    # A state of the run that is half there after a kill could not be resumed.
    source, target = tmp_path / "source", tmp_path / "target"
    kept = StoredExperiment("x", run="MFQ", storage_path=str(tmp_path)).storage
    assert isinstance(kept.syncer, _FilesystemSyncer)
    for text in ("old", "new"):
        (source / "trial").mkdir(parents=True, exist_ok=True)
        (source / "trial" / "state.json").write_text(text)
        (source / ".unfinished").write_text(text)
        kept.syncer.sync_up(str(source), str(target))
        kept.syncer.wait()
        assert [path.name for path in target.rglob("*.json")] == ["state.json"]
        assert (target / "trial" / "state.json").read_text() == text
        assert not (target / ".unfinished").exists()

    def killed(source, part):
        Path(part).write_text("")
        raise OSError("killed")

    monkeypatch.setattr(shutil, "copyfile", killed)
    kept.syncer.sync_up(str(source), str(target))
    with pytest.raises(OSError, match="killed"):
        kept.syncer.wait()
    assert (target / "trial" / "state.json").read_text() == "new"


def test_what_a_run_that_is_resumed_relies_on(ray_session, tmp_path):
    """Of Tune's private parts: how it keeps trials, storage and checkpoints."""
    experiment = StoredExperiment("x", run="MFQ", storage_path=str(tmp_path))
    assert type(experiment.storage) is Storage and issubclass(Storage, StorageContext)
    trial = Trial("MFQ", storage=copy.copy(experiment.storage), trial_id="1")
    trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1}])
    trial.storage.trial_dir_name = "one"
    trial.storage._update_checkpoint_index({"training_iteration": 4})
    assert trial.storage.current_checkpoint_index == 0
    assert trial.storage.checkpoint_fs_path.endswith("/x/one/checkpoint_000000")
    manager = _CheckpointManager(tune.CheckpointConfig(num_to_keep=1))
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        saved = Checkpoint(str(tmp_path / str(number)), LocalFileSystem())
        manager.register_checkpoint(_TrainingResult(saved, {"training_iteration": number}))
    assert not (tmp_path / "0").exists() and (tmp_path / "1").exists()  # deleted at once
    trial.run_metadata.checkpoint_manager = manager
    trial.stopping_criterion = {"a": 1}
    state, metadata = trial.get_json_state()
    again = Trial.from_json_state(state)
    again.restore_run_metadata(metadata)
    assert again.status == Trial.PENDING and again.stopping_criterion == {"a": 1}
    assert type(again.storage) is Storage and again.storage.current_checkpoint_index == 0
    assert again.run_metadata.checkpoint_manager.latest_checkpoint_result.metrics == {
        "training_iteration": 1
    }
    assert TuneController.CKPT_FILE_TMPL.startswith(resume.STATE)
    # The state holds what was decided about trials; `begin` clears it.
    decided = inspect.getsource(TuneController.__init__)
    assert "_cached_trial_decisions" in decided and "_queued_trial_decisions" in decided
    # The last error of a trial goes through this method.
    with kept_errors() as errors:
        trial.handle_error(ValueError("why"))
    assert str(errors["1"]) == "why" and "exc" in inspect.signature(Trial.handle_error).parameters


@pytest.mark.parametrize(
    ("held", "kept"), [(contextlib.nullcontext(), 3), (released_results(), 0)], ids=["ray", "ours"]
)
def test_tune_keeps_every_result_unless_the_command_releases_it(ray_session, held, kept):
    # Without a difference between the two `released_results` is not needed any more.
    class Trainable:
        def train(self):
            return {}

    manager = RayActorManager(FixedResourceManager({"CPU": 1}))
    actor = manager.add_actor(Trainable, {}, ResourceRequest([{"CPU": 1}]))
    seen = []
    with held:
        for number in range(4):
            while len(seen) < number:
                manager.next(timeout=10)
            if number < 3:
                manager.schedule_actor_task(actor, "train", on_result=lambda *of: seen.append(of))
        assert len(manager._tracked_actors_to_task_futures[actor]) == kept
    manager.remove_actor(actor, kill=True)
    manager.cleanup()
