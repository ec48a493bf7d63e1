"""The old API stack's policy."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.columns import Columns
from ray.rllib.policy.policy import Policy
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.policy.torch_policy_v2 import TorchPolicyV2
from ray.rllib.utils.annotations import override
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.rllib.utils.torch_utils import clip_gradients
from torch import Tensor

from rllib_mfq.algorithm.learner import NUM_UPDATES, follow_schedules, module_loss, move_target
from rllib_mfq.algorithm.networks import check_model_config, lstm_cells
from rllib_mfq.algorithm.old_filters import filled_moments
from rllib_mfq.algorithm.old_names import public
from rllib_mfq.algorithm.rl_module import (
    ACTION_MASK,
    MEAN_ACTIONS,
    NEXT_MEAN_ACTIONS,
    MFQTorchRLModule,
)
from rllib_mfq.algorithm.settings import DEFAULTS, to_play
from rllib_mfq.mean_field.mean_action import postprocess_mean_actions
from rllib_mfq.mean_field.table import make_optimizer
from rllib_mfq.population.population import group_of

KNOWN = "mfq_mean_actions"  # key of `episode.user_data`: each agent's latest chunk

# RLlib warns that it cannot find the class by name in its own package. It finds the class by its
# import path, so the warning is hidden.
logging.getLogger("ray.rllib.policy.policy").addFilter(
    lambda record: "durable policy name for <class 'rllib_mfq" not in record.getMessage()
)


class MFQTorchPolicy(TorchPolicyV2):
    """Mean field Q-learning for whoever works with RLlib's policies.

    Its `model` is the module of the new API stack, target network included, so that
    `state_dict`s move between the stacks. Wherever RLlib takes `obs` it takes `mean_actions`
    (and `action_mask`), too; mean actions that are missing count as zero.

    Args:
        observation_space: a Box.
        action_space: a Discrete.
        config: a config dict; what it lacks is as in `MFQConfig`.
    """

    def __init__(self, observation_space: Any, action_space: Any, config: dict[str, Any]) -> None:
        self._updates = 0
        default = {**AlgorithmConfig().to_dict(), **DEFAULTS, "groups": None}
        config = public(default) | public(config)
        config.setdefault("train_batch_size", config["train_batch_size_per_learner"])
        super().__init__(observation_space, action_space, config, max_seq_len=1)
        self._initialize_loss_from_dummy_batch()

    @override(TorchPolicyV2)
    def make_model(self) -> MFQTorchRLModule:
        model_config = check_model_config(self.config["model_config"])
        check_feed_forward(model_config)
        model = MFQTorchRLModule(
            observation_space=self.observation_space,
            action_space=self.action_space,
            model_config=to_play(self.config) | model_config,
        )
        model.make_target_networks()
        return model

    @override(Policy)
    def _create_exploration(self) -> None:
        """None: the Boltzmann policy explores by itself."""

    @override(TorchPolicyV2)
    def optimizer(self) -> torch.optim.Optimizer:
        self.lr = Scheduler(fixed_value_or_schedule=self.config["lr"], framework="torch")
        lr = float(self.lr.get_current_value())
        return make_optimizer(self.model.q_net, lr)

    @override(TorchPolicyV2)
    def loss(self, model: MFQTorchRLModule, dist_class: Any, train_batch: SampleBatch) -> Tensor:
        out = model.forward_train(train_batch)
        settings = (self.config["target"], self.config["gamma"])
        loss, self.tower_stats[model], self.errors = module_loss(model, train_batch, out, *settings)
        return loss

    @override(TorchPolicyV2)
    def extra_grad_process(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> dict[str, Any]:
        parameters = dict(self.model.q_net.named_parameters())
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        clip_gradients(
            gradients, grad_clip=self.config["grad_clip"], grad_clip_by=self.config["grad_clip_by"]
        )
        for name, gradient in gradients.items():  # clipped values may be new tensors
            parameters[name].grad = gradient
        return {}

    @override(TorchPolicyV2)
    def stats_fn(self, train_batch: SampleBatch) -> dict[str, float]:
        return {name: value.mean().item() for name, value in self.tower_stats[self.model].items()}

    @override(TorchPolicyV2)
    def apply_gradients(self, gradients: Any) -> None:
        super().apply_gradients(gradients)
        self._updates += 1
        every = self.config["target_network_update_freq"]
        move_target(self.model, self._updates, every, self.config["tau"])

    @override(Policy)
    def on_global_var_update(self, global_vars: dict[str, Any]) -> None:
        """Exploration follows its schedules; `timestep` counts agent steps."""
        super().on_global_var_update(global_vars)
        follow_schedules(self.model, self.config, global_vars["timestep"])

    @override(TorchPolicyV2)
    def compute_actions(
        self,
        obs_batch: Any,
        *args: Any,
        explore: bool | None = None,
        timestep: int | None = None,
        mean_actions: Any = None,
        action_mask: Any = None,
        **kwargs: Any,
    ) -> Any:
        given = _given(obs_batch, mean_actions, action_mask)
        return self.compute_actions_from_input_dict(given, explore=explore, timestep=timestep)

    @override(Policy)
    def compute_single_action(
        self,
        obs: Any = None,
        *args: Any,
        mean_actions: Any = None,
        action_mask: Any = None,
        input_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        given = _given(obs, mean_actions, action_mask) if input_dict is None else input_dict
        return super().compute_single_action(input_dict=given, **kwargs)

    @override(TorchPolicyV2)
    def action_sampler_fn(
        self, model: MFQTorchRLModule, *, obs_batch: SampleBatch, explore: bool, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor, list[Tensor]]:
        forward = model.forward_exploration if explore else model.forward_inference
        out = forward(obs_batch)
        return out[Columns.ACTIONS], None, out["q"] / model.temperature, []

    @override(TorchPolicyV2)
    def postprocess_trajectory(
        self,
        sample_batch: SampleBatch,
        other_agent_batches: Mapping[Any, tuple[Any, ...]] | None = None,
        episode: Any = None,
    ) -> SampleBatch:
        """Adds `mean_actions` and `next_mean_actions`, `[n, mean_action_dim]` float32.

        Args:
            sample_batch: rows of whole populations (they have a column `group`), or one
                agent's chunk of an episode.
            other_agent_batches: the chunks of all other agents, `{agent: (policy_id, policy,
                batch)}`. The first agent of a chunk to be asked for computes the mean actions
                of all, and leaves them in their batches: O(rows), not O(rows * agents).
            episode: tells an agent's name, and keeps what it acts on after the chunk.

        Returns:
            The same batch. The mean actions are zero where there are no actions, as in
            RLlib's evaluation.

        Raises:
            ValueError: the neighbourhood needs what a sample batch does not hold.
        """
        if NEXT_MEAN_ACTIONS in sample_batch:
            return sample_batch
        groups = self.config["groups"] or {}
        sizes = {name: int(spaces[1].n) for name, spaces in groups.items()}
        alone = episode is None and not other_agent_batches and "group" not in sample_batch
        if alone or Columns.ACTIONS not in sample_batch:
            for name in (MEAN_ACTIONS, NEXT_MEAN_ACTIONS):
                shape = (len(sample_batch), self.model.mean_action_dim)
                sample_batch[name] = np.zeros(shape, np.float32)
        elif "group" in sample_batch:
            postprocess_mean_actions(sample_batch, self.model.neighborhood, sizes)
        else:
            chunk = {a: tuple(entry[-2:]) for a, entry in (other_agent_batches or {}).items()}
            name = self._name_of(sample_batch, chunk, episode)
            known = {} if episode is None else episode.user_data.setdefault(KNOWN, {})
            self._postprocess_chunk(chunk | {name: (self, sample_batch)}, sizes, known)
        return sample_batch

    def _name_of(
        self, batch: SampleBatch, others: Mapping[Any, tuple[Any, Any]], episode: Any
    ) -> Any:
        """The agent whose chunk a batch is: RLlib only gives its number in the episode."""
        if episode is not None:
            index = batch[SampleBatch.AGENT_INDEX][0]
            return next(a for a in episode.get_agents() if episode.agent_index(a) == index)
        mine = {group_of(agent) for agent, (policy, _) in others.items() if policy is self}
        if len(mine) != 1:
            raise ValueError(
                f"one policy plays the groups {sorted(mine)}, and only the episode tells to which "
                "of them an agent belongs; pass episode."
            )
        return mine.pop()  # a group's name is a name of that group

    def _postprocess_chunk(
        self, chunk: Mapping[Any, tuple[Any, Any]], sizes: dict[str, int], known: dict[Any, Any]
    ) -> None:
        """Adds the columns to the batches of all agents that have this policy's neighbourhood.

        `chunk` is `{agent: (policy, batch)}`, `sizes` the number of actions of the groups that are
        known, and `known` `{agent: (last step, mean actions, next mean actions)}`.
        """
        acted = {}
        for agent, (policy, batch) in chunk.items():
            end = batch[Columns.T][-1] if Columns.T in batch else None
            if NEXT_MEAN_ACTIONS not in batch and agent in known and known[agent][0] == end:
                # RLlib's sampler hands over the last chunk of a dead agent again with every later
                # chunk of the others, whose actions of that time are no longer there.
                _, batch[MEAN_ACTIONS], batch[NEXT_MEAN_ACTIONS] = known[agent]
            elif Columns.ACTIONS in batch:
                acted[agent] = (policy, batch)
        if not acted:
            return
        for agent in sorted(acted, key=str):
            sizes.setdefault(group_of(agent), int(acted[agent][0].action_space.n))
        names = (Columns.ACTIONS, Columns.EPS_ID, Columns.T, SampleBatch.AGENT_INDEX)
        batches = [batch for _, batch in acted.values()]
        rows = {name: np.concatenate([np.asarray(b[name]) for b in batches]) for name in names}
        numbers = [list(sizes).index(group_of(agent)) for agent in acted]
        rows["group"] = np.repeat(numbers, list(map(len, batches)))
        postprocess_mean_actions(rows, self.model.neighborhood, sizes)
        stop = 0
        for agent, (policy, batch) in acted.items():
            start, stop = stop, stop + len(batch)
            if NEXT_MEAN_ACTIONS in batch or not isinstance(policy, MFQTorchPolicy):
                continue
            if policy.model.neighborhood != self.model.neighborhood:
                continue
            for name in (MEAN_ACTIONS, NEXT_MEAN_ACTIONS):
                batch[name] = rows[name][start:stop, : policy.model.mean_action_dim]
            before, _, last = known.get(agent, (None, None, None))
            if before == batch[Columns.T][0] - 1:  # the chunk goes on where the last one ended
                batch[MEAN_ACTIONS][0] = last[-1]
            known[agent] = (batch[Columns.T][-1], batch[MEAN_ACTIONS], batch[NEXT_MEAN_ACTIONS])

    @override(TorchPolicyV2)
    def set_weights(self, weights: dict[str, Any]) -> None:
        """As `get_weights` gives them; those of an env runner leave the target as it is."""
        self.model.set_state(weights)

    @override(TorchPolicyV2)
    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {NUM_UPDATES: self._updates}

    @override(TorchPolicyV2)
    def set_state(self, state: dict[str, Any]) -> None:
        optimizers = [
            {**each, "state": filled_moments(each["state"], self.model.q_net)}
            for each in state.get("_optimizer_variables", [])
        ]
        super().set_state({**state, "_optimizer_variables": optimizers})
        self._updates = state.get(NUM_UPDATES, self._updates)


def _given(obs: Any, mean_actions: Any, action_mask: Any) -> dict[str, Any]:
    given = {Columns.OBS: obs, MEAN_ACTIONS: mean_actions, ACTION_MASK: action_mask}
    return {name: np.asarray(value) for name, value in given.items() if value is not None}


def check_feed_forward(model_config: Any) -> None:
    """Raises a ValueError if a model config asks for a network with a memory."""
    if lstm_cells(check_model_config(model_config)):
        raise ValueError("use_lstm is True, which works on the new API stack only; leave it out.")
