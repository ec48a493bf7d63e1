"""The session: Ray as the command starts it, and how much of its logs is seen."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import ray

from rllib_cli.experiments import BadInput
from rllib_cli.options import Options, cluster


def be_quiet(verbose: int) -> None:
    """Sets up Ray's and Tune's environment and how much of their logs is seen.

    Args:
        verbose: 0, or how many times `-v` was given.
    """
    settings = {
        "RAY_AIR_NEW_OUTPUT": "0",  # the new one takes no reporter
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours saves checkpoints
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # no win rate before the first evaluation
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in experiments are relative to where one is
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning at every start
    }
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    if not verbose:
        warnings.filterwarnings("ignore", module="ray")
        for name in ("ray.tune", "ray.train", "ray.rllib"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def import_plugins(plugins: Sequence[str]) -> None:
    """Imports modules that register algorithms or environments; MFQ's is always."""
    for plugin in ("rllib_mfq", *plugins):
        try:
            importlib.import_module(plugin)
        except ImportError as error:
            raise BadInput(f"--import {plugin} fails: {error}.") from error


def start_ray(options: Options) -> None:
    """Starts Ray, or joins the cluster at `--ray-address`."""
    if ray.is_initialized():
        return
    level = ("ERROR", "INFO", "DEBUG")[min(options.verbose, 2)]
    address = cluster(options)
    arguments: dict[str, Any] = {
        "address": address or "local",
        "num_cpus": options.ray_num_cpus,
        "num_gpus": options.ray_num_gpus,
        "object_store_memory": options.ray_object_store_memory,
        "include_dashboard": None if address else False,
        "log_to_driver": options.verbose > 0,
        "logging_level": level,
    }
    given = {key: value for key, value in arguments.items() if value is not None}
    if address:
        for key in ("num_cpus", "num_gpus", "object_store_memory"):
            if key in given:
                raise BadInput(f"--ray-{key.replace('_', '-')} is the cluster's to say, not ours.")
    try:
        ray.init(**given)
    except (ConnectionError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise BadInput(f"--ray-address {address}: {message}") from error
