"""Options: what the command line changes of experiments."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rllib_cli.experiments import BadInput, Experiment, parse_mapping, set_values


@dataclass
class Options:
    """The options of `rllib train`, under their names; None means not given."""

    stop: str | None = None
    num_samples: int | None = None
    checkpoint_freq: int | None = None
    checkpoint_at_end: bool | None = None
    keep_checkpoints_num: int | None = None
    checkpoint_score_attr: str | None = None
    storage_path: str | None = None
    experiment_name: str | None = None
    restore: str | None = None
    resume: bool = False
    max_failures: int | None = None
    scheduler: str | None = None
    scheduler_config: str | None = None
    ray_address: str | None = None
    ray_num_cpus: int | None = None
    ray_num_gpus: int | None = None
    ray_object_store_memory: int | None = None
    local_mode: bool = False
    framework: str | None = None
    verbose: int = 0
    wandb_key: str | None = None
    wandb_project: str | None = None
    wandb_run_name: str | None = None
    seed: int | None = None
    assignments: tuple[str, ...] = ()
    as_test: bool = False
    plugins: tuple[str, ...] = ()


def experiment_from_options(
    run: str | None, env: str | None, config: str | None, options: Options
) -> dict[str, Experiment]:
    """The experiment of `rllib train --run MFQ --env battle_v4 ...`.

    Raises:
        BadInput: no algorithm, or a config that does not parse.
    """
    if not run:
        raise BadInput(
            "there is nothing to train; give a file (`rllib train file X.yaml`) or an algorithm "
            "and an environment (`rllib train --run MFQ --env battle_v4`)."
        )
    experiment: Experiment = {"run": run, "config": parse_mapping(config or "", "--config")}
    if env is not None:
        experiment["env"] = env
    return {options.experiment_name or "default": experiment}


def apply_options(experiments: dict[str, Experiment], options: Options) -> dict[str, Experiment]:
    """Puts options into experiments, whose own words yield to them.

    Raises:
        BadInput: an option that does not parse, or does not fit these experiments.
    """
    changed = {name: _applied(experiment, options) for name, experiment in experiments.items()}
    if options.experiment_name:
        if len(changed) > 1:
            raise BadInput(
                f"--experiment-name is {options.experiment_name!r}, but there are "
                f"{len(changed)} experiments: {', '.join(changed)}."
            )
        changed = dict.fromkeys([options.experiment_name], *changed.values())
    return changed


def _applied(experiment: Experiment, options: Options) -> Experiment:
    experiment = {**experiment, "config": {**(experiment.get("config") or {})}}
    checkpoints = {
        "checkpoint_freq": options.checkpoint_freq,
        "checkpoint_at_end": options.checkpoint_at_end,
        "keep_checkpoints_num": options.keep_checkpoints_num,
        "checkpoint_score_attr": options.checkpoint_score_attr,
    }
    nested = {
        "checkpoint_freq": "checkpoint_frequency",
        "keep_checkpoints_num": "num_to_keep",
        "checkpoint_score_attr": "checkpoint_score_attribute",
    }
    for key, value in checkpoints.items():
        if value is not None:  # in a file it may stand under the old or the new name
            inner = {**(experiment.get("checkpoint_config") or {})}
            inner.pop(nested.get(key, key), None)
            experiment |= {"checkpoint_config": inner, key: value}
    if options.storage_path is not None:
        experiment.pop("local_dir", None)
        experiment.pop("upload_dir", None)
        experiment["storage_path"] = options.storage_path
    for key in ("num_samples", "restore", "max_failures", "scheduler"):
        value = getattr(options, key)
        if value is not None:
            experiment[key] = value
    if options.stop is not None:
        experiment["stop"] = parse_mapping(options.stop, "--stop")
    if options.scheduler_config is not None:
        settings = parse_mapping(options.scheduler_config, "--scheduler-config")
        experiment["scheduler_config"] = settings
    config = experiment["config"]
    if options.framework is not None:
        config["framework"] = options.framework
    if options.seed is not None:
        config["seed"] = options.seed
    if options.local_mode:
        for old in ("num_workers", "num_rollout_workers", "evaluation_num_workers"):
            config.pop(old, None)
        config |= {"num_env_runners": 0, "num_learners": 0, "evaluation_num_env_runners": 0}
    set_values(config, options.assignments)
    return experiment


def cluster(options: Options) -> str | None:
    """The address of the cluster to join; None for a Ray of our own.

    Ray by itself would also join whichever cluster was last started on this machine.
    """
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def use_token(options: Options) -> None:
    """Has Ray show its token to a cluster, if there is a token.

    `ray start` asks for one wherever one exists, but a driver that joins does not show it by
    itself. To be called before Ray is imported, which is when it reads the variable.
    """
    exists = (Path.home() / ".ray" / "auth_token").exists() or "RAY_AUTH_TOKEN" in os.environ
    if cluster(options) and exists:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def storage(path: str) -> str:
    """A storage path as Ray wants it: a URI as it is, a folder absolute."""
    return path if "://" in path else str(Path(path).expanduser().resolve())
