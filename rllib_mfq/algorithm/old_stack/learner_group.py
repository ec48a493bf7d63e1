"""The learner group that policies stand in for."""

from collections.abc import Mapping
from typing import Any

from ray.rllib.core import ALL_MODULES, COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils import metrics as keys
from ray.rllib.utils.metrics.learner_info import LEARNER_STATS_KEY
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger


class PolicyLearnerGroup:
    """What `MFQ` asks of RLlib's LearnerGroup, done by the policies of a rollout worker.

    Args:
        worker: the local one.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._metrics = MetricsLogger(root=False)
        self.weights_seq_no = 0
        self.info: dict[str, Any] = {}  # of the latest update, as RLlib's old stack reports it

    def update(
        self, *, batch: MultiAgentBatch, minibatch_size: int, timesteps: Mapping[str, int]
    ) -> list[Any]:
        """Makes one update per minibatch; see `LearnerGroup.update`."""
        self.weights_seq_no += 1
        modules = batch.policy_batches
        policies = {module_id: self._worker.policy_map[module_id] for module_id in modules}
        for policy in policies.values():
            timestep = timesteps[keys.NUM_AGENT_STEPS_SAMPLED_LIFETIME]
            policy.on_global_var_update({"timestep": timestep})
        for start in range(0, batch.env_steps(), minibatch_size):
            stop = start + minibatch_size
            minibatch = {m: columns.slice(start, stop) for m, columns in modules.items()}
            self.info = self._worker.learn_on_batch(MultiAgentBatch(minibatch, minibatch_size))
            self._log(minibatch_size)
        for module_id, policy in policies.items():
            lr = float(policy.lr.update(timestep=timesteps[keys.NUM_ENV_STEPS_SAMPLED_LIFETIME]))
            for group in policy._optimizers[0].param_groups:
                group["lr"] = lr
            key = (module_id, "default_optimizer_learning_rate")
            self._metrics.log_value(key, lr, reduce="mean")
        return [self._metrics.reduce()]

    def get_state(
        self, components: Any = None, *, inference_only: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """The weights and their number; see `LearnerGroup.get_state`."""
        module: MultiRLModule = self._worker.module
        weights = module.get_state(inference_only=inference_only)
        return {
            COMPONENT_LEARNER: {
                COMPONENT_RL_MODULE: weights,
                keys.WEIGHTS_SEQ_NO: self.weights_seq_no,
            }
        }

    def shutdown(self) -> None:
        """Nothing: the worker is stopped by its group."""

    def _log(self, rows: int) -> None:
        """Logs what a Learner logs after a minibatch, under its names."""
        log = self._metrics.log_value
        for module_id, info in self.info.items():
            stats = info[LEARNER_STATS_KEY]
            figures = stats | {
                "total_loss": stats["qf_loss"],
                keys.WEIGHTS_SEQ_NO: self.weights_seq_no,
            }
            figures.pop("allreduce_latency")
            self._metrics.log_dict(figures, key=module_id, window=1)
            log((module_id, keys.MODULE_TRAIN_BATCH_SIZE_MEAN), rows, reduce="mean")
            for key in (module_id, ALL_MODULES):
                log((key, keys.NUM_MODULE_STEPS_TRAINED), rows, reduce="sum")
                log((key, keys.NUM_MODULE_STEPS_TRAINED_LIFETIME), rows, reduce="lifetime_sum")
        log((ALL_MODULES, keys.NUM_ENV_STEPS_TRAINED), rows, reduce="sum")
        log((ALL_MODULES, keys.NUM_ENV_STEPS_TRAINED_LIFETIME), rows, reduce="lifetime_sum")
