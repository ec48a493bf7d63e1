"""Training: runs experiments with Tune and says what came out."""

import contextlib
import importlib.util
import math
import random
import shlex
import sys
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from ray import tune
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.utils import flatten_dict

from rllib_cli.experiments import BadInput, Experiment, find_example, read_experiments, refusing
from rllib_cli.hooks import hooks
from rllib_cli.options import Options, apply_options
from rllib_cli.plugins import import_plugins
from rllib_cli.progress import Progress, summary
from rllib_cli.results import RETURN, is_goal
from rllib_cli.resume import begin, was_run
from rllib_cli.rows import Rows, Table
from rllib_cli.session import (
    Interrupt,
    be_quiet,
    check_resources,
    kept_errors,
    ray_until_signal,
    released_results,
    start_ray,
)
from rllib_cli.storage import StoredExperiment, claim, is_local, reason
from rllib_cli.translation import translate
from rllib_cli.validation import TUNES, Checked, check, make_scheduler, searched
from rllib_mfq.algorithm.checkpoint import check_checkpoint
from rllib_mfq.arena.output import write_json
from rllib_mfq.arena.provenance import provenance
from rllib_mfq.experiments.runs import TRAINED, Run, finished
from rllib_mfq.mean_field.legal import is_number

FAILED = 1  # the exit code if a trial failed; a signal's is higher
VARIANT = "__variant__"  # the config key for a variant's name; MFQ leaves keys like this to Tune


def train(experiments: dict[str, Experiment], options: Options) -> int:
    """Checks experiments, runs them and prints what came out.

    Returns:
        The exit code: 0; 1 if a trial failed or, with `--as-test`, no trial reached a goal; 130
        after Ctrl-C, 143 after SIGTERM.

    Raises:
        BadInput: an experiment cannot run; no experiment has been started.
    """
    be_quiet(options.verbose)
    import_plugins(options.plugins)
    checked = prepare(experiments, options)
    plans = [_plan(name, each) for name, each in checked.items()]
    resumed = {plan.name for plan in plans if options.resume and was_run(plan.for_tune)}
    if options.resume and not resumed:
        folder = plans[0].for_tune.storage.experiment_fs_path
        raise BadInput(f"--resume finds no run in {folder}.")
    wandb = _wandb(options)
    with contextlib.ExitStack() as claims:
        for plan in plans:
            claims.enter_context(claim(plan.name, plan.for_tune))
            for notice in begin(plan.name, plan.for_tune, plan.checked, plan.name in resumed):
                click.echo(f"note: {notice}", file=sys.stderr)
        start_ray(options)
        check_resources(checked, options)
        if options.seed is not None:  # Tune draws its random numbers from these two
            random.seed(options.seed)
            np.random.seed(options.seed)
        codes = []
        for plan in plans:  # one after another: Tune resumes no two experiments at once
            codes.append(_run(plan, options, wandb, plan.name in resumed))
            if codes[-1] > FAILED:  # a signal
                break
    return max(codes)


