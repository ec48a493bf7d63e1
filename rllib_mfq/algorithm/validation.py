"""Validation: what `MFQConfig` refuses, before any work starts, each in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.schedules.scheduler import Scheduler

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
}
"""RLlib settings that MFQ would ignore, and what to use instead."""

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

WHOLE = "a whole number of at least 1"


def check_settings(config: MFQConfig, defaults: Mapping[str, Any]) -> None:
    """Checks everything that can be checked without an environment.

    Args:
        config: the settings.
        defaults: MFQ's own ones.

    Raises:
        ValueError: one sentence with the key, its value and what would be legal.
    """
    _check_strings(config, defaults)
    _check_numbers(config)
    check_temperature(config.temperature)
    Neighborhood.parse(config.neighborhood)
    choices = {"target": TARGETS, "mean_action_input": ("previous", "current")}
    for key, legal in choices.items():
        value = getattr(config, key)
        if value not in legal:
            hint = did_you_mean(str(value), legal)
            raise ValueError(f"{key} is {value!r}{hint}; legal are {', '.join(legal)}.")
    try:
        np.dtype(config.replay_obs_dtype)  # None is float64 to numpy, and legal here
    except TypeError:
        raise ValueError(
            f"replay_obs_dtype is {config.replay_obs_dtype!r}; it must be a numpy type such as "
            "'float16'."
        ) from None
    default = AlgorithmConfig()
    for key, instead in WITHOUT_EFFECT.items():
        if getattr(config, key) != getattr(default, key) and not config.in_evaluation:
            raise ValueError(f"{key} has no effect on MFQ; {instead}.")
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
    _check_modules(config)
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
    rows_of_module = dict.fromkeys(config.policies, 0)
    for group, module_id in config.modules_of_groups().items():
        rows_of_module[module_id] += len(first[group].ids)
    steps = config.get_rollout_fragment_length() + 1  # the rows before the first step, too
    for module_id, count in rows_of_module.items():
        fragment = count * steps * config.num_envs_per_env_runner
        if fragment > config.replay_capacity:
            raise ValueError(
                f"replay_capacity is {config.replay_capacity}, but one fragment of module "
                f"{module_id!r} has {fragment} rows; raise it, or lower "
                "rollout_fragment_length or num_envs_per_env_runner."
            )


def check_temperature(temperature: Any) -> None:
    """Raises a ValueError unless it is a positive number or an increasing schedule of such."""
    points = temperature if isinstance(temperature, list | tuple) else [[0, temperature]]
    for point in points:
        pair = isinstance(point, list | tuple) and len(point) == 2
        if not pair or not all(_between(x, 0, math.inf) for x in point) or point[1] <= 0:
            raise ValueError(
                f"temperature is {temperature!r}; it must be a positive number or a schedule "
                "[[agent_steps, value], ...] of positive values."
            )
    if not points or any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
        raise ValueError(
            f"temperature is {temperature!r}; the agent steps of a schedule must increase."
        )


def _check_strings(config: MFQConfig, defaults: Mapping[str, Any]) -> None:
    for key, default in (vars(AlgorithmConfig()) | defaults).items():
        numeric = isinstance(default, int | float) and not isinstance(default, bool)
        if not numeric and key not in ("lr", "temperature"):
            continue
        for text in _strings(getattr(config, key)):
            try:
                number = float(text)
            except ValueError:
                continue  # such as rollout_fragment_length="auto"
            raise ValueError(
                f"{key} has the string {text!r} where a number belongs; write {number!r} "
                "(YAML reads 1e-4 as a string and 1.0e-4 as a number)."
            )


def _check_numbers(config: MFQConfig) -> None:
    checks: dict[str, tuple[bool, str]] = {
        "mean_action_iterations": (_whole(config.mean_action_iterations, 1), WHOLE),
        "target_network_update_freq": (_whole(config.target_network_update_freq, 1), WHOLE),
        "replay_capacity": (_whole(config.replay_capacity, 1), WHOLE),
        "train_batch_size_per_learner": (_whole(config.train_batch_size_per_learner, 1), WHOLE),
        "num_steps_sampled_before_learning_starts": (
            _whole(config.num_steps_sampled_before_learning_starts, 0)
            and config.num_steps_sampled_before_learning_starts <= config.replay_capacity,
            "a whole number from 0 to replay_capacity",
        ),
        "tau": (_between(config.tau, 0, 1) and config.tau > 0, "above 0 and at most 1"),
        "gamma": (_between(config.gamma, 0, 1), "between 0 and 1"),
        "training_intensity": (
            _between(config.training_intensity, 0, math.inf) and config.training_intensity > 0,
            "a positive number",
        ),
    }
    for key, (legal, expected) in checks.items():
        if not legal:
            raise ValueError(f"{key} is {getattr(config, key)!r}; it must be {expected}.")


def _check_opponents(config: MFQConfig) -> None:
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


def _whole(value: Any, least: int) -> bool:
    return _between(value, least, math.inf) and value == int(value)


def _between(value: Any, low: float, high: float) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high
