"""The RLModule: the Q network of mean field Q-learning, and what is needed to act with it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from ray.util.debug import log_once
from torch import Tensor, nn

from rllib_mfq.algorithm.divergence import check_values
from rllib_mfq.algorithm.networks import (
    check_model_config,
    make_catalog,
    make_network,
    own_class,
)
from rllib_mfq.algorithm.old_filters import filled
from rllib_mfq.algorithm.settings import TO_PLAY, to_play
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.mean_field.network import TargetUpdate
from rllib_mfq.mean_field.objective import greedy_actions, sample_actions
from rllib_mfq.mean_field.recurrent import RecurrentQNetwork, learned_rows
from rllib_mfq.mean_field.table import QTable
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Array

MEAN_ACTIONS = "mean_actions"
NEXT_MEAN_ACTIONS = "next_mean_actions"
ACTION_MASK = "action_mask"
NUM_STEPS = "num_steps"  # column: how many steps a row spans, where `n_step` is above 1
STATE = "state"
NEXT_STATE = "next_state"

log_once("RLModule(config=[RLModuleConfig object])")  # what RLlib's own constructor warns of


class MFQTorchRLModule(TorchRLModule, TargetNetworkAPI, InferenceOnlyAPI):
    """Q(s, ., m) of one group, or of all groups that share it.

    The `model_config` is RLlib's own (`fcnet_hiddens`, `conv_filters`, ...) or names a network of
    the user's (`encoder`, `q_network`), with the entries of `TO_PLAY` added. The temperature is a
    buffer, so that env runners and checkpoints get it with the weights.

    Args:
        *args: RLlib's own.
        catalog_class: as RLlib's; makes the encoder.
        **kwargs: RLlib's own: `observation_space`, `action_space`, `model_config`, ...
    """

    def __init__(
        self, *args: Any, catalog_class: type[Catalog] | None = None, **kwargs: Any
    ) -> None:
        # RLlib would make the catalog before `setup`, which knows the filters that suit an image.
        self._catalog_class = catalog_class
        super().__init__(*args, **kwargs)

    @override(TorchRLModule)
    def setup(self) -> None:
        config = check_model_config(self.model_config)
        known = to_play({}) | {key: config[key] for key in TO_PLAY if key in config}
        space = self.observation_space
        self.neighborhood = Neighborhood.parse(known["neighborhood"])
        self.mean_action_iterations = int(known["mean_action_iterations"])
        columns = {"previous": MEAN_ACTIONS, "current": NEXT_MEAN_ACTIONS}
        self._learned_at = columns[known["mean_action_input"]]
        self.mean_action_dim = known["mean_action_dim"] or int(self.action_space.n)
        catalog = None
        if not (known["table_levels"] or own_class(config)):
            catalog = make_catalog(space, self.action_space, config, self._catalog_class)
        if self._catalog_class is not None:
            self.catalog = catalog  # whose class RLlib writes into checkpoints
        own_filters = self._catalog_class or config.get("conv_filters")
        self._default_filters = catalog is not None and not own_filters
        known["mean_action_dim"] = self.mean_action_dim
        self.q_net = make_network(space, self.action_space, config, known, catalog)
        self._set_up_memory(config, known["burn_in_len"])
        self.register_buffer("temperature", torch.tensor(float(known["temperature"])))
        shared = known["shared_exploration"]
        strength = None if shared is None else torch.tensor(float(shared))
        self.register_buffer("shared_exploration", strength)

    def _set_up_memory(self, config: Mapping[str, Any], burn_in_len: int) -> None:
        """Says what agents carry from step to step, where the network has a memory."""
        self.carried: dict[str, str] = {}
        self.max_seq_len = 0  # steps of a sequence that are learned from; 0: single rows
        self.burn_in_len = burn_in_len
        if (network := self.recurrent) is not None:
            self.max_seq_len = config.get("max_seq_len", DefaultModelConfig.max_seq_len)
            self.carried = {STATE: NEXT_STATE}
            if network.previous_action:
                self.carried["previous_actions"] = Columns.ACTIONS
            if network.previous_reward:
                self.carried["previous_rewards"] = Columns.REWARDS

    @property
    def recurrent(self) -> RecurrentQNetwork | None:
        """The network, if it has a memory."""
        return self.q_net if isinstance(self.q_net, RecurrentQNetwork) else None

    def player(self, name: str, act: Callable[..., Any], act_together: Any = None) -> Player:
        """A player of this module's neighbourhood and memory; see `Player`."""
        remembers = {}
        if self.recurrent is not None:
            remembers[NEXT_STATE] = ((2, self.recurrent.cell_size), np.float32)
        hood, iterations = self.neighborhood, self.mean_action_iterations
        return Player(name, act, hood, iterations, act_together, self.carried, remembers)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raises a ValueError if `state`, arrays by name, is of another network than this one's."""
        mine = {name: tuple(np.shape(tensor)) for name, tensor in self.state_dict().items()}
        theirs = {name: tuple(np.shape(each)) for name, each in self.adapted(state).items()}
        for name in sorted({*mine, *theirs}):
            here, there = mine.get(name, "none"), theirs.get(name, "none")
            if here != there and not name.startswith("_target"):
                raise ValueError(
                    f"the state is of another network: {name} has shape {there} there and {here} "
                    "here; use the same environment, model_config, dueling, table_levels, "
                    "observation_filter and neighborhood."
                )

    def adapted(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """`state`, arrays by name, as one of this version; see `filled`."""
        return filled(state, self.state_dict() if self._default_filters else {})

    @override(TorchRLModule)
    def set_state(self, state: dict[str, Any]) -> None:
        self.check_state(state)  # RLlib loads what fits and leaves the rest
        super().set_state(self.adapted(state))

    @override(nn.Module)
    def train(self, mode: bool = True) -> "MFQTorchRLModule":
        """Sets the mode; RLlib does at every update, and the walk through all parts takes 1 %."""
        return self if self.training == mode else super().train(mode)

    def q(self, batch: Mapping[str, Any], network: nn.Module | None = None) -> Tensor:
        """Action values, `[B, A]`.

        Args:
            batch: `obs` `[B, *obs]`; `mean_actions` `[B, mean_action_dim]`, zero if missing.
            network: whose values; `q_net` by default.
        """
        obs, mean_actions = torch.as_tensor(batch[Columns.OBS]), batch.get(MEAN_ACTIONS)
        if mean_actions is None:
            mean_actions = torch.zeros(len(obs), self.mean_action_dim, device=obs.device)
        return (network or self.q_net)(obs, torch.as_tensor(mean_actions))

    def act(
        self,
        obs: Array,
        mean_actions: Array,
        action_mask: Array | None,
        crowd: Array | None = None,
        *,
        explore: bool,
        generator: torch.Generator | None = None,
        **carried: Array,
    ) -> Any:
        """Chooses actions for many agents: numpy in, numpy out, no gradient.

        Args:
            obs: `[n, *obs]`.
            mean_actions: `[n, mean_action_dim]` float32.
            action_mask: `[n, A]` bool, or None if all actions are legal.
            crowd: `[n]` integers; agents of the same number share their exploration, if the
                module has any: one preference for each action, drawn anew at every call.
            explore: draw from the Boltzmann policy; greedy otherwise.
            generator: source of the draws.
            **carried: what the agents carry, if the network has a memory; zero if missing.

        Returns:
            `[n]` int64; of a network with a memory with `{"next_state": [n, 2, cells]}`.
        """
        with torch.inference_mode():
            device = self.temperature.device
            mask = None if action_mask is None else torch.from_numpy(action_mask).to(device)
            seen = [torch.from_numpy(array).to(device) for array in (obs, mean_actions)]
            network = self.recurrent
            if network is None:
                q = self.q_net(*seen)
                check_values(q, obs)
                return self._choose(q, mask, crowd, explore, generator)
            known = {k: torch.from_numpy(column).to(device) for k, column in carried.items()}
            known.setdefault(STATE, torch.zeros(len(obs), 2, network.cell_size, device=device))
            q, state = network.step(*seen, **known)
            check_values(q, obs)
            actions = self._choose(q, mask, crowd, explore, generator)
            return actions, {NEXT_STATE: state.cpu().numpy()}

    def _choose(
        self,
        q: Tensor,
        mask: Tensor | None,
        crowd: Array | None,
        explore: bool,
        generator: torch.Generator | None,
    ) -> Array:
        if not explore:
            return greedy_actions(q, mask).cpu().numpy()
        if crowd is not None and self.shared_exploration is not None:
            q = q + self.temperature * self._preferences(crowd, generator)
        return sample_actions(q, self.temperature, mask, generator).cpu().numpy()

    @override(TorchRLModule)
    def get_initial_state(self) -> dict[str, Tensor]:
        """`h` and `c` `[cells]` of an agent that enters; empty without memory."""
        network = self.recurrent
        return {} if network is None else {k: torch.zeros(network.cell_size) for k in ("h", "c")}

    def _step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Action values, and under `state_out` what `state_in` of the next step must be."""
        network = self.recurrent
        if network is None:
            return self.q(batch), {}
        obs = torch.as_tensor(batch[Columns.OBS])
        start = {name: each.expand(len(obs), -1) for name, each in self.get_initial_state().items()}
        given = batch.get(Columns.STATE_IN) or start
        state = torch.stack([torch.as_tensor(given[name]) for name in ("h", "c")], 1)
        names = self.carried.keys() & batch.keys()
        known = {name: torch.as_tensor(batch[name]) for name in names}
        means = batch.get(MEAN_ACTIONS)
        if means is None:
            means = torch.zeros(len(obs), self.mean_action_dim)
        means = torch.as_tensor(means).to(obs.device)
        q, after = network.step(obs, means, **known | {STATE: state.to(obs.device)})
        return q, {Columns.STATE_OUT: {"h": after[:, 0], "c": after[:, 1]}}

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        q, after = self._step(batch)
        return {Columns.ACTIONS: greedy_actions(q, _mask(batch)), "q": q, **after}

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        q, after = self._step(batch)
        actions = sample_actions(q, self.temperature, _mask(batch))
        return {Columns.ACTIONS: actions, "q": q, **after}

    @override(TorchRLModule)
    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Q at the mean action that `mean_action_input` names, and `q_target` after the step.

        What is learned from becomes part of the statistics of `observation_filter`. With a memory
        the batch holds sequences; `rows` are the steps in them that are learned from, and `learned`
        says which they are, see `learned_rows`.
        """
        found: dict[str, Any] = {}
        seen = batch[Columns.OBS]
        if self.recurrent is not None:
            seen = seen[:, : batch["learned"].shape[1]][batch["learned"]]
        if not isinstance(self.q_net, QTable):
            self.q_net.observations.update(seen)
        if self.recurrent is not None:
            networks = (self.recurrent, self._target_q_net)
            found["rows"], found["learned"] = learned_rows(*networks, batch, self.burn_in_len)
        rows = found.get("rows", batch)
        online, target = self.value_networks()
        # First, since the other network then writes into memory that the processor's cache still
        # has; the other order makes an update take 3 % longer.
        with torch.no_grad():
            found["q_target"] = self.q(after_the_step(rows), target)
        given = {Columns.OBS: rows[Columns.OBS], MEAN_ACTIONS: rows[self._learned_at]}
        return {"q": self.q(given, online), **found}

    def value_networks(self) -> list[nn.Module]:
        """What gives rows their values, online and target: with a memory, what is behind it."""
        networks = self.get_target_network_pairs()[0]
        return [network if self.recurrent is None else network.head for network in networks]

    def loss_weights(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The rows' weights in `mfq_loss`, `[B]`, of a table; None, for the mean, of a network."""
        if not isinstance(self.q_net, QTable):
            return None
        at = batch[self._learned_at]
        return self.q_net.weights(batch[Columns.OBS], at, batch[Columns.ACTIONS])

    @override(TargetNetworkAPI)
    def make_target_networks(self) -> None:
        self._target_q_net = make_target_network(self.q_net)

    @functools.cached_property
    def move_target(self) -> TargetUpdate:
        """Moves the target network; made when both are on the device that they stay on."""
        return TargetUpdate(self._target_q_net, self.q_net)

    @override(TargetNetworkAPI)
    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.q_net, self._target_q_net)]

    @override(TargetNetworkAPI)
    def forward_target(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"q": self.q(batch, self._target_q_net)}

    @override(InferenceOnlyAPI)
    def get_non_inference_attributes(self) -> list[str]:
        return ["_target_q_net"]

    def _preferences(self, crowd: Array, generator: torch.Generator | None) -> Tensor:
        """`[n, A]`: what is added to the logits Q / T, the same for agents of one crowd."""
        of = torch.from_numpy(crowd)
        shape = (int(of.max()) + 1, int(self.action_space.n))
        drawn = torch.randn(shape, generator=generator).to(self.temperature.device)
        return self.shared_exploration * drawn[of.to(drawn.device)]


def after_the_step(rows: Mapping[str, Any]) -> dict[str, Any]:
    """`obs` and `mean_actions` that rows have after the last of their steps."""
    # The target network inherits the mean action that this step produced.
    inherited = rows["last_mean_actions" if NUM_STEPS in rows else NEXT_MEAN_ACTIONS]
    return {Columns.OBS: rows[Columns.NEXT_OBS], MEAN_ACTIONS: inherited}


def _mask(batch: Mapping[str, Any]) -> Tensor | None:
    mask = batch.get(ACTION_MASK)
    return None if mask is None else torch.as_tensor(mask).bool()
