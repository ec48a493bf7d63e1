"""Classes that a user names by their path, as a YAML must: checked before anything is called."""

import importlib
from typing import Any


def subclass(key: str, value: Any, base: type) -> Any:
    """The class that a value is or names, if it derives from `base`; it is imported, not called.

    Args:
        key: what the user set, for the message.
        value: a class, or a path such as `my_package.my_module.MyEncoder`.
        base: what it must derive from.

    Raises:
        ValueError: it cannot be imported, or it is something else.
    """
    found = value
    if isinstance(value, str):
        module, _, name = value.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{key} is {value!r}, which cannot be imported ({error}); it must be a class or "
                "its path, such as my_package.my_module.MyClass."
            ) from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"{key} is {value!r}; it must be a class that derives from "
            f"{base.__module__}.{base.__qualname__}, or the path of one."
        )
    return found
