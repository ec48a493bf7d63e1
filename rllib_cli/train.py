"""Training: runs experiments with Tune and says what came out."""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import sys
from typing import Any

import click
import ray
from ray import tune
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.utils import flatten_dict

from rllib_cli.checkpoint import check_checkpoint
from rllib_cli.experiments import BadInput, Experiment
from rllib_cli.interrupt import Interrupt
from rllib_cli.options import Options, apply_options, storage
from rllib_cli.progress import Progress, summary
from rllib_cli.reported import is_goal
from rllib_cli.scheduler import make_scheduler
from rllib_cli.search_space import examples, searched
from rllib_cli.session import be_quiet, import_plugins, start_ray
from rllib_cli.translation import translate
from rllib_cli.validation import Checked, check

RETURN = "env_runners/episode_return_mean"


def train(experiments: dict[str, Experiment], options: Options) -> int:
    """Checks the experiments, runs them and prints what came out.

    Args:
        experiments: as read.
        options: of the command line.

    Returns:
        The exit code: 0, 1 if a trial failed or, with `--as-test`, a goal was missed, 130 after
        Ctrl-C.

    Raises:
        BadInput: before anything is started, on anything that cannot work.
    """
    be_quiet(options.verbose)
    import_plugins(options.plugins)
    checked = prepare(experiments, options)
    metrics = {name: best_by(each) for name, each in checked.items()}
    scheduler = _scheduler(checked, metrics)
    callbacks = _wandb(options)
    start_ray(options)
    _check_resources(checked, options)
    tuned = [_tune_experiment(name, each.experiment) for name, each in checked.items()]
    if options.resume:
        _check_resume(tuned)
    keys = sorted({key for each in checked.values() for key in searched(each.experiment["config"])})
    terminal = sys.stdout.isatty()
    with Interrupt(scheduler) as interrupt:
        try:
            trials: list[Trial] = tune.run(
                tuned,
                scheduler=scheduler,
                verbose=1 if terminal else 0,
                progress_reporter=Progress(keys) if terminal else None,
                callbacks=[*callbacks, interrupt],
                resume=options.resume,
                raise_on_failed_trial=False,
            ).trials
        except KeyboardInterrupt:
            click.echo("Ended without a checkpoint.", file=sys.stderr)
            return 130
    for trial in trials:
        click.echo(summary(trial, keys if len(trials) > len(checked) else ()))
    if interrupt.requested:
        click.echo(f"Go on with: {shlex.join(_resume_command())}")
        return 130
    for name in checked:
        _show_best(name, trials, *metrics[name])
    failed = any(trial.status != Trial.TERMINATED for trial in trials)
    missed = options.as_test and any(_missed(n, c, trials) for n, c in checked.items())
    return 1 if failed or missed else 0


def prepare(experiments: dict[str, Experiment], options: Options) -> dict[str, Checked]:
    """Applies the options, translates old names and checks, with a notice of what changed."""
    checked = {}
    for name, experiment in apply_options(experiments, options).items():
        translated, notices = translate(name, experiment)
        if translated.get("restore"):
            translated["restore"] = check_checkpoint(translated["restore"])
        checked[name] = check(name, translated)
        for notice in (*notices, *checked[name].notices):
            click.echo(f"note: {notice}", file=sys.stderr)
        goals = [key for key in translated["stop"] if is_goal(key)]
        if options.as_test and not goals:
            raise BadInput(
                f"{name}: --as-test needs a goal in stop, such as {RETURN}; there is "
                f"{', '.join(translated['stop']) or 'nothing'}."
            )
    return checked


def best_by(checked: Checked) -> tuple[str, str]:
    """Metric and mode by which trials of an experiment are ranked."""
    experiment, run = checked.experiment, checked.run
    settings = experiment.get("scheduler_config") or {}
    goals = [key for key in experiment["stop"] if is_goal(key)]
    rates = [f"evaluation/env_runners/win_rate/{opponent}" for opponent in sorted(run.opponents)]
    metric = next(iter([*filter(None, [settings.get("metric")]), *goals, *rates, RETURN]))
    return metric, settings.get("mode", "max")


def _scheduler(checked: dict[str, Checked], metrics: dict[str, tuple[str, str]]) -> TrialScheduler:
    (name, first), *others = checked.items()
    wanted = [
        (c.experiment.get(k) for k in ("scheduler", "scheduler_config")) for c in checked.values()
    ]
    first_wanted = tuple(wanted[0])
    for (other, _), theirs in zip(others, wanted[1:], strict=True):
        if tuple(theirs) != first_wanted:
            raise BadInput(
                f"{name} and {other} have different schedulers; put them into two files."
            )
    scheduler, settings = first_wanted
    return make_scheduler(name, scheduler or "fifo", settings or {}, metrics[name][0], first.run)


