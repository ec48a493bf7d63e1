"""Matches of trained agents, from which nobody learns.

Evaluation in the runner, tournaments, films and the experiments all play through this file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from rllib_mfq.population.fragment import Episode, Fragment
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Population
from rllib_mfq.population.sampler import Sampler


def play_episodes(
    make_population: Callable[[int], Population],
    players: Mapping[str, Player],
    num_episodes: int,
    *,
    seed: int | Sequence[int] | None = None,
    side_by_side: int = 1,
    on_event: Callable[[str, Episode], None] = lambda event, episode: None,
) -> list[Episode]:
    """Plays whole episodes, in populations that are made for it and closed afterwards.

    Args:
        make_population: makes the population with a given index.
        players: who plays each group.
        num_episodes: exactly so many.
        seed: of the populations.
        side_by_side: how many populations play at a time, at most.
        on_event: see `Sampler`.

    Returns:
        The episodes, in the order in which they ended.
    """
    count = min(num_episodes, side_by_side)
    sampler = Sampler(make_population, count, players, seed, on_event=on_event)
    try:
        return sampler.sample(num_episodes=num_episodes, keep=False).episodes
    finally:
        sampler.close()


def play_step(population: Population, players: Mapping[str, Player]) -> None:
    """Plays one step, only to see whether these players can; the population stays open."""
    Sampler(lambda index: population, 1, players, 0).sample(num_steps=1, keep=False)


def play_both_sides(
    sampler: Sampler,
    mine: Mapping[str, Player],
    theirs: Mapping[str, Player],
    num_matches: int,
    matches_before: int,
) -> Iterator[tuple[str, Fragment]]:
    """Plays matches on each side in turn; equally often if their number is even.

    Args:
        sampler: has populations of two groups, which stay open.
        mine: one's own player of every group.
        theirs: the opponent's.
        num_matches: on both sides together.
        matches_before: played against this opponent so far: of an odd number one side gets one
            more, the first one after an odd number of matches before and else the second.

    Yields:
        For each side that is played, one's own group and what was played, without columns.
    """
    for side, group in enumerate(sampler.groups):
        share = (num_matches + (side + matches_before) % 2) // 2
        if share:
            sampler.assign({**theirs, group: mine[group]})
            yield group, sampler.sample(num_episodes=share, keep=False)
