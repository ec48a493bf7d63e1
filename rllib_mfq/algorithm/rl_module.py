"""The RLModule: RLlib's encoder, the mean field Q network, and what is needed to act with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import StateDict
from ray.util.debug import log_once
from torch import Tensor, nn

from rllib_mfq.mean_field.neighborhood import Neighborhood, did_you_mean
from rllib_mfq.mean_field.network import MeanFieldQNetwork
from rllib_mfq.mean_field.objective import greedy_actions, sample_actions
from rllib_mfq.mean_field.table import QTable
from rllib_mfq.population.population import Array

MEAN_ACTIONS = "mean_actions"
NEXT_MEAN_ACTIONS = "next_mean_actions"
ACTION_MASK = "action_mask"

log_once("RLModule(config=[RLModuleConfig object])")  # what RLlib's own constructor warns of

ACTING: dict[str, Any] = {
    "neighborhood": "group",
    "mean_action_iterations": 1,
    "mean_action_input": "previous",
    "mean_action_dim": None,
    "dueling": False,
    "table_levels": None,
    "shared_exploration": None,
    "temperature": 1.0,
}
"""What a module knows besides RLlib's model config, so that a checkpoint of it can play."""


class _CatalogEncoder(nn.Module):
    """RLlib's encoder, from a tensor of observations to a tensor of features."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.encoder({Columns.OBS: obs})[ENCODER_OUT]
        return features


class MFQTorchRLModule(TorchRLModule, TargetNetworkAPI, InferenceOnlyAPI):
    """Q(s, ., m) of one group, or of all groups that share it.

    The `model_config` is RLlib's own (`fcnet_hiddens`, `conv_filters`, ...); the entries of
    `ACTING` stand beside it. The temperature is a buffer, so it travels with the weights to
    env runners and into checkpoints.
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        config = check_model_config(self.model_config)
        acting = ACTING | {key: config[key] for key in ACTING if key in config}
        space = self.observation_space
        num_actions = int(self.action_space.n)
        self.neighborhood = Neighborhood.parse(acting["neighborhood"])
        self.mean_action_iterations = int(acting["mean_action_iterations"])
        self.mean_action_input = acting["mean_action_input"]
        self.mean_action_dim = acting["mean_action_dim"] or num_actions
        self.q_net: MeanFieldQNetwork | QTable
        if acting["table_levels"]:
            first, last = int(space.low[0]), int(space.high[0])
            self.q_net = QTable(
                first, last - first + 1, acting["table_levels"], self.mean_action_dim, num_actions
            )
        else:
            if not config.get("conv_filters") and len(space.shape) == 3:
                config["conv_filters"] = default_conv_filters(space.shape)
            catalog = Catalog(space, self.action_space, config)
            self.q_net = MeanFieldQNetwork(
                _CatalogEncoder(catalog.build_encoder(framework="torch")),
                catalog.latent_dims[0],
                self.mean_action_dim,
                num_actions,
                acting["dueling"],
            )
        self.register_buffer("temperature", torch.tensor(float(acting["temperature"])))
        strength = acting["shared_exploration"]
        together = None if strength is None else torch.tensor(float(strength))
        self.register_buffer("shared_exploration", together)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raises a ValueError if a state is of another network than this module's."""
        mine, theirs = (
            {n: tuple(np.shape(x)) for n, x in tensors.items() if not n.startswith("_target")}
            for tensors in (self.state_dict(), state)
        )
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                raise ValueError(
                    f"the state is of another network: {name} has shape "
                    f"{theirs.get(name, 'none')} there and {mine.get(name, 'none')} here; use the "
                    "same environment, model_config, dueling, table_levels and neighborhood."
                )

    @override(TorchRLModule)
    def set_state(self, state: StateDict) -> None:
        self.check_state(state)  # RLlib loads what fits and leaves the rest
        super().set_state(state)

    def q(self, batch: Mapping[str, Any]) -> Tensor:
        """Action values.

        Args:
            batch: `obs` `[B, *obs]`; `mean_actions` `[B, mean_action_dim]`, zero if missing.

        Returns:
            `[B, A]`.
        """
        return self._values(self.q_net, batch)

    def act(
        self,
        obs: Array,
        mean_actions: Array,
        action_mask: Array | None,
        *,
        explore: bool,
        generator: torch.Generator | None = None,
        crowd: Array | None = None,
    ) -> Array:
        """Chooses actions for many agents: numpy in, numpy out, no gradient.

        Args:
            obs: `[n, *obs]`.
            mean_actions: `[n, mean_action_dim]` float32.
            action_mask: `[n, A]` bool, or None if all actions are legal.
            explore: draw from the Boltzmann policy; greedy otherwise.
            generator: source of the draws.
            crowd: `[n]` integers; agents of the same number share their exploration, if the
                module has any: one preference for each action, drawn anew at every call.

        Returns:
            `[n]` int64.
        """
        with torch.inference_mode():
            device = self.temperature.device
            q = self.q_net(
                torch.from_numpy(obs).to(device), torch.from_numpy(mean_actions).to(device)
            )
            mask = None if action_mask is None else torch.from_numpy(action_mask).to(device)
            if explore and crowd is not None and self.shared_exploration is not None:
                q = q + self.temperature * self._preferences(crowd, generator)
            if explore:
                actions = sample_actions(q, self.temperature, mask, generator)
            else:
                actions = greedy_actions(q, mask)
            chosen: Array = actions.cpu().numpy()
            return chosen

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        q = self.q(batch)
        return {Columns.ACTIONS: greedy_actions(q, _mask(batch)), "q": q}

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        q = self.q(batch)
        return {Columns.ACTIONS: sample_actions(q, self.temperature, _mask(batch)), "q": q}

    @override(TorchRLModule)
    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Q at the mean action that `mean_action_input` names."""
        return {"q": self.q({Columns.OBS: batch[Columns.OBS], MEAN_ACTIONS: self._input(batch)})}

    def loss_weights(self, batch: Mapping[str, Any]) -> Tensor | None:
        """What `mfq_loss` weighs the rows of a batch by: None, the mean, but for a table."""
        if not isinstance(self.q_net, QTable):
            return None
        return self.q_net.weights(batch[Columns.OBS], self._input(batch), batch[Columns.ACTIONS])

    @override(TargetNetworkAPI)
    def make_target_networks(self) -> None:
        self._target_q_net = make_target_network(self.q_net)

    @override(TargetNetworkAPI)
    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.q_net, self._target_q_net)]

    @override(TargetNetworkAPI)
    def forward_target(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"q": self._values(self._target_q_net, batch)}

    @override(InferenceOnlyAPI)
    def get_non_inference_attributes(self) -> list[str]:
        return ["_target_q_net"]

    def _preferences(self, crowd: Array, generator: torch.Generator | None) -> Tensor:
        """`[n, A]`: what is added to the logits Q / T, the same for agents of one crowd."""
        of = torch.from_numpy(crowd)
        shape = (int(of.max()) + 1, int(self.action_space.n))
        drawn = torch.randn(shape, generator=generator).to(self.temperature.device)
        return self.shared_exploration * drawn[of.to(drawn.device)]

    def _input(self, batch: Mapping[str, Any]) -> Any:
        """`[B, mean_action_dim]`: the mean action at which Q is learned."""
        previous = self.mean_action_input == "previous"
        return batch[MEAN_ACTIONS if previous else NEXT_MEAN_ACTIONS]

    def _values(self, network: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        obs = torch.as_tensor(batch[Columns.OBS])
        mean_actions = batch.get(MEAN_ACTIONS)
        if mean_actions is None:
            mean_actions = torch.zeros(len(obs), self.mean_action_dim, device=obs.device)
        values: Tensor = network(obs, torch.as_tensor(mean_actions))
        return values


def check_model_config(model_config: Any) -> dict[str, Any]:
    """A copy of a model config as a dict.

    Raises:
        ValueError: an unknown key, or one that has no meaning here.
    """
    if isinstance(model_config, DefaultModelConfig):
        model_config = dataclasses.asdict(model_config)
    if not isinstance(model_config, Mapping):
        raise ValueError(f"model_config is {model_config!r}; it must be a dict.")
    legal = {field.name for field in dataclasses.fields(DefaultModelConfig)} | set(ACTING)
    default = DefaultModelConfig()
    for key, value in model_config.items():
        if key not in legal:
            raise ValueError(f"model_config has no key {key!r}{did_you_mean(str(key), legal)}.")
        encoder = key in ACTING or key.startswith(("fcnet_", "conv_"))
        if not encoder and value != getattr(default, key):
            raise ValueError(
                f"model_config has {key!r}, which has no effect on MFQ; it learns from single "
                "steps, and of RLlib's networks it uses the encoder: set fcnet_... or conv_..."
            )
    return dict(model_config)


def default_conv_filters(shape: tuple[int, ...]) -> list[list[Any]]:
    """Two small convolutions where they fit, one where they do not.

    Args:
        shape: `[height, width, channels]` of the observations.

    Returns:
        RLlib's `conv_filters`. Without padding they run twice as fast as with it.
    """
    if min(shape[:2]) >= 7:
        return [[16, 3, 2, "valid"], [32, 3, 2, "valid"]]
    return [[32, min(3, *shape[:2]), 1, "valid"]]


def _mask(batch: Mapping[str, Any]) -> Tensor | None:
    mask = batch.get(ACTION_MASK)
    return None if mask is None else torch.as_tensor(mask).bool()