def train_variants(
    example: str,
    variants: Mapping[str, Mapping[str, Any]],
    storage: Path,
    stop: Mapping[str, float] | None = None,
    processes: int = 2,
) -> dict[str, Run]:
    """Trains, side by side, the variants of an example that have no finished run; see `Train`.

    Raises:
        BadInput: a run failed or was interrupted; the runs that finished are kept.
    """
    (base,) = read_experiments(find_example(example)).values()
    base["stop"] |= stop or {}
    base["stop"].pop("time_total_s", None)  # so many rows on any machine, however slow it is
    base["config"]["num_env_runners"] = 0  # a run is one process: `processes` of them are the cores
    base["config"]["env"] = base.pop("env")  # where a variant may name another one
    runs = {name: run for name in variants if (run := finished(storage / name))}
    missing = {name: dict(variants[name]) for name in variants if name not in runs}
    be_quiet(0)
    # A Ray of its own, also where RAY_ADDRESS names a cluster: the runs are counted in cores.
    options = Options(ray_num_cpus=processes, ray_address="local")
    plain = {name: {**base, "config": base["config"] | variants[name]} for name in variants}
    checked = prepare({storage.name: base, **plain}, options)
    default = checked[storage.name].experiment["run"].get_default_config().to_dict()
    for name, run in runs.items():
        if differs := run.differs(base["stop"], checked[name].experiment["config"], default):
            raise BadInput(
                f"the run in {storage / name} {differs}; move it away, or ask for a run like that."
            )
    if missing:
        # What a variant leaves out is as in the example, not as in another variant.
        experiment = checked[storage.name].experiment
        experiment["storage_path"] = str(storage.parent)
        trials = _side_by_side(storage.name, experiment, missing)
        with claim(storage.name, trials), ray_until_signal(options), kept_errors() as errors:
            check_resources(checked, options)
            click.echo(f"training {len(missing)} runs, {processes} at a time, in {storage}")
            origin = provenance()
            for name in missing:
                (storage / name).mkdir(parents=True, exist_ok=True)
                write_json(storage / name / TRAINED, origin)
            for trial in _tune(trials, experiment["run"], [VARIANT], []):
                if trial.status == Trial.ERROR:
                    click.echo(summary(trial, [VARIANT], errors.get(trial.trial_id)))
    runs = {name: run for name in variants if (run := finished(storage / name))}
    lacking = [name for name in variants if name not in runs]
    if lacking:
        raise BadInput(f"the runs {', '.join(lacking)} in {storage} did not end; start again.")
    return runs


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
        if options.as_test and not _goals(translated):
            raise BadInput(
                f"{name}: --as-test needs a goal in stop, such as {RETURN}; there is "
                f"{', '.join(translated['stop']) or 'nothing'}."
            )
    return checked


class _Plan(NamedTuple):
    """An experiment that has been checked, and what Tune needs to run it."""

    name: str
    checked: Experiment
    for_tune: TuneExperiment  # the same experiment as Tune takes it
    scheduler: TrialScheduler
    metric: str  # the result by which its trials are ranked
    shown: list[str]  # the results that progress must show


def _plan(name: str, checked: Checked) -> _Plan:
    experiment, run = checked.experiment, checked.run
    given = (experiment.get("scheduler_config") or {}).get("metric")
    metric = given or next(iter([*_goals(experiment), *run.win_rates, RETURN]))
    for_tune = _tune_experiment(name, experiment)
    shown = [*run.win_rates, *run.beside, *experiment["stop"], *([given] if given else [])]
    scheduler = make_scheduler(name, experiment, metric, run)
    return _Plan(name, experiment, for_tune, scheduler, metric, shown)


def _tune_experiment(name: str, experiment: Experiment) -> TuneExperiment:
    """An experiment that has been checked, as Tune takes it."""
    given = {key: experiment[key] for key in TUNES if experiment.get(key) is not None}
    # Tune's own names of folders hold every setting that is searched, and are too long.
    given["trial_dirname_creator"] = lambda trial: str(trial.config.get(VARIANT, trial))
    if path := experiment.get("storage_path"):
        given["storage_path"] = path if "://" in path else str(Path(path).expanduser().resolve())
    checkpoints = {"checkpoint_at_end": True, **experiment["checkpoint_config"]}
    try:
        with refusing(f"{name}: ", TypeError, ValueError):
            given["checkpoint_config"] = tune.CheckpointConfig(**checkpoints)
            return StoredExperiment(name, **given)
    except OSError as error:
        path = f"storage_path is {given.get('storage_path')!r}, where"
        raise BadInput(f"{name}: {path} nothing can be written: {reason(error)}.") from error


def _side_by_side(
    name: str, experiment: Experiment, variants: dict[str, dict[str, Any]]
) -> TuneExperiment:
    """One experiment with a trial per variant: of several experiments, Tune would log only one."""
    config = experiment["config"]
    default = experiment["run"].get_default_config().to_dict()
    values = {name: ChainMap(changes, config, default) for name, changes in variants.items()}
    drawn = {
        key: tune.sample_from(lambda spec, key=key: values[spec.config[VARIANT]][key])
        for key in {key for changes in variants.values() for key in changes}
    }
    planned = {**experiment, "config": config | drawn | {VARIANT: tune.grid_search([*variants])}}
    return _tune_experiment(name, planned)


