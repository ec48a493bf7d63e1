"""The figures of an episode under RLlib's metric names."""

from __future__ import annotations

from collections.abc import Mapping

from ray.rllib.utils.metrics import (
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_MODULE_RETURN_MEAN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
)

from rllib_mfq.population.fragment import Episode

GROUP_RETURNS_MEAN = "group_returns_mean"
WIN_RATE = "win_rate"
OPPONENTS = "opponents"

Figures = dict[tuple[str, ...], float]


def episode_figures(episode: Episode, modules: Mapping[str, str]) -> Figures:
    """What one episode contributes to the results.

    Args:
        episode: a finished episode.
        modules: module of each group.

    Returns:
        Values under metric keys; a key that ends in `_min` or `_max` is to be reduced so, any
        other by the mean. The return of an episode is the sum over all its agents.
    """
    total, length = episode.get_return(), float(episode.length)
    figures: Figures = {
        (EPISODE_RETURN_MEAN,): total,
        (EPISODE_RETURN_MIN,): total,
        (EPISODE_RETURN_MAX,): total,
        (EPISODE_LEN_MEAN,): length,
        (EPISODE_LEN_MIN,): length,
        (EPISODE_LEN_MAX,): length,
    }
    for group, value in episode.returns.items():
        figures[GROUP_RETURNS_MEAN, group] = value
        module = (EPISODE_MODULE_RETURN_MEAN, modules[group])
        figures[module] = figures.get(module, 0.0) + value
    for name, per_group in episode.result.items():
        for group, value in per_group.items():
            figures[name, group] = value
    if len(episode.returns) == 2:
        for group, share in episode.shares().items():
            figures[WIN_RATE, group] = share
    return figures


def match_figures(episode: Episode, mine: str, opponent: str) -> Figures:
    """What a match of the learner's `mine` against an opponent's group contributes.

    Args:
        episode: a finished match between two groups.
        mine: the learner's group.
        opponent: name of the opponent.

    Returns:
        As `episode_figures`; returns are the learner's side's, under `opponents` by the group
        it played. `win_rate` counts a draw as a half; `eliminated` is 1 if none of the
        opponent's agents survived.
    """
    (theirs,) = (group for group in episode.returns if group != mine)
    value, length = episode.returns[mine], float(episode.length)
    figures: Figures = {
        (EPISODE_RETURN_MEAN,): value,
        (EPISODE_RETURN_MIN,): value,
        (EPISODE_RETURN_MAX,): value,
        (EPISODE_LEN_MEAN,): length,
        (EPISODE_LEN_MIN,): length,
        (EPISODE_LEN_MAX,): length,
        (WIN_RATE, opponent): episode.shares()[mine],
        (OPPONENTS, opponent, GROUP_RETURNS_MEAN, mine): value,
    }
    for name, per_group in episode.result.items():
        figures[OPPONENTS, opponent, name] = per_group[mine]
        figures[OPPONENTS, opponent, f"their_{name}"] = per_group[theirs]
    if "survivors" in episode.result:
        survivors = episode.result["survivors"][theirs]
        figures[OPPONENTS, opponent, "eliminated"] = float(survivors == 0)
    return figures
