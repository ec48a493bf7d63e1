"""The tabular form of mean field Q-learning: one entry per state, mean action and action."""

import torch
from torch import Tensor, nn

from rllib_mfq.mean_field.network import MeanFieldQNetwork

LARGEST = 10_000_000  # entries, 40 MB


class QTable(nn.Module):
    """Q(s, ., m) for numbered states, m rounded to multiples of 1 / levels.

    With k neighbours each, m only takes multiples of 1 / k: `levels = k` loses nothing. All
    entries start at zero.

    Args:
        first_state: number of the first state.
        num_states: one for agents that share what they learn and observe nothing, one per agent
            where each observes its own number.
        levels: steps from 0 to 1 of each component of a mean action.
        mean_action_dim: length of a mean action.
        num_actions: A.

    Raises:
        ValueError: the table would have more than `LARGEST` entries.
    """

    def __init__(
        self, first_state: int, num_states: int, levels: int, mean_action_dim: int, num_actions: int
    ) -> None:
        super().__init__()
        cells = (levels + 1) ** mean_action_dim
        entries = num_states * cells * num_actions
        if entries > LARGEST:
            raise ValueError(
                f"table_levels is {levels}, which makes {entries:,} entries of {mean_action_dim} "
                f"mean action components; legal are at most {LARGEST:,} entries."
            )
        self.first_state, self.levels = first_state, levels
        self.entries = nn.Parameter(torch.zeros(num_states, cells, num_actions))
        self.radix: Tensor
        radix = (levels + 1) ** torch.arange(mean_action_dim)
        self.register_buffer("radix", radix, persistent=False)

    def forward(self, obs: Tensor, mean_actions: Tensor) -> Tensor:
        """Action values, `[B, A]` float32; for the arguments see `cells`."""
        return self.entries[self.cells(obs, mean_actions)]

    def cells(self, obs: Tensor, mean_actions: Tensor) -> tuple[Tensor, Tensor]:
        """Where rows stand in the table: states `[B]` and mean actions `[B]`, int64.

        `obs`, `[B, 1]` of any number type, are the numbers of the states; `mean_actions` are
        `[B, mean_action_dim]` float.
        """
        digits = (mean_actions * self.levels).round().long()
        return obs[:, 0].long() - self.first_state, (digits * self.radix).sum(-1)

    def weights(self, obs: Tensor, mean_actions: Tensor, actions: Tensor) -> Tensor:
        """Weights of squared errors that make gradient descent the tabular update.

            Q(s, a, m) <- Q(s, a, m) + lr * mean over its rows of (y - Q(s, a, m))

        which for one row is (1 - lr) Q + lr y, the paper's iteration with alpha = lr. `actions`
        are `[B]` integers; for the other arguments see `cells`.

        Returns:
            `[B]`: a half over the number of rows of the same entry.
        """
        states, cells = self.cells(obs, mean_actions)
        entry = (states * self.entries.shape[1] + cells) * self.entries.shape[2] + actions.long()
        return 0.5 / torch.bincount(entry)[entry]


def make_optimizer(network: MeanFieldQNetwork | QTable, lr: float) -> torch.optim.Optimizer:
    """Adam of rate `lr` for a `network`; for a table gradient descent, see `QTable.weights`."""
    if isinstance(network, QTable):
        return torch.optim.SGD(network.parameters(), lr=lr)
    return torch.optim.Adam(network.parameters(), lr=lr, fused=True)
