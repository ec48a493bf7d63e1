"""Casting: who plays the two sides of a training match, where `self_play` has `others`."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from rllib_mfq.algorithm.fragment_batch import FragmentBatch
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.algorithm.self_play import LATEST, self_play_settings
from rllib_mfq.population.casts import Cast
from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.population import Group

MINE, OPPONENT = "mine", "opponent"
"""Keys of an episode's `custom_data`: the group that the learner played, and against whom."""


class Casting:
    """Chooses for every match of every population who plays it, by shares.

    Each opponent meets the learner's two sides in turn.

    Args:
        shares: of the matches, by the opponent; they sum to 1.
        trained: of these, the one that is played by what `self_play` makes of the learner.
        players: who plays each group if the learner plays that of a name, or None for both.
        groups: the environment's.
        generator: the source of all draws.

    Attributes:
        casts: all that there are.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        trained: str,
        players: Callable[[str | None], Cast],
        groups: Mapping[str, Group],
        generator: torch.Generator,
    ) -> None:
        self._names, self._generator = list(shares), generator
        self._shares = torch.tensor([*shares.values()], dtype=torch.float64)
        self.casts: list[Cast] = []
        self._sides: dict[str, list[str | None]] = {}  # of each opponent, in turn
        self._first: dict[str, int] = {}  # the number of its first cast
        self._turn: dict[str, int] = {}
        for name in shares:
            self._sides[name] = [None] if name == LATEST else list(groups)
            self._first[name] = len(self.casts)
            # A run that is resumed again and again must not begin with the same side each time.
            self._turn[name] = int(torch.randint(2, (), generator=generator))
            theirs: Cast = {}
            if name not in (LATEST, trained):
                theirs = load_opponent(name, name, groups, explore=True).players(generator)
            for mine in self._sides[name]:
                cast = {**players(mine), **{g: theirs[g] for g in theirs if g != mine}}
                for group in groups:
                    learns = mine in (None, group)
                    cast[group] = dataclasses.replace(cast[group], learns=learns)
                self.casts.append(cast)

    def choose(self, episode: Episode) -> int:
        """The number of the cast that plays an episode, whose `custom_data` says who that is."""
        name = self._names[int(torch.multinomial(self._shares, 1, generator=self._generator))]
        sides = self._sides[name]
        turn = self._turn[name] % len(sides)
        self._turn[name] += 1
        episode.custom_data[OPPONENT] = name
        if (mine := sides[turn]) is not None:
            episode.custom_data[MINE] = mine
        return self._first[name] + turn


def parts_of_runner(
    config: Any,
    players: Callable[[str | None], Cast],
    groups: Mapping[str, Group],
    generator: torch.Generator,
) -> list[tuple[str | None, list[Cast], Callable[[Episode], int]]]:
    """The samplers that a runner needs, see `Casting` for the arguments.

    With an opponent alone the learner plays each group in half of the populations, which have a
    sampler of their own: so it learns both sides, and no episode has to be cut.

    Returns:
        Of each the group that the learner has throughout, or None; the casts; and what chooses one.
    """
    if config.others:
        trained = self_play_settings(config.self_play)["opponent"]
        shares = {trained: 1 - sum(config.others.values()), **config.others}
        casting = Casting(shares, trained, players, groups, generator)
        return [(None, casting.casts, casting.choose)]
    sides: list[str | None] = list(groups) if config.has_opponent else [None]
    return [(mine, [players(mine)], lambda episode: 0) for mine in sides]


def shares_won(batches: Iterable[FragmentBatch], trained: str) -> dict[str, list[float]]:
    """The learner's shares of the win in the matches that ended, by the opponent's name.

    `trained` is who played in fragments where the learner has one group throughout. A share is NaN
    where winning means nothing, see `Episode.has_winner`.
    """
    won: dict[str, list[float]] = {trained: []}
    for batch in batches:
        for episode in batch.episodes:
            mine = batch.mine or episode.custom_data.get(MINE)
            if mine is not None:
                who = trained if batch.mine else episode.custom_data[OPPONENT]
                share = episode.shares()[mine] if episode.has_winner else math.nan
                won.setdefault(who, []).append(share)
    return won