def _wandb(options: Options) -> list[tune.Callback]:
    if not (options.wandb_key or options.wandb_project or options.wandb_run_name):
        return []
    if importlib.util.find_spec("wandb") is None:
        raise BadInput("--wandb-project needs the package wandb; install it with pip.")
    from ray.air.integrations.wandb import WandbLoggerCallback

    names = {"name": options.wandb_run_name} if options.wandb_run_name else {}
    return [WandbLoggerCallback(options.wandb_project, api_key=options.wandb_key, **names)]


def _check_resources(checked: dict[str, Checked], options: Options) -> None:
    """Tune waits for ever for a CPU that does not exist; a cluster may still grow."""
    have = ray.cluster_resources()
    for name, each in checked.items():
        plain = next(iter(examples(each.experiment["config"])))
        request = each.experiment["run"].default_resource_request(plain)
        for kind, needed in (request.required_resources if request else {}).items():
            if needed <= have.get(kind, 0):
                continue
            message = f"{name}: a trial needs {needed:g} {kind}, Ray has {have.get(kind, 0):g}"
            if options.ray_address or os.environ.get("RAY_ADDRESS"):
                click.echo(f"note: {message} now; it waits for more.", file=sys.stderr)
            else:
                ray.shutdown()
                raise BadInput(
                    f"{message}; lower num_env_runners or num_learners, or give "
                    f"--ray-num-{kind.lower()}s {math.ceil(needed)} to share what there is."
                )


def _tune_experiment(name: str, experiment: Experiment) -> TuneExperiment:
    keys = ("run", "stop", "config", "num_samples", "restore", "max_failures")
    given = {
        key: experiment[key]
        for key in (*keys, "time_budget_s", "log_to_file")
        if experiment.get(key) is not None
    }
    if experiment.get("storage_path"):
        given["storage_path"] = storage(experiment["storage_path"])
    checkpoints = {"checkpoint_at_end": True, **experiment["checkpoint_config"]}
    try:
        return TuneExperiment(name, checkpoint_config=tune.CheckpointConfig(**checkpoints), **given)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name}: {' '.join(str(error).split())}") from error


def _check_resume(experiments: list[TuneExperiment]) -> None:
    first = experiments[0].storage
    if not tune.Tuner.can_restore(first.experiment_fs_path, first.storage_filesystem):
        raise BadInput(f"--resume finds no run in {first.experiment_fs_path}.")


def _resume_command() -> list[str]:
    return ["rllib", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"]


def _value(results: dict[str, Any] | None, metric: str) -> float:
    value = flatten_dict(results or {}).get(metric, math.nan)
    return float(value) if isinstance(value, int | float) else math.nan


def _show_best(name: str, trials: list[Trial], metric: str, mode: str) -> None:
    """Names the best checkpoint of an experiment and how to play it."""
    sign = 1 if mode == "max" else -1
    saved = [
        (sign * _value(result.metrics, metric), result.checkpoint.path)
        for trial in trials
        if trial.storage.experiment_dir_name == name
        for result in trial.run_metadata.checkpoint_manager.best_checkpoint_results
    ]
    if not saved:
        return
    value, path = max(saved, key=lambda pair: (not math.isnan(pair[0]), pair[0]))
    known = "" if math.isnan(value) else f" ({metric} {sign * value:.3g})"
    opponent = " --opponent random" if "/win_rate/" in metric else ""
    if len(saved) > 1:
        click.echo(f"best of {name}{known}: {path}")
    click.echo(f"play it: rllib evaluate {shlex.quote(path)}{opponent}")


def _missed(name: str, checked: Checked, trials: list[Trial]) -> bool:
    """Whether no trial of the experiment reached any goal in its `stop`."""
    goals = {key: value for key, value in checked.experiment["stop"].items() if is_goal(key)}
    mine = [trial for trial in trials if trial.storage.experiment_dir_name == name]
    missed = not any(_value(t.last_result, k) >= v for t in mine for k, v in goals.items())
    if missed:
        text = " or ".join(f"{key} {value:g}" for key, value in goals.items())
        click.echo(f"{name}: the goal was not reached: {text}.", file=sys.stderr)
    return missed
