"""The Learner: the loss of mean field Q-learning and its target network."""

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from ray.rllib.core import COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    MODULE_TRAIN_BATCH_SIZE_MEAN,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    WEIGHTS_SEQ_NO,
)
from torch import Tensor, nn

from rllib_mfq.algorithm.divergence import Diverged, diverged
from rllib_mfq.algorithm.old_filters import filled_moments
from rllib_mfq.algorithm.replay import check_fits, make_memories, replay_device
from rllib_mfq.algorithm.rl_module import NUM_STEPS, MFQTorchRLModule, after_the_step
from rllib_mfq.mean_field.objective import mfq_loss, n_step_return, next_value, schedule_value
from rllib_mfq.mean_field.table import make_optimizer
from rllib_mfq.replay.priorities import of_sequences

NUM_UPDATES = "num_updates"


class MFQTorchLearner(TorchLearner):
    """Minimises the loss of `mean_field.objective` for every trainable module.

    The target networks move after every `target_network_update_freq` gradient steps, also within
    an `update()` over several minibatches.
    """

    @override(TorchLearner)
    def build(self) -> None:
        super().build()
        self._updates = 0
        self._figures: dict[str, dict[str, Tensor]] = {}  # of the latest update, by module
        self._trained_rows: Counter[str] = Counter()  # by module, of updates not logged yet
        self._trained_env_steps: list[int] = []  # of each of these updates
        check_fits(self.config, replay_device(self.config, self.device))
        self.make_memories()
        self.module.foreach_module(lambda module_id, module: module.make_target_networks())

    def make_memories(self) -> None:
        """Makes the memories, `memories`, with nothing in them."""
        self.memories = make_memories(self.config, self.device, self._learner_index, self.module)

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        network = self.module[module_id].unwrapped().q_net
        self.register_optimizer(
            module_id=module_id,
            optimizer=make_optimizer(network, 0.0),  # RLlib sets the rate
            params=list(network.parameters()),
            lr_or_lr_schedule=config.lr,
        )

    @override(TorchLearner)
    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        agent_steps = timesteps.get(NUM_AGENT_STEPS_SAMPLED_LIFETIME, 0)
        for module, config in self._trained():
            follow_schedules(module, vars(config), agent_steps)
        self.memories.weigh(schedule_value(self.config.prioritized_replay_beta, agent_steps))

    def _trained(self) -> Iterator[tuple[MFQTorchRLModule, Any]]:
        """The modules that learn, with their configs."""
        for module_id in self.module.keys():
            if self.should_module_be_updated(module_id):
                module = self.module[module_id].unwrapped()
                yield module, self.config.get_config_for_module(module_id)

    @override(TorchLearner)
    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: Any, fwd_out: dict[str, Any]
    ) -> Tensor:
        """The mean squared error of "Algorithm 1", which a subclass may add to or replace.

        Args:
            module_id: which module learns.
            config: the module's, such as `config.gamma` and `config.target`.
            batch: the memory's columns, `[B, ...]` tensors: `obs`, `actions`, `mean_actions`,
                `rewards`, `terminateds`, `new_obs` and others; of sequences with a network memory.
            fwd_out: what the module's `forward_train` returns: `q` `[B, A]`, the values that are
                learned, and `q_target` `[B, A]`, those of the target network after the step; with a
                network memory also `rows`, the columns of these B steps.

        Returns:
            The loss, `[]` float.
        """
        module = self.module[module_id].unwrapped()
        settings = (config.target, config.gamma)
        loss, self._figures[module_id], errors = module_loss(module, batch, fwd_out, *settings)
        if config.prioritized_replay and module_id in self.memories.errors:
            self.memories.errors[module_id].append(errors)
        return loss

    @override(TorchLearner)
    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id, figures in self._figures.items():
            means = {name: values.mean() for name, values in figures.items()}
            self.metrics.log_dict(means, key=module_id, window=1)
        self._log_trained()

    @override(Learner)
    def _log_steps_trained_metrics(self, batch: MultiAgentBatch) -> None:
        # Only counts: RLlib's logging takes a 50th of an update, and is done once per call.
        for module_id, part in batch.policy_batches.items():
            steps = max(1, self.module[module_id].unwrapped().max_seq_len)  # of a sequence
            self._trained_rows[module_id] += len(part) * steps
        self._trained_env_steps.append(batch.env_steps())

    def _log_trained(self) -> None:
        """Logs what the updates of a call were made with, as RLlib does after each of them."""
        log, updates = self.metrics.log_value, len(self._trained_env_steps)
        for module_id, rows in self._trained_rows.items():
            log((module_id, WEIGHTS_SEQ_NO), self._weights_seq_no, window=1)
            log((module_id, MODULE_TRAIN_BATCH_SIZE_MEAN), rows / updates, reduce="mean")
            log((module_id, NUM_MODULE_STEPS_TRAINED), rows, reduce="sum")
            lifetime = (module_id, NUM_MODULE_STEPS_TRAINED_LIFETIME)
            log(lifetime, rows, reduce="lifetime_sum", with_throughput=True)
        rows, env_steps = self._trained_rows.total(), sum(self._trained_env_steps)
        for name, count in ((NUM_MODULE_STEPS_TRAINED, rows), (NUM_ENV_STEPS_TRAINED, env_steps)):
            log((ALL_MODULES, name), count, reduce="sum", with_throughput=True)
            lifetime = (ALL_MODULES, f"{name}_lifetime")
            log(lifetime, count, reduce="lifetime_sum", with_throughput=True)
        self._trained_rows.clear()
        self._trained_env_steps.clear()

    @override(TorchLearner)
    def update(self, **kwargs: Any) -> Any:
        """As RLlib's; a remote learner returns a Diverged, for one that it raises only ends it."""
        try:
            return super().update(**kwargs)
        except Diverged as error:
            if not self.config.num_learners:
                raise
            return error

    @override(Learner)
    def _create_iterator_if_necessary(
        self,
        *,
        updates: int = 0,
        modules: Collection[str] = (),
        minibatch_size: int | None = None,
        **kwargs: Any,
    ) -> Iterator[MultiAgentBatch]:
        """A batch of `modules` for each of so many `updates`, from the memories; else as given."""
        size = self.config.train_batch_size_per_learner
        for drawn in self.memories.batches(size, updates, modules) if updates else ():
            batches = {
                module_id: SampleBatch(columns)
                for module_id, columns in drawn.items()
                if self.should_module_be_updated(module_id)
            }
            yield MultiAgentBatch(batches, size)
        if updates:
            return
        # RLlib's iterator copies every minibatch; slices of a batch drawn at random need not be.
        for batch in super()._create_iterator_if_necessary(**kwargs):
            given = batch.policy_batches
            rows = max(map(len, given.values()))
            size = minibatch_size or rows
            for start in range(0, rows, size):
                parts = {name: part[start : start + size] for name, part in given.items()}
                yield MultiAgentBatch(parts, size)

    @override(TorchLearner)
    def apply_gradients(self, gradients_dict: dict[str, Any]) -> None:
        # Without those of modules that do not learn yet; none at all if RLlib logged their norm.
        gradients_dict = {key: g for key, g in gradients_dict.items() if g is not None}
        gradients = list(gradients_dict.values())
        sizes = [*torch._foreach_norm(gradients)] if gradients else []
        sizes += [figures["qf_loss"] for figures in self._figures.values()]
        if sizes and self._grad_scalers is None and not torch.stack(sizes).sum().isfinite():
            raise self._divergence(gradients_dict)
        if not gradients or self._grad_scalers is not None or self._lr_scheduler_classes:
            super().apply_gradients(gradients_dict)
        else:  # RLlib would look twice at each gradient, which takes a tenth of an update
            for name, gradient in gradients_dict.items():
                self._params[name].grad = gradient
            for optimizer in self._optimizer_parameters:
                optimizer.step()
        self._updates += 1
        for module, config in self._trained():
            move_target(module, self._updates, config.target_network_update_freq, config.tau)

    def _divergence(self, gradients: Mapping[Any, Tensor]) -> Diverged:
        """The error of the module whose loss or gradient is not finite; no weight is moved yet."""
        values = [
            (module_id, what, value)
            for module_id in self.module.keys()
            for what, value in (
                ("loss", float(self._figures.get(module_id, {}).get("qf_loss", 0.0))),
                ("norm of the gradient", float(self._norm(module_id, gradients))),
            )
        ]
        # If all are finite and their sum is not, the largest is the one.
        module_id, what, value = max(values, key=lambda e: (not math.isfinite(e[2]), e[2]))
        return diverged(module_id, self._updates + 1, value, what)

    def _norm(self, module_id: str, gradients: Mapping[Any, Tensor]) -> Tensor:
        mine = map(self.get_param_ref, self.module[module_id].unwrapped().q_net.parameters())
        return nn.utils.get_total_norm([gradients[name] for name in mine if name in gradients])

    @override(Learner)
    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return super().get_state(*args, **kwargs) | {NUM_UPDATES: self._updates}

    @override(Learner)
    def set_state(self, state: dict[str, Any]) -> None:
        # RLlib ignores weights that are older than those it has; here they are to be restored.
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, 0) - 1
        # Ray's object store gives all learners the same memory. RLlib's optimizers write into
        # what they are given, so every learner takes a copy.
        state = copy.deepcopy(state)
        for optimizer in state.get(COMPONENT_OPTIMIZER, {}).values():
            if optimizer["module_id"] in self.module:
                network = self.module[optimizer["module_id"]].unwrapped().q_net
                moments = optimizer["state"]
                moments["state"] = filled_moments(moments["state"], network)
        super().set_state(state)
        self._updates = state.get(NUM_UPDATES, self._updates)


