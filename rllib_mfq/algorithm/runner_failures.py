"""Remote env runners that fail: what is tolerated, and what ends the run with one sentence.

RLlib restarts a runner whose call raises, as often as it raises, and logs that only. So a runner
returns its errors, and the driver counts them.
"""

import contextlib
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ray

from rllib_mfq.algorithm.divergence import Diverged
from rllib_mfq.population.population import PopulationError

logger = logging.getLogger(__name__)

FATAL = (PopulationError, Diverged)
"""Errors that come back however often a runner is made anew."""

TOLERATED = 3
"""How often in a row a runner may fail, with new environments each time."""


class RunnerError(RuntimeError):
    """A remote env runner fails again and again, or does not answer."""


class Failure(NamedTuple):
    """What a runner returns instead of a fragment."""

    text: str
    traceback: str
    fatal: Exception | None = None

    def error(self, what: str) -> Exception:
        """The error to raise, whose sentence begins with `what` unless it is a fatal one."""
        logger.error("%s\n%s", what, self.traceback)
        return self.fatal or RunnerError(f"{what} {' '.join(self.text.split())}.")


def failure_of(error: Exception) -> Failure:
    """The failure that an error is; call it where the error is handled.

    The error itself stays behind, for others may be unable to unpickle it.
    """
    text = f"{type(error).__name__}: {error}"
    return Failure(text, traceback.format_exc(), error if isinstance(error, FATAL) else None)


def attempt(runner: Any, play: Callable[[], Any]) -> Any:
    """What `play` returns; if it raises, a Failure, and the runner has new environments."""
    try:
        return play()
    except Exception as error:
        failure = failure_of(error)
    if failure.fatal is None:
        with contextlib.suppress(Exception):  # if this fails, the next fragment fails, too
            runner.make_env()
    return failure


class RunnerFailures:
    """Counts the failures of remote runners, and knows which of them keep silent.

    Args:
        group: RLlib's `EnvRunnerGroup`.
        timeout_s: how long a runner may take for a fragment.
    """

    def __init__(self, group: Any, timeout_s: float) -> None:
        self._group, self._timeout_s = group, timeout_s
        self._in_a_row: Counter[int] = Counter()
        self._silent_since: dict[int, float] = {}
        self._last = time.monotonic()  # when a fragment came

    def sort_out(self, fetched: Iterable[tuple[int, Any]], asked: Iterable[int]) -> list[Any]:
        """What has been played, in the order of the runners.

        Args:
            fetched: number of a runner and what it returned.
            asked: numbers of the runners that have not answered yet.

        Raises:
            PopulationError: of a runner.
            Diverged: of a runner.
            RunnerError: a runner failed too often in a row, or nobody answers.
        """
        now, played = time.monotonic(), []
        for number, result in sorted(fetched, key=lambda pair: pair[0]):
            self._silent_since.pop(number, None)
            if isinstance(result, Failure):
                self._failed(number, result)
            else:
                self._in_a_row.pop(number, None)
                played.append(result)
        self._last = now if played else self._last
        self.asked(asked)
        hung = sorted(n for n, t in self._silent_since.items() if now - t >= self._timeout_s)
        if hung:
            self._hang(hung, everybody=not played)
        elif not self._silent_since and now - self._last > 3 * self._timeout_s:
            raise RunnerError(
                f"no env runner has given a fragment for {now - self._last:.0f} s, for all of them "
                "die: the log of Ray says of what."
            )
        return played

    def asked(self, numbers: Iterable[int]) -> None:
        """Notes which runners owe a fragment from now on, if they did not before."""
        now = time.monotonic()
        self._silent_since = {n: self._silent_since.get(n, now) for n in numbers}

    def begin(self) -> None:
        """Begins an iteration: nobody was waited for before it."""
        self._last = time.monotonic()

    def _failed(self, number: int, failure: Failure) -> None:
        self._in_a_row[number] += 1
        times = f"{self._in_a_row[number]} times in a row without a fragment, at last with"
        error = failure.error(f"env runner {number} failed {times}")
        if failure.fatal is not None or self._in_a_row[number] >= TOLERATED:
            raise error

    def _hang(self, numbers: list[int], everybody: bool) -> None:
        """Restarts runners that do not answer; if nobody does, the run ends."""
        which = ", ".join(map(str, numbers))
        text = (
            f"env runner {which} has given no fragment for {self._timeout_s:g} s, which is "
            "sample_timeout_s: step or reset of its environment does not return, or takes so long "
            "that sample_timeout_s must be longer."
        )
        for number in numbers:  # it could not even be asked to stop
            self._silent_since.pop(number)
            ray.kill(self._group._worker_manager.actors()[number], no_restart=everybody)
        if everybody:
            raise RunnerError(text)
        logger.error("%s It is restarted.", text)
