"""Validation: what `MFQConfig` refuses before any work starts."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import yaml
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_mfq.algorithm.module_specs import check_module_specs, check_networks
from rllib_mfq.algorithm.roster import check_roster, modules_of_groups, policy_specs
from rllib_mfq.algorithm.setting_types import check_keys, checked, refuse_strings
from rllib_mfq.algorithm.settings import CHECKED, PER_MODULE
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.population import Rows


class Keys(NamedTuple):
    """The keys that act on one API stack, and what to use instead of the others."""

    acts: frozenset[str]
    refused: dict[str, str]  # act on neither stack
    other_stack: dict[str, str]  # act on the other stack only


def read_keys(file: Path) -> Keys:
    """Reads a table: lists of keys that act, and keys by what to use instead."""
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    instead = [
        {key: text for text, keys in table.get(part, {}).items() for key in keys}
        for part in ("refused", "other_stack")
    ]
    return Keys(frozenset(key for keys in table["acts"] for key in keys), *instead)


# Every key of RLlib's AlgorithmConfig: whether it acts on MFQ, or what to use instead.
NEW_STACK = read_keys(Path(__file__).with_name("rllib_keys.yaml"))


def check_rllib_keys(config: Any, keys: Keys, works_on: str) -> None:
    """Raises a ValueError if a key of RLlib's is set that does not act on MFQ.

    Args:
        config: an `MFQConfig`.
        keys: of the config's API stack.
        works_on: name of the other stack.
    """
    default = AlgorithmConfig()
    for key, instead in {**keys.refused, **keys.other_stack}.items():
        value = getattr(config, key)
        if value == getattr(default, key) or (key == "batch_mode" and config.in_evaluation):
            continue  # in evaluation RLlib sets the batch mode
        if key in keys.refused:
            raise ValueError(f"{key.strip('_')} has no effect on MFQ; {instead}.")
        raise ValueError(
            f"{key.lstrip('_')} is {value!r}, which works on the {works_on} API stack only; on "
            f"this one, {instead}."
        )


def check_new_stack(config: Any) -> None:
    """Raises a ValueError if a config has settings that are impossible on the new stack."""
    check_rllib_keys(config, NEW_STACK, works_on="old")
    for policy, spec in policy_specs(config).items():
        instead = {
            "config": "algorithm_config_overrides_per_module",
            "policy_class": "rl_module(rl_module_spec=...)",
        }
        for part, other in instead.items():
            if value := getattr(spec, part):
                raise ValueError(
                    f"policies has {policy!r} with {part} {value!r}, which works on the old API "
                    f"stack only; on this one, set {other}."
                )


def check_settings(config: Any) -> None:
    """Checks all that needs no environment; see `MFQConfig.validate`.

    Whole floats of integer settings become integers.
    """
    for key, setting in CHECKED.items():
        vars(config)[key] = checked(key, setting.kind, getattr(config, key))
    for key, default in vars(AlgorithmConfig()).items():
        value = getattr(config, key)
        if isinstance(default, bool):
            if not isinstance(value, bool | np.bool_):
                raise ValueError(f"{key.lstrip('_')} is {value!r}; it must be True or False.")
        elif isinstance(default, int | float) and key not in CHECKED:
            refuse_strings(key, value, whole=isinstance(default, int))
    for key in ("alpha", "beta", "eps"):
        key = f"prioritized_replay_{key}"
        value = getattr(config, key)
        if value != CHECKED[key].default and not config.prioritized_replay:
            raise ValueError(
                f"{key} is {value!r}, which has no effect while prioritized_replay is False; set "
                "that to True."
            )
    check_module_specs(config)
    _check_overrides(config)
    starts = config.num_steps_sampled_before_learning_starts
    if starts > config.replay_capacity:
        raise ValueError(
            f"num_steps_sampled_before_learning_starts is {starts}; it must be at most "
            f"replay_capacity, which is {config.replay_capacity}."
        )
    if config.replay_device == "cuda":
        if not config.num_gpus_per_learner:
            raise ValueError(
                "replay_device is 'cuda', but num_gpus_per_learner is 0, so that no learner has a "
                "GPU; set it, or use 'cpu' or 'auto'."
            )
        if not config.num_learners and not torch.cuda.is_available():
            raise ValueError(
                "replay_device is 'cuda', but torch finds no GPU on this node; use 'cpu' or 'auto'."
            )
    if config.framework_str != "torch":
        raise ValueError(f"framework is {config.framework_str!r}; MFQ needs 'torch'.")
    if not config.create_local_env_runner:
        raise ValueError("create_local_env_runner is False; MFQ needs it to be True.")
    if config.evaluation_opponents and not config.in_evaluation:
        duration, unit = config.evaluation_duration, config.evaluation_duration_unit
        if not config.evaluation_interval:
            raise ValueError("evaluation_opponents is set; set evaluation_interval too.")
        if unit != "episodes" or duration == "auto":
            raise ValueError(
                f"evaluation_duration is {duration!r} {unit}; with evaluation_opponents it must "
                "be a number of episodes."
            )
    elif config.evaluation_random_steps and not config.evaluation_opponents:
        raise ValueError(
            f"evaluation_random_steps is {config.evaluation_random_steps}, but there are no "
            "evaluation_opponents; set them, or 0."
        )
    if config.has_opponent and not config.others and config.num_envs_per_env_runner % 2:
        raise ValueError(
            f"num_envs_per_env_runner is {config.num_envs_per_env_runner}; with an opponent in "
            "self_play it must be even, for the learner plays each group in half of them."
        )


def check_environment(config: Any, first: Mapping[str, Rows]) -> None:
    """Checks the settings against the environment's groups; see `MFQConfig.resolve_groups`.

    Args:
        config: an `MFQConfig` that knows its groups.
        first: every group's rows at the start of an episode.
    """
    _check_spaces(config)
    check_roster(config)
    check_networks(config)
    needs = Neighborhood.parse(config.neighborhood).needs
    for group, rows in first.items():
        if needs and len(rows.ids) and getattr(rows, needs) is None:
            raise ValueError(
                f"neighborhood is {config.neighborhood!r}, which needs {needs}, but group "
                f"{group!r} of the environment gives none; use 'group', 'none' or 'all'."
            )
    duels = {"self_play": config.has_opponent or config.others}
    duels["evaluation_opponents"] = config.evaluation_opponents
    for key, is_set in duels.items():
        if is_set and len(first) != 2:
            raise ValueError(
                f"{key} is {getattr(config, key)!r}, which needs an environment of two groups; "
                f"this one has {sorted(first)}."
            )
    rows_of_module = dict.fromkeys(config.policies, 0)
    for group, module_id in modules_of_groups(config).items():
        count = len(first[group].ids) * config.num_envs_per_env_runner
        # With an opponent alone a fragment holds one group, of half of the environments.
        more, half = rows_of_module[module_id], count // 2
        halved = config.has_opponent and not config.others
        rows_of_module[module_id] = max(more, half) if halved else more + count
    length = config.get_rollout_fragment_length()
    by_rows = config.count_steps_by == "agent_steps"
    learners = max(1, config.num_learners)
    each = f" for {learners} learners" if learners > 1 else ""
    for module_id, count in rows_of_module.items():
        # The rows before the first step, too; where rows are counted, the last step may be over.
        rows = 2 * count + length * config.num_envs_per_env_runner
        rows = rows if by_rows else count * (length + 1)
        if rows > config.replay_capacity // learners:
            raise ValueError(
                f"replay_capacity is {config.replay_capacity}{each}, but one fragment of module "
                f"{module_id!r} has {rows} rows; raise it, or lower "
                "rollout_fragment_length or num_envs_per_env_runner."
            )


def _check_spaces(config: Any) -> None:
    """Raises a ValueError unless a network, or a table, can be made for every group."""
    for group, (obs, actions) in config.groups.items():
        if not isinstance(actions, gym.spaces.Discrete):
            raise ValueError(f"group {group!r} has action space {actions}; MFQ needs Discrete.")
        if not isinstance(obs, gym.spaces.Box) or not np.prod(obs.shape):
            raise ValueError(f"group {group!r} has observation space {obs}; MFQ needs a Box.")
    if config.table_levels is None:
        return
    if config.dueling:
        raise ValueError("dueling is True, which has no effect with table_levels; leave one out.")
    if config.observation_filter != "NoFilter":
        given = f"observation_filter is {config.observation_filter!r}"
        raise ValueError(f"{given}, which has no effect with table_levels; leave one out.")
    for group, (obs, _) in config.groups.items():
        bounds = np.concatenate([obs.low.ravel(), obs.high.ravel()])
        if obs.shape != (1,) or not np.isfinite(bounds).all() or (bounds % 1).any():
            raise ValueError(
                f"table_levels is {config.table_levels}, but group {group!r} observes {obs}; a "
                "table needs one whole number with bounds, shape [1]."
            )


def _check_overrides(config: Any) -> None:
    """Checks what is set for single modules."""
    for module_id, overrides in config.algorithm_config_overrides_per_module.items():
        name = f"algorithm_config_overrides_per_module[{module_id!r}]"
        check_overrides(config, name, overrides, PER_MODULE)


def check_overrides(
    config: Any, name: str, overrides: Mapping[str, Any], legal: Collection[str]
) -> None:
    """Raises a ValueError if what is set for one module is not legal, or has no effect there."""
    check_keys(name, overrides, legal)
    module_config = config.copy(copy_frozen=False)
    module_config.algorithm_config_overrides_per_module = {}
    check_settings(module_config.update_from_dict(overrides))
