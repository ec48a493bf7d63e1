"""Training: runs experiments with Tune and says what came out."""

import importlib.util
import math
import random
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import ray
from pyarrow.fs import FileSelector
from ray import tune
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.utils import flatten_dict

from rllib_cli.experiments import BadInput, Experiment, refusing
from rllib_cli.hooks import Hooks, hooks
from rllib_cli.options import Options, apply_options, cluster, storage
from rllib_cli.progress import Progress, summary
from rllib_cli.reported import RETURN, is_goal
from rllib_cli.session import Interrupt, be_quiet, import_plugins, start_ray
from rllib_cli.sweep import make_scheduler, plain_configs, searched
from rllib_cli.translation import translate
from rllib_cli.validation import TUNES, Checked, check
from rllib_mfq.algorithm.checkpoint import check_checkpoint
from rllib_mfq.mean_field.legal import is_number

INTERRUPTED = 130  # the exit code of a process that Ctrl-C ended


def train(experiments: dict[str, Experiment], options: Options) -> int:
    """Checks the experiments, runs them and prints what came out.

    Args:
        experiments: as read.
        options: of the command line.

    Returns:
        The exit code: 0; 1 if a trial failed or, with `--as-test`, missed every goal; 130 after
        Ctrl-C.

    Raises:
        BadInput: something cannot work; nothing has been started.
    """
    be_quiet(options.verbose)
    import_plugins(options.plugins)
    checked = prepare(experiments, options)
    plans = [_plan(name, each) for name, each in checked.items()]
    if options.resume and not any(map(_was_run, plans)):
        folder = plans[0].experiment.storage.experiment_fs_path
        raise BadInput(f"--resume finds no run in {folder}.")
    wandb = _wandb(options)
    start_ray(options)
    _check_resources(checked, options)
    if options.seed is not None:  # Tune's draws come from these two
        random.seed(options.seed)
        np.random.seed(options.seed)
    codes = []
    for plan in plans:  # one after another: Tune resumes no two experiments at once
        codes.append(_run(plan, options, wandb))
        if codes[-1] == INTERRUPTED:
            break
    return max(codes)


@dataclass
class _Plan:
    """An experiment as Tune takes it, and the result by which its trials are ranked."""

    experiment: TuneExperiment
    hooks: Hooks
    scheduler: TrialScheduler
    metric: str
    mode: str
    goals: dict[str, float]
    searched: list[str]


def _plan(name: str, checked: Checked) -> _Plan:
    experiment, run = checked.experiment, checked.run
    settings = experiment.get("scheduler_config") or {}
    goals = {key: value for key, value in experiment["stop"].items() if is_goal(key)}
    metric = settings.get("metric") or next(iter([*goals, *run.win_rates, RETURN]))
    kind = experiment.get("scheduler") or "fifo"
    return _Plan(
        tune_experiment(name, experiment),
        hooks(experiment["run"]),
        make_scheduler(name, kind, settings, metric, run),
        metric,
        settings.get("mode", "max"),
        goals,
        [*searched(experiment["config"]), *settings.get("hyperparam_mutations", {})],
    )


def _run(plan: _Plan, options: Options, callbacks: list[tune.Callback]) -> int:
    """Runs one experiment, says what came out and returns its exit code."""
    terminal = sys.stdout.isatty()
    with Interrupt(plan.scheduler) as interrupt:
        try:
            trials: list[Trial] = tune.run(
                [plan.experiment],
                scheduler=plan.scheduler,
                verbose=1 if terminal else 0,
                progress_reporter=Progress(plan.hooks, plan.searched) if terminal else None,
                callbacks=[*callbacks, interrupt],
                resume=options.resume and _was_run(plan),
                raise_on_failed_trial=False,
            ).trials
        except KeyboardInterrupt:
            click.echo("Ended without a checkpoint.", file=sys.stderr)
            return INTERRUPTED
    for trial in trials:
        click.echo(summary(trial, plan.searched if len(trials) > 1 else ()))
    if interrupt.requested:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        click.echo(f"Go on with: {shlex.join(['rllib', *words, '--resume'])}")
        return INTERRUPTED
    _show_best(plan, trials)
    failed = any(trial.status != Trial.TERMINATED for trial in trials)
    missed = options.as_test and not _reached(plan, trials)
    return 1 if failed or missed else 0


