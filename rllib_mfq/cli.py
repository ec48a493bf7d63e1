"""The `rllib` command: runs the experiments of a YAML file with Tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

if TYPE_CHECKING:  # Ray takes seconds to import; `rllib --help` does without
    from ray.tune.experiment import Trial

COLUMNS = {
    "training_iteration": "iter",
    "time_total_s": "seconds",
    "agent_steps_sampled_lifetime": "agent steps",
    "agent_steps_per_second": "per second",
    "env_runners/episode_return_mean": "return",
    "evaluation/env_runners/win_rate/random": "win rate",
}
"""What the progress table shows of a trial."""


@click.group()
@click.version_option(package_name="rllib_mfq")
def main() -> None:
    """Trains RLlib algorithms, mean field Q-learning among them, from YAML files."""


@main.group()
def train() -> None:
    """Trains."""


@train.command("file")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seed", type=int, help="Seed of every experiment in the file.")
@click.option(
    "--storage-path",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for results and checkpoints (by default ~/ray_results).",
)
def train_file(path: Path, seed: int | None, storage_path: Path | None) -> None:
    """Runs the experiments of the YAML file PATH and leaves a checkpoint of each."""
    experiments = load_experiments(path)
    import ray
    from ray import tune

    import rllib_mfq  # noqa: F401 (registers MFQ and the environments)

    for experiment in experiments.values():
        experiment.setdefault("checkpoint_config", {}).setdefault("checkpoint_at_end", True)
        if seed is not None:
            experiment.setdefault("config", {})["seed"] = seed
        if storage_path is not None:
            experiment["storage_path"] = str(storage_path.expanduser().resolve())
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    trials = tune.run_experiments(
        experiments,
        verbose=1,
        progress_reporter=tune.CLIReporter(
            metric_columns=COLUMNS, print_intermediate_tables=True, max_report_frequency=10
        ),
        raise_on_failed_trial=False,
    )
    for trial in trials:
        click.echo(summary(trial))
    if any(trial.status != "TERMINATED" for trial in trials):
        raise SystemExit(1)


def load_experiments(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a YAML file of experiments, `{name: {run, env, stop, config, ...}}`.

    Raises:
        click.UsageError: the file is no YAML, or an experiment in it names no algorithm.
    """
    try:
        experiments = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise click.UsageError(
            f"{path} is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(experiments, dict) or not experiments:
        raise click.UsageError(f"{path} has no experiments; write 'name: {{run: MFQ, env: ...}}'.")
    for name, experiment in experiments.items():
        if not isinstance(experiment, dict) or "run" not in experiment:
            raise click.UsageError(f"experiment {name!r} in {path} has no 'run', such as MFQ.")
    return experiments


def summary(trial: Trial) -> str:
    """The closing line of a trial: what it reached and where its checkpoint is."""
    name, result = trial.experiment_tag or trial.trial_id, trial.last_result or {}
    name = f"{trial.trainable_name} {name}"
    if trial.status != "TERMINATED":
        error = (
            (trial.get_error() or "").strip().splitlines() if hasattr(trial, "get_error") else []
        )
        return f"{name}: failed: {error[-1] if error else 'see above'}"
    evaluated = result.get("evaluation", {}).get("env_runners", {})
    rates = [
        f"win rate against {opponent} {rate:.2f}"
        for opponent, rate in evaluated.get("win_rate", {}).items()
    ]
    runners = result.get("env_runners", {})
    if not rates:
        rates = [f"return {runners.get('episode_return_mean', float('nan')):.1f}"]
    checkpoint = trial.checkpoint.path if trial.checkpoint else "none"
    return (
        f"{name}: {', '.join(rates)} after {result.get('time_total_s', 0):.0f} s; "
        f"checkpoint {checkpoint}"
    )
