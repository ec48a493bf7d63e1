"""Fragments and episodes: what one `sample` call returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from rllib_mfq.population.population import Array, Group, Rows, Step


@dataclass
class Episode:
    """One episode of one population; what callbacks get as `episode`.

    It answers to the names that RLlib's episodes have for what is known here: `len(episode)`,
    `env_steps()`, `agent_steps()`, `get_return()`, `is_done`, `custom_data` and `id_`. It holds no
    observations or actions: a population's rows go to the learner as columns.

    Attributes:
        id_: its number, unique within the sampler.
        env_index: which of the sampler's populations plays it.
        returns: sum of rewards per group.
        length: steps so far.
        is_done: whether it has ended.
        result: the population's own figures, `{name: {group: value}}`, once it is done.
        custom_data: for callbacks.
        alike: whether the groups have equal spaces and began with equally many agents.
    """

    id_: int
    env_index: int
    returns: dict[str, float]
    length: int = 0
    is_done: bool = False
    result: dict[str, dict[str, float]] = field(default_factory=dict)
    custom_data: dict[str, Any] = field(default_factory=dict)
    alike: bool = True
    _paid: dict[str, list[tuple[Array, Array]]] | None = None  # per group: ids and rewards
    _agent_steps: int = 0

    def __len__(self) -> int:
        """Steps so far."""
        return self.length

    def __bool__(self) -> bool:
        """True, also before the first step."""
        return True

    def env_steps(self) -> int:
        """Steps so far."""
        return self.length

    def agent_steps(self) -> int:
        """Rows so far: one for every agent that acted, at every step."""
        return self._agent_steps

    def get_return(self) -> float:
        """Sum of all groups' returns."""
        return sum(self.returns.values())

    @property
    def agent_returns(self) -> dict[str, dict[int, float]]:
        """Per group, the sum of rewards of every agent that has acted, by its number (`Rows.ids`).

        Raises:
            ValueError: they are kept only while callbacks of an episode run.
        """
        if self._paid is None:
            raise ValueError("agent_returns are kept only while an episode's callbacks run.")
        returns = {}
        for group, parts in self._paid.items():
            ids, rewards = (np.concatenate([p[i] for p in parts] or [np.zeros(0)]) for i in (0, 1))
            agents, where = np.unique(ids, return_inverse=True)
            sums = np.bincount(where, weights=rewards, minlength=len(agents))
            returns[group] = dict(zip(agents.astype(int).tolist(), sums.tolist(), strict=True))
        return returns

    def keep_agent_returns(self, keep: bool) -> None:
        """Makes the episode keep what `agent_returns` needs, or forget it."""
        self._paid = {group: [] for group in self.returns} if keep else None

    def pay(self, group: str, ids: Array, step: Step) -> None:
        """Counts what a step paid to the agents of a group, of which those with `ids` acted."""
        self.returns[group] += step.total()
        self._agent_steps += len(ids)
        if self._paid is not None:
            now = slice(None) if step.waiting is None else ~step.waiting
            self._paid[group].append((ids[now].copy(), np.array(step.rewards, float)[now]))
            if step.late is not None:
                self._paid[group].append((step.late.ids, np.array(step.late.rewards, float)))

    @property
    def has_winner(self) -> bool:
        """Whether winning means something: groups are alike, or the population has a `score`."""
        return self.alike or "score" in self.result

    def shares(self) -> dict[str, float]:
        """1 for the group that won and 0 for one that lost; a draw is shared equally."""
        score = self.result.get("score", self.result.get("kills", self.returns))
        best = max(score.values())
        winners = sum(value == best for value in score.values())
        return {group: (value == best) / winners for group, value in score.items()}


def are_alike(groups: Mapping[str, Group], rows: Mapping[str, Rows]) -> bool:
    """Whether groups have equal spaces and, in these rows, equally many agents."""
    first, *others = groups
    return all(
        groups[name] == groups[first] and len(rows[name].ids) == len(rows[first].ids)
        for name in others
    )


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
