"""Environments by name, class or function: the one check of a config's `env`."""

import contextlib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from pettingzoo import AECEnv, ParallelEnv
from ray.rllib.env import BaseEnv, ExternalEnv, MultiAgentEnv, VectorEnv
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_mfq.envs.atari import atari
from rllib_mfq.envs.gaussian_squeeze import GaussianSqueezePopulation
from rllib_mfq.envs.ising import IsingPopulation
from rllib_mfq.mean_field.legal import check_arguments, did_you_mean, find
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.magent2 import ENVIRONMENTS as MAGENT2
from rllib_mfq.population.magent2 import magent2
from rllib_mfq.population.population import Population

Creator = Callable[[EnvContext], Any]

ENVIRONMENTS: dict[str, Callable[..., Population]] = {
    **{name: functools.partial(magent2, name) for name in MAGENT2},
    "ising_v0": IsingPopulation,
    "gaussian_squeeze_v0": GaussianSqueezePopulation,
    "atari": atari,
}
"""What makes the package's own environments; an `env_config` holds its arguments."""

ENV_CLASSES = (gym.Env, ParallelEnv, AECEnv, MultiAgentEnv, BaseEnv, ExternalEnv, VectorEnv)
"""The classes of which an environment's class is one, unless it has a `Population`'s methods."""

PETTINGZOO = ("parallel_env", "env", "raw_env")
"""What PettingZoo's modules call the functions that make their environments."""

CONTEXT = ("config", "env_config", "context", "env_context")
"""Names of a parameter that takes the whole `env_config`, see `call_maker`."""

PACKAGES = {"ALE": "ale_py"}
"""Gymnasium's own namespaces of other packages, and what registers them."""

EXTRAS = {"ale_py": "atari", "cv2": "atari", "Box2D": "box2d", "mpe2": "mpe"}
"""Packages that environments need, and the extra of this package that installs them."""


def call_maker(maker: Callable[..., Any], config: EnvContext) -> Any:
    """Makes an environment by a class or a function: the one rule for how it is called.

    The entries of `env_config` are its keyword arguments, except where its first parameter is
    called `config`, `env_config`, `context` or `env_context`, is annotated as an EnvContext, or
    has no default and no entry in `env_config`: this one parameter takes the whole EnvContext, as
    in RLlib.

    Raises:
        ValueError: `env_config` has an entry that is no parameter.
    """
    try:
        parameters = inspect.signature(maker).parameters
    except ValueError:  # Python knows no signature, as of some classes in C
        return maker(**config)
    first = next(iter(parameters.values()), None)
    if first is not None and first.name not in config and _takes_context(first):
        return maker(config)
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        check_arguments(getattr(maker, "__qualname__", "env"), config, parameters)
    return maker(**config)


def _takes_context(first: inspect.Parameter) -> bool:
    """Whether the first parameter, of which `env_config` has no entry, takes the EnvContext."""
    if first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        return False
    annotated = first.annotation is EnvContext or "EnvContext" in str(first.annotation)
    return first.name in CONTEXT or annotated or first.default is first.empty


def make_environment(name: str, config: Mapping[str, Any]) -> Population:
    """Makes one of `ENVIRONMENTS`; raises a ValueError if an argument is unknown or wrong."""
    maker = ENVIRONMENTS[name]
    if inspect.isclass(maker):  # MAgent2's maker checks its arguments itself
        check_arguments(name, config, inspect.signature(maker).parameters)
    try:
        return maker(**config)
    except ImportError as error:
        raise _needs_package(name, error) from error


def make_creator(env: Any) -> Creator:
    """The function that makes an environment of an EnvContext.

    It can be sent to other processes: what it needs of Tune's and Gymnasium's registries, and of
    the package's own environments, it holds itself, since these are known only where somebody
    registers them, and Ray empties Tune's at `ray.shutdown()`.

    Args:
        env: a name that is registered with Tune or Gymnasium (`module:name` imports the module
            first, which registers it), one of `ENVIRONMENTS`, a class or function, or its path.

    Raises:
        ValueError: there is none, or it needs a package.
    """
    if env is None:
        raise ValueError("env is None; set one, such as environment('battle_v4').")
    if not isinstance(env, str):
        return functools.partial(call_maker, env)
    if _global_registry.contains(ENV_CREATOR, env):
        creator: Creator = _global_registry.get(ENV_CREATOR, env)
        return creator
    if env in ENVIRONMENTS:
        return functools.partial(make_environment, env)
    maker = find(env)
    if maker is None:
        return functools.partial(_make_gym, _gym_spec(env))
    _check_maker(maker, env)
    return functools.partial(call_maker, maker)


