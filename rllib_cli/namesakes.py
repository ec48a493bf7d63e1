"""Other commands named `rllib`: Ray up to 2.41 brought one."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path


def other_commands() -> list[str]:
    """A sentence on every other `rllib` that could be meant."""
    found = []
    for entry in importlib.metadata.entry_points(group="console_scripts", name="rllib"):
        if entry.dist is not None and entry.module.partition(".")[0] != __package__:
            found.append(
                f"{entry.dist.name} {entry.dist.version} installs an rllib command, too, in the "
                "same place; reinstall rllib_mfq, or use `python -m rllib_cli`."
            )
    here = Path(sys.argv[0]).absolute()
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        other = Path(folder or ".", here.name).absolute()
        if here.name != "rllib" or other.resolve() == here.resolve():
            break  # what comes after us on the PATH is not meant
        if os.access(other, os.X_OK) and other.is_file():
            found.append(f"the rllib that comes first on the PATH is another one, {other}.")
    return found
