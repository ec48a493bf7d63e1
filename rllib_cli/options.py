"""Options: what can be given to `rllib train` and `rllib evaluate`, and what it changes."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

from rllib_cli.completion import complete_agent, complete_env
from rllib_cli.experiments import BadInput, Experiment, parse_mapping, set_values

Command = Callable[..., None]
FILE = click.Path(dir_okay=False, path_type=Path)
ANY_KEY = "Any config key, dotted if nested; the value is YAML. Repeatable."
KEEP = "Keep only the last N, or with --checkpoint-score-attr the N best."
TRUST = "Loading a checkpoint unpickles it: load only checkpoints you trust."

OBSOLETE = yaml.safe_load(Path(__file__).with_name("old_options.yaml").read_text(encoding="utf-8"))
CHECKPOINTS = {
    "checkpoint_freq": "checkpoint_frequency",
    "checkpoint_at_end": "checkpoint_at_end",
    "keep_checkpoints_num": "num_to_keep",
    "checkpoint_score_attr": "checkpoint_score_attribute",
}
"""Options on checkpoints, and the key of `checkpoint_config` that each one sets."""

OF_EXPERIMENTS = ["stop", "num_samples", "storage_path", "restore", "max_failures", "scheduler"]
OF_EXPERIMENTS += ["scheduler_config"]
"""Options that set the key of the same name in an experiment."""


def option(text: str = "", *flags: str, default: Any = None, **settings: Any) -> Any:
    """A field for an option; the default False makes a switch, `()` allows several values."""
    switch = True if default is False else None
    settings |= {"help": text, "default": default, "is_flag": switch, "multiple": default == ()}
    return field(default=default, metadata={"flags": flags, "settings": settings})


verbose_option = partial(option, "More logs; -vv: all.", "--log-info", "-v", count=True, default=0)
plugins_option = partial(option, "Import a module that registers things.", "--import", default=())


@dataclass
class Options:
    """The options of `rllib train`; None means not given."""

    stop: str | None = option("When to stop, as JSON or YAML; replaces the stop of the file.", "-s")
    num_samples: int | None = option("Trials of every grid point.", type=click.IntRange(1))
    checkpoint_freq: int | None = option("Iterations between checkpoints.", type=click.IntRange(0))
    checkpoint_at_end: bool | None = option(
        "Leave a checkpoint at the end (default).", "--checkpoint-at-end/--no-checkpoint-at-end"
    )
    keep_checkpoints_num: int | None = option(KEEP, type=click.IntRange(1))
    checkpoint_score_attr: str | None = option("Result that ranks checkpoints; min-X: least first.")
    storage_path: str | None = option(
        "Folder or URI for results and checkpoints.", "--storage-path", "--local-dir"
    )
    experiment_name: str | None = option("Name of the experiment and its folder.", "-n")
    restore: str | None = option(
        f"Start from this checkpoint. {TRUST}", shell_complete=complete_agent
    )
    resume: bool = option("Go on with the run of this name.", default=False)
    max_failures: int | None = option("Restarts of a failed trial.", type=int)
    scheduler: str | None = option("A scheduler of Tune: fifo, asha, pbt, ...")
    scheduler_config: str | None = option("Settings of the scheduler, as JSON or YAML.")
    ray_address: str | None = option("Join the Ray cluster at this address; auto finds one.")
    ray_num_cpus: int | None = option("CPUs that Ray may use.", type=int)
    ray_num_gpus: int | None = option("GPUs that Ray may use.", type=int)
    ray_object_store_memory: int | None = option("Bytes of shared memory for Ray.", type=int)
    local_mode: bool = option("One process: no remote runners or learners.", default=False)
    framework: str | None = option("torch; any other is ignored with a notice.")
    verbose: int = verbose_option()
    log_debug: bool = option(hidden=True, default=False)
    wandb_key: str | None = option("Log to Weights & Biases with this API key.")
    wandb_project: str | None = option("Project in Weights & Biases.")
    wandb_run_name: str | None = option("Name of the run in Weights & Biases.")
    seed: int | None = option("Seed of every experiment.", type=int)
    assignments: tuple[str, ...] = option(ANY_KEY, "--set", metavar="KEY=VALUE", default=())
    as_test: bool = option("Exit 1 unless a goal in stop is reached.", default=False)
    plugins: tuple[str, ...] = plugins_option()

    def __post_init__(self) -> None:
        """Reads `--log-debug`, the old name of `-vv`."""
        self.verbose = 2 if self.log_debug else self.verbose


@dataclass
class Play:
    """The options of `rllib evaluate`; None means not given."""

    algo: str | None = option(
        "Refuse a checkpoint of another algorithm.", "--run", "--algo", "-r", "-a"
    )
    env: str | None = option(
        "Play in this environment, not in that of training.", "-e", shell_complete=complete_env
    )
    config: str | None = option("Config keys to change, as JSON or YAML.", "-c")
    episodes: int | None = option("How many episodes to play (10).", type=click.IntRange(1))
    steps: int | None = option("Whole episodes until this many steps.", type=click.IntRange(1))
    opponent: str | None = option(
        "For MFQ: random, rush, ..., a checkpoint or a class; plays both sides in turn.",
        shell_complete=complete_agent,
    )
    render: bool = option("Show the episodes in a window.", "--render/--no-render", default=False)
    out: Path | None = option("Write JSON here.", type=FILE)  # noqa: RUF009 - a field
    seed: int | None = option("Seed of the environments and of random draws.", type=int)
    verbose: int = verbose_option()
    plugins: tuple[str, ...] = plugins_option()


def _add_options(kind: type, old: dict[str, str], command: Command) -> Command:
    """Adds the options of a dataclass to a command, and hidden old ones that print a notice."""
    for names, reason in old.items():
        hidden: dict[str, Any] = {"default": None, "hidden": True, "expose_value": False}
        command = click.option(names, **hidden, callback=partial(_notice, reason))(command)
    for each in reversed(fields(kind)):
        flags = each.metadata["flags"]
        if not any(flag.startswith("--") for flag in flags):  # no long one: the name
            flags = (f"--{each.name.replace('_', '-')}", *flags)
        command = click.option(each.name, *flags, **each.metadata["settings"])(command)
    return command


def _notice(reason: str, context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None:
        click.echo(f"note: {option.opts[0]} is ignored: {reason}.", err=True)


train_options = partial(_add_options, Options, OBSOLETE["train"])
play_options = partial(_add_options, Play, OBSOLETE["evaluate"])


def experiment_from_options(
    run: str | None, env: str | None, config: str | None, options: Options
) -> dict[str, Experiment]:
    """The experiment of `rllib train --run MFQ --env battle_v4 ...`."""
    if not run:
        raise BadInput(
            "there is nothing to train; give a file (`rllib train file X.yaml`) or an algorithm "
            "and an environment (`rllib train --run MFQ --env battle_v4`)."
        )
    experiment = {"run": run, "config": parse_mapping(config or "", "--config")}
    if env is not None:
        experiment["env"] = env
    return {options.experiment_name or "default": experiment}


def apply_options(experiments: dict[str, Experiment], options: Options) -> dict[str, Experiment]:
    """Copies experiments; in the copies, options take the place of what the experiments say."""
    name = options.experiment_name
    if name and len(experiments) > 1:
        found = f"{len(experiments)} experiments: {', '.join(experiments)}"
        raise BadInput(f"--experiment-name is {name!r}, but there are {found}.")
    return {name or key: _applied(experiment, options) for key, experiment in experiments.items()}


def _applied(experiment: Experiment, options: Options) -> Experiment:
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name in ("stop", "scheduler_config"):
        if name in given:
            given[name] = parse_mapping(given[name], f"--{name.replace('_', '-')}")
    replaced = CHECKPOINTS.keys() & given
    if "storage_path" in given:
        replaced |= {"local_dir", "upload_dir"}
    applied = {key: value for key, value in experiment.items() if key not in replaced}
    applied |= {name: given[name] for name in OF_EXPERIMENTS if name in given}
    checkpoints = {new: given[old] for old, new in CHECKPOINTS.items() if old in given}
    if checkpoints:
        applied["checkpoint_config"] = (applied.get("checkpoint_config") or {}) | checkpoints
    config = copy.deepcopy(experiment.get("config") or {})  # `--set` changes parts inside
    config |= {name: given[name] for name in ("framework", "seed") if name in given}
    if options.local_mode:
        for old in ("num_workers", "num_rollout_workers", "evaluation_num_workers"):
            config.pop(old, None)
        config |= {"num_env_runners": 0, "num_learners": 0, "evaluation_num_env_runners": 0}
    set_values(config, options.assignments)
    return applied | {"config": config}


def cluster(options: Options) -> str | None:
    """The address of the cluster to join, or None, with which the command starts its own Ray."""
    address = options.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def use_token(options: Options) -> None:
    """Makes Ray show its token to a cluster; to be called before Ray is imported."""
    exists = (Path.home() / ".ray" / "auth_token").exists() or "RAY_AUTH_TOKEN" in os.environ
    if cluster(options) and exists:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
