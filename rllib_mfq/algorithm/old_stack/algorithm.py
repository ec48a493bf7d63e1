"""The algorithm on RLlib's old API stack, with its rollout worker and its learner group."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import ALL_MODULES, COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.env_context import EnvContext
from ray.rllib.evaluation.metrics import RolloutMetrics, summarize_episodes
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils import metrics as keys
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.tune.utils import merge_dicts

from rllib_mfq.algorithm.checkpoint import MODULES, downloaded, is_remote, upload
from rllib_mfq.algorithm.checksums import check_files
from rllib_mfq.algorithm.divergence import check_network, check_weights, diverged
from rllib_mfq.algorithm.env_runner import PopulationRunner
from rllib_mfq.algorithm.fragment_batch import FragmentBatch
from rllib_mfq.algorithm.old_stack.policy import MFQTorchPolicy
from rllib_mfq.algorithm.replay import make_memories
from rllib_mfq.algorithm.roster import spaces_of_modules
from rllib_mfq.mean_field.objective import schedule_value
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.fragment import Episode


class MFQRolloutWorker(PopulationRunner, RolloutWorker):
    """Samples as `MFQEnvRunner` does, with the modules of the policies in `policy_map`.

    `config` is an `MFQConfig`, `env_creator` makes an environment of an `EnvContext`.
    """

    def __init__(self, *, config: Any, env_creator: Any, **kwargs: Any) -> None:
        config = config.copy(copy_frozen=False)
        index = kwargs.get("worker_index") or 0
        context = EnvContext(config.env_config, worker_index=index)
        config.resolve_groups(lambda: as_population(env_creator(context)))
        policy_class = kwargs.pop("default_policy_class", None) or MFQTorchPolicy
        # The modules see what the populations give.
        config.experimental(_disable_preprocessor_api=True)
        kwargs |= {"spaces": spaces_of_modules(config), "default_policy_class": policy_class}
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

    @override(PopulationRunner)
    def sample(self, **kwargs: Any) -> FragmentBatch | list[FragmentBatch]:
        """As `PopulationRunner.sample`, but one batch, unless `self_play` has an opponent.

        In evaluation one episode if not told.
        """
        told = kwargs.get("num_timesteps") is not None or kwargs.get("num_episodes") is not None
        if self.config.in_evaluation and self.config.batch_mode == "complete_episodes" and not told:
            kwargs["num_episodes"] = 1
        batches = super().sample(**kwargs)
        for batch in batches:
            for episode in batch.episodes:
                rewards = {(group, self.modules[group]): r for group, r in episode.returns.items()}
                total = episode.get_return()
                custom = vars(episode)["custom_metrics"]
                self._finished.append(RolloutMetrics(episode.length, total, rewards, custom))
            self._fire("on_sample_end", samples=batch)
        return batches if self.config.has_opponent else batches[0]

    @override(RolloutWorker)
    def get_metrics(self) -> list[RolloutMetrics]:
        finished, self._finished = self._finished, []
        return finished

    @override(RolloutWorker)
    def get_state(self) -> dict[str, Any]:
        state = RolloutWorker.get_state(self) | self._progress()
        return state | {keys.WEIGHTS_SEQ_NO: self._weights_seq_no}

    @override(RolloutWorker)
    def set_state(self, state: dict[str, Any]) -> None:
        if "policy_states" in state:  # RLlib's own, policies and all; else new weights
            RolloutWorker.set_state(self, state)
            self._weights_seq_no = state.get(keys.WEIGHTS_SEQ_NO, 0)
        super().set_state(state)

    def _on_event(self, mine: str | None, first: int, event: str, episode: Episode) -> None:
        if event == "created":  # callbacks of this stack add to the results there
            vars(episode)["custom_metrics"] = {}
        super()._on_event(mine, first, event, episode)

    def _fire(self, name: str, **kwargs: Any) -> None:
        old = {"worker": self, "base_env": None, "policies": self.policy_map}
        super()._fire(name, **old, **kwargs)


def adapt(algorithm: Algorithm) -> None:
    """Puts the methods of `OldStackAlgorithm` before those of an algorithm's own class."""
    own = type(algorithm)
    if not isinstance(algorithm, OldStackAlgorithm):
        body = {"__module__": own.__module__, "__doc__": own.__doc__}
        algorithm.__class__ = type(own.__name__, (OldStackAlgorithm, own), body)


