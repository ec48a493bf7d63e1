"""The Q network of mean field Q-learning: Q(s, ., m) for all actions at once."""

import torch
from torch import Tensor, nn

from rllib_mfq.mean_field.observations import Observations


class MeanFieldQNetwork(nn.Module):
    """An observation encoder and a mean-action embedding, joined before the action values.

        m -> 64 -> 32;  [encoder(s), m embedded] -> 128 -> 64 -> Q

    The widths are those of the authors' battle network. Nothing depends on how many agents
    there are, so a network plays populations of any size.

    Args:
        encoder: maps observations `[B, ...]` to features `[B, encoder_dim]`.
        encoder_dim: width of the features.
        mean_action_dim: length of a mean action.
        num_actions: A.
        dueling: splits the head into a state value and advantages (mean-free over actions).
        observations: what is made of observations before the encoder; None turns them into
            float32.
    """

    def __init__(
        self,
        encoder: nn.Module,
        encoder_dim: int,
        mean_action_dim: int,
        num_actions: int,
        dueling: bool = False,
        observations: Observations | None = None,
    ) -> None:
        super().__init__()
        self.observations = observations or Observations(())
        self._as_they_are = self.observations.as_they_are  # a module's call costs microseconds
        self.encoder = encoder
        self.mean_action_embedding = nn.Sequential(
            nn.Linear(mean_action_dim, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
        )
        self.joint = nn.Sequential(
            nn.Linear(encoder_dim + 32, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()
        )
        self.advantage = nn.Linear(64, num_actions)
        self.value = nn.Linear(64, 1) if dueling else None

    def forward(self, obs: Tensor, mean_actions: Tensor) -> Tensor:
        """Action values, `[B, A]` float32.

        Observations are `[B, ...]` of any number type, mean actions `[B, mean_action_dim]` float.
        """
        features = self.encoder(obs.float() if self._as_they_are else self.observations(obs))
        parts = [features, self.mean_action_embedding(mean_actions)]
        joint = self.joint(torch.cat(parts, -1))
        advantage: Tensor = self.advantage(joint)
        if self.value is None:
            return advantage
        value: Tensor = self.value(joint)
        return value + advantage - advantage.mean(-1, keepdim=True)


class OwnQNetwork(nn.Module):
    """A Q network of the user's.

    Args:
        network: maps observations `[B, ...]` float32 and mean actions to action values `[B, A]`.
        observations: see `MeanFieldQNetwork`.
    """

    def __init__(self, network: nn.Module, observations: Observations) -> None:
        super().__init__()
        self.network, self.observations = network, observations

    def forward(self, obs: Tensor, mean_actions: Tensor) -> Tensor:
        """Action values, `[B, A]`; for the arguments see `MeanFieldQNetwork`."""
        q: Tensor = self.network(self.observations(obs), mean_actions)
        return q


class TargetUpdate:
    """Moves the network `target` towards the network `online`, in place ("Algorithm 1").

        target <- tau * online + (1 - tau) * target

    Both have the same shape. Their tensors are looked up once, for the walk through all modules
    takes a fortieth of an update: afterwards values may change, and tensors must not be replaced.
    """

    def __init__(self, target: nn.Module, online: nn.Module) -> None:
        self._slow: list[Tensor] = list(target.parameters())
        self._fast: list[Tensor] = list(online.parameters())
        self._buffers = list(zip(target.buffers(), online.buffers(), strict=True))

    @torch.no_grad()
    def __call__(self, tau: float) -> None:
        """Moves by tau, in `(0, 1]`; 1 copies. Buffers are always copied."""
        if self._slow:  # all in one call, which refuses none at all
            torch._foreach_lerp_(self._slow, self._fast, tau)
        for kept, current in self._buffers:
            kept.copy_(current)