def prepare(experiments: dict[str, Experiment], options: Options) -> dict[str, Checked]:
    """Applies the options, translates old names, checks, and prints notices of what changed."""
    if options.local_mode:
        note = "Ray has none any more; num_env_runners and num_learners are 0 instead"
        click.echo(f"note: --local-mode: {note}.", file=sys.stderr)
    checked = {}
    for name, experiment in apply_options(experiments, options).items():
        translated, notices = translate(name, experiment)
        if translated.get("restore"):
            with refusing():
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


def _wandb(options: Options) -> list[tune.Callback]:
    if not (options.wandb_key or options.wandb_project or options.wandb_run_name):
        return []
    if importlib.util.find_spec("wandb") is None:
        raise BadInput("--wandb-project needs the package wandb; install it with pip.")
    from ray.air.integrations.wandb import WandbLoggerCallback

    names = {"name": options.wandb_run_name} if options.wandb_run_name else {}
    return [WandbLoggerCallback(options.wandb_project, api_key=options.wandb_key, **names)]


def _check_resources(checked: dict[str, Checked], options: Options) -> None:
    """Refuses what this machine cannot run: Tune would wait for ever for a CPU it does not have.

    A cluster may still grow, so there this is only a notice.
    """
    have = ray.cluster_resources()
    for name, each in checked.items():
        plain = next(iter(plain_configs(each.experiment["config"])))
        request = each.experiment["run"].default_resource_request(plain)
        for kind, needed in (request.required_resources if request else {}).items():
            if needed <= have.get(kind, 0):
                continue
            message = f"{name}: a trial needs {needed:g} {kind}, Ray has {have.get(kind, 0):g}"
            if cluster(options):
                click.echo(f"note: {message} now; it waits for more.", file=sys.stderr)
            else:
                ray.shutdown()
                raise BadInput(
                    f"{message}; lower num_env_runners or num_learners, or give "
                    f"--ray-num-{kind.lower()}s {math.ceil(needed)} to share what there is."
                )


def tune_experiment(
    name: str, experiment: Experiment, trial_dirname_creator: Callable[[Trial], str] = str
) -> TuneExperiment:
    """An experiment that has been checked, as Tune takes it.

    Args:
        name: of the experiment.
        experiment: what `check` returns.
        trial_dirname_creator: names the folder of a trial; Tune's own names hold every setting
            that is searched, and fill three lines.
    """
    given = {key: experiment[key] for key in TUNES if experiment.get(key) is not None}
    given["trial_dirname_creator"] = trial_dirname_creator
    if experiment.get("storage_path"):
        given["storage_path"] = storage(experiment["storage_path"])
    checkpoints = {"checkpoint_at_end": True, **experiment["checkpoint_config"]}
    with refusing(f"{name}: ", TypeError, ValueError):
        given["checkpoint_config"] = tune.CheckpointConfig(**checkpoints)
        return TuneExperiment(name, **given)


def _was_run(plan: _Plan) -> bool:
    """Whether there is a run to resume."""
    storage = plan.experiment.storage
    folder = FileSelector(storage.experiment_fs_path, allow_not_found=True)
    files = storage.storage_filesystem.get_file_info(folder)
    return any(file.base_name.startswith("experiment_state-") for file in files)


def _value(results: dict[str, Any] | None, metric: str) -> float:
    value = flatten_dict(results or {}).get(metric, math.nan)
    return float(value) if is_number(value) else math.nan


def _show_best(plan: _Plan, trials: list[Trial]) -> None:
    """Names the best checkpoint and how to play it."""
    sign = 1 if plan.mode == "max" else -1
    saved = [
        (sign * _value(result.metrics, plan.metric), result.checkpoint.path)
        for trial in trials
        for result in trial.run_metadata.checkpoint_manager.best_checkpoint_results
    ]
    if not saved:
        return
    value, path = max(saved, key=lambda pair: (not math.isnan(pair[0]), pair[0]))
    known = "" if math.isnan(value) else f" ({plan.metric} {sign * value:.3g})"
    opponent = " --opponent random" if "/win_rate/" in plan.metric else ""
    if len(saved) > 1:
        click.echo(f"best{known}: {path}")
    click.echo(f"play it: rllib evaluate {shlex.quote(path)}{opponent}")


def _reached(plan: _Plan, trials: list[Trial]) -> bool:
    """Whether a trial reached a goal in `stop`; says so if none did."""
    for trial in trials:
        if any(_value(trial.last_result, key) >= goal for key, goal in plan.goals.items()):
            return True
    goals = " or ".join(f"{key} {goal:g}" for key, goal in plan.goals.items())
    click.echo(
        f"{plan.experiment.storage.experiment_dir_name}: the goal was not reached: {goals}.",
        file=sys.stderr,
    )
    return False