def env_creator(env: Any, config: Any) -> tuple[Any, Creator]:
    """The id and the maker of an environment, as RLlib's Algorithm asks for them."""
    return env, make_creator(env)


def probe(create: Creator, env_config: Mapping[str, Any], worker_index: int = 0) -> Population:
    """One population, to take the groups from."""
    return as_population(create(EnvContext(env_config, worker_index)))


def _make_gym(spec: EnvSpec, config: EnvContext) -> Any:
    return gym.make(spec, **config)


def _gym_spec(env: str) -> EnvSpec:
    """An entry of Gymnasium's registry whose module can be imported."""
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)
        if isinstance(spec.entry_point, str):
            load_env_creator(spec.entry_point)
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise _needs_package(env, error) from error
    except gym.error.Error as error:
        if env.partition(".")[0] in EXTRAS:  # the path of what could not be imported
            raise _needs_package(env, ImportError(name=env.partition(".")[0])) from None
        raise ValueError(_unknown(env, name, error)) from None
    return spec


def _needs_package(env: str, error: BaseException) -> ValueError:
    """What to raise if an environment needs a package that cannot be imported."""
    missing: Any = None
    cause: BaseException | None = error
    while missing is None and cause is not None:
        missing, cause = getattr(cause, "name", None), cause.__cause__
    if missing in EXTRAS:
        install = f"pip install 'rllib_mfq[{EXTRAS[missing]}]'"
        return ValueError(f"env is {env!r}, which needs the package {missing}: {install}.")
    return ValueError(f"env is {env!r}, which needs a package: {error}")


def _unknown(env: str, name: str, error: gym.error.Error) -> str:
    """A sentence on a name that nobody has registered."""
    namespace, slash, _ = name.partition("/")
    if slash and isinstance(error, gym.error.NamespaceNotFound):
        module = PACKAGES.get(namespace, "MODULE")
        extra = EXTRAS.get(module)
        install = f"pip install 'rllib_mfq[{extra}]', and then " if extra else ""
        return (
            f"env is {env!r}, but nothing has registered the namespace {namespace!r}: {install}"
            f"write {module}:{name}, which imports {module} first, or use --import {module}."
        )
    path, dot, last = env.rpartition(".")
    if dot and all(part.isidentifier() for part in env.split(".")):
        if path in sys.modules:
            near = did_you_mean(last, vars(sys.modules[path]))
            return f"env is {env!r}, but the module {path} has no {last!r}{near}."
        where = f"neither in the current folder, {os.getcwd()}, nor on Python's path"
        return f"env is {env!r}, but there is no module {path}, {where}."
    known = {*_global_registry._registered, *_global_registry._to_flush}
    tunes = {name for category, name in known if category == ENV_CREATOR}
    names = {*ENVIRONMENTS, *tunes, *gym.registry}
    if isinstance(error, gym.error.DeprecatedEnv):  # such as CartPole-v5: a version
        names = {name for name in names if name.startswith(env.rpartition("-v")[0])}
    module, colon, _ = env.partition(":")
    names |= {f"{module}.{each}" for each in vars(sys.modules[module])} if colon else set()
    near = did_you_mean(env, names)
    own = f"; MODULE:{name}, or --import MODULE, imports the module that registers it"
    return (
        f"env is {env!r}{near}; it must be a name that Tune or Gymnasium has registered, or the "
        f"path of a class{'' if colon else own}."
    )


def _check_maker(maker: Any, path: str) -> None:
    """Refuses what a path names unless it is known, before it is called, to make environments."""
    if isinstance(maker, type):
        methods = [getattr(maker, name, None) for name in ("reset", "step", "observe")]
        if issubclass(maker, ENV_CLASSES) or all(map(callable, methods)):
            return
    elif inspect.isfunction(maker):
        with contextlib.suppress(NameError, TypeError):  # of annotations that mean nothing
            made = get_type_hints(maker).get("return")
            if isinstance(made, type) and (issubclass(made, ENV_CLASSES) or made is Population):
                return
        module, _, name = path.rpartition(".")
        beside = {**vars(sys.modules[module]), **vars(sys.modules[maker.__module__])}
        classes = [value for value in beside.values() if isinstance(value, type)]
        if name in PETTINGZOO and any(issubclass(each, ENV_CLASSES) for each in classes):
            return
    raise ValueError(
        f"env is {path!r}, which is no environment; a path must name a class of Gymnasium, "
        "PettingZoo or RLlib, a Population, a function that is annotated to return one, or the "
        "parallel_env of a PettingZoo module."
    )
