"""Evaluation: what an algorithm of RLlib's lacks in it, on both API stacks."""

from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils import metrics as names
from ray.rllib.utils.annotations import override

from rllib_mfq.algorithm import figures
from rllib_mfq.algorithm.runner_failures import RunnerError

ANSWER_S = 10.0  # within which a runner that has played says whether it failed


class EvaluatingAlgorithm(figures.ReportingAlgorithm):
    """Evaluates without `evaluation_interval`, too, and says what fails in remote runners."""

    _latest: dict[str, Any]  # results that are not made in every iteration
    _fresh: set[str]  # which of them this iteration makes
    _steps_evaluated = 0  # by remote runners in the last evaluation

    @override(Algorithm)
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As RLlib's; without `evaluation_interval`, too, it plays as `evaluation_config` says.

        Raises what failed in a remote runner; RunnerError if none of them answered in time.
        """
        if self.eval_env_runner_group is None:  # type: ignore[has-type]
            # RLlib would let the runner that trains play, which explores and reports no returns.
            self.eval_env_runner_group = EnvRunnerGroup(
                env_creator=self.env_creator,
                default_policy_class=self.get_default_policy_class(self.config),
                config=self.evaluation_config,
                logdir=self.logdir,
            )
        known = self._latest.get(names.EVALUATION_RESULTS, {})
        self._steps_evaluated = 1  # unless the method below counts them
        results = figures.accumulated(super().evaluate(*args, **kwargs), known)
        group = self.eval_env_runner_group
        if group is not None and group.num_remote_env_runners():
            for failure in group.foreach_env_runner(
                lambda r: r.take_failure(), local_env_runner=False, timeout_seconds=ANSWER_S
            ):
                if failure is not None:
                    raise failure.error("an env runner that evaluates failed with")
        if not self._steps_evaluated:
            for runner in group._worker_manager.actors().values():  # else `stop` waits for them
                ray.kill(runner)
            raise RunnerError(
                "no env runner that evaluates has answered within "
                f"{self.config.evaluation_sample_timeout_s:g} s, which is "
                "evaluation_sample_timeout_s: set it longer, or evaluation_duration smaller."
            )
        self._latest[names.EVALUATION_RESULTS] = figures.keep_known(results, known)
        self._fresh.add(names.EVALUATION_RESULTS)
        return results

    @override(Algorithm)
    def _evaluate_with_fixed_duration(self) -> Any:
        # Of runners that do not answer RLlib says nothing, and reports the last evaluation again.
        found = super()._evaluate_with_fixed_duration()
        self._steps_evaluated = found[1]
        return found
