"""The Q network with a memory: Q(h, ., m), h being what an LSTM makes of all observations so far.

As in R2D2 (Kapturowski, Ostrovski, Quan, Munos, Dabney, "Recurrent Experience Replay in Distributed
Reinforcement Learning", ICLR 2019): a sequence begins with the state that the agent acted on then,
and its first steps, the burn-in, only make up for the weights having changed since.

Axes: B sequences, T learned steps, P = T + n positions (n steps later is what T's last is worth).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rllib_mfq.mean_field.network import MeanFieldQNetwork
from rllib_mfq.mean_field.observations import Observations


class RecurrentQNetwork(nn.Module):
    """An LSTM between the observation encoder and what `MeanFieldQNetwork` has behind it.

        [encoder(s), last action, last reward] -> LSTM -> h;  [h, m embedded] -> 128 -> 64 -> Q

    The mean action does not enter the LSTM, so the state does not depend on it: Q can be asked for
    at any mean action, and in every iteration of "Algorithm 1", from one state.

    Args:
        encoder: maps observations `[B, ...]` to features `[B, encoder_dim]`.
        encoder_dim: width of the features.
        cell_size: C, width of h and of the LSTM's cell.
        mean_action_dim: length of a mean action.
        num_actions: A.
        dueling: see `MeanFieldQNetwork`.
        observations: see `MeanFieldQNetwork`.
        previous_action: whether the last action is an input of the LSTM.
        previous_reward: whether the last reward is one.
    """

    def __init__(
        self,
        encoder: nn.Module,
        encoder_dim: int,
        cell_size: int,
        mean_action_dim: int,
        num_actions: int,
        dueling: bool = False,
        observations: Observations | None = None,
        previous_action: bool = False,
        previous_reward: bool = False,
    ) -> None:
        super().__init__()
        self.observations = observations or Observations(())
        self.encoder, self.cell_size, self.num_actions = encoder, cell_size, num_actions
        self.previous_action, self.previous_reward = previous_action, previous_reward
        width = encoder_dim + num_actions * previous_action + previous_reward
        self.lstm = nn.LSTM(width, cell_size, batch_first=True)
        self.head = MeanFieldQNetwork(
            nn.Identity(), cell_size, mean_action_dim, num_actions, dueling
        )

    def forward(self, obs: Tensor, mean_actions: Tensor) -> Tensor:
        """Action values `[B, A]` of agents that have just entered: nothing is remembered yet.

        Observations are `[B, ...]` of any number type, mean actions `[B, mean_action_dim]` float.
        """
        nothing = torch.zeros(len(obs), 2, self.cell_size, device=mean_actions.device)
        return self.step(obs, mean_actions, nothing)[0]

    def step(
        self, obs: Tensor, mean_actions: Tensor, state: Tensor, **previous: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Action values `[B, A]` of one step, and the state after it; see `remember`."""
        previous = {name: column[:, None] for name, column in previous.items()}
        features, after = self.remember(obs[:, None], state, **previous)
        q: Tensor = self.head(features[:, 0], mean_actions)
        return q, after

    def remember(
        self,
        obs: Tensor,
        state: Tensor,
        previous_actions: Tensor | None = None,
        previous_rewards: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What the LSTM makes of some steps in a row.

        Args:
            obs: `[B, P, ...]` of any number type.
            state: `[B, 2, C]`, h and cell before the first step; zero for an agent that enters.
            previous_actions: `[B, P]` integers, the action of the step before; None for 0.
            previous_rewards: `[B, P]`, its reward; None for 0.

        Returns:
            h at every step, `[B, P, C]`, and the state after the last, `[B, 2, C]`.
        """
        shape = obs.shape[:2]
        seen = self.observations(obs.flatten(0, 1))
        parts = [self.encoder(seen).unflatten(0, shape)]
        if self.previous_action:
            last = torch.zeros(shape, dtype=torch.long, device=obs.device)
            last = last if previous_actions is None else previous_actions.long()
            parts.append(nn.functional.one_hot(last, self.num_actions).float())
        if self.previous_reward:
            paid = parts[0].new_zeros(shape) if previous_rewards is None else previous_rewards
            parts.append(paid[..., None].float())
        hidden, cell = (part[None].contiguous() for part in state.unbind(1))
        features, after = self.lstm(torch.cat(parts, -1), (hidden, cell))
        return features, torch.stack([after[0][0], after[1][0]], 1)

    def features(self, batch: Mapping[str, Tensor], burn_in: int) -> Tensor:
        """Values of h at all positions of sequences, `[B, P, C]`, without gradient in the burn-in.

        A sequence that begins with its agent's life has no burn-in: its state, zero, is exact.

        Args:
            batch: `obs`, `state`, and what else the network reads, see `remember`.
            burn_in: steps.
        """
        names = [name for name in ("previous_actions", "previous_rewards") if name in batch]
        born = begins_a_life(batch["state"])[:, None, None]
        positions, found, start, state = batch["obs"].shape[1], [], 0, batch["state"]
        for stop in [burn_in, positions] if burn_in else [positions]:
            previous = {name: batch[name][:, start:stop] for name in names}
            part, after = self.remember(batch["obs"][:, start:stop], state, **previous)
            found.append(part)
            start, state = stop, torch.where(born, after, after.detach())
        return torch.cat(found, 1)


def begins_a_life(state: Tensor) -> Tensor:
    """`[B]` bool: whether states `[B, 2, C]` are those of agents that have just entered."""
    return (state == 0).flatten(1).all(1)


def learned_rows(
    online: RecurrentQNetwork, target: RecurrentQNetwork, batch: Mapping[str, Tensor], burn_in: int
) -> tuple[dict[str, Tensor], Tensor]:
    """Turns sequences into rows as they are learned from without memory, h being the observation.

    Args:
        online: the network that learns.
        target: the target network.
        batch: sequences as `ReplayMemory.read` gives them.
        burn_in: steps.

    Returns:
        M rows, at least one: `obs` `[M, C]`, h of the online network, through which gradients
        flow; `new_obs` and `new_obs_online` `[M, C]`, h of the target and the online network after
        the row's last step; `weights` `[M]` of the squared errors; all others as in a batch
        without memory. And `[B, T]` bool, which steps they are.
    """
    burnt = torch.arange(batch["learned"].shape[1], device=batch["learned"].device) < burn_in
    learned = batch["learned"] & (~burnt | begins_a_life(batch["state"])[:, None])
    some = learned.any()
    learned[0, 0] |= ~some  # lives that all end in the burn-in: one row, without weight
    sequence, step = learned.nonzero(as_tuple=True)
    after = step + batch["num_steps"][sequence, step]
    features = online.features(batch, burn_in)
    with torch.no_grad():
        target_features = target.features(batch, burn_in)
    one = ("actions", "rewards", "mean_actions", "next_mean_actions", "num_steps", "action_mask")
    rows = {name: batch[name][sequence, step] for name in one if name in batch}
    rows |= {
        "obs": features[sequence, step],
        "new_obs": target_features[sequence, after],
        "new_obs_online": features.detach()[sequence, after],
        "terminateds": batch["terminateds"][sequence, after - 1],
        "last_mean_actions": batch["next_mean_actions"][sequence, after - 1],
    }
    if "action_mask" in batch:
        rows["next_action_mask"] = batch["action_mask"][sequence, after]
    weights = batch.get("weights", torch.ones_like(batch["state"][:, 0, 0]))
    rows["weights"] = weights[sequence] * some
    return rows, learned
