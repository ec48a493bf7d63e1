"""Runs: trains an example in several variants, side by side, and finds what they left."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import ray
from ray import tune
from ray.tune.experiment import Experiment as TuneExperiment

from rllib_cli import examples
from rllib_cli.experiments import BadInput, Experiment, read_experiments
from rllib_cli.options import Options
from rllib_cli.progress import Progress
from rllib_cli.session import be_quiet, start_ray
from rllib_cli.train import prepare, tune_experiment
from rllib_mfq import register
from rllib_mfq.arena.output import replacing
from rllib_mfq.arena.provenance import environment

VARIANT = "__variant__"
"""Key of the config that tells trials apart; MFQ leaves keys of this form to Tune."""


@dataclass
class Run:
    """A finished training run.

    Attributes:
        result: the last results that it reported.
        checkpoint: folder of its last checkpoint.
    """

    result: dict[str, Any]
    checkpoint: Path


def train_variants(
    example: str,
    variants: Mapping[str, Mapping[str, Any]],
    storage: Path,
    stop: Mapping[str, float] | None = None,
    processes: int = 2,
) -> dict[str, Run]:
    """Trains an example once per variant; one that has been trained before is not again.

    Args:
        example: name of a tuned example whose trials are one process each.
        variants: for each name, the entries of the config that differ from the example's.
        storage: folder of the runs, one folder per variant.
        stop: entries of the example's `stop` that differ.
        processes: how many are trained at a time.

    Returns:
        The run of each variant.

    Raises:
        BadInput: a run failed or was interrupted; those that ended are kept.
    """
    missing = {
        name: dict(changes)
        for name, changes in variants.items()
        if _finished(storage / name) is None
    }
    if missing:
        be_quiet(0)
        register()  # Ray forgets it when it shuts down
        options = Options(ray_num_cpus=processes)
        (base,) = read_experiments(examples.find(example)).values()
        base["stop"] |= stop or {}
        plain = {name: {**base, "config": base["config"] | c} for name, c in missing.items()}
        checked = next(iter(prepare(plain, options).values())).experiment
        checked["storage_path"] = str(storage.parent)
        start_ray(options)
        terminal = sys.stdout.isatty()
        click.echo(f"training {len(missing)} runs, {processes} at a time, in {storage}")
        try:
            tune.run(
                _side_by_side(storage.name, checked, missing),
                verbose=1 if terminal else 0,
                progress_reporter=Progress([VARIANT]) if terminal else None,
                raise_on_failed_trial=False,
            )
        finally:
            ray.shutdown()
    runs = {name: _finished(storage / name) for name in variants}
    lacking = [name for name, run in runs.items() if run is None]
    if lacking:
        raise BadInput(f"the runs {', '.join(lacking)} in {storage} did not end; start again.")
    return {name: run for name, run in runs.items() if run is not None}


def _side_by_side(
    name: str, experiment: Experiment, variants: Mapping[str, Mapping[str, Any]]
) -> TuneExperiment:
    """One experiment of Tune's, since of several it would only log the first."""
    config = experiment["config"]
    default = experiment["run"].get_default_config().to_dict()

    def value(variant: str, key: str) -> Any:
        sources = (variants[variant], config, default)
        return next(source[key] for source in sources if key in source)

    searched = {key for changes in variants.values() for key in changes}
    drawn = {
        key: tune.sample_from(lambda spec, key=key: value(spec.config[VARIANT], key))
        for key in searched
    }
    planned = {**experiment, "config": config | drawn | {VARIANT: tune.grid_search([*variants])}}
    return tune_experiment(
        name, planned, trial_dirname_creator=lambda trial: str(trial.config[VARIANT])
    )


def _finished(folder: Path) -> Run | None:
    """The run in the folder, if it ended with a checkpoint."""
    log, checkpoints = folder / "result.json", sorted(folder.glob("checkpoint_*"))
    if not log.is_file() or not checkpoints:
        return None
    last = log.read_text(encoding="utf-8").splitlines()[-1]
    return Run(json.loads(last), checkpoints[-1])


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes figures as CSV, a row each, with what they depend on besides their command."""
    origin = environment()
    versions = origin.pop("versions")
    whole = [{**row, **origin, **versions} for row in rows]
    with replacing(file) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(whole[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(whole)
