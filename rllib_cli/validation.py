"""Validation: refuses an experiment that cannot run before anything is started for it.

It turns search spaces and schedulers into Tune's, too. A search space is written
`{loguniform: [1e-5, 1e-3]}`; a scheduler is a name such as `pbt`, with its settings.
"""

import copy
import functools
import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE
from ray.tune.registry import TRAINABLE_CLASS, _global_registry, get_trainable_cls
from ray.tune.schedulers import SCHEDULER_IMPORT, TrialScheduler, create_scheduler
from ray.tune.search.sample import Categorical, Domain, Integer

from rllib_cli.experiments import BadInput, Experiment, one_line, refusing
from rllib_cli.hooks import NAMED, hooks
from rllib_cli.results import Run
from rllib_cli.translation import SPECIAL
from rllib_mfq.algorithm.class_paths import check_class_paths
from rllib_mfq.mean_field.legal import did_you_mean, find, is_number

TUNES = ["run", "stop", "config", "num_samples", "restore", "max_failures"]
TUNES += ["time_budget_s", "log_to_file"]  # keys of an experiment that Tune takes as they are
KEYS = {*TUNES, "storage_path", "checkpoint_config", "scheduler", "scheduler_config"}
RANGES = {"uniform": tune.uniform, "loguniform": tune.loguniform, "randint": tune.randint}
LISTS = {"grid_search": tune.grid_search, "choice": tune.choice}
FUNCTIONS = {"custom_explore_fn", "base_scheduler", "resources_allocation_function"}
SHORT = {"asha": "async_hyperband"}

IQL = (
    "IQL is RLlib's implicit Q-learning, which learns offline; independent Q-learning is MFQ with "
    "neighborhood: none."
)


class Checked(NamedTuple):
    """An experiment that can run."""

    experiment: Experiment  # with the class of the algorithm under `run`, and Tune's search spaces
    run: Run  # which keys it will report
    notices: list[str]  # what was left out of it, one sentence each


def check(name: str, experiment: Experiment) -> Checked:
    """Checks an experiment that `translate` has put into today's words, or raises BadInput."""
    _check_keys(experiment, KEYS, f"{name}: experiments have no key")
    algorithm = _find_algorithm(name, experiment["run"])
    config, notices = _known(name, experiment["config"], algorithm)
    config = with_spaces(config, f"{name}: config")
    plain = plain_configs(config)
    if not plain[0].get("env") and not config.get("input_"):
        raise BadInput(f"{name}: there is no env, such as battle_v4 or CartPole-v1.")
    runs = []
    try:
        for each in plain:
            check_class_paths(each)
            built = algorithm.get_default_config().update_from_dict(each)
            built.validate()
            runs.append(hooks(algorithm).run(built))
    except Exception as error:  # of RLlib or the environment
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        note = f" {IQL}" if algorithm.__name__ == "IQL" else ""
        raise BadInput(f"{name}: {kind}{one_line(error)}{note}") from error
    if algorithm.__name__ == "IQL":
        notices.append(f"{name}: {IQL}")
    checked = {**experiment, "run": algorithm, "config": config}
    checked["stop"] = _check_stop(name, experiment["stop"], runs[0])
    checked["config"] = hooks(algorithm).limits(checked["stop"]) | config
    score = experiment["checkpoint_config"].get("checkpoint_score_attribute")
    if score is not None:
        if not isinstance(score, str):
            raise BadInput(f"{name}: checkpoint_score_attribute is {score!r}; it must be text.")
        runs[0].check(score, f"{name}: checkpoint_score_attribute is")
    return Checked(checked, runs[0], notices)


def make_scheduler(name: str, experiment: Experiment, metric: str, run: Run) -> TrialScheduler:
    """Makes the scheduler of an experiment.

    Args:
        name: of the experiment.
        experiment: `scheduler` is a name in Tune or `asha`; `scheduler_config` are its settings,
            and `hyperparam_mutations` in it holds search spaces.
        metric: the result to maximise, unless the settings name another one.
        run: which results the experiment will report.
    """
    scheduler = experiment.get("scheduler") or "fifo"
    settings = experiment.get("scheduler_config") or {}
    known = SHORT.get(scheduler.lower(), scheduler.lower())
    if known not in SCHEDULER_IMPORT:
        names = [*SHORT, *SCHEDULER_IMPORT]
        raise BadInput(
            f"{name}: scheduler is {scheduler!r}{did_you_mean(scheduler.lower(), names)}; legal "
            f"are {', '.join(names)}."
        )
    kind = SCHEDULER_IMPORT[known]
    legal = inspect.signature(kind() if inspect.isfunction(kind) else kind).parameters
    _check_keys(settings, legal, f"{name}: the scheduler {known} has no setting")
    settings = with_spaces(settings, f"{name}: scheduler_config")
    for key in FUNCTIONS & settings.keys():
        if isinstance(settings[key], str):
            raise BadInput(
                f"{name}: the scheduler's {key} is {settings[key]!r}; it is a function, or an "
                "object, which only Python can give."
            )
    if "metric" in legal:
        settings = {"metric": metric, "mode": "max", **settings}
        run.check(settings["metric"], f"{name}: the scheduler's metric is")
    if "require_attrs" in legal:  # before the first evaluation there is no win rate
        settings.setdefault("require_attrs", False)
    with refusing(f"{name}: the scheduler {known} says: ", Exception):
        made: TrialScheduler = create_scheduler(known, **settings)
    return made