class OldStackAlgorithm(Algorithm):
    """What `MFQ` does otherwise on the old API stack, where policies learn."""

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
        self._counters[keys.NUM_AGENT_STEPS_TRAINED] += rows * len(self._ready)
        self.metrics.log_value(keys.NUM_TRAINING_STEP_CALLS_PER_ITERATION, 1, reduce="sum")
        return self.learner_group.info

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
        counts = ["num_healthy_workers", "num_remote_worker_restarts"]
        counts += ["num_env_runners_dropped_lifetime"]
        results[keys.FAULT_TOLERANCE_STATS] = {name: results[name] for name in counts}
        logged = self.metrics.compile()
        logged.pop(keys.EVALUATION_RESULTS, None)  # `evaluate` adds up what it gives
        return merge_dicts(results, logged)

    @override(Algorithm)
    def save_to_path(
        self, path: str | Path | None = None, *, filesystem: Any = None, **kwargs: Any
    ) -> str:
        if path is not None and is_remote(path, filesystem):
            with tempfile.TemporaryDirectory() as folder:
                upload(self.save_to_path(folder), path, filesystem)
            return str(path)
        path = Path(path or tempfile.mkdtemp())
        path.mkdir(parents=True, exist_ok=True)
        self.save_checkpoint(str(path))
        return str(path)

    @override(Algorithm)
    def restore_from_path(self, path: str | Path, *, filesystem: Any = None, **kwargs: Any) -> None:
        with downloaded(path, filesystem) as folder:
            self._before_restore(folder, kwargs)
            self.load_checkpoint(str(folder))

    @override(Algorithm)
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        check_weights(self._learner_weights())
        super().save_checkpoint(checkpoint_dir)
        # Where the new stack has its modules: opponents are made of them.
        self.env_runner.module.save_to_path(Path(checkpoint_dir, MODULES))
        self._finish(checkpoint_dir)

    @override(Algorithm)
    def load_checkpoint(self, checkpoint_dir: str) -> None:
        check_files(Path(checkpoint_dir).resolve())
        super().load_checkpoint(checkpoint_dir)

    @override(Algorithm)
    def __getstate__(self) -> dict[str, Any]:
        own = type(self).__bases__[1]  # chooses the stack again when it is restored
        return super().__getstate__() | self._progress(True) | {"algorithm_class": own}

    @override(Algorithm)
    def __setstate__(self, state: dict[str, Any]) -> None:
        self._runners.drain()
        self._set_memories(state)
        super().__setstate__(state)
        self._set_progress(state)
        self.learner_group.weights_seq_no = self._rounds
        # `from_checkpoint` forgets the config's policies_to_train; the worker's state has it.
        trained = self.env_runner.get_policies_to_train()
        self._memories.forget(self._memories.modules - set(trained))


def _evaluate_on(worker: MFQRolloutWorker, unit: str, duration: int) -> tuple[Any, ...]:
    batch = worker.sample(**{f"num_{unit}": duration})
    return batch.env_steps(), batch.agent_steps(), worker.get_metrics(), worker.metrics.reduce()


