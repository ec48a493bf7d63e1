"""Validation: refuses an experiment that cannot run before anything is started for it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE, AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, TRAINABLE_CLASS, _global_registry, get_trainable_cls

from rllib_cli.experiments import BadInput, Experiment
from rllib_cli.reported import Run
from rllib_cli.search_space import examples, with_spaces
from rllib_mfq import MFQ
from rllib_mfq.mean_field.neighborhood import did_you_mean
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.magent2 import ENVIRONMENTS

KEYS = {
    "run",
    "stop",
    "config",
    "num_samples",
    "checkpoint_config",
    "storage_path",
    "restore",
    "max_failures",
    "time_budget_s",
    "log_to_file",
    "scheduler",
    "scheduler_config",
}
SPECIAL = {
    "multiagent",
    "callbacks",
    "train_batch_size_per_learner",
    "framework",
    "lambda",
    "input",
}
"""Keys that RLlib takes although no config has an attribute of that name."""


@dataclasses.dataclass
class Checked:
    """An experiment that can run.

    Attributes:
        experiment: with the class of the algorithm under `run`, numbers where numbers belong
            and Tune's search spaces.
        run: which keys it will report.
        notices: what of it was left out, one sentence each.
    """

    experiment: Experiment
    run: Run
    notices: list[str]


def check(name: str, experiment: Experiment) -> Checked:
    """Checks an experiment that has been put into today's names.

    Raises:
        BadInput: one sentence on what cannot work.
    """
    for key in experiment:
        if key not in KEYS:
            raise BadInput(f"{name}: experiments have no key {key!r}{did_you_mean(key, KEYS)}.")
    algorithm = find_algorithm(name, experiment["run"])
    config, notices = _typed(name, experiment["config"], algorithm)
    config = with_spaces(config, f"{name}: config")
    env = next(iter(examples(config))).get("env")
    if not env and not config.get("input_"):
        raise BadInput(f"{name}: there is no env, such as battle_v4 or CartPole-v1.")
    if isinstance(env, str):
        check_env(name, env)
    run = Run()
    for index, plain in enumerate(examples(config)):
        built = _built(name, algorithm, plain)
        probed = _probe(name, built)
        run = probed if index == 0 else run
    checked = {**experiment, "run": algorithm, "config": config}
    checked["stop"] = _check_stop(name, experiment["stop"], run)
    score = experiment["checkpoint_config"].get("checkpoint_score_attribute")
    if score is not None and not run.reports(score):
        raise BadInput(
            f"{name}: checkpoint_score_attribute is {score!r}, which this run never "
            f"reports{did_you_mean(score, run.names())}."
        )
    return Checked(checked, run, notices)


def find_algorithm(name: str, run: Any) -> type[Algorithm]:
    """The class of an algorithm, from its name, a class path or itself."""
    if isinstance(run, type):
        return run
    run = str(run)
    if _global_registry.contains(TRAINABLE_CLASS, run):
        found: Any = get_trainable_cls(run)
    elif run in ALGORITHMS:
        found = ALGORITHMS[run]()[0]
    else:
        found = _imported(run)
    if not isinstance(found, type) or not issubclass(found, Algorithm):
        names = ["MFQ", *ALGORITHMS]
        spelled = {other.lower(): other for other in names}.get(run.lower())
        near = f" (did you mean {spelled!r}?)" if spelled else did_you_mean(run, names)
        raise BadInput(
            f"{name}: there is no algorithm {run!r}{near}; this RLlib has "
            f"{', '.join(names)}, and any class path."
        )
    return found


def _imported(path: str) -> Any:
    """What a dotted path names, or None."""
    module, dot, attribute = path.rpartition(".")
    if not dot or not module:
        return None
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None


def _typed(
    name: str, config: dict[str, Any], algorithm: type[Algorithm]
) -> tuple[dict[str, Any], list[str]]:
    """The config with numbers where they belong, and notices of keys without any effect."""
    default = algorithm.get_default_config()
    known = {**vars(default), "train_batch_size_per_learner": default.train_batch_size_per_learner}
    typed, notices = {}, []
    for key, value in config.items():
        legal = {*known, *SPECIAL} | ({"model_config"} if issubclass(algorithm, MFQ) else set())
        if key not in legal:
            raise BadInput(
                f"{name}: {algorithm.__name__} has no config key {key!r}{did_you_mean(key, legal)}."
            )
        if known.get(key) is not None and known[key] == DEPRECATED_VALUE != value:
            notices.append(f"{name}: {key} is left out: today's RLlib ignores it.")
        else:
            typed[key] = _number_like(value, known.get(key))
    return typed, notices


def _number_like(value: Any, default: Any) -> Any:
    """`value` as a number if the default is one and it reads as one; `"1e-4"` to 0.0001."""
    if isinstance(default, bool) or not isinstance(default, int | float):
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and isinstance(default, int) else value


def check_env(name: str, env: str) -> None:
    """Raises BadInput unless `env` is registered, a Gymnasium id or a class path."""
    if _global_registry.contains(ENV_CREATOR, env) or _imported(env) is not None:
        return
    try:
        gym.spec(env)
    except (gym.error.Error, ImportError) as error:
        registered = {key[1] for key in _global_registry._to_flush if key[0] == ENV_CREATOR}
        names = {*ENVIRONMENTS, *registered, *gym.registry}
        if isinstance(error, gym.error.DeprecatedEnv):  # such as CartPole-v5: a version
            names = {other for other in names if other.startswith(env.rpartition("-v")[0])}
        raise BadInput(
            f"{name}: there is no environment {env!r}{did_you_mean(env, names)}; it must be a "
            "registered name, a Gymnasium id or a class path."
        ) from error


def _built(name: str, algorithm: type[Algorithm], config: dict[str, Any]) -> AlgorithmConfig:
    """The config object; what it refuses is told in its own words."""
    try:
        built = algorithm.get_default_config().update_from_dict(config)
        built.validate()
    except Exception as error:
        raise _told(name, error) from error
    return built


def _probe(name: str, config: AlgorithmConfig) -> Run:
    """What the run will report; makes an MFQ run's environment once."""
    listens = (
        bool(config.callbacks_class) and config.callbacks_class != AlgorithmConfig().callbacks_class
    )
    listens |= any(value for key, value in vars(config).items() if key.startswith("callbacks_on_"))
    listens |= not config.enable_rl_module_and_learner  # the old API stack reports more
    evaluates = bool(config.evaluation_interval)
    algorithm = config.algo_class
    if not issubclass(algorithm, MFQ):
        foreign = algorithm.__module__.partition(".")[0] != "ray"
        return Run(modules=set(config.policies), evaluates=evaluates, open=listens or foreign)
    figures: Mapping[str, Any] = {}

    def make() -> Any:
        nonlocal figures
        _, creator = algorithm._get_env_id_and_creator(config.env, config)
        population = as_population(creator(EnvContext(config.env_config, worker_index=0)))
        population.reset(seed=0)
        figures = getattr(population, "result", dict)()
        return population

    try:
        config.resolve_groups(make)
    except Exception as error:
        raise _told(name, error) from error
    return Run(
        groups=set(config.groups),
        modules=set(config.modules_of_groups().values()),
        figures=set(figures),
        opponents=set(config.evaluation_opponents),
        evaluates=evaluates,
        self_play=config.has_opponent,
        open=listens,
    )


def _told(name: str, error: Exception) -> BadInput:
    """An error of RLlib's or the environment's as one line."""
    message = " ".join(str(error).split()) or type(error).__name__
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return BadInput(f"{name}: {kind}{message}")


def _check_stop(name: str, stop: Mapping[str, Any], run: Run) -> dict[str, float]:
    checked = {}
    for key, value in stop.items():
        limit = _number_like(value, 0.0)
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise BadInput(f"{name}: stop has {key}: {value!r}; it must be a number.")
        if not run.reports(key):
            if key.startswith("evaluation/") and not run.evaluates:
                hint = "; set evaluation_interval for it to be"
            else:
                hint = did_you_mean(key, run.names())
            raise BadInput(f"{name}: stop has {key!r}, which this run never reports{hint}.")
        checked[key] = limit
    return checked
