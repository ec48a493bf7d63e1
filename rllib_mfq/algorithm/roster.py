"""The roster: which groups exist, and which module plays each of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.policy.policy import PolicySpec

from rllib_mfq.algorithm.networks import warn_of_large_layers
from rllib_mfq.mean_field.legal import did_you_mean
from rllib_mfq.population.population import group_of

MULTI_AGENT = ("policies", "policy_mapping_fn", "policies_to_train", "count_steps_by")
"""The keys of a config dict's `multiagent`."""


def group_mapping(agent_id: Any, *args: Any, **kwargs: Any) -> str:
    """The default `policy_mapping_fn`: the agent's group."""
    return group_of(agent_id)


def modules_of_groups(config: Any) -> dict[str, str]:
    """The module that plays each group of a config that knows its groups.

    Raises a ValueError if `policy_mapping_fn` raises for an agent, or divides a group.
    """
    groups = list(config.groups or {})
    if config.policy_mapping_fn is group_mapping:
        only = next(iter(config.policies)) if len(config.policies) == 1 else None
        return {group: only or group for group in groups}
    ids = getattr(config, "agent_ids", {})  # checkpoints of version 0.1 have none
    return {group: _module_of(config, group, ids.get(group) or [group]) for group in groups}


def _module_of(config: Any, group: str, agents: Sequence[Any]) -> str:
    """The module that `policy_mapping_fn` gives all agents of a group."""
    modules: dict[str, Any] = {}  # and the first agent of each
    for agent in agents:
        try:
            module_id = config.policy_mapping_fn(agent, None)
        except Exception as error:
            raise ValueError(
                f"policy_mapping_fn raised {error!r} for agent {agent!r}; it is asked about every "
                "agent, before any episode and therefore with None for the episode."
            ) from error
        modules.setdefault(module_id, agent)
    if len(modules) > 1:
        pairs = " and ".join(f"{agent!r} to {name!r}" for name, agent in modules.items())
        raise ValueError(
            f"policy_mapping_fn maps {pairs}, but one policy plays all of group {group!r}; give "
            "agents of different policies different names before their number."
        )
    return next(iter(modules))


def spaces_of_modules(config: Any) -> dict[str, tuple[gym.Space[Any], gym.Space[Any]]]:
    """The spaces of every module, and under RLlib's `__env__` those of the groups."""
    groups = config.groups or {}
    whole = [{name: pair[i] for name, pair in groups.items()} for i in range(2)]
    spaces: dict[str, Any] = {INPUT_ENV_SPACES: tuple(map(gym.spaces.Dict, whole))}
    return spaces | {m: tuple(groups[g]) for g, m in modules_of_groups(config).items()}


def is_trained(config: Any, module_id: str) -> bool:
    """Whether `policies_to_train` lets a module learn."""
    to_train = config.policies_to_train
    if to_train is None:
        return True
    return bool(to_train(module_id, None)) if callable(to_train) else module_id in to_train


def check_modules_to_train(config: Any) -> None:
    """Raises a ValueError unless all `policies_to_train` exist."""
    to_train = config.policies_to_train
    if to_train is not None and not callable(to_train):
        check_exist(config, "policies_to_train has", to_train)


def policy_specs(config: Any) -> dict[str, PolicySpec]:
    """The specs of a config's policies, which may be tuples of a spec's fields."""
    return {
        name: spec if isinstance(spec, PolicySpec) else PolicySpec(*spec)
        for name, spec in config.policies.items()
    }


def check_exist(config: Any, what: str, module_ids: Iterable[str]) -> None:
    """Raises a ValueError, beginning with `what`, unless all modules are among the policies."""
    for module_id in module_ids:
        if module_id not in config.policies:
            hint = did_you_mean(module_id, config.policies)
            raise ValueError(f"{what} {module_id!r}{hint}; policies has {sorted(config.policies)}.")


def check_roster(config: Any) -> None:
    """Raises a ValueError unless every group has a module that can play it, and vice versa."""
    groups, modules = config.groups, modules_of_groups(config)
    overrides = config.algorithm_config_overrides_per_module
    check_exist(config, "algorithm_config_overrides_per_module has", overrides)
    for group, module_id in modules.items():
        check_exist(config, f"group {group!r} maps to policy", [module_id])
    for module_id in config.policies:
        mine = [group for group in groups if modules[group] == module_id]
        if not mine:
            there = f"the groups are {sorted(groups)}, the policies {sorted(config.policies)}"
            raise ValueError(f"no group maps to policy {module_id!r}; {there}.")
        for group in mine[1:]:
            if groups[group] != groups[mine[0]]:
                raise ValueError(
                    f"groups {mine[0]!r} and {group!r} have different spaces, so policy "
                    f"{module_id!r} cannot play both; leave policies out, and each has its own."
                )
    _check_spaces(config, modules)
    check_modules_to_train(config)


def _check_spaces(config: Any, modules: Mapping[str, str]) -> None:
    """Raises a ValueError unless the spaces in the policies' specs are those of their groups."""
    specs = policy_specs(config)
    for group, module_id in modules.items():
        for part in ("observation_space", "action_space"):
            given, its = getattr(specs[module_id], part), getattr(config.groups[group], part)
            if given not in (None, its):
                raise ValueError(
                    f"policies has {module_id!r} with {part} {given}, but group {group!r} of the "
                    f"environment has {its}; leave {part} out."
                )


def try_networks(config: Any) -> None:
    """Raises a ValueError if no network can be made of `model_config`.

    An env runner would only be restarted by the error.
    """
    spaces = spaces_of_modules(config)
    try:
        with torch.random.fork_rng(devices=[]):  # the run's own networks are drawn as ever
            modules = config.get_multi_rl_module_spec(spaces=spaces, inference_only=True).build()
        for module_id, module in modules.items():
            shape = spaces[module_id][0].shape or ()
            module.q({Columns.OBS: torch.zeros(1, *shape)})
            warn_of_large_layers(module_id, shape, module)
    except Exception as error:
        raise ValueError(
            f"model_config is {config._model_config!r}, of which no network can be made: {error}"
        ) from error
