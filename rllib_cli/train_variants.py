"""Variants: trains an example in several variants, side by side, for the paper's experiments."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import ray
from ray import tune
from ray.tune.experiment import Experiment as TuneExperiment

from rllib_cli.experiments import BadInput, Experiment, find_example, read_experiments
from rllib_cli.hooks import hooks
from rllib_cli.options import Options
from rllib_cli.progress import Progress
from rllib_cli.session import be_quiet, start_ray
from rllib_cli.train import prepare, tune_experiment
from rllib_mfq.experiments.runs import Run, finished

VARIANT = "__variant__"
"""The key of the config that holds the name of a variant; MFQ leaves keys like this to Tune."""


def train_variants(
    example: str,
    variants: Mapping[str, Mapping[str, Any]],
    storage: Path,
    stop: Mapping[str, float] | None = None,
    processes: int = 2,
) -> dict[str, Run]:
    """Trains every variant of an example that has no finished run yet; see `Train`.

    Raises:
        BadInput: a run failed or was interrupted; those that finished are kept.
    """
    missing = {
        name: dict(changes) for name, changes in variants.items() if not finished(storage / name)
    }
    if missing:
        _train(example, missing, storage, stop or {}, processes)
    runs = {name: run for name in variants if (run := finished(storage / name))}
    lacking = [name for name in variants if name not in runs]
    if lacking:
        raise BadInput(f"the runs {', '.join(lacking)} in {storage} did not end; start again.")
    return runs


def _train(
    example: str,
    variants: Mapping[str, Mapping[str, Any]],
    storage: Path,
    stop: Mapping[str, float],
    processes: int,
) -> None:
    be_quiet(0)
    options = Options(ray_num_cpus=processes)
    (base,) = read_experiments(find_example(example)).values()
    base["stop"] |= stop
    plain = {name: {**base, "config": base["config"] | c} for name, c in variants.items()}
    checked = next(iter(prepare(plain, options).values())).experiment
    checked["storage_path"] = str(storage.parent)
    start_ray(options)
    terminal = sys.stdout.isatty()
    click.echo(f"training {len(variants)} runs, {processes} at a time, in {storage}")
    try:
        tune.run(
            _side_by_side(storage.name, checked, variants),
            verbose=1 if terminal else 0,
            progress_reporter=Progress(hooks(checked["run"]), [VARIANT]) if terminal else None,
            raise_on_failed_trial=False,
        )
    finally:
        ray.shutdown()


def _side_by_side(
    name: str, experiment: Experiment, variants: Mapping[str, Mapping[str, Any]]
) -> TuneExperiment:
    """One experiment of Tune's with a trial per variant: of several, Tune would log only one."""
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
