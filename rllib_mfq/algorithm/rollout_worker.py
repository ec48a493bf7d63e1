"""The old API stack's rollout worker, and what `MFQ` does on that stack only."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.env_context import EnvContext
from ray.rllib.evaluation.metrics import RolloutMetrics, summarize_episodes
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EVALUATION_RESULTS,
    FAULT_TOLERANCE_STATS,
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_TRAINED,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_TRAINED,
    NUM_TRAINING_STEP_CALLS_PER_ITERATION,
    WEIGHTS_SEQ_NO,
)
from ray.tune.utils import merge_dicts

from rllib_mfq.algorithm.opponents import MODULES_IN_CHECKPOINT
from rllib_mfq.algorithm.population_runner import FragmentBatch, PopulationRunner
from rllib_mfq.algorithm.torch_policy import MFQTorchPolicy, PolicyLearnerGroup
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.replay import ReplayMemory


class MFQRolloutWorker(PopulationRunner, RolloutWorker):
    """Samples as `MFQEnvRunner` does, with the modules of the policies in `policy_map`."""

    def __init__(self, *, config: Any, env_creator: Any, **kwargs: Any) -> None:
        config = config.copy(copy_frozen=False)
        index = kwargs.get("worker_index") or 0
        context = EnvContext(config.env_config, worker_index=index)
        config.resolve_groups(lambda: as_population(env_creator(context)))
        policy_class = kwargs.pop("default_policy_class", None) or MFQTorchPolicy
        config._disable_preprocessor_api = True  # the modules see what the populations give
        kwargs |= {"spaces": config.spaces_of_modules(), "default_policy_class": policy_class}
        # Without an environment RLlib makes neither its sampler nor copies of the environment.
        RolloutWorker.__init__(self, config=config, env_creator=lambda context: None, **kwargs)
        if self._seed is not None:
            self._seed += index  # RLlib tells its base class no index on this stack
        self._finished: list[RolloutMetrics] = []
        self._begin(env_creator, [self.callbacks])

    @override(RolloutWorker)
    def make_module(self) -> None:
        self.module = MultiRLModule()
        for policy_id, policy in self.policy_map.items():
            self.module.add_module(policy_id, policy.model)

    @override(RolloutWorker)
    def make_env(self) -> None:
        super().make_env()
        self.input_reader = self._sampler  # RLlib evaluates only workers that have one
        populations = [p for sampler in self._samplers.values() for p in sampler.populations]
        for index, population in enumerate(populations):
            self.callbacks.on_sub_environment_created(
                worker=self, sub_environment=population, env_context=self._context(index)
            )

    @override(RolloutWorker)
    def assert_healthy(self) -> None:
        assert self.policy_map and self._sampler is not None

    @override(RolloutWorker)
    def sample(
        self,
        *,
        num_timesteps: float | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
        **kwargs: Any,
    ) -> FragmentBatch | list[FragmentBatch]:
        """As `MFQEnvRunner.sample`, but one batch, unless there is an opponent in `self_play`.

        In evaluation one episode if not told.
        """
        if num_timesteps is None and num_episodes is None and self.config.in_evaluation:
            num_episodes = 1 if self.config.batch_mode == "complete_episodes" else None
        batches = self._play(num_timesteps, num_episodes, explore, random_actions, force_reset)
        for batch in batches:
            for episode in batch.episodes:
                rewards = {(group, self.modules[group]): r for group, r in episode.returns.items()}
                total = episode.get_return()
                metrics = RolloutMetrics(episode.length, total, rewards, episode.custom_metrics)
                self._finished.append(metrics)
            self._fire("on_sample_end", samples=batch)
        return batches if self.config.has_opponent else batches[0]

    @override(RolloutWorker)
    def get_metrics(self) -> list[RolloutMetrics]:
        finished, self._finished = self._finished, []
        return finished

    @override(RolloutWorker)
    def get_state(self) -> dict[str, Any]:
        state = RolloutWorker.get_state(self) | self._progress()
        return state | {WEIGHTS_SEQ_NO: self._weights_seq_no}

    @override(RolloutWorker)
    def set_state(self, state: dict[str, Any]) -> None:
        if "policy_states" in state:  # RLlib's own, policies and all; else new weights
            RolloutWorker.set_state(self, state)
            self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, 0)
        super().set_state(state)

    @override(PopulationRunner)
    def _fire(self, name: str, **kwargs: Any) -> None:
        old = {"worker": self, "base_env": None, "policies": self.policy_map}
        super()._fire(name, **old, **kwargs)


class OldStackAlgorithm(Algorithm):
    """What `MFQ` does on the old API stack only.

    RLlib calls most of these methods on that stack alone; the others ask.
    """

    _memories: dict[str, ReplayMemory]
    _rounds: int

    @property
    def on_old_stack(self) -> bool:
        """Whether policies learn, not RLlib's learners."""
        return not self.config.enable_rl_module_and_learner

    @classmethod
    @override(Algorithm)
    def get_default_policy_class(cls, config: Any) -> type[MFQTorchPolicy]:
        return MFQTorchPolicy

    @override(Algorithm)
    def setup(self, config: Any) -> None:
        super().setup(config)
        if self.on_old_stack:
            self.learner_group = PolicyLearnerGroup(self.env_runner)

    def _count(self, batches: list[FragmentBatch], updates: int, modules: int) -> dict[str, Any]:
        """Counts for RLlib what a training step did, and returns what it reports as `info`."""
        rows = updates * self.config.total_train_batch_size
        self._counters[NUM_ENV_STEPS_SAMPLED] += sum(batch.env_steps() for batch in batches)
        self._counters[NUM_AGENT_STEPS_SAMPLED] += sum(batch.agent_steps() for batch in batches)
        self._counters[NUM_ENV_STEPS_TRAINED] += rows
        self._counters[NUM_AGENT_STEPS_TRAINED] += rows * modules
        self.metrics.log_value(NUM_TRAINING_STEP_CALLS_PER_ITERATION, 1, reduce="sum")
        return self.learner_group.info

    # RLlib's old evaluation asks for one episode at a time, and with remote workers for more than
    # it counts; like its new one, these two play `evaluation_duration` all at once.
    @override(Algorithm)
    def _evaluate_on_local_env_runner(self, env_runner: Any) -> Any:
        if not self.on_old_stack:
            return super()._evaluate_on_local_env_runner(env_runner)
        unit, duration = self.config.evaluation_duration_unit, self.config.evaluation_duration
        return self._summarize([_evaluate_on(env_runner, unit, duration)])

    @override(Algorithm)
    def _evaluate_with_fixed_duration(self) -> Any:
        if not self.on_old_stack:
            return super()._evaluate_with_fixed_duration()
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
        key = (EVALUATION_RESULTS, ENV_RUNNER_RESULTS)
        self.metrics.aggregate([figures for *_, figures in results], key=key)
        summary = summarize_episodes([e for _, _, episodes, _ in results for e in episodes])
        summary |= self.metrics.peek(key, default={}, latest_merged_only=True)
        return summary, sum(r[0] for r in results), sum(r[1] for r in results), []

    @override(Algorithm)
    def _compile_iteration_results_old_api_stack(self, **kwargs: Any) -> dict[str, Any]:
        """RLlib's results, and under the same names as on the new stack what it logs."""
        results: dict[str, Any] = super()._compile_iteration_results_old_api_stack(**kwargs)
        results[FAULT_TOLERANCE_STATS] = {
            "num_healthy_workers": results["num_healthy_workers"],
            "num_remote_worker_restarts": results["num_remote_worker_restarts"],
            "num_env_runners_dropped_lifetime": results["num_env_runners_dropped_lifetime"],
        }
        return merge_dicts(results, self.metrics.compile())

    @override(Algorithm)
    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:
        if not self.on_old_stack:
            return super().save_to_path(path, **kwargs)
        path = Path(path or tempfile.mkdtemp())
        path.mkdir(parents=True, exist_ok=True)
        self.save_checkpoint(str(path))
        return str(path)

    @override(Algorithm)
    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        if self.on_old_stack:
            self.load_checkpoint(str(path))
        else:
            super().restore_from_path(path, *args, **kwargs)

    @override(Algorithm)
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        super().save_checkpoint(checkpoint_dir)
        if self.on_old_stack:
            # Where the new stack has its modules: opponents are made of them.
            self.env_runner.module.save_to_path(Path(checkpoint_dir, MODULES_IN_CHECKPOINT))

    @override(Algorithm)
    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | self._progress()

    @override(Algorithm)
    def __setstate__(self, state: dict[str, Any]) -> None:
        self._drop_requests()
        self._set_memories(state)
        super().__setstate__(state)
        self._set_progress(state)
        self.learner_group.weights_seq_no = self._rounds
        # `from_checkpoint` forgets the config's policies_to_train; the worker's state has it.
        trained = self.env_runner.get_policies_to_train()
        self._memories = {m: memory for m, memory in self._memories.items() if m in trained}


def _evaluate_on(worker: MFQRolloutWorker, unit: str, duration: int) -> tuple[Any, ...]:
    batch = worker.sample(**{f"num_{unit}": duration})
    return batch.env_steps(), batch.agent_steps(), worker.get_metrics(), worker.metrics.reduce()
