"""Fragments and episodes: what one `sample` call returns."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rllib_mfq.population.population import Array


@dataclass
class Episode:
    """One episode of one population.

    Attributes:
        id_: its number, unique within the sampler.
        env_index: which of the sampler's populations plays it.
        returns: sum of rewards per group.
        length: steps so far.
        is_done: whether it has ended.
        result: the population's own figures, `{name: {group: value}}`, once it is done.
        custom_data: for callbacks.
    """

    id_: int
    env_index: int
    returns: dict[str, float]
    length: int = 0
    is_done: bool = False
    result: dict[str, dict[str, float]] = field(default_factory=dict)
    custom_data: dict[str, Any] = field(default_factory=dict)

    def env_steps(self) -> int:
        """Steps so far, under the name that RLlib's episodes use."""
        return self.length

    def get_return(self) -> float:
        """Sum of all groups' returns, under the name that RLlib's episodes use."""
        return sum(self.returns.values())

    def shares(self) -> dict[str, float]:
        """1 for the group that won and 0 for one that lost; a draw is shared equally."""
        score = self.result.get("score", self.result.get("kills", self.returns))
        best = max(score.values())
        winners = sum(value == best for value in score.values())
        return {group: (value == best) / winners for group, value in score.items()}


class Link(NamedTuple):
    """Where the rows of a player go on from one fragment to the next.

    The last rows of a fragment, which have observed but not acted, are the first rows of the next
    one of the same sampler, where they act.

    Attributes:
        name: of this fragment, unique among all samplers.
        follows: the name of the fragment whose last rows are this one's first; empty if the
            episodes of this fragment began in it.
        rows: how many of this fragment's last rows the next one begins with.
    """

    name: str
    follows: str
    rows: int


@dataclass
class Fragment:
    """The rows of one `sample` call.

    Attributes:
        columns: per player, columns over its rows; views of memory that the next `sample`
            overwrites. `next_row` is the row that holds the agent's next observation, -1 if the
            agent was terminated. Where `loss_mask` is false, the agent did not act: the row only
            holds the next observation of another row.
        env_steps: steps over all populations.
        agent_steps: rows with `loss_mask`, per group.
        episodes: those that ended.
        failures: how many populations raised and were made anew.
        links: per player, how its rows go on from the fragment before to the next one.
    """

    columns: dict[str, dict[str, Array]]
    env_steps: int
    agent_steps: dict[str, int]
    episodes: list[Episode]
    failures: int = 0
    links: dict[str, Link] = field(default_factory=dict)
