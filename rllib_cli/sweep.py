"""Sweeps: search spaces and schedulers, as YAML spells them, as Tune's.

A search space is `{loguniform: [1e-5, 1e-3]}`; a scheduler is `pbt` with its settings.
"""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

from ray import tune
from ray.tune.schedulers import SCHEDULER_IMPORT, TrialScheduler, create_scheduler
from ray.tune.search.sample import Categorical, Domain

from rllib_cli.experiments import BadInput, refusing
from rllib_cli.reported import Run
from rllib_mfq.mean_field.legal import did_you_mean, is_number

RANGES = {"uniform": tune.uniform, "loguniform": tune.loguniform, "randint": tune.randint}
LISTS = {"grid_search": tune.grid_search, "choice": tune.choice}
SHORT = {"asha": "async_hyperband"}


def with_spaces(value: Any, where: str) -> Any:
    """Replaces every mapping that spells a search space.

    Args:
        value: a config, or a part of one.
        where: the place of `value` in the experiment, for the error message.

    Returns:
        A copy of `value` with Tune's search spaces.

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
            return RANGES[kind](*_bounds(value, kind, values, where))
    return {key: with_spaces(part, f"{where}.{key}") for key, part in value.items()}


def plain_configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields configs in which one value stands in the place of every search space.

    The first config takes the first value of every space. Every other config differs from the
    first in one space. Together they take all values of every list and both bounds of every range.
    """
    spaces = list(_spaces(config, ()))

    def variant(chosen: dict[tuple[Any, ...], Any]) -> dict[str, Any]:
        plain = copy.deepcopy(config)
        for path, values in spaces:
            target: Any = plain
            for part in path[:-1]:
                target = target[part]
            target[path[-1]] = chosen.get(path, values[0])
        return plain

    yield variant({})
    for path, values in spaces:
        for value in values[1:]:
            yield variant({path: value})


def searched(config: dict[str, Any]) -> list[str]:
    """The keys of a config that have a search space; nested keys with slashes, as in Tune."""
    return ["/".join(map(str, path)) for path, _ in _spaces(config, ())]


def make_scheduler(
    name: str, scheduler: str, settings: dict[str, Any], metric: str, run: Run
) -> TrialScheduler:
    """Makes a scheduler.

    Args:
        name: of the experiment.
        scheduler: its name in Tune, such as `fifo`, `async_hyperband` (or `asha`) and `pbt`.
        settings: its arguments; `metric` and `mode` have defaults, and `hyperparam_mutations`
            holds search spaces.
        metric: the result to maximise, unless the settings name another one.
        run: says which metrics will be reported.

    Raises:
        BadInput: an unknown scheduler or setting, or a metric that will not be reported.
    """
    known = SHORT.get(scheduler.lower(), scheduler.lower())
    if known not in SCHEDULER_IMPORT:
        names = [*SHORT, *SCHEDULER_IMPORT]
        raise BadInput(
            f"{name}: scheduler is {scheduler!r}{did_you_mean(scheduler.lower(), names)}; legal "
            f"are {', '.join(names)}."
        )
    kind = SCHEDULER_IMPORT[known]
    legal = inspect.signature(kind() if inspect.isfunction(kind) else kind).parameters
    for key in settings:
        if key not in legal:
            raise BadInput(
                f"{name}: the scheduler {known} has no setting {key!r}{did_you_mean(key, legal)}."
            )
    settings = with_spaces(settings, f"{name}: scheduler_config")
    if "metric" in legal:
        settings = {"metric": metric, "mode": "max", **settings}
        run.check(settings["metric"], f"{name}: the scheduler's metric is")
    if "require_attrs" in legal:  # before the first evaluation there is no win rate
        settings.setdefault("require_attrs", False)
    with refusing(f"{name}: the scheduler {known} says: ", Exception):
        made: TrialScheduler = create_scheduler(known, **settings)
    return made


def _bounds(value: dict[str, Any], kind: str, bounds: Any, where: str) -> tuple[Any, Any]:
    numbers = isinstance(bounds, list) and all(map(is_number, bounds))
    if not numbers or len(bounds) != 2 or bounds[0] >= bounds[1]:
        raise BadInput(f"{where} is {value!r}; {kind} needs two numbers, the smaller one first.")
    if kind == "loguniform" and bounds[0] <= 0:
        raise BadInput(f"{where} is {value!r}; loguniform needs numbers above 0.")
    if kind == "randint":
        bounds = [int(bound) for bound in bounds]
    return bounds[0], bounds[1]


def _spaces(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """Path and values of every space in a config; the values of a range are its bounds."""
    if isinstance(value, Categorical):
        yield path, list(value.categories)
    elif isinstance(value, Domain):
        low, high = value.lower, value.upper
        yield path, [low, high - 1 if isinstance(high, int) else high]
    elif isinstance(value, dict) and set(value) == {"grid_search"}:
        yield path, list(value["grid_search"])
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _spaces(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _spaces(part, (*path, index))
