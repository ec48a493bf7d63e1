"""Players: who chooses the actions of a group, and whom its mean actions average over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.population import Array

Act = Callable[[Array, Array, Array | None], Array]
"""Chooses actions for n agents at once.

Observations `[n, *obs]`, mean actions `[n, width]` and action masks, `[n, A]` bool or None, go
in; `[n]` integer actions come out.
"""


@dataclass(frozen=True)
class Player:
    """Who plays one or several groups.

    Attributes:
        name: names the columns of its rows: the module that learns from them.
        act: chooses its actions.
        neighborhood: whom its mean actions average over.
        mean_action_iterations: M of "Algorithm 1": how often actions and mean actions are
            sampled in turn before the last actions are played.
        act_together: chooses the actions instead of `act`, where agents share their exploration.
            Its fourth argument, `[n]` integers, numbers every agent's group and population.
        carried: further columns that its agents carry from step to step, see `block.CARRIED`.
    """

    name: str
    act: Act
    neighborhood: Neighborhood
    mean_action_iterations: int = 1
    act_together: Callable[[Array, Array, Array | None, Array], Array] | None = None
    carried: Mapping[str, str] = field(default_factory=dict)
