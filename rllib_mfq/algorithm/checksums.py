"""Checksums: whether a checkpoint's files are those that were written."""

import contextlib
import hashlib
import json
import pickletools
from collections.abc import Iterator
from pathlib import Path

FILE = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file below a folder; of an existing list, too, but the last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    sums = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    part = folder / f".{FILE}"
    part.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / FILE)


def check_files(path: Path) -> None:
    """Checks a file of a checkpoint, or all files below a folder of it; nothing is unpickled.

    A checkpoint of version 0.1 has no checksums. Of its files it is only checked whether they are
    whole.

    Raises:
        ValueError: a file is missing or damaged; the sentence names it.
    """
    for folder in (path, *path.parents):
        if (folder / FILE).is_file():
            _check_sums(folder, path)
            return
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        with reading(file):
            if file.suffix == ".pkl":
                with file.open("rb") as stream:
                    for _ in pickletools.genops(stream):  # reads to the end without running it
                        pass
            elif file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes its reader raise into a ValueError with its name."""
    try:
        yield
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read, it is damaged or incomplete: {what}.") from error


def _check_sums(folder: Path, path: Path) -> None:
    with reading(folder / FILE):
        sums: dict[str, str] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        names = {folder / name: expected for name, expected in sums.items()}
    for file, expected in names.items():
        if file != path and path not in file.parents:
            continue
        if not file.is_file():
            raise ValueError(f"{file} is missing; {folder / FILE} lists it.")
        if _sha256(file) != expected:
            raise ValueError(f"{file} is damaged: its checksum is not that of {folder / FILE}.")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
