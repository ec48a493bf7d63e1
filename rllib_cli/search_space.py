"""Search spaces as YAML spells them, `{loguniform: [1e-5, 1e-3]}`, as Tune's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain

from rllib_cli.experiments import BadInput

RANGES = {"uniform": tune.uniform, "loguniform": tune.loguniform, "randint": tune.randint}
LISTS = {"grid_search": tune.grid_search, "choice": tune.choice}


def with_spaces(value: Any, where: str) -> Any:
    """Replaces every mapping that spells a search space.

    Args:
        value: a config, or a part of one.
        where: what to call it in an error.

    Returns:
        A copy of it.

    Raises:
        BadInput: a space without values or with impossible bounds, or `{eval: ...}`, which Tune
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


def examples(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Configs without search spaces that together take every listed value and both bounds.

    The first takes the first value of every space; each other one differs from it in one.
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
    """The keys of a config whose values are searched, nested ones as Tune writes them."""
    return ["/".join(map(str, path)) for path, _ in _spaces(config, ())]


def _bounds(value: dict[str, Any], kind: str, bounds: Any, where: str) -> tuple[Any, Any]:
    numbers = isinstance(bounds, list) and all(
        isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds
    )
    if not numbers or len(bounds) != 2 or bounds[0] >= bounds[1]:
        raise BadInput(f"{where} is {value!r}; {kind} needs two numbers, the smaller one first.")
    if kind == "loguniform" and bounds[0] <= 0:
        raise BadInput(f"{where} is {value!r}; loguniform needs numbers above 0.")
    if kind == "randint":
        bounds = [int(bound) for bound in bounds]
    return bounds[0], bounds[1]


def _spaces(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], list[Any]]]:
    """Path and values of every space in a config."""
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
