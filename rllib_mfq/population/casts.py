"""Casts: who plays each group of each population, and how everybody chooses actions."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from rllib_mfq.mean_field.neighborhood import GroupActions
from rllib_mfq.population.block import Block
from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.guard import place
from rllib_mfq.population.player import Player, Scene
from rllib_mfq.population.population import Array, Group, PopulationError, Rows

Cast = Mapping[str, Player]
"""Who plays each group of one population."""


class Casts:
    """The blocks of all players, and which of several casts plays in each population.

    Players of one name are one player: its rows stand in one block, whatever the cast.

    Args:
        groups: the environment's.
        casts: one at least. Where there are several, a population has one of them for an episode.
    """

    def __init__(self, groups: Mapping[str, Group], casts: Sequence[Cast]) -> None:
        self._groups = groups
        played: dict[str, list[str]] = {}  # the groups that each player has in some cast
        players: dict[str, Player] = {}
        for group in groups:
            for cast in casts:
                name = cast[group].name
                players.setdefault(name, cast[group])
                if group not in played.setdefault(name, []):
                    played[name].append(group)
        by_name = {name: Block(players[name], groups, played[name]) for name in played}
        self.blocks = list(by_name.values())
        self._parts = {g: [block for block in self.blocks if g in block.names] for g in groups}
        self._casts = [{group: by_name[cast[group].name] for group in groups} for cast in casts]
        self._cast_of: dict[int, int] = {}  # per population; the first one unless it is said
        self._iterations = max(p.mean_action_iterations for p in players.values())

    def __len__(self) -> int:
        """The number of casts."""
        return len(self._casts)

    def give(self, population: int, cast: int) -> None:
        """Lets a population's next episode be played by the cast of that number."""
        self._cast_of[population] = cast

    def block(self, population: int, group: str) -> Block:
        """Where the rows of a population's group stand."""
        return self._casts[self._cast_of.get(population, 0)][group]

    def act(self, rows: Mapping[tuple[int, str], Rows], episodes: Mapping[int, Episode]) -> None:
        """Runs the inner loop of Algorithm 1: actions and mean actions in turn.

        Args:
            rows: the agents that act now, by population and group.
            episodes: that are being played, by population.
        """
        for iteration in range(self._iterations):
            for block in self.blocks:
                if iteration < block.player.mean_action_iterations:
                    if iteration:
                        now = slice(block.start, block.stop)
                        block.data["mean_actions"][now] = block.data["next_mean_actions"][now]
                    block.act(self._scene(block, rows, episodes))
            played = {
                group: [self._played(block, group, rows, episodes) for block in parts]
                for group, parts in self._parts.items()
            }
            for group, parts in self._parts.items():
                others = [_joined(played[other]) for other in self._groups if other != group]
                for block, own in zip(parts, played[group], strict=True):
                    means = block.player.neighborhood.mean_actions(own, others)
                    block.data["next_mean_actions"][block.slices[group]] = means

    def _scene(
        self, block: Block, rows: Mapping[tuple[int, str], Rows], episodes: Mapping[int, Episode]
    ) -> Scene | None:
        """What a player that sees it gets besides the columns."""
        if not block.player.sees or block.stop == block.start:
            return None
        (group,) = block.names
        mine = [(i, group) for i in sorted(episodes) if self.block(i, group) is block]
        theirs = [(i, g) for i in sorted(episodes) for g in self._groups if g != group]
        return Scene(
            group,
            block.data["t"][block.start : block.stop],
            block.population[group],
            functools.partial(_positions, block.player.name, rows, mine),
            functools.partial(_positions, block.player.name, rows, theirs),
        )

    def _played(
        self,
        block: Block,
        group: str,
        rows: Mapping[tuple[int, str], Rows],
        episodes: Mapping[int, Episode],
    ) -> GroupActions:
        """What a block's agents of a group have just played, and what its neighbourhood needs."""
        given: dict[str, Array | None] = {}
        if reads := block.player.neighborhood.reads:
            playing = [index for index in sorted(episodes) if self.block(index, group) is block]
            here = {i: rows[i, group] for i in playing if len(rows[i, group].ids)}
            given = {what: _read(block, group, here, episodes, what) for what in reads}
        actions = block.data["actions"][block.slices[group]]
        num_actions = int(self._groups[group].action_space.n)
        return GroupActions(actions, num_actions, block.population[group], **given)


def _positions(
    player: str, rows: Mapping[tuple[int, str], Rows], which: Sequence[tuple[int, str]]
) -> tuple[Array, Array]:
    """`[m]` the population of each agent of some populations' groups, and `[m, d]` where it is."""
    here = [(index, rows[index, group]) for index, group in which]
    found = [(index, each.positions) for index, each in here if len(each.ids)]
    if any(where is None for _, where in found):
        raise PopulationError(f"{player} plays by positions, but the environment gives none.")
    where = [each for _, each in found if each is not None]
    counts = [len(each) for each in where]
    numbers = np.array([index for index, _ in found], np.int64)
    return np.repeat(numbers, counts), np.concatenate(where) if where else np.zeros((0, 2))


def _joined(parts: Sequence[GroupActions]) -> GroupActions:
    """The actions of a group that several players play, each in other populations."""
    if len(parts) == 1:
        return parts[0]
    actions, population = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("actions", "population")
    )
    return GroupActions(actions, parts[0].num_actions, population)


def _read(
    block: Block,
    group: str,
    here: Mapping[int, Rows],
    episodes: Mapping[int, Episode],
    needs: str,
) -> Array | None:
    """The positions of the agents of a group, or the edges between their rows.

    None if a population has none, where the neighbourhood only may read them.
    """
    parts = {index: getattr(rows, needs) for index, rows in here.items()}
    if block.player.neighborhood.needs != needs and any(p is None for p in parts.values()):
        return None
    for index, part in parts.items():
        finite = part is not None and np.isfinite(part).all(axis=1)
        if not np.all(finite):
            bad = "None" if part is None else f"{part[np.argmin(finite)]} for a row"
            where = place(index, episodes[index].length, group)
            kind = block.player.neighborhood.kind
            raise PopulationError(
                f"{where}: {needs} is {bad}; the neighborhood {kind!r} needs finite numbers."
            )
    if needs == "edges":  # they number the rows of one population
        starts = np.cumsum([0, *(len(rows.ids) for rows in here.values())])
        parts = dict(enumerate(p + s for p, s in zip(parts.values(), starts, strict=False)))
    found: Array = np.concatenate(list(parts.values())) if parts else np.zeros((0, 2), np.int64)
    return found