def _run(plan: _Plan, options: Options, callbacks: Sequence[tune.Callback], resume: bool) -> int:
    """Runs one experiment, says what came out and returns its exit code."""
    settings = plan.checked.get("scheduler_config") or {}
    mutated = settings.get("hyperparam_mutations", {})
    keys = list(dict.fromkeys([*searched(plan.checked["config"]), *mutated]))
    with Interrupt(plan.scheduler) as interrupt, kept_errors() as errors, released_results():
        try:
            trials = _tune(
                plan.for_tune,
                plan.checked["run"],
                keys,
                plan.shown,
                scheduler=plan.scheduler,
                callbacks=[*callbacks, interrupt],
                resume=resume,
            )
        except KeyboardInterrupt:
            click.echo("Ended without a checkpoint.", file=sys.stderr)
            return interrupt.exit_code
        except OSError as error:  # such as a full disk
            click.echo(f"{plan.name}: failed: {reason(error)}.", file=sys.stderr)
            return FAILED
    for trial in trials:
        why, told = errors.get(trial.trial_id), keys if trials[1:] else ()
        click.echo(summary(trial, told, why, settings.get("metric")))
    if interrupt.requested:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        click.echo(f"Go on with: {shlex.join(['rllib', *words, '--resume'])}")
        return interrupt.exit_code
    _show_best(trials, plan.metric, settings.get("mode", "max"), options.plugins)
    failed = any(trial.status != Trial.TERMINATED for trial in trials)
    goals = _goals(plan.checked)
    results = [trial.last_result for trial in trials]
    reached = any(_value(each, key) >= goal for each in results for key, goal in goals.items())
    if options.as_test and not reached:
        missed = " or ".join(f"{key} {goal:g}" for key, goal in goals.items())
        click.echo(f"{plan.name}: the goal was not reached: {missed}.", file=sys.stderr)
        failed = True
    return int(failed)


def _tune(
    experiment: TuneExperiment,
    algorithm: type,
    searched: Sequence[str],
    goals: Sequence[str],
    callbacks: Sequence[tune.Callback] = (),
    **settings: Any,
) -> list[Trial]:
    """Lets Tune run an experiment, and shows the progress; `goals` are results to be shown."""
    rows = [Rows(), Table()] if is_local(experiment) else []
    trials: list[Trial] = tune.run(
        experiment,
        verbose=1,
        progress_reporter=Progress(hooks(algorithm), searched, goals),
        raise_on_failed_trial=False,
        callbacks=[*rows, *callbacks],
        **settings,
    ).trials
    return trials


def _wandb(options: Options) -> list[tune.Callback]:
    if not (options.wandb_key or options.wandb_project or options.wandb_run_name):
        return []
    if importlib.util.find_spec("wandb") is None:
        raise BadInput("--wandb-project needs the package wandb; install it with pip.")
    from ray.air.integrations.wandb import WandbLoggerCallback

    names = {"name": options.wandb_run_name} if options.wandb_run_name else {}
    return [WandbLoggerCallback(options.wandb_project, api_key=options.wandb_key, **names)]


def _goals(experiment: Experiment) -> dict[str, float]:
    return {key: value for key, value in experiment["stop"].items() if is_goal(key)}


def _value(results: dict[str, Any] | None, metric: str) -> float:
    value = flatten_dict(results or {}).get(metric, math.nan)
    return float(value) if is_number(value) else math.nan


def _show_best(trials: list[Trial], metric: str, mode: str, plugins: Sequence[str]) -> None:
    """Names the best checkpoint and how to play it."""
    sign = 1 if mode == "max" else -1
    saved = [
        (sign * _value(result.metrics, metric), result.checkpoint.path)
        for trial in trials
        for result in trial.run_metadata.checkpoint_manager.best_checkpoint_results
    ]
    if not saved:
        return
    saved.reverse()  # of several that are alike, the newest
    value, path = max(saved, key=lambda pair: (not math.isnan(pair[0]), pair[0]))
    known = "" if math.isnan(value) else f" ({metric} {sign * value:.3g})"
    opponents = (trials[0].config or {}).get("evaluation_opponents") or {}
    opponent = " --opponent random" if "random" in opponents.values() else ""
    if len(saved) > 1:
        click.echo(f"best{known}: {path}")
    imports = "".join(f" --import {plugin}" for plugin in plugins)
    click.echo(f"play it: rllib evaluate {shlex.quote(path)}{opponent}{imports}")