class PolicyLearnerGroup:
    """What `MFQ` asks of RLlib's LearnerGroup, done by the policies of a rollout worker.

    It is its own one learner.

    Args:
        worker: the local one.
    """

    is_local = True
    _learner_index = 0
    foreach_learner = LearnerGroup.foreach_learner

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._learner = self
        self._metrics = MetricsLogger(root=False)
        self.weights_seq_no = 0
        self.info: dict[str, Any] = {}  # of the latest update, as RLlib's old stack reports it
        self.make_memories()

    def __len__(self) -> int:
        """The number of remote learners."""
        return 0

    def make_memories(self) -> None:
        """Makes the memories, `memories`, with nothing in them."""
        self.memories = make_memories(self._worker.config, modules=self._worker.module)

    def update(
        self, *, updates: int, modules: list[str], timesteps: Mapping[str, int], **kwargs: Any
    ) -> list[Any]:
        """Makes `updates` updates of `modules`; see `LearnerGroup.update`."""
        self.weights_seq_no += 1
        agent_steps = timesteps[keys.NUM_AGENT_STEPS_SAMPLED_LIFETIME]
        for module_id in self.memories:
            self._worker.policy_map[module_id].on_global_var_update({"timestep": agent_steps})
        policies = {module_id: self._worker.policy_map[module_id] for module_id in modules}
        config, size = self._worker.config, self._worker.config.total_train_batch_size
        self.memories.weigh(schedule_value(config.prioritized_replay_beta, agent_steps))
        for drawn in self.memories.batches(size, updates, modules):
            batches = {module_id: SampleBatch(columns) for module_id, columns in drawn.items()}
            self.info = self._worker.learn_on_batch(MultiAgentBatch(batches, size))
            for name, policy in policies.items():
                loss = self.info[name][LEARNER_STATS_KEY]["qf_loss"]
                if not math.isfinite(loss):
                    raise diverged(name, policy._updates, loss)
                check_network(name, policy.model.q_net, policy._updates)
            if config.prioritized_replay:
                for module_id, errors in self.memories.errors.items():
                    errors.append(policies[module_id].errors)
            self._log(size)
        for module_id, policy in policies.items():
            lr = float(policy.lr.update(timestep=timesteps[keys.NUM_ENV_STEPS_SAMPLED_LIFETIME]))
            for group in policy._optimizers[0].param_groups:
                group["lr"] = lr
            key = (module_id, "default_optimizer_learning_rate")
            self._metrics.log_value(key, lr, reduce="mean")
        return [self._metrics.reduce()]

    def get_state(self, *, inference_only: bool = False, **kwargs: Any) -> dict[str, Any]:
        """The weights and their number; see `LearnerGroup.get_state`."""
        weights = self._worker.module.get_state(inference_only=inference_only)
        state = {COMPONENT_RL_MODULE: weights, keys.WEIGHTS_SEQ_NO: self.weights_seq_no}
        return {COMPONENT_LEARNER: state}

    def shutdown(self) -> None:
        """Nothing: the worker is stopped by its group."""

    def _log(self, rows: int) -> None:
        """Logs what a Learner logs after a minibatch, under its names."""
        log = self._metrics.log_value
        for module_id, info in self.info.items():
            stats = info[LEARNER_STATS_KEY]
            figures = {k: v for k, v in stats.items() if k != "allreduce_latency"}
            figures |= {"total_loss": stats["qf_loss"], keys.WEIGHTS_SEQ_NO: self.weights_seq_no}
            self._metrics.log_dict(figures, key=module_id, window=1)
            log((module_id, keys.MODULE_TRAIN_BATCH_SIZE_MEAN), rows, reduce="mean")
            for key in (module_id, ALL_MODULES):
                log((key, keys.NUM_MODULE_STEPS_TRAINED), rows, reduce="sum")
                log((key, keys.NUM_MODULE_STEPS_TRAINED_LIFETIME), rows, reduce="lifetime_sum")
        log((ALL_MODULES, keys.NUM_ENV_STEPS_TRAINED), rows, reduce="sum")
        log((ALL_MODULES, keys.NUM_ENV_STEPS_TRAINED_LIFETIME), rows, reduce="lifetime_sum")
