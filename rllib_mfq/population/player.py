"""Players: who chooses the actions of a group, and whom its mean actions average over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rllib_mfq.mean_field.neighborhood import Neighborhood

Act = Callable[..., Any]
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
        remembers: columns that it writes at every step besides the actions, `{name: (shape of an
            agent's value, dtype)}`, for `carried` to take them to the next step: what a recurrent
            network remembers. If there are any, what `carried` names goes in by keyword, and
            `(actions, {name: [n, *shape]})` comes out.
    """

    name: str
    act: Act
    neighborhood: Neighborhood
    mean_action_iterations: int = 1
    act_together: Callable[..., Any] | None = None
    carried: Mapping[str, str] = field(default_factory=dict)
    remembers: Mapping[str, tuple[tuple[int, ...], Any]] = field(default_factory=dict)
