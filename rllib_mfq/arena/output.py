"""Output files: checked before the work begins, and replaced only by complete ones."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def check_output(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Raises a ValueError unless the file can be written and has one of the suffixes, if any."""
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{path} must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist.")
    try:
        _beside(path).touch()
        _beside(path).unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; its file takes the place of `path` once everything is written."""
    path = path.resolve()  # a link stays one
    part = _beside(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes plain data; a file that exists is replaced only by the complete one.

    Numbers that JSON does not know, as NumPy's, become floats; what else it has no word for, such
    as a class in an `env_config`, is written as text.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, default=_plain) + "\n", encoding="utf-8")


def _plain(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
