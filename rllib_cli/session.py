"""The session: how the command starts Ray, which of its logs are seen, and Ctrl-C."""

import contextlib
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Self

import click
import ray
from ray import tune
from ray.air.execution._internal import RayActorManager
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from rllib_cli.experiments import BadInput, refusing
from rllib_cli.options import Options, cluster
from rllib_cli.plugins import for_workers
from rllib_cli.validation import Checked, plain_configs


def be_quiet(verbose: int) -> None:
    """Sets the environment variables of Ray and Tune; hides their logs if `verbose` is 0."""
    settings = {
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output takes no reporter
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `Interrupt` saves checkpoints
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # no win rate before the first evaluation
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in experiments are relative to the current folder
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning at every start
    }
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    if not verbose:
        warnings.filterwarnings("ignore", module="ray")
        for name in ("ray.tune", "ray.train", "ray.rllib"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def start_ray(options: Options) -> None:
    """Starts Ray, or joins the cluster at `--ray-address`."""
    if ray.is_initialized():
        return
    address = cluster(options)
    names = ("num_cpus", "num_gpus", "object_store_memory")
    resources = {name: getattr(options, f"ray_{name}") for name in names}
    given = {name: value for name, value in resources.items() if value is not None}
    if address and given:
        option = f"--ray-{next(iter(given)).replace('_', '-')}"
        raise BadInput(f"{option} has no effect on a cluster that runs already; leave it out.")
    if not address:
        given["include_dashboard"] = False
    with refusing(f"--ray-address {address}: ", ConnectionError, ValueError, RuntimeError):
        ray.init(
            address or "local",
            log_to_driver=options.verbose > 0,
            logging_level=("ERROR", "INFO", "DEBUG")[min(options.verbose, 2)],
            **given,
            **for_workers(options.plugins),
        )


def check_resources(checked: Mapping[str, Checked], options: Options) -> None:
    """Refuses a trial that needs more than this machine has: Tune would wait for ever."""
    have = ray.cluster_resources()
    for name, each in checked.items():
        plain = plain_configs(each.experiment["config"])[0]
        request = each.experiment["run"].default_resource_request(plain)
        for kind, needed in (request.required_resources if request else {}).items():
            if needed <= have.get(kind, 0):
                continue
            message = f"{name}: a trial needs {needed:g} {kind}, Ray has {have.get(kind, 0):g}"
            if cluster(options):  # which may still grow
                click.echo(f"note: {message} now; it waits for more.", file=sys.stderr)
            else:
                ray.shutdown()
                raise BadInput(
                    f"{message}; lower num_env_runners or num_learners, or give "
                    f"--ray-num-{kind.lower()}s {math.ceil(needed)} to share what there is."
                )


@contextlib.contextmanager
def kept_errors() -> Iterator[dict[str, Exception]]:
    """Keeps the last error of every trial by its id; Tune has them in files, if they fit."""
    errors: dict[str, Exception] = {}
    write = Trial.handle_error

    def handle_error(trial: Trial, exc: Any = None) -> None:
        errors[trial.trial_id] = exc
        with contextlib.suppress(OSError):
            write(trial, exc)

    Trial.handle_error = handle_error
    try:
        yield errors
    finally:
        Trial.handle_error = write


@contextlib.contextmanager
def released_results() -> Iterator[None]:
    """Lets Ray free each result once Tune has seen it; Tune would keep all until a trial ends."""
    resolve = RayActorManager._actor_task_resolved

    def resolve_and_release(manager: RayActorManager, **resolved: Any) -> None:
        resolve(manager, **resolved)
        pending = manager._actor_task_events.get_futures()
        for kept in manager._tracked_actors_to_task_futures.values():
            kept &= pending

    RayActorManager._actor_task_resolved = resolve_and_release
    try:
        yield
    finally:
        RayActorManager._actor_task_resolved = resolve


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def ray_until_signal(options: Options) -> Iterator[None]:
    """Starts Ray, and shuts it down at the end, which Ctrl-C and SIGTERM make of any moment."""
    received = signal.SIGINT

    def end(number: int, frame: Any) -> None:
        nonlocal received
        received = signal.Signals(number)
        raise KeyboardInterrupt  # Ray would make one of any other error, too

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        start_ray(options)
        for number in SIGNALS:  # after Ray has set its own, which aborts
            signal.signal(number, end)
        yield
    except KeyboardInterrupt:
        click.echo("\nEnded. Runs that have finished are kept; start again.", file=sys.stderr)
        sys.exit(128 + received)
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Interrupt(tune.Callback):
    """Makes the first Ctrl-C or SIGTERM pause every trial at the end of its iteration.

    Tune's own handler ends the run at once and saves no trial; Ray's aborts. A paused trial is
    saved, and Tune continues it when the experiment is resumed; a stopped trial would count as
    finished. A second signal ends the run at once.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self.requested: signal.Signals | None = None
        decide, choose = scheduler.on_trial_result, scheduler.choose_trial_to_run

        def on_trial_result(controller: Any, trial: Trial, result: dict[str, Any]) -> str:
            decision: str = decide(controller, trial, result)
            pause = self.requested is not None and decision == TrialScheduler.CONTINUE
            return TrialScheduler.PAUSE if pause else decision

        def choose_trial_to_run(*args: Any, **kwargs: Any) -> Trial | None:
            return None if self.requested else choose(*args, **kwargs)

        # A scheduler that wraps this one would not do: Tune checks the class of some schedulers.
        scheduler.on_trial_result = on_trial_result
        scheduler.choose_trial_to_run = choose_trial_to_run

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells say it; 0 without one."""
        return 128 + self.requested if self.requested else 0

    def __enter__(self) -> Self:
        """Handles the signals from now on; TUNE_DISABLE_SIGINT_HANDLER keeps Tune from doing so."""
        self._handlers = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        """Restores the handlers that were there before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ends the run when no trial runs any more, as Tune's own handler would."""
        if self.requested and all(trial.status != Trial.RUNNING for trial in trials):
            signal.raise_signal(signal.SIGUSR1)  # the signal that Tune still listens to

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks with the experiment; a signal handler cannot be saved."""
        return {"requested": None}

    def _request(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number)
        again = "press Ctrl-C" if number == signal.SIGINT else "send SIGTERM"
        click.echo(
            f"\nSaving a checkpoint at the end of this iteration; {again} again to end now.",
            file=sys.stderr,
        )
