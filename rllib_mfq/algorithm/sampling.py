"""How the driver asks env runners for fragments, and takes what they have played."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.rllib.utils import force_list
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS

from rllib_mfq.algorithm.fragment_batch import FragmentBatch
from rllib_mfq.population.population import PopulationError

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


def _play_remotely(runner: Any, state: dict[str, Any], learned: int) -> Played | PopulationError:
    """Samples on a remote runner, where the rows stay until a learner reads them.

    Ray passes on the state that a reference is of.

    An error of the environment is returned: one that is raised would only restart the runner.
    """
    runner.set_state(state)
    try:
        played = _play(runner)
    except PopulationError as error:
        return error
    return Played([batch.put() for batch in played.fragments], played.metrics, learned)


class Runners:
    """The env runners, as a source of fragments.

    Args:
        group: RLlib's `EnvRunnerGroup`.
        config: an `MFQConfig`.
        metrics: where the runners' metrics go.

    Attributes:
        learned: of how many runners' fragments the learner has learned.
    """

    def __init__(self, group: Any, config: Any, metrics: Any) -> None:
        self._group, self._config, self._metrics = group, config, metrics
        self.learned = 0

    def request(self, state: State) -> None:
        """Asks every idle remote runner for a fragment."""
        group = self._group
        if group.num_in_flight_async_reqs(SAMPLE) < group.num_healthy_remote_env_runners():
            asked = {"state": state(), "learned": self.learned}
            group.foreach_env_runner_async(_play_remotely, tag=SAMPLE, kwargs=asked)

    def collect(self, state: State) -> list[list[FragmentBatch]]:
        """What the local runner plays, or each remote runner that has something to give.

        Raises the PopulationError of a runner.
        """
        if self._group.num_remote_env_runners():
            self.request(state)
            self._wait()
            results = self._fetch()
        else:
            results = [_play(self._group.local_env_runner)]
        for result in results:
            if isinstance(result, PopulationError):
                raise result
        self._metrics.aggregate([played.metrics for played in results], key=ENV_RUNNER_RESULTS)
        return [played.fragments for played in results if self._is_fresh(played)]

    def drain(self) -> None:
        """Waits for the fragments under way and throws them away."""
        self._fetch(self._config.sample_timeout_s)

    def _wait(self) -> None:
        """Waits until one fragment is ready: a slow runner delays nobody."""
        manager = self._group._worker_manager
        asked = [r for r, (tag, _) in manager._in_flight_req_to_actor_id.items() if tag == SAMPLE]
        if asked:
            ray.wait(asked, timeout=self._config.sample_timeout_s, fetch_local=False)

    def _fetch(self, timeout_seconds: float = 0.0) -> list[Any]:
        """The results that are ready, which no later call returns, in the order of the runners.

        With a timeout it waits for all of them.
        """
        fetched = self._group.fetch_ready_async_reqs(tags=SAMPLE, timeout_seconds=timeout_seconds)
        return [result for _, result in sorted(fetched, key=lambda pair: pair[0])]

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
