"""What `MFQ` does otherwise on RLlib's old API stack."""

import tempfile
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.evaluation.metrics import summarize_episodes
from ray.rllib.utils import metrics as keys
from ray.rllib.utils.annotations import override
from ray.tune.utils import merge_dicts

from rllib_mfq.algorithm.checkpoint import MODULES, REPLAY
from rllib_mfq.algorithm.old_stack.learner_group import PolicyLearnerGroup
from rllib_mfq.algorithm.old_stack.policy import MFQTorchPolicy
from rllib_mfq.algorithm.old_stack.rollout_worker import MFQRolloutWorker
from rllib_mfq.replay.memory import Memories


def adapt(algorithm: Algorithm) -> None:
    """Puts the methods of `OldStackAlgorithm` before those of an algorithm's own class."""
    own = type(algorithm)
    if not isinstance(algorithm, OldStackAlgorithm):
        body = {"__module__": own.__module__, "__doc__": own.__doc__}
        algorithm.__class__ = type(own.__name__, (OldStackAlgorithm, own), body)


class OldStackAlgorithm(Algorithm):
    """What `MFQ` does otherwise on the old API stack, where policies learn."""

    _memories: Memories
    _rounds: int

    @classmethod
    @override(Algorithm)
    def get_default_policy_class(cls, config: Any) -> type[MFQTorchPolicy]:
        return MFQTorchPolicy

    def _begin(self) -> None:
        self.learner_group = PolicyLearnerGroup(self.env_runner)
        super()._begin()

    @override(Algorithm)
    def training_step(self) -> dict[str, Any]:
        """As `MFQ`'s; counts for RLlib what was done, and returns what it reports as `info`."""
        batches, updates = self._train_once()
        rows = updates * self.config.total_train_batch_size
        self._counters[keys.NUM_ENV_STEPS_SAMPLED] += sum(batch.env_steps() for batch in batches)
        self._counters[keys.NUM_AGENT_STEPS_SAMPLED] += sum(
            batch.agent_steps() for batch in batches
        )
        self._counters[keys.NUM_ENV_STEPS_TRAINED] += rows
        self._counters[keys.NUM_AGENT_STEPS_TRAINED] += rows * len(self._memories)
        self.metrics.log_value(keys.NUM_TRAINING_STEP_CALLS_PER_ITERATION, 1, reduce="sum")
        info: dict[str, Any] = self.learner_group.info
        return info

    # RLlib's old evaluation asks for one episode at a time, and with remote workers for more than
    # it counts; like its new one, these two play `evaluation_duration` all at once.
    @override(Algorithm)
    def _evaluate_on_local_env_runner(self, env_runner: Any) -> Any:
        unit, duration = self.config.evaluation_duration_unit, self.config.evaluation_duration
        return self._summarize([_evaluate_on(env_runner, unit, duration)])

    @override(Algorithm)
    def _evaluate_with_fixed_duration(self) -> Any:
        unit, duration = self.config.evaluation_duration_unit, self.config.evaluation_duration
        group = self.eval_env_runner_group
        workers = group.healthy_worker_ids()[:duration]
        shares = {w: len(range(i, duration, len(workers))) for i, w in enumerate(workers)}
        results = group.foreach_env_runner(
            lambda worker: _evaluate_on(worker, unit, shares[worker.worker_index]),
            local_env_runner=False,
            remote_worker_ids=workers,
            timeout_seconds=self.config.evaluation_sample_timeout_s,
        )
        return self._summarize(results)

    def _summarize(self, results: list[tuple[Any, ...]]) -> tuple[dict[str, Any], int, int, list]:
        """RLlib's summary of the episodes and the new stack's; steps of both kinds; no batches."""
        key = (keys.EVALUATION_RESULTS, keys.ENV_RUNNER_RESULTS)
        self.metrics.aggregate([figures for *_, figures in results], key=key)
        summary = summarize_episodes([e for _, _, episodes, _ in results for e in episodes])
        summary |= self.metrics.peek(key, default={}, latest_merged_only=True)
        return summary, sum(r[0] for r in results), sum(r[1] for r in results), []

    @override(Algorithm)
    def _compile_iteration_results_old_api_stack(self, **kwargs: Any) -> dict[str, Any]:
        """RLlib's results, and under the same names as on the new stack what it logs."""
        results: dict[str, Any] = super()._compile_iteration_results_old_api_stack(**kwargs)
        results[keys.FAULT_TOLERANCE_STATS] = {
            "num_healthy_workers": results["num_healthy_workers"],
            "num_remote_worker_restarts": results["num_remote_worker_restarts"],
            "num_env_runners_dropped_lifetime": results["num_env_runners_dropped_lifetime"],
        }
        return merge_dicts(results, self.metrics.compile())

    @override(Algorithm)
    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:
        path = Path(path or tempfile.mkdtemp())
        path.mkdir(parents=True, exist_ok=True)
        self.save_checkpoint(str(path))
        return str(path)

    @override(Algorithm)
    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        self._before_restore(path, kwargs)
        self.load_checkpoint(str(path))

    @override(Algorithm)
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        super().save_checkpoint(checkpoint_dir)
        # Where the new stack has its modules: opponents are made of them.
        self.env_runner.module.save_to_path(Path(checkpoint_dir, MODULES))

    @override(Algorithm)
    def __getstate__(self) -> dict[str, Any]:
        own = type(self).__bases__[1]  # chooses the stack again when it is restored
        return super().__getstate__() | self._progress() | {"algorithm_class": own}

    @override(Algorithm)
    def __setstate__(self, state: dict[str, Any]) -> None:
        self._requests.drop()
        self._memories.set_state(state.get(REPLAY, {}))
        super().__setstate__(state)
        self._set_progress(state)
        self.learner_group.weights_seq_no = self._rounds
        # `from_checkpoint` forgets the config's policies_to_train; the worker's state has it.
        trained = self.env_runner.get_policies_to_train()
        for module_id in self._memories.keys() - set(trained):
            del self._memories[module_id]


def _evaluate_on(worker: MFQRolloutWorker, unit: str, duration: int) -> tuple[Any, ...]:
    batch = worker.sample(**{f"num_{unit}": duration})
    return batch.env_steps(), batch.agent_steps(), worker.get_metrics(), worker.metrics.reduce()
