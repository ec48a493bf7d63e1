"""Output files: checked before the work that fills them, and replaced whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def check_output(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Raises a ValueError unless a file of one of the suffixes, or of any, can be written."""
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"{path} must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist.")
    try:
        _beside(path).touch()
        _beside(path).unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}.") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` once everything is written."""
    part = _beside(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
