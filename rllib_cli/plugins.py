"""Plugins: the modules of `--import`, which register environments or algorithms of the user's.

Every process that makes environments needs them, so the workers of Ray import them, too, on every
node and whenever one starts. What runs in a worker is here, where it costs no import of its own.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from rllib_cli.experiments import refusing

MODULES, FOLDER = "RLLIB_IMPORT", "RLLIB_IMPORT_FROM"
"""Environment variables that tell a worker of Ray which modules to import, and a folder of them."""


def import_from(folder: str) -> None:
    """Makes a folder importable, as `python -m` does with the current one."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def import_plugins(plugins: Sequence[str]) -> None:
    """Imports the modules here, or raises BadInput with the error that one of them raises."""
    for plugin in plugins:
        with refusing(f"--import {plugin} fails: ", Exception):
            importlib.import_module(plugin)


def for_workers(plugins: Sequence[str]) -> dict[str, Any]:
    """The argument of `ray.init` that makes all workers import the modules, if there are any."""
    if not plugins:
        return {}
    variables = {MODULES: ",".join(plugins), FOLDER: os.getcwd()}
    hook = f"{__name__}.{import_in_worker.__name__}"
    return {"runtime_env": {"env_vars": variables, "worker_process_setup_hook": hook}}


def import_in_worker() -> None:
    """Imports the modules in a worker that starts; Ray adds the driver's folder only later."""
    import_from(os.environ[FOLDER])
    for plugin in os.environ[MODULES].split(","):
        importlib.import_module(plugin)
