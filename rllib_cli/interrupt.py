"""Ctrl-C: every running trial saves a checkpoint, from which `--resume` goes on."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler


class Interrupt(tune.Callback):
    """Turns the first Ctrl-C into a pause of every trial at the end of its iteration.

    Tune's own handler ends the run at once and saves no trial. A paused trial is saved, and Tune
    takes it up again when it resumes the experiment; one that is stopped counts as finished.
    A second Ctrl-C ends the run at once.

    Args:
        scheduler: of the run; from the first Ctrl-C on it pauses and starts nothing.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self.requested = False
        decide, choose = scheduler.on_trial_result, scheduler.choose_trial_to_run

        def on_trial_result(controller: Any, trial: Trial, result: dict[str, Any]) -> str:
            decision: str = decide(controller, trial, result)
            pause = self.requested and decision == TrialScheduler.CONTINUE
            return TrialScheduler.PAUSE if pause else decision

        def choose_trial_to_run(*args: Any, **kwargs: Any) -> Trial | None:
            return None if self.requested else choose(*args, **kwargs)

        # Set on the object: Tune asks some schedulers for their class, so none is wrapped.
        scheduler.on_trial_result = on_trial_result
        scheduler.choose_trial_to_run = choose_trial_to_run

    def __enter__(self) -> Interrupt:
        """Takes over Ctrl-C; Tune is told by TUNE_DISABLE_SIGINT_HANDLER to leave it alone."""
        self._handler = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        """Gives Ctrl-C back."""
        signal.signal(signal.SIGINT, self._handler)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ends the run, as Tune's handler would, when no trial runs any more."""
        if self.requested and all(trial.status != Trial.RUNNING for trial in trials):
            signal.raise_signal(signal.SIGUSR1)  # what Tune still listens to

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves callbacks with the experiment; a signal handler cannot be."""
        return {"requested": False}

    def _request(self, *args: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        click.echo(
            "\nSaving a checkpoint at the end of this iteration; press Ctrl-C again to end now.",
            file=sys.stderr,
        )
