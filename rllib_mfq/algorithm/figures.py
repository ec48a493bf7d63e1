"""Figures: what episodes and fragments contribute to the results, under RLlib's names."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_runner import NUM_ENV_STEP_FAILURES_LIFETIME
from ray.rllib.utils import metrics as names
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.metrics.stats.mean import MeanStats
from ray.tune.result import EPISODE_REWARD_MEAN

from rllib_mfq.population.fragment import Episode, Fragment

GROUP_RETURNS_MEAN = "group_returns_mean"
BASELINE = "baseline_returns_mean"
WIN_RATE = "win_rate"
OPPONENTS = "opponents"
TABLE = ("agent_steps_sampled_lifetime", "agent_steps_per_second", "num_updates", "replay_size")

Figures = dict[tuple[str, ...], float]
"""Values under metric keys; one whose first name ends in `_min` or `_max` is to be reduced so, any
other by the mean."""


class PooledMean(MeanStats):
    """The mean of all values that were logged, whoever logged them.

    RLlib's own is the mean of the means of the env runners, also where one of them has played
    more episodes than another.
    """

    stats_cls_identifier = "pooled_mean"

    @override(MeanStats)
    def reduce(self, compile: bool = True) -> Any:
        if compile:
            return super().reduce()
        kept = self.clone()
        kept.values = list(self.values)
        self.values.clear()
        return kept


STATS = {PooledMean.stats_cls_identifier: PooledMean}
"""What MFQ's loggers know beside RLlib's own reductions."""


class ReportingAlgorithm(Algorithm):
    """An algorithm whose results have a type, which RLlib's own have not."""

    @override(Algorithm)
    def train(self) -> dict[str, Any]:
        """Runs one iteration, and returns its results: metrics under RLlib's names, nested.

        An iteration samples, learns, and evaluates where `evaluation_interval` says so. Raises
        what failed in it: PopulationError for an environment, Diverged for a network.
        """
        results: dict[str, Any] = super().train()
        return results


def episode_figures(episode: Episode, modules: Mapping[str, str]) -> Figures:
    """What one finished episode contributes to the results; its return is the sum over agents.

    `modules` is the module of each group.
    """
    figures = _common(episode, episode.get_return())
    for group, value in episode.returns.items():
        figures[GROUP_RETURNS_MEAN, group] = value
        module = (names.EPISODE_MODULE_RETURN_MEAN, modules[group])
        figures[module] = figures.get(module, 0.0) + value
    for name, per_group in episode.result.items():
        for group, value in per_group.items():
            figures[name, group] = value
    if len(episode.returns) == 2 and episode.has_winner:
        for group, share in episode.shares().items():
            figures[WIN_RATE, group] = share
    return figures


def match_figures(episode: Episode, mine: str, opponent: str) -> Figures:
    """What a finished match of the learner's group `mine` against a named opponent contributes.

    The returns are those of the learner's side, under `opponents` by the group it played.
    `win_rate` counts a draw as a half, and is there only if winning means something, see
    `Episode.has_winner`; `eliminated` is 1 if no agent of the opponent survived.
    """
    (theirs,) = (group for group in episode.returns if group != mine)
    value = episode.returns[mine]
    figures = _common(episode, value)
    if episode.has_winner:
        figures[WIN_RATE, opponent] = episode.shares()[mine]
    figures[OPPONENTS, opponent, GROUP_RETURNS_MEAN, mine] = value
    for name, per_group in episode.result.items():
        figures[OPPONENTS, opponent, name] = per_group[mine]
        figures[OPPONENTS, opponent, f"their_{name}"] = per_group[theirs]
    if "survivors" in episode.result:
        survivors = episode.result["survivors"][theirs]
        figures[OPPONENTS, opponent, "eliminated"] = float(survivors == 0)
    return figures


def _common(episode: Episode, value: float) -> Figures:
    """A return and the episode's length, under the names of every reduction."""
    returns = (names.EPISODE_RETURN_MEAN, names.EPISODE_RETURN_MIN, names.EPISODE_RETURN_MAX)
    lengths = (names.EPISODE_LEN_MEAN, names.EPISODE_LEN_MIN, names.EPISODE_LEN_MAX)
    return {(key,): value for key in returns} | {(key,): float(episode.length) for key in lengths}


