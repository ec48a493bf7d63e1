"""What is legal: numbers within bounds, the legal word nearest to a wrong one, paths of classes."""

import difflib
import importlib
import math
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value is a finite number from `low` to `high`; a bool is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    return math.isfinite(value) and bool(low <= value <= high)


def is_integer(value: object, low: float = -math.inf) -> bool:
    """Whether a value is a whole number of at least `low`, of an integer type."""
    return is_number(value, low) and isinstance(value, int | np.integer)


def check_integer(name: str, value: object, low: int) -> None:
    """Raises a ValueError unless `value`, known to users as `name`, is an integer from `low` up."""
    if not is_integer(value, low):
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {low}.")


def check_arguments(name: str, given: Iterable[str], legal: Collection[str]) -> None:
    """Raises a ValueError, with the nearest legal one, for an argument that `name` has not."""
    for argument in given:
        if argument not in legal:
            wrong = f"{argument!r}{did_you_mean(argument, legal)}"
            raise ValueError(f"{name} has no argument {wrong}; legal are {sorted(legal)}.")


def did_you_mean(word: str, legal: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` with the nearest legal word, or nothing if none is near."""
    near = difflib.get_close_matches(word, list(legal), n=1)
    return f" (did you mean {near[0]!r}?)" if near and near[0] != word else ""


def find(path: str) -> Any:
    """What a dotted path such as `package.module.Class` names; None if there is no such thing.

    Imports the module, which runs it, and calls nothing. An error in the module is raised.
    """
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            return None  # there is no such module
        raise  # the module is there and imports one that is not


def class_of(key: str, value: object, *bases: type) -> Any:
    """The class that a value is, or that it names by its dotted path; nothing is called.

    Whoever reads a class from a config, which may be a file of someone else, asks here first.

    Args:
        key: what users call the value.
        value: a class or a path, see `find`.
        bases: the class must derive from one of them.

    Raises:
        ValueError: it does not, or there is none.
    """
    found = find(value) if isinstance(value, str) else value
    if isinstance(found, type) and issubclass(found, bases):
        return found
    names = " or ".join(f"{base.__module__}.{base.__qualname__}" for base in bases)
    missing = ", which cannot be imported" if found is None and value is not None else ""
    raise ValueError(
        f"{key} is {value!r}{missing}; it must be a class that derives from {names}, or the path "
        "of one, such as my_package.my_module.MyClass."
    )
