"""Environments by name, class or function: the one check of a config's `env`."""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_context import EnvContext
from ray.rllib.utils.error import EnvError
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_mfq.envs.atari import atari
from rllib_mfq.envs.gaussian_squeeze import GaussianSqueezePopulation
from rllib_mfq.envs.ising import IsingPopulation
from rllib_mfq.mean_field.legal import check_arguments, did_you_mean
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.magent2 import ENVIRONMENTS as MAGENT2
from rllib_mfq.population.magent2 import magent2
from rllib_mfq.population.population import Population

ENVIRONMENTS: dict[str, Callable[..., Population]] = {
    **{name: functools.partial(magent2, name) for name in MAGENT2},
    "ising_v0": IsingPopulation,
    "gaussian_squeeze_v0": GaussianSqueezePopulation,
    "atari": atari,
}
"""What makes the package's own environments; an `env_config` holds its arguments."""


def make_environment(name: str, config: Mapping[str, Any]) -> Population:
    """Makes one of `ENVIRONMENTS`; raises a ValueError if an argument is unknown or wrong."""
    maker = ENVIRONMENTS[name]
    if inspect.isclass(maker):  # MAgent2's maker checks its arguments itself
        check_arguments(name, config, inspect.signature(maker).parameters)
    return maker(**config)


def check_env(env: Any) -> None:
    """Checks the name or the maker of an environment, without making one.

    Raises:
        ValueError: `env` is None, or a string that is neither a name registered with Tune or
            Gymnasium nor the path of something that can be imported.
    """
    if env is None:
        raise ValueError("env is None; set one, such as environment('battle_v4').")
    if not isinstance(env, str) or env in ENVIRONMENTS:
        return
    if _global_registry.contains(ENV_CREATOR, env) or _names_something(env):
        return
    try:
        gym.spec(env)
    except (gym.error.Error, ImportError) as error:
        known = {*_global_registry._registered, *_global_registry._to_flush}
        tunes = {name for category, name in known if category == ENV_CREATOR}
        names = {*ENVIRONMENTS, *tunes, *gym.registry}
        if isinstance(error, gym.error.DeprecatedEnv):  # such as CartPole-v5: a version
            names = {name for name in names if name.startswith(env.rpartition("-v")[0])}
        raise _unknown(env, did_you_mean(env, names)) from None


def env_creator(env: Any, config: Any) -> tuple[Any, Callable[[EnvContext], Any]]:
    """The id and the maker of an environment, as RLlib's Algorithm asks for them.

    The package's own environments are found without Tune's registry, too, which Ray empties at
    `ray.shutdown()`. Raises what `check_env` raises.

    Args:
        env: name, class or function.
        config: says whether environments of a class become Ray actors.
    """
    check_env(env)
    if isinstance(env, str) and env in ENVIRONMENTS:
        if not _global_registry.contains(ENV_CREATOR, env):
            return env, functools.partial(make_environment, env)
    return Algorithm._get_env_id_and_creator(env, config)


def make_creator(env: Any) -> Callable[[EnvContext], Any]:
    """The maker of an environment; see `env_creator`."""
    return env_creator(env, {"remote_worker_envs": False})[1]


def probe(env: Any, create: Callable[[EnvContext], Any], env_config: Mapping[str, Any]) -> Any:
    """One population, to take the groups from.

    Raises a ValueError if `env` is the path of something that makes no environment.
    """
    try:
        return as_population(create(EnvContext(env_config, worker_index=0)))
    except EnvError:
        raise _unknown(env) from None


def _unknown(env: str, hint: str = "") -> ValueError:
    return ValueError(
        f"env is {env!r}{hint}; it must be a name that Tune or Gymnasium has registered, or the "
        "path of a class."
    )


def _names_something(path: str) -> bool:
    """Whether a dotted path names something that can be imported."""
    module, _, attribute = path.rpartition(".")
    try:
        return bool(module) and hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False
