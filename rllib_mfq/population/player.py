"""Players: who chooses the actions of a group, and whom its mean actions average over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.population import Array


class Act(Protocol):
    """Chooses actions for many agents at once."""

    def __call__(self, obs: Array, mean_actions: Array, action_mask: Array | None) -> Array:
        """`[n, *obs]`, `[n, width]` and `[n, A]` bool or None to `[n]` integer actions."""
        ...


class ActTogether(Protocol):
    """Chooses actions for many agents, knowing which of them explore together."""

    def __call__(
        self, obs: Array, mean_actions: Array, action_mask: Array | None, crowd: Array
    ) -> Array:
        """As `Act`; `crowd` `[n]` numbers the agents' group within their population."""
        ...


@dataclass(frozen=True)
class Player:
    """Who plays one or several groups.

    Attributes:
        name: names the columns of its rows: the module that learns from them.
        act: chooses its actions.
        act_together: chooses them instead, where agents share their exploration.
        neighborhood: whom its mean actions average over.
        mean_action_iterations: M of "Algorithm 1": how often actions and mean actions are
            sampled in turn before the last actions are played.
    """

    name: str
    act: Act
    neighborhood: Neighborhood
    mean_action_iterations: int = 1
    act_together: ActTogether | None = None
