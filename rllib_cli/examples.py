"""The tuned examples that come with the package."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from rllib_cli.experiments import BadInput


def folder() -> Path:
    """Where the examples are: inside the wheel, or beside the package in a source tree."""
    spec = importlib.util.find_spec("rllib_mfq")  # finds the package without importing it
    assert spec is not None and spec.submodule_search_locations
    package = Path(next(iter(spec.submodule_search_locations)))
    inside = package / "tuned_examples"
    return inside if inside.is_dir() else package.parent / "tuned_examples"


def names() -> list[str]:
    """All examples, in alphabetical order."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def find(name: str) -> Path:
    """The file of an example.

    Raises:
        BadInput: there is none of that name, with the nearest one.
    """
    stem = name.removesuffix(".yaml").replace("-", "_")
    if stem not in names():
        near = difflib.get_close_matches(stem, names(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise BadInput(f"there is no example {name!r}{hint}; `rllib example list` shows them.")
    return folder() / f"{stem}.yaml"


def title(name: str) -> str:
    """The first line of an example's header."""
    first = find(name).read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ") if first.startswith("#") else ""