def with_spaces(value: Any, where: str) -> Any:
    """Copies a config, or the part of it at `where`, with Tune's search spaces.

    Raises:
        BadInput: a space has no values or impossible bounds, or is `{eval: ...}`, which Tune
            would run as Python.
    """
    if isinstance(value, list):
        return [with_spaces(part, f"{where}[{index}]") for index, part in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (kind, values), *_ = value.items()
        if kind == "eval":
            raise BadInput(
                f"{where} is {value!r}; code in experiments is not run, write grid_search, "
                "choice, uniform, loguniform or randint."
            )
        if kind in LISTS:
            if not isinstance(values, list) or not values:
                raise BadInput(f"{where} is {value!r}; {kind} needs a list of values.")
            return LISTS[kind](with_spaces(values, where))
        if kind in RANGES:
            numbers = isinstance(values, list) and all(map(is_number, values))
            if not numbers or len(values) != 2 or values[0] >= values[1]:
                problem = f"{kind} needs two numbers, the smaller one first"
                raise BadInput(f"{where} is {value!r}; {problem}.")
            if kind == "loguniform" and values[0] <= 0:
                raise BadInput(f"{where} is {value!r}; loguniform needs numbers above 0.")
            return RANGES[kind](*(map(int, values) if kind == "randint" else values))
    return {key: with_spaces(part, f"{where}.{key}") for key, part in value.items()}


def plain_configs(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Configs in which every search space is replaced by one of its values.

    The first config has the first value of every space. Every other config differs from the first
    in one space. Together they have all values of every list and both bounds of every range.
    """
    spaces = dict(_spaces(config, ()))
    first = {path: values[0] for path, values in spaces.items()}
    others = [first | {path: each} for path, values in spaces.items() for each in values[1:]]
    plain = [copy.deepcopy(config) for _ in (first, *others)]
    for each, chosen in zip(plain, (first, *others), strict=True):
        for (*path, last), value in chosen.items():
            functools.reduce(operator.getitem, path, each)[last] = value
    return plain


def searched(config: dict[str, Any]) -> list[str]:
    """The keys of a config that have a search space; nested keys have slashes, as in Tune."""
    return ["/".join(map(str, path)) for path, _ in _spaces(config, ())]


def _check_keys(
    given: Iterable[str],
    legal: Collection[str],
    problem: str,
    hint: Callable[[str, Iterable[str]], str] = did_you_mean,  # what to say of an unknown key
) -> None:
    """Raises BadInput, which begins with `problem`, unless all given keys are legal."""
    for key in given:
        if key not in legal:
            raise BadInput(f"{problem} {key!r}{hint(key, legal)}.")


def _find_algorithm(name: str, run: Any) -> type[Algorithm]:
    """The class of an algorithm, given by its name, its class path or the class itself."""
    if isinstance(run, type):
        return run
    run = str(run)
    if _global_registry.contains(TRAINABLE_CLASS, run):
        found: Any = get_trainable_cls(run)
    elif run in NAMED:
        found = NAMED[run]()[0]
    else:
        with refusing(f"{name}: run is {run!r}, whose module fails: ", Exception):
            found = find(run)
    if not isinstance(found, type) or not issubclass(found, Algorithm):
        spelled = {other.lower(): other for other in NAMED}.get(run.lower())
        near = f" (did you mean {spelled!r}?)" if spelled else did_you_mean(run, NAMED)
        raise BadInput(
            f"{name}: there is no algorithm {run!r}{near}; this RLlib has "
            f"{', '.join(NAMED)}, and the path of any Algorithm's class."
        )
    return found


def _known(
    name: str, config: dict[str, Any], algorithm: type[Algorithm]
) -> tuple[dict[str, Any], list[str]]:
    """The keys of a config that have an effect, and notices of those that have none."""
    default = algorithm.get_default_config()
    known = {**vars(default), "train_batch_size_per_learner": default.train_batch_size_per_learner}
    problem = f"{name}: {algorithm.__name__} has no config key"
    _check_keys(config, {*known, *SPECIAL}, problem, hooks(algorithm).hint)
    kept, notices = {}, []
    for key, value in config.items():
        if known.get(key) is not None and known[key] == DEPRECATED_VALUE != value:
            notices.append(f"{name}: {key} is left out: today's RLlib ignores it.")
        elif type(known.get(key)) is int and isinstance(value, float) and value.is_integer():
            kept[key] = int(value)  # YAML reads 1e5 as a float
        else:
            kept[key] = value
    return kept, notices


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


def _spaces(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """Path and values of every space in a config; the values of a range are its bounds."""
    if isinstance(value, Categorical):
        yield path, list(value.categories)
    elif isinstance(value, Domain):
        low, high = value.lower, value.upper
        yield path, [low, high - 1 if isinstance(value, Integer) else high]
    elif isinstance(value, dict) and set(value) == {"grid_search"}:
        yield path, list(value["grid_search"])
    elif isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _spaces(part, (*path, key))
