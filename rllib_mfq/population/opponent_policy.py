"""What plays one group of a match without having been trained by this package."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from rllib_mfq.population.player import Scene
from rllib_mfq.population.population import Array, Group


class OpponentPolicy(ABC):
    """Plays one group, all agents of all populations at once; derive from it for one of your own.

    One is made for each group of the environment. It may keep nothing from step to step that
    belongs to an agent: the rows of the next call are other agents'.

    Attributes:
        neighborhood: whom its mean actions average over, as the setting of that name.
    """

    neighborhood: ClassVar[Any] = "none"

    def __init__(self, group: str, groups: Mapping[str, Group]) -> None:
        """Makes it for the group of that name; raises a ValueError if it does not fit.

        Args:
            group: which it plays.
            groups: all groups of the environment with their spaces.
        """
        self.group, self.spaces = group, groups[group]

    @abstractmethod
    def act(
        self,
        obs: Array,
        mean_actions: Array,
        action_mask: Array | None,
        scene: Scene,
        rng: np.random.Generator,
    ) -> Array:
        """Chooses actions.

        Args:
            obs: `[n, *obs]`.
            mean_actions: `[n, width]` float32, of the last step; zero in the first one.
            action_mask: `[n, A]` bool, true where legal; None if all actions are.
            scene: positions, populations and steps, see there.
            rng: the source of all draws: so a seed repeats a match.

        Returns:
            `[n]` integers from 0 to A - 1.
        """
