"""Validation: what `MFQConfig` refuses, before any work starts, each in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_mfq.algorithm.rl_module import ACTING, check_model_config
from rllib_mfq.mean_field.neighborhood import Neighborhood, did_you_mean
from rllib_mfq.mean_field.objective import TARGETS
from rllib_mfq.population.population import Rows

if TYPE_CHECKING:
    from rllib_mfq.algorithm.config import MFQConfig

WITHOUT_EFFECT = {
    "model": "set rl_module(model_config=...), in YAML the key model_config",
    "exploration_config": "MFQ explores by its Boltzmann policy: set temperature",
    "observation_filter": "normalise in the environment",
    "batch_mode": "set rollout_fragment_length",
    "clip_rewards": "clip in the environment",
    "compress_observations": "set replay_obs_dtype",
    "num_epochs": "set training_intensity",
    "minibatch_size": "set train_batch_size_per_learner",
    "shuffle_batch_per_epoch": "the memory already draws at random",
    "remote_worker_envs": "set num_env_runners",
    "gym_env_vectorize_mode": "set num_envs_per_env_runner",
    "optimizer": "set lr and grad_clip",
    "preprocessor_pref": "MFQ takes observations as they are",
    "sample_collector": "MFQ has a sampler of its own",
    "clip_actions": "MFQ's actions are Discrete",
    "normalize_actions": "MFQ's actions are Discrete",
    "action_mask_key": "call the mask 'action_mask'",
    "observation_space": "the environment's own is used",
    "action_space": "the environment's own is used",
    "observation_fn": "change observations in the environment",
    "_env_to_module_connector": "change observations in the environment",
    "_module_to_env_connector": "change actions in the environment",
    "_learner_connector": "change observations in the environment",
    "input_": "MFQ learns from what it plays",
    "output": "MFQ writes no episodes; set store_replay_in_checkpoints",
    "off_policy_estimation_methods": "MFQ learns from what it plays",
    "render_env": "call render() of the environment",
    "policy_map_capacity": "all modules stay in memory",
    "policy_states_are_swappable": "all modules stay in memory",
}
"""RLlib settings that MFQ would ignore, and what to use instead."""

INTEGERS = {
    "mean_action_iterations": 1,
    "target_network_update_freq": 1,
    "n_step": 1,
    "replay_capacity": 1,
    "table_levels": 1,
    "num_steps_sampled_before_learning_starts": 0,
    "_train_batch_size_per_learner": 1,
    "rollout_fragment_length": 1,
    "num_envs_per_env_runner": 1,
    "num_env_runners": 0,
    "evaluation_num_env_runners": 0,
    "num_learners": 0,
    "metrics_num_episodes_for_smoothing": 1,
    "seed": 0,
    "evaluation_interval": 0,
}
"""Settings that are integers, and the least of each."""

NUMBERS = {"lr", "temperature", "grad_clip", "min_time_s_per_iteration", *INTEGERS}
"""Settings that are numbers though their default may not be one."""

PER_MODULE = (
    "gamma",
    "grad_clip",
    "grad_clip_by",
    "lr",
    "shared_exploration",
    "target",
    "target_network_update_freq",
    "tau",
    "temperature",
)
"""Settings that `algorithm_config_overrides_per_module` may set for one module."""

ONLY_NEW_STACK = {
    "num_learners": "the policies of the local rollout worker learn",
    "num_gpus_per_learner": "set num_gpus",
    "_learner_class": "override the policy's loss",
    "_rl_module_spec": "set model_config, or a policy class in policies",
    "algorithm_config_overrides_per_module": "set config in the specs of policies",
}
"""RLlib settings that have a meaning on the new API stack only, and what to do on the old."""

ONLY_OLD_STACK = {
    "num_gpus": "set num_gpus_per_learner",
    "keep_per_episode_custom_metrics": "log to metrics_logger",
    "checkpoint_trainable_policies_only": "all modules are saved",
    "export_native_model_files": "load modules by RLModule.from_checkpoint",
}
"""RLlib settings that have a meaning on the old API stack only, and what to do on the new."""


def check_settings(config: MFQConfig, defaults: Mapping[str, Any]) -> None:
    """Checks everything that can be checked without an environment.

    Args:
        config: the settings.
        defaults: MFQ's own ones.

    Raises:
        ValueError: one sentence with the key, its value and what would be legal.
    """
    _check_types(config, defaults)
    _check_numbers(config)
    _check_schedule("temperature", config.temperature, may_be_zero=False)
    _check_schedule("lr", config.lr, may_be_zero=True)
    _check_schedule("shared_exploration", config.shared_exploration, may_be_zero=True)
    _check_model_config(config, defaults)
    Neighborhood.parse(config.neighborhood)
    choices = {"target": TARGETS, "mean_action_input": ("previous", "current")}
    for key, legal in choices.items():
        value = getattr(config, key)
        if value not in legal:
            hint = did_you_mean(str(value), legal)
            raise ValueError(f"{key} is {value!r}{hint}; legal are {', '.join(legal)}.")
    try:
        is_number = np.dtype(config.replay_obs_dtype).kind in "fiu"  # None is float64 to numpy
    except TypeError:
        is_number = False
    if not is_number:
        raise ValueError(
            f"replay_obs_dtype is {config.replay_obs_dtype!r}; it must be a numpy type of numbers, "
            "such as 'float16' or 'uint8'."
        )
    default = AlgorithmConfig()
    for key, instead in WITHOUT_EFFECT.items():
        in_evaluation = key == "batch_mode" and config.in_evaluation  # RLlib's own doing
        if getattr(config, key) != getattr(default, key) and not in_evaluation:
            raise ValueError(f"{key.strip('_')} has no effect on MFQ; {instead}.")
    if config.framework_str != "torch":
        raise ValueError(f"framework is {config.framework_str!r}; MFQ needs 'torch'.")
    if not config.create_local_env_runner:
        raise ValueError("create_local_env_runner is False; MFQ needs it to be True.")
    new_stack = config.enable_rl_module_and_learner
    works_on, keys = ("old", ONLY_OLD_STACK) if new_stack else ("new", ONLY_NEW_STACK)
    for key, instead in keys.items():
        if getattr(config, key) != getattr(default, key):
            raise ValueError(
                f"{key.lstrip('_')} is {getattr(config, key)!r}, which works on the {works_on} "
                f"API stack only; on this one, {instead}."
            )
    if not new_stack:  # on the new one RLlib checks it
        Scheduler.validate(
            fixed_value_or_schedule=config.lr, setting_name="lr", description="learning rate"
        )
    if not new_stack and config.num_gpus > 1:
        raise ValueError(
            f"num_gpus is {config.num_gpus}; a policy learns on at most 1. The new API stack "
            "learns on more: set num_learners there."
        )
    if config.evaluation_opponents and not config.in_evaluation:
        _check_opponents(config)
    if config.has_opponent and config.num_envs_per_env_runner % 2:
        raise ValueError(
            f"num_envs_per_env_runner is {config.num_envs_per_env_runner}; with an opponent in "
            "self_play it must be even, for the learner plays each group in half of them."
        )


def check_env(env: Any) -> None:
    """Raises a ValueError unless `env` is the name or the maker of an environment."""
    if env is None:
        raise ValueError("env is None; set one, such as environment('battle_v4').")
    if not isinstance(env, str) or _global_registry.contains(ENV_CREATOR, env) or "." in env:
        return  # a class path, in the last case
    try:
        gym.spec(env)
    except (gym.error.Error, ModuleNotFoundError):
        known = {*_global_registry._registered, *_global_registry._to_flush}
        names = {name for category, name in known if category == ENV_CREATOR}
        raise ValueError(
            f"env is {env!r}{did_you_mean(env, names | set(gym.registry))}, which neither Tune "
            "nor Gymnasium has registered."
        ) from None


def check_environment(config: MFQConfig, first: Mapping[str, Rows]) -> None:
    """Checks the settings against the environment's groups, which `config` has learned.

    Args:
        config: the settings.
        first: every group's rows at the start of an episode.

    Raises:
        ValueError: one sentence on what does not fit.
    """
    groups = config.groups or {}
    for group, (obs, actions) in groups.items():
        if not isinstance(actions, gym.spaces.Discrete):
            raise ValueError(f"group {group!r} has action space {actions}; MFQ needs Discrete.")
        if not isinstance(obs, gym.spaces.Box) or not np.prod(obs.shape):
            raise ValueError(f"group {group!r} has observation space {obs}; MFQ needs a Box.")
        if len(obs.shape) not in (1, 3):
            raise ValueError(
                f"group {group!r} has observations of shape {obs.shape}; MFQ needs [n] or "
                "[height, width, channels]."
            )
    images = {len(group.observation_space.shape) == 3 for group in groups.values()}
    default, other = DefaultModelConfig(), {"fcnet_": "conv_filters", "conv_": "fcnet_hiddens"}
    for key, value in check_model_config(config._model_config).items():
        kind = key.partition("_")[0] + "_"
        if value != getattr(default, key) and (kind == "conv_") not in images:
            raise ValueError(
                f"model_config has {key!r}, which has no effect on observations of shape "
                f"{next(iter(groups.values())).observation_space.shape}; set {other[kind]}."
            )
    if config.table_levels is not None:
        _check_states(config)
    _check_modules(config)
    check_modules_to_train(config)
    needs = Neighborhood.parse(config.neighborhood).needs
    for group, rows in first.items():
        if needs and getattr(rows, needs) is None:
            raise ValueError(
                f"neighborhood is {config.neighborhood!r}, which needs {needs}, but group "
                f"{group!r} of the environment gives none; use 'group', 'none' or 'all'."
            )
    if config.evaluation_opponents and len(groups) != 2:
        raise ValueError(
            "evaluation_opponents needs an environment of two groups; this one has "
            f"{sorted(groups)}."
        )
    if config.has_opponent and len(groups) != 2:
        raise ValueError(
            f"self_play is {config.self_play!r}, which needs an environment of two groups; this "
            f"one has {sorted(groups)}."
        )
    num_envs = config.num_envs_per_env_runner
    rows_of_module = dict.fromkeys(config.policies, 0)
    for group, module_id in config.modules_of_groups().items():
        count, others = len(first[group].ids) * num_envs, rows_of_module[module_id]
        # With an opponent a fragment holds one group, of half of the environments.
        together = max(others, count // 2) if config.has_opponent else others + count
        rows_of_module[module_id] = together
    steps = config.get_rollout_fragment_length() + 1  # the rows before the first step, too
    for module_id, count in rows_of_module.items():
        fragment = count * steps
        if fragment > config.replay_capacity:
            raise ValueError(
                f"replay_capacity is {config.replay_capacity}, but one fragment of module "
                f"{module_id!r} has {fragment} rows; raise it, or lower "
                "rollout_fragment_length or num_envs_per_env_runner."
            )


def _check_states(config: MFQConfig) -> None:
    """Raises a ValueError unless a table can be made of what the agents observe."""
    if config.dueling:
        raise ValueError("dueling is True, which has no effect with table_levels; leave one out.")
    for group, (obs, _) in (config.groups or {}).items():
        bounds = np.concatenate([obs.low.ravel(), obs.high.ravel()])
        if obs.shape != (1,) or not np.isfinite(bounds).all() or (bounds % 1).any():
            raise ValueError(
                f"table_levels is {config.table_levels}, but group {group!r} observes {obs}; a "
                "table needs one whole number with bounds, shape [1]."
            )


def _check_schedule(key: str, schedule: Any, *, may_be_zero: bool) -> None:
    """Raises a ValueError unless it is a number or an increasing schedule of numbers."""
    points = schedule if isinstance(schedule, list | tuple) else [[0, schedule]]
    pairs = all(
        isinstance(point, list | tuple)
        and len(point) == 2
        and all(_between(x, 0, math.inf) for x in point)
        and (may_be_zero or point[1])
        for point in points
    )
    if not points or not pairs:
        kind = "number of at least 0" if may_be_zero else "positive number"
        raise ValueError(
            f"{key} is {schedule!r}; it must be a {kind} or a schedule [[steps, value], ...] of "
            "such."
        )
    if any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        raise ValueError(f"{key} is {schedule!r}; the steps of a schedule must increase.")


def check_modules_to_train(config: MFQConfig) -> None:
    """Raises a ValueError unless all `policies_to_train` exist."""
    to_train = config.policies_to_train
    for module_id in () if to_train is None or callable(to_train) else to_train:
        if module_id not in config.policies:
            raise ValueError(
                f"policies_to_train has {module_id!r}{did_you_mean(module_id, config.policies)}; "
                f"policies has {sorted(config.policies)}."
            )


def _check_types(config: MFQConfig, defaults: Mapping[str, Any]) -> None:
    for key, default in (vars(AlgorithmConfig()) | defaults).items():
        value, name = getattr(config, key), key.lstrip("_")
        if isinstance(default, bool):
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{name} is {value!r}; it must be True or False.")
        elif isinstance(default, int | float) or key in NUMBERS:
            for text in _strings(value):
                try:
                    number = float(text)
                except ValueError:
                    continue  # such as rollout_fragment_length="auto"
                integer = not isinstance(default, float | list) and number.is_integer()
                raise ValueError(
                    f"{name} has the string {text!r} where a number belongs; write "
                    f"{int(number) if integer else number!r} (YAML reads 1e-4 as a string and "
                    "1.0e-4 as a number)."
                )


def _check_numbers(config: MFQConfig) -> None:
    for key, least in INTEGERS.items():
        value = getattr(config, key)
        unset = (key in ("seed", "evaluation_interval", "table_levels") and value is None) or (
            key == "rollout_fragment_length" and value == "auto"
        )
        if not unset and not (_between(value, least, math.inf) and not isinstance(value, float)):
            raise ValueError(
                f"{key.lstrip('_')} is {value!r}; it must be an integer of at least {least}."
            )
    if config.num_steps_sampled_before_learning_starts > config.replay_capacity:
        raise ValueError(
            "num_steps_sampled_before_learning_starts is "
            f"{config.num_steps_sampled_before_learning_starts}; it must be at most "
            f"replay_capacity, which is {config.replay_capacity}."
        )
    above_zero = {"tau": 1, "training_intensity": math.inf, "grad_clip": math.inf}
    for key, most in above_zero.items():
        value = getattr(config, key)
        if not (_between(value, 0, most) and value) and (key != "grad_clip" or value is not None):
            bound = " and at most 1" if most == 1 else ""
            raise ValueError(f"{key} is {value!r}; it must be a number above 0{bound}.")
    if not _between(config.gamma, 0, 1):
        raise ValueError(f"gamma is {config.gamma!r}; it must be a number from 0 to 1.")


def _check_model_config(config: MFQConfig, defaults: Mapping[str, Any]) -> None:
    for key in check_model_config(config._model_config):
        if key in ACTING:
            raise ValueError(
                f"model_config has {key!r}, which MFQ sets; use training() or the key {key} of "
                "the config itself."
            )
    for module_id, overrides in config.algorithm_config_overrides_per_module.items():
        for key in overrides:
            if key not in PER_MODULE:
                raise ValueError(
                    f"algorithm_config_overrides_per_module[{module_id!r}] has {key!r}"
                    f"{did_you_mean(key, PER_MODULE)}; legal are {', '.join(PER_MODULE)}."
                )
        module_config = config.copy(copy_frozen=False)
        module_config.algorithm_config_overrides_per_module = {}
        check_settings(module_config.update_from_dict(overrides), defaults)


def _check_opponents(config: MFQConfig) -> None:
    if not isinstance(config.evaluation_opponents, Mapping):
        raise ValueError(
            f"evaluation_opponents is {config.evaluation_opponents!r}; it must be a dict such as "
            "{'random': 'random'}."
        )
    for name, spec in config.evaluation_opponents.items():
        if not isinstance(spec, str):
            raise ValueError(
                f"evaluation_opponents[{name!r}] is {spec!r}; it must be 'random' or the path "
                "of a checkpoint."
            )
    if not config.evaluation_interval:
        raise ValueError("evaluation_opponents is set; set evaluation_interval too.")
    if config.evaluation_duration_unit != "episodes" or config.evaluation_duration == "auto":
        raise ValueError(
            f"evaluation_duration is {config.evaluation_duration!r} "
            f"{config.evaluation_duration_unit}; with evaluation_opponents it must be a number "
            "of episodes."
        )


def _check_modules(config: MFQConfig) -> None:
    groups, modules = config.groups or {}, config.modules_of_groups()
    for module_id in config.algorithm_config_overrides_per_module:
        if module_id not in config.policies:
            raise ValueError(
                f"algorithm_config_overrides_per_module has {module_id!r}; policies has "
                f"{sorted(config.policies)}."
            )
    for group, module_id in modules.items():
        if module_id not in config.policies:
            raise ValueError(
                f"group {group!r} maps to policy {module_id!r}; policies has "
                f"{sorted(config.policies)}."
            )
    for module_id in config.policies:
        mine = [group for group in groups if modules[group] == module_id]
        if not mine:
            raise ValueError(
                f"no group maps to policy {module_id!r}; the environment's groups are "
                f"{sorted(groups)}, the policies {sorted(config.policies)}."
            )
        for group in mine[1:]:
            if groups[group] != groups[mine[0]]:
                raise ValueError(
                    f"groups {mine[0]!r} and {group!r} have different spaces, so policy "
                    f"{module_id!r} cannot play both; leave policies out to give each group "
                    "its own."
                )


def _strings(value: Any) -> Iterator[str]:
    """The strings in a value or in lists of values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _between(value: Any, low: float, high: float) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high
