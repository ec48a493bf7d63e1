"""Provenance: what figures depend on besides the command that measured them."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
PACKAGES = ("ray", "torch", "numpy", "magent2", "pettingzoo", "gymnasium")


def provenance() -> dict[str, Any]:
    """Date, commit, processor, and versions of installed packages.

    `commit` ends in `+changes` if the package differs from the commit. It is None where no git
    checkout tracks the package, such as when the package was installed from a wheel.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    cpu = [line for line in lines if "model name" in line]
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "cpu": f"{len(cpu)} x {cpu[0].split(':')[1].strip()}" if cpu else platform.machine(),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }


def _commit() -> str | None:
    # Installed packages may lie in a folder of a checkout that does not track them.
    if not _git("ls-files", "--", "__init__.py"):
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    """What git prints in the package's folder; empty if it fails or there is none."""
    try:
        run = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True)
    except OSError:
        return ""
    return run.stdout.strip()
