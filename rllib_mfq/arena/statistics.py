"""Statistics: what matches say of two agents, ratings of many, and intervals over seeds."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import choix
import numpy as np
from scipy import stats

from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.population import Array

ELO_PER_NAT = 400 / math.log(10)
Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Pair:
    """How the matches of two agents went, `a` and `b`.

    Wins and losses are those of `a`. Figures that end in `_a` or `_b` are means per match; kills
    and survivors are None where the environment counts none. Matches tell nothing about other
    agents that were trained in the same way, and neither does Wilson's interval.
    """

    a: str
    b: str
    matches: int  # half of them with `a` as the first group
    wins: int
    draws: int
    losses: int
    wins_first: int  # those of `wins` that `a` played as the first group
    distinct: int  # matches that differ in length or returns; if few do, nothing was drawn
    win_rate: float  # of `a`; a draw counts a half
    wilson_low: float  # of Wilson's 95 % interval of the share `wins / matches`
    wilson_high: float
    kills_a: float | None
    kills_b: float | None
    survivors_a: float | None
    survivors_b: float | None
    returns_a: float  # summed over all agents of the group
    returns_b: float


def count(a: str, b: str, first: Sequence[Episode], second: Sequence[Episode]) -> Pair:
    """Counts the matches that `a` played as the first group, and those as the second."""
    matches = [*first, *second]
    groups = [[*match.returns] for match in first]  # of `a` and of `b`
    groups += [[*reversed(match.returns)] for match in second]
    shares = [match.shares()[mine] for match, (mine, _) in zip(matches, groups, strict=True)]
    halves = ({(m.length, *m.returns.values()) for m in half} for half in (first, second))
    interval = stats.binomtest(shares.count(1.0), len(shares)).proportion_ci(method="wilson")

    def means(name: str, figures: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Those of `a` and of `b`; None unless every match has such figures."""
        if not all(figures):
            return {f"{name}_a": None, f"{name}_b": None}
        sides = [[of[group] for group in pair] for of, pair in zip(figures, groups, strict=True)]
        mine, theirs = zip(*sides, strict=True)
        return {f"{name}_a": fmean(mine), f"{name}_b": fmean(theirs)}

    return Pair(
        a,
        b,
        matches=len(matches),
        wins=shares.count(1.0),
        draws=shares.count(0.5),
        losses=shares.count(0.0),
        wins_first=shares[: len(first)].count(1.0),
        distinct=sum(map(len, halves)),
        win_rate=fmean(shares),
        wilson_low=float(interval.low),
        wilson_high=float(interval.high),
        **means("kills", [match.result.get("kills", {}) for match in matches]),
        **means("survivors", [match.result.get("survivors", {}) for match in matches]),
        **means("returns", [match.returns for match in matches]),
    )


def rate(names: Sequence[str], pairs: Sequence[Pair], anchor: str | None) -> dict[str, float]:
    """Bradley-Terry ratings on the Elo scale, where 400 points are odds of 10 to 1.

    A draw counts a half for each agent. One more draw than was played is added to every two
    agents: the rating of an agent that won all of its matches stays finite, and agents that no
    matches connect can be compared. The rating of `anchor` is 0; without it, the mean rating is 0.
    """
    place = {name: index for index, name in enumerate(names)}
    won = np.full((len(names), len(names)), 0.5)
    np.fill_diagonal(won, 0.0)
    for pair in pairs:
        won[place[pair.a], place[pair.b]] += pair.wins + pair.draws / 2
        won[place[pair.b], place[pair.a]] += pair.losses + pair.draws / 2
    points = ELO_PER_NAT * choix.ilsr_pairwise_dense(won, max_iter=10_000)
    points -= points[place[anchor]] if anchor else points.mean()
    return dict(zip(names, points.tolist(), strict=True))


def win_rates(names: Sequence[str], pairs: Sequence[Mapping[str, Any]]) -> Array:
    """`[n, n]`: of the agent of the row against that of the column; NaN where none was played.

    Raises a ValueError without pairs, as of a tournament in which nobody wins.
    """
    if not pairs:
        raise ValueError("the groups of this tournament differ: there are no win rates to draw.")
    place = {name: index for index, name in enumerate(names)}
    rates = np.full((len(names), len(names)), np.nan)
    for pair in pairs:
        a, b = place[pair["a"]], place[pair["b"]]
        rates[a, b], rates[b, a] = pair["win_rate"], 1 - pair["win_rate"]
    return rates


def t_interval(values: Array) -> tuple[Array, Array]:
    """Mean over the first axis, and half the width of its 95 % t interval; NaN for one value."""
    n = len(values)
    if n == 1:
        return values[0], np.full(values.shape[1:], np.nan)
    half = stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / math.sqrt(n)
    return values.mean(axis=0), half


def over_seeds(rates: Array) -> tuple[float, float]:
    """Mean of a table of win rates and half the width of its 95 % interval over seeds.

    The rows are seeds of one method, the columns seeds of another; at least 2 of each. Both are
    samples. The variance of the row means over their number and that of the column means over
    theirs add up; matches within a cell tell nothing about other seeds. There are as many degrees
    of freedom as the shorter side has.
    """
    rows, columns = rates.mean(axis=1), rates.mean(axis=0)
    variance = float(rows.var(ddof=1)) / len(rows) + float(columns.var(ddof=1)) / len(columns)
    quantile = float(stats.t.ppf(0.975, min(rates.shape) - 1))
    return float(rates.mean()), quantile * variance**0.5


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items of each key; keys and items in the order in which they come."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