def module_loss(
    module: MFQTorchRLModule,
    batch: Mapping[str, Any],
    out: Mapping[str, Any],
    target: str,
    gamma: float,
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss of one module on one batch, on either API stack.

    Args:
        module: has a target network.
        batch: the memory's columns, `[B, ...]` tensors.
        out: the module's `forward_train` on the batch.
        target: the config's `target`.
        gamma: discount.

    Returns:
        The loss, `[]`; tensors whose means are to be reported with it, detached; and the errors
        `[B]` by which rows, or sequences, are drawn, detached.
    """
    rows, q = out.get("rows", batch), out["q"]
    with torch.no_grad():
        q_online = None
        if target == "double_q":
            seen = rows.get("new_obs_online", rows[Columns.NEXT_OBS])
            after = {**after_the_step(rows), Columns.OBS: seen}
            q_online = module.q(after, module.value_networks()[0])
        mask = rows.get("next_action_mask")
        value = next_value(target, out["q_target"], module.temperature, q_online, mask)
    rewards, discount = n_step_return(rows[Columns.REWARDS], rows.get(NUM_STEPS), gamma)
    actions, terminated = rows[Columns.ACTIONS], rows[Columns.TERMINATEDS].bool()
    factors = module.loss_weights(rows), rows.get("weights")
    loss, errors = mfq_loss(q, actions, rewards, terminated, value, discount, *factors)
    figures = {
        "qf_mean": q.detach(),
        "qf_loss": loss.detach(),
        "td_error_mean": errors,
        "target_value_mean": value,
        "temperature": module.temperature,
    }
    return loss, figures, of_sequences(errors, out["learned"]) if "learned" in out else errors


def follow_schedules(
    module: MFQTorchRLModule, settings: Mapping[str, Any], agent_steps: float
) -> None:
    """Sets how a module explores after `agent_steps` rows, on either API stack."""
    for name in ("temperature", "shared_exploration"):
        if (buffer := getattr(module, name)) is not None:
            buffer.fill_(schedule_value(settings[name], agent_steps))


def move_target(module: MFQTorchRLModule, updates: int, every: int, tau: float) -> None:
    """Moves the target network towards the network after every `every`-th update."""
    if updates % every == 0:
        module.move_target(tau)
