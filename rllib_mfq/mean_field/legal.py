"""What is legal: numbers within bounds, and the legal word that a wrong one is nearest to."""

import difflib
import math
from collections.abc import Collection, Iterable

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
