"""Validation: refuses an experiment that cannot run before anything is started for it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE, AlgorithmConfig
from ray.rllib.utils.serialization import deserialize_type
from ray.tune.registry import TRAINABLE_CLASS, _global_registry, get_trainable_cls

from rllib_cli.experiments import BadInput, Experiment, one_line, refusing
from rllib_cli.hooks import NAMED, hooks
from rllib_cli.old_names import SPECIAL
from rllib_cli.reported import Run
from rllib_cli.sweep import plain_configs, with_spaces
from rllib_mfq.algorithm.environment import check_env
from rllib_mfq.mean_field.legal import did_you_mean, is_number

TUNES = ["run", "stop", "config", "num_samples", "restore", "max_failures"]
TUNES += ["time_budget_s", "log_to_file"]
"""Keys of an experiment that Tune takes as they are."""

KEYS = {*TUNES, "storage_path", "checkpoint_config", "scheduler", "scheduler_config"}


@dataclasses.dataclass
class Checked:
    """An experiment that can run.

    Attributes:
        experiment: with the class of the algorithm under `run`, and Tune's search spaces.
        run: which keys it will report.
        notices: what was left out of it, one sentence each.
    """

    experiment: Experiment
    run: Run
    notices: list[str]


def check(name: str, experiment: Experiment) -> Checked:
    """Checks an experiment that `translate` has put into today's names.

    Raises:
        BadInput: one sentence on what cannot work.
    """
    for key in experiment:
        if key not in KEYS:
            raise BadInput(f"{name}: experiments have no key {key!r}{did_you_mean(key, KEYS)}.")
    algorithm = find_algorithm(name, experiment["run"])
    config, notices = _known(name, experiment["config"], algorithm)
    config = with_spaces(config, f"{name}: config")
    plain = list(plain_configs(config))
    env = plain[0].get("env")
    if not env and not config.get("input_"):
        raise BadInput(f"{name}: there is no env, such as battle_v4 or CartPole-v1.")
    if isinstance(env, str):
        with refusing(f"{name}: "):
            check_env(env)
    try:
        run, *_ = [hooks(algorithm).run(_built(algorithm, each)) for each in plain]
    except Exception as error:  # of RLlib or the environment
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise BadInput(f"{name}: {kind}{one_line(error)}") from error
    checked = {**experiment, "run": algorithm, "config": config}
    checked["stop"] = _check_stop(name, experiment["stop"], run)
    score = experiment["checkpoint_config"].get("checkpoint_score_attribute")
    if score is not None:
        run.check(score, f"{name}: checkpoint_score_attribute is")
    return Checked(checked, run, notices)


def find_algorithm(name: str, run: Any) -> type[Algorithm]:
    """The class of an algorithm, given by its name, its class path or the class itself.

    Raises:
        BadInput: there is no such algorithm; the message begins with the experiment's `name`.
    """
    if isinstance(run, type):
        return run
    run = str(run)
    if _global_registry.contains(TRAINABLE_CLASS, run):
        found: Any = get_trainable_cls(run)
    elif run in NAMED:
        found = NAMED[run]()[0]
    else:
        found = deserialize_type(run)  # the text itself if it is no class path
    if not isinstance(found, type) or not issubclass(found, Algorithm):
        spelled = {other.lower(): other for other in NAMED}.get(run.lower())
        near = f" (did you mean {spelled!r}?)" if spelled else did_you_mean(run, NAMED)
        raise BadInput(
            f"{name}: there is no algorithm {run!r}{near}; this RLlib has "
            f"{', '.join(NAMED)}, and any class path."
        )
    return found


def _known(
    name: str, config: dict[str, Any], algorithm: type[Algorithm]
) -> tuple[dict[str, Any], list[str]]:
    """The keys of a config that have an effect, and notices of those that have none.

    Whole floats such as 1e5 become integers where RLlib's default is an integer.
    """
    default = algorithm.get_default_config()
    known = {**vars(default), "train_batch_size_per_learner": default.train_batch_size_per_learner}
    legal = {*known, *SPECIAL}
    kept, notices = {}, []
    for key, value in config.items():
        if key not in legal:
            raise BadInput(
                f"{name}: {algorithm.__name__} has no config key {key!r}{did_you_mean(key, legal)}."
            )
        if known.get(key) is not None and known[key] == DEPRECATED_VALUE != value:
            notices.append(f"{name}: {key} is left out: today's RLlib ignores it.")
        elif type(known.get(key)) is int and isinstance(value, float) and value.is_integer():
            kept[key] = int(value)
        else:
            kept[key] = value
    return kept, notices


def _built(algorithm: type[Algorithm], config: dict[str, Any]) -> AlgorithmConfig:
    built = algorithm.get_default_config().update_from_dict(config)
    built.validate()
    return built


def _check_stop(name: str, stop: Mapping[str, Any], run: Run) -> dict[str, float]:
    checked = {}
    for key, value in stop.items():
        try:
            limit: Any = float(value) if isinstance(value, str) else value
        except ValueError:
            limit = None
        if not is_number(limit):
            raise BadInput(f"{name}: stop has {key}: {value!r}; it must be a number.")
        run.check(key, f"{name}: stop has")
        checked[key] = limit
    return checked