def log_recent(metrics: MetricsLogger, recent: deque[Figures]) -> None:
    """Logs means, minima and maxima over the episodes that ended last, if any has ended.

    An environment need not give all of its own figures in every episode.
    """
    for key in dict.fromkeys(key for figures in recent for key in figures):
        values = [figures[key] for figures in recent if key in figures]
        reduce: Any = {"min": min, "max": max, "mean": np.mean}[_reduction(key)]
        metrics.log_value((names.ENV_RUNNER_RESULTS, *key), float(reduce(values)), reduce="item")


def keep_known(results: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Fills in the numbers of parameters, which RLlib reports once and then as NaN."""
    return {
        key: known.get(key, value)
        if key.endswith("trainable_parameters")
        else keep_known(value, known.get(key, {}))
        if isinstance(value, dict)
        else value
        for key, value in results.items()
    }


def shown_first(results: dict[str, Any]) -> dict[str, Any]:
    """Results as Tune's own table, which takes the first numbers, shows what matters.

    The mean return is there under the name that it knows, once an episode has ended.
    """
    mean = results[names.ENV_RUNNER_RESULTS].get(names.EPISODE_RETURN_MEAN, np.nan)
    reward = {} if np.isnan(mean) else {EPISODE_REWARD_MEAN: mean}
    return reward | {key: results[key] for key in TABLE if key in results} | results


def accumulated(results: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Adds up the counts that are named `_lifetime`, of which RLlib gives those of one evaluation.

    Args:
        results: of an evaluation.
        known: the results of those before, added up.
    """

    def add(new: Any, old: Any) -> Any:
        if isinstance(new, dict):
            before = old if isinstance(old, dict) else {}
            return before | {key: add(value, before.get(key, 0)) for key, value in new.items()}
        return new + old

    return {
        key: add(value, known.get(key, 0))
        if key.endswith("_lifetime")
        else accumulated(value, known.get(key, {}))
        if isinstance(value, dict)
        else value
        for key, value in results.items()
    }


def log_figures(metrics: MetricsLogger, episodes: Iterable[Figures]) -> None:
    """Logs the figures of evaluated episodes; the logger knows `PooledMean`."""
    for figures in episodes:
        for key, value in figures.items():
            reduction = _reduction(key)
            pooled = PooledMean.stats_cls_identifier if reduction == "mean" else reduction
            metrics.log_value(key, value, reduce=pooled, window=10_000)


def _reduction(key: tuple[str, ...]) -> str:
    """How the figures of several episodes become one."""
    ending = key[0].rpartition("_")[2]
    return ending if ending in ("min", "max") else "mean"


def log_counters(metrics: MetricsLogger, fragment: Fragment, modules: Mapping[str, str]) -> None:
    """Logs how much a fragment holds; `modules` is the module of each group."""
    log, steps, episodes = metrics.log_value, fragment.env_steps, len(fragment.episodes)
    log(names.NUM_ENV_STEPS_SAMPLED, steps, reduce="sum")
    log(names.NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True)
    counts = {(names.NUM_MODULE_STEPS_SAMPLED, module_id): 0 for module_id in modules.values()}
    for group, rows in fragment.agent_steps.items():
        counts[names.NUM_MODULE_STEPS_SAMPLED, modules[group]] += rows
        counts[names.NUM_AGENT_STEPS_SAMPLED, group] = rows
    for (name, who), rows in counts.items():
        log((name, who), rows, reduce="sum")
        log((f"{name}_lifetime", who), rows, reduce="lifetime_sum")
    log(names.NUM_EPISODES, episodes, reduce="sum")
    log(names.NUM_EPISODES_LIFETIME, episodes, reduce="lifetime_sum")
    log(NUM_ENV_STEP_FAILURES_LIFETIME, fragment.failures, reduce="lifetime_sum")
