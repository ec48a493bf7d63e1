"""How the driver asks env runners for fragments, and takes what they have played."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from rllib_mfq.algorithm.fragment_batch import FragmentBatch
from rllib_mfq.algorithm.runner_failures import Failure, RunnerFailures, attempt

SAMPLE = "sample"  # tag of the requests for fragments
DROPPED = "num_agent_steps_dropped_lifetime"

State = Callable[[], ray.ObjectRef]
"""Gives everything that a runner, which may have been restarted, needs to play."""


class Played(NamedTuple):
    """What one runner has sampled."""

    fragments: list[FragmentBatch]
    metrics: dict[str, Any]
    learned: int | None = None  # of how many fragments the weights had learned


def _play(runner: Any) -> Played:
    """Samples on the local runner."""
    return Played(force_list(runner.sample()), runner.metrics.reduce())


def _play_remotely(runner: Any, state: dict[str, Any], learned: int) -> Played | Failure:
    """Samples on a remote runner, where the rows stay until a learner reads them.

    Ray passes on the state that a reference is of.

    An error is returned: one that is raised would only restart the runner.
    """
    runner.set_state(state)
    played = attempt(runner, lambda: _play(runner))
    if isinstance(played, Failure):
        return played
    return Played([batch.put() for batch in played.fragments], played.metrics, learned)


class Runners:
    """The env runners, as a source of fragments.

    Args:
        group: RLlib's `EnvRunnerGroup`.
        config: an `MFQConfig`.
        metrics: where the runners' metrics go.

    Attributes:
        learned: of how many runners' fragments the learner has learned.
        failures: of remote runners.
    """

    def __init__(self, group: Any, config: Any, metrics: Any) -> None:
        self._group, self._config, self._metrics = group, config, metrics
        self.learned = 0
        self.failures = RunnerFailures(group, config.sample_timeout_s)

    def request(self, state: State) -> None:
        """Asks every idle remote runner for a fragment."""
        group = self._group
        if group.num_in_flight_async_reqs(SAMPLE) < group.num_healthy_remote_env_runners():
            asked = {"state": state(), "learned": self.learned}
            group.foreach_env_runner_async(_play_remotely, tag=SAMPLE, kwargs=asked)
            self.failures.asked(self._under_way().values())

    def collect(self, state: State) -> list[list[FragmentBatch]]:
        """What the local runner plays, or each remote runner that has something to give.

        Raises the error of a runner, see `RunnerFailures.sort_out`.
        """
        if self._group.num_remote_env_runners():
            self.request(state)
            self._wait()
            results = self.failures.sort_out(self._fetch(), self._under_way().values())
        else:
            results = [_play(self._group.local_env_runner)]
        self._metrics.aggregate([played.metrics for played in results], key=ENV_RUNNER_RESULTS)
        return [played.fragments for played in results if self._is_fresh(played)]

    def drain(self) -> None:
        """Waits for the fragments under way and throws them away."""
        self._fetch(self._config.sample_timeout_s)

    def _wait(self) -> None:
        """Waits until one fragment is ready: a slow runner delays nobody."""
        if asked := [*self._under_way()]:
            ray.wait(asked, timeout=self._config.sample_timeout_s, fetch_local=False)

    def _under_way(self) -> dict[ray.ObjectRef, int]:
        """The requests that have not been fetched, and the numbers of their runners."""
        requests = self._group._worker_manager._in_flight_req_to_actor_id
        return {ref: number for ref, (tag, number) in requests.items() if tag == SAMPLE}

    def _fetch(self, timeout_seconds: float = 0.0) -> list[tuple[int, Any]]:
        """Numbers of runners and their results that are ready, which no later call returns.

        With a timeout it waits for all of them.
        """
        fetched: list[tuple[int, Any]] = self._group.fetch_ready_async_reqs(
            tags=SAMPLE, timeout_seconds=timeout_seconds
        )
        return fetched

    def _is_fresh(self, played: Played) -> bool:
        """Whether rows were played with weights as young as `max_weights_lag` asks.

        Rows that were not are counted, for they are dropped.
        """
        runners = max(1, self._group.num_healthy_remote_env_runners())
        lag = 0.0 if played.learned is None else (self.learned - played.learned) / runners
        fresh: bool = lag <= self._config.max_weights_lag
        if fresh:
            self._metrics.log_value("weights_lag", lag, reduce="max")
        rows = sum(batch.agent_steps() for batch in played.fragments)
        self._metrics.log_value(DROPPED, 0 if fresh else rows, reduce="lifetime_sum")
        return fresh
