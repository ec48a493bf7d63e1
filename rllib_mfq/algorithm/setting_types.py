"""Kinds of settings: what pydantic accepts, and the sentence about what it does not."""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from rllib_mfq.mean_field.legal import did_you_mean, is_number


@dataclass(frozen=True)
class Kind:
    """The values that a setting may have.

    Attributes:
        text: says what is legal, as the end of a sentence.
        type: the values, as pydantic reads them. A check of our own asserts, or raises a
            ValueError with a sentence of its own.
        number: int or float, to which numbers are converted; list for a number or a schedule;
            None if the values hold no numbers.
        others: strings, or None, that are legal, too.
    """

    text: str
    type: Any
    number: type | None = None
    others: tuple[str | None, ...] = ()

    def read(self, value: Any) -> Any:
        """The value in its type; raises pydantic's ValidationError if the value is not legal."""
        if isinstance(value, str | None) and value in self.others:
            return value
        return pydantic.TypeAdapter(self.type).validate_python(value)


def _python_number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value  # search algorithms draw it


def _whole_number(value: Any) -> Any:
    value = _python_number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def integer(low: int, *others: str | None) -> Kind:
    """Integers of at least `low`; `others` are legal, too."""
    values = Annotated[int, Field(strict=True, ge=low), BeforeValidator(_whole_number)]
    return Kind(f"it must be an integer of at least {low}", values, int, others)


def number(text: str, **bounds: float) -> Kind:
    """Numbers within bounds, which are pydantic's: `gt`, `ge`, `le`."""
    limits = Field(strict=True, allow_inf_nan=False, **bounds)  # type: ignore[call-overload]
    values = Annotated[float, limits, BeforeValidator(_python_number)]
    return Kind(f"it must be a number {text}", values, float)


def one_of(*names: str) -> Kind:
    """One of some names."""
    return Kind(f"legal are {', '.join(names)}", Literal[names], others=names)


def schedule(values: str, zero: bool, most: float = math.inf) -> Kind:
    """A number, or a schedule `[[agent_steps, value], ...]`; `zero` is whether 0 is legal."""

    def check(value: Any) -> Any:
        points = value if isinstance(value, list | tuple) else [[0, value]]
        assert points
        for point in points:
            assert isinstance(point, list | tuple) and len(point) == 2
            assert all(is_number(part, 0) for part in point) and (zero or point[1])
            assert point[1] <= most
        assert all(a[0] < b[0] for a, b in pairwise(points))
        return value

    text = f"it must be a {values} or a schedule [[steps, value], ...] of such, and "
    text += "the steps of a schedule must increase"
    return Kind(text, Annotated[Any, AfterValidator(check)], list)


def _number_type(value: Any) -> Any:
    try:
        kind = np.dtype(value).kind  # None is float64 to NumPy
    except TypeError:
        kind = ""
    assert kind and kind in "fiu"
    return value


def checked_by(check: Callable[[Any], Any]) -> Kind:
    """What a function of our own reads; its ValueError says what is legal."""

    def read(value: Any) -> Any:
        check(value)
        return value

    return Kind("", Annotated[Any, AfterValidator(read)])


POSITIVE = integer(1)
NON_NEGATIVE = integer(0)
NUMBER = number("above 0", gt=0)
NUMBER_OR_NONE = replace(NUMBER, others=(None,))
DISCOUNT = number("from 0 to 1", ge=0, le=1)
SHARE = number("above 0 and at most 1", gt=0, le=1)
RATE = schedule("number of at least 0", zero=True)
SHARES = schedule("number from 0 to 1", zero=True, most=1)
TEMPERATURE = schedule("positive number", zero=False)
BOOL = Kind("it must be True or False", pydantic.StrictBool)
NUMBER_TYPE = Kind(
    "it must be a numpy type of numbers, such as 'float16' or 'uint8'",
    Annotated[Any, AfterValidator(_number_type)],
)
OPPONENTS = Kind(
    "it must be a dict {name: opponent}, each opponent a name such as 'random' or 'rush', the path "
    "of a checkpoint, or that of a class, 'my_package.my_module:MyClass'",
    dict[Any, pydantic.StrictStr],
)


def checked(key: str, kind: Kind, value: Any) -> Any:
    """A value of a setting, in its type: whole floats such as 1e5 become integers.

    Raises a ValueError: one sentence with the key, its value and what would be legal.
    """
    try:
        return kind.read(value)
    except pydantic.ValidationError as error:
        own = [e["ctx"]["error"] for e in error.errors() if e["type"] == "value_error"]
    if kind.number:
        refuse_strings(key, value, whole=kind.number is int)
    if own:
        raise ValueError(str(own[0]))
    hint = "" if kind.number else did_you_mean(str(value), filter(None, kind.others))
    raise ValueError(f"{key.lstrip('_')} is {value!r}{hint}; {kind.text}.")


def check_keys(name: str, given: Iterable[Any], legal: Collection[str]) -> None:
    """Raises a ValueError if a dict setting has a key that is not legal; it names the nearest."""
    for key in given:
        if key not in legal:
            hint = did_you_mean(str(key), legal)
            raise ValueError(f"{name} has no key {key!r}{hint}; legal are {', '.join(legal)}.")


def refuse_strings(key: str, value: Any, whole: bool) -> None:
    """Raises a ValueError if a value, or a part of a list, is a number written as a string."""
    for part in value if isinstance(value, list | tuple) else ():
        refuse_strings(key, part, whole)
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return  # such as rollout_fragment_length="auto"
    if number is not None:
        right = int(number) if whole and number.is_integer() else number
        raise ValueError(
            f"{key.lstrip('_')} has the string {value!r} where a number belongs; write "
            f"{right!r} (YAML reads 1e-4 as a string and 1.0e-4 as a number)."
        )
