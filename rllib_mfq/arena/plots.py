"""Plots of recorded results: learning curves, tournaments, the phase diagram."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rllib_mfq.arena.interval import t_interval
from rllib_mfq.arena.output import replacing
from rllib_mfq.arena.tournament import win_rates
from rllib_mfq.mean_field.neighborhood import did_you_mean
from rllib_mfq.population.population import Array

SUFFIXES = (".png", ".svg", ".pdf")
STEPS = "agent_steps_sampled_lifetime"
RETURN = "env_runners/episode_return_mean"
EVALUATED = "evaluation/env_runners"
PHASES = ("temperature", "seed", "method", "order_parameter")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind people tell apart."""
MARKERS = "osD^v<>"
UNITS = {
    STEPS: "agent steps sampled (agents times steps)",
    RETURN: "return per episode, summed over agents (reward)",
    "training_iteration": "training iterations",
    "time_total_s": "training time (s)",
}
LEGAL = "folders of Tune's results, a tournament's JSON, or CSV with the columns " + ", ".join(
    PHASES
)


@dataclass(frozen=True)
class Trial:
    """One of Tune's trials.

    Attributes:
        argument: the argument it was found by.
        experiment: name of its experiment's folder.
        config: without the seed, nested keys joined by `/`.
        results: what it reported, likewise flat.
    """

    argument: str
    experiment: str
    config: dict[str, Any]
    results: list[dict[str, Any]]


def plot(
    results: Sequence[str | Path],
    metric: str | None = None,
    x: str | None = None,
    labels: Sequence[str] = (),
) -> Figure:
    """Draws results, told apart by what they contain.

    Args:
        results: see `LEGAL`, all of one kind.
        metric: of learning curves; by default the win rate against an opponent, if one was
            reported, or else the return.
        x: what learning curves are drawn over; `STEPS` by default.
        labels: names of the learning curves, in their order; equal ones are of one curve.

    Raises:
        ValueError: the results are of several kinds or of none, or have no such figures.
    """
    paths = [Path(result).expanduser() for result in results]
    kinds = {_kind(path): path for path in paths}
    if len(kinds) > 1:
        found = ", ".join(f"{path} ({kind})" for kind, path in kinds.items())
        raise ValueError(f"the results are of several kinds, {found}; plot one kind at a time.")
    (kind,) = kinds
    if kind == "learning curves":
        return plot_learning(read_trials(paths), metric, x, labels)
    for option, value in (("metric", metric), ("x", x), ("label", labels)):
        if value:
            raise ValueError(f"{option} is {value!r}, which is for learning curves, not a {kind}.")
    if kind == "phase diagram":
        return plot_phases([row for path in paths for row in csv.DictReader(path.open())])
    if len(paths) > 1:
        raise ValueError(f"{paths[1]} is a second tournament; a heat map shows one.")
    return plot_tournament(json.loads(paths[0].read_text()))


def save(figure: Figure, path: Path) -> None:
    """Writes a figure; the suffix, one of `SUFFIXES`, decides on the format."""
    with replacing(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight")


def read_trials(paths: Sequence[Path]) -> list[Trial]:
    """The trials in or below some folders, or of some `result.json`."""
    trials = []
    for path in paths:
        for file in sorted(path.rglob("result.json")) if path.is_dir() else [path]:
            rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
            if not rows:
                raise ValueError(f"{file} holds no results yet.")
            config = _flat(rows[-1].get("config", {}))
            config.pop("seed", None)
            results = [_flat({k: v for k, v in row.items() if k != "config"}) for row in rows]
            trials.append(Trial(str(path), file.parent.parent.name, config, results))
    return trials


def plot_learning(
    trials: Sequence[Trial], metric: str | None, x: str | None, labels: Sequence[str]
) -> Figure:
    """Means over seeds, with 95 % t intervals."""
    metric = metric or _default_metric(trials)
    x = x or STEPS
    curves: dict[str, list[tuple[Array, Array]]] = {}
    for label, group in _labelled(trials, labels):
        curves.setdefault(label, []).extend(_series(trial, x, metric) for trial in group)
    figure, axes = _canvas()
    for (label, runs), color in zip(curves.items(), cycle(COLORS), strict=False):
        at, mean, half = mean_curve(runs)
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        axes.plot(at, mean, color=color, label=f"{label}{seeds}")
        axes.fill_between(at, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
    axes.set_xlabel(UNITS.get(x, x))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 2M for 2000000
    axes.set_ylabel(_describe(metric))
    if metric.startswith(f"{EVALUATED}/win_rate/"):
        axes.set_ylim(-0.03, 1.03)
    axes.legend(
        title="mean and 95 % interval" if any(len(r) > 1 for r in curves.values()) else None
    )
    return figure


def mean_curve(runs: Sequence[tuple[Array, Array]]) -> tuple[Array, Array, Array]:
    """Joins the curves of several seeds.

    Args:
        runs: x, ascending, and y of each.

    Returns:
        The x that all runs reach, every one of any run; the mean of the runs, interpolated
        linearly, there; and half the width of its 95 % t interval, NaN for a single run.

    Raises:
        ValueError: the runs have no x in common.
    """
    low, high = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    every = np.unique(np.concatenate([x for x, _ in runs]))
    at = every[(every >= low) & (every <= high)]
    if not len(at):
        raise ValueError(f"the seeds have no x in common: one begins at {low}, one ends at {high}.")
    mean, half = t_interval(np.array([np.interp(at, x, y) for x, y in runs]))
    return at, mean, half


def plot_tournament(content: Mapping[str, Any]) -> Figure:
    """Heat map of win rates, the best rated agent first."""
    ratings = content["ratings"]
    names = sorted(ratings, key=lambda name: -ratings[name])
    rates = win_rates(names, content["pairs"])
    figure, axes = _canvas(2.8 + 0.72 * len(names), 2.2 + 0.62 * len(names))
    axes.set_facecolor("0.85")  # of pairs that did not meet
    image = axes.imshow(rates, cmap="PuOr_r", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(rates):
        if not math.isnan(value):
            dark = abs(value - 0.5) > 0.33
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="wk"[not dark])
    places = range(len(names))
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, [f"{name} ({ratings[name]:+.0f})" for name in names])
    axes.set_xlabel("against")
    axes.set_ylabel("agent (Elo points)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label="win rate, a draw counts ½")
    bar.outline.set_visible(False)
    return figure


def plot_phases(rows: Sequence[Mapping[str, str]]) -> Figure:
    """The order parameter of the Ising model over temperature, and the exact one."""
    from rllib_mfq.envs.ising import exact_magnetization

    values: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        temperatures = values.setdefault(row["method"], {})
        temperatures.setdefault(float(row["temperature"]), []).append(float(row["order_parameter"]))
    every = sorted({t for temperatures in values.values() for t in temperatures})
    figure, axes = _canvas()
    line = np.linspace(every[0], every[-1], 1000)
    axes.plot(line, exact_magnetization(line), color="0.4", label="exact, infinite lattice")
    for (method, temperatures), color, marker in zip(
        values.items(), cycle(COLORS), cycle(MARKERS), strict=False
    ):
        at = sorted(temperatures)
        intervals = [t_interval(np.array(temperatures[t])) for t in at]
        mean, half = np.array(intervals).T
        axes.errorbar(
            at, mean, np.nan_to_num(half), fmt=marker, color=color, capsize=3, label=method
        )
    axes.set_xlabel("temperature T (reward)")
    axes.set_ylabel("order parameter |mean spin|")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(title="mean and 95 % interval over seeds")
    return figure


def _kind(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if path.is_dir():
        if any(path.rglob("result.json")):
            return "learning curves"
        raise ValueError(f"{path} holds no result.json of Tune's.")
    if path.name == "result.json":
        return "learning curves"
    try:
        if path.suffix == ".csv":
            with path.open() as file:
                if set(PHASES) <= set(csv.DictReader(file).fieldnames or ()) and file.readline():
                    return "phase diagram"
        elif {"pairs", "ratings"} <= set(json.loads(path.read_text())):
            return "tournament"
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{path} is nothing that can be plotted; legal are {LEGAL}.")


def _default_metric(trials: Sequence[Trial]) -> str:
    prefix = f"{EVALUATED}/win_rate/"
    for key in trials[0].results[-1]:
        opponent = key.removeprefix(prefix)
        if key.startswith(prefix) and any(
            other.startswith(f"{EVALUATED}/opponents/{opponent}/")
            for other in trials[0].results[-1]
        ):
            return key
    return RETURN


def _labelled(trials: Sequence[Trial], labels: Sequence[str]) -> list[tuple[str, list[Trial]]]:
    """The trials that differ in the seed only, with what they are called."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        key = json.dumps([trial.argument, trial.experiment, trial.config], sort_keys=True)
        groups.setdefault(key, []).append(trial)
    firsts = [group[0] for group in groups.values()]
    if labels and len(labels) != len(firsts):
        names = ", ".join(map(_name(firsts), firsts))
        raise ValueError(f"there are {len(labels)} labels for {len(firsts)} curves: {names}.")
    named = labels or list(map(_name(firsts), firsts))
    return list(zip(named, groups.values(), strict=True))


def _name(firsts: Sequence[Trial]) -> Callable[[Trial], str]:
    """Names of curves by experiment; where that is not enough, by argument and settings, too."""

    def name(trial: Trial) -> str:
        rivals = [other for other in firsts if other.experiment == trial.experiment]
        if len(rivals) == 1:
            return trial.experiment
        parts = {
            f"{key.rpartition('/')[2]}={value}"
            for key, value in trial.config.items()
            if any(other.config.get(key) != value for other in rivals)
        }
        alike = [other for other in rivals if other.config == trial.config]
        if len(alike) > 1:
            parts = {trial.argument}
        return f"{trial.experiment} ({', '.join(sorted(parts))})" if parts else trial.experiment

    return name


def _series(trial: Trial, x: str, metric: str) -> tuple[Array, Array]:
    """The finite values of one trial, ascending in x."""
    known = dict.fromkeys(key for row in trial.results for key in row)
    for option, key in (("x", x), ("metric", metric)):
        if key not in known:
            raise ValueError(
                f"{option} is {key!r}, which {trial.experiment} never reports"
                f"{did_you_mean(key, known)}."
            )
    try:
        points = np.array(
            [(row[x], row[metric]) for row in trial.results if x in row and metric in row], float
        )
    except (TypeError, ValueError):
        raise ValueError(f"metric is {metric!r}, over {x!r}; both must be numbers.") from None
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        raise ValueError(f"metric is {metric!r}, of which {trial.experiment} has no finite value.")
    _, first = np.unique(points[:, 0], return_index=True)
    return points[first, 0], points[first, 1]


def _describe(metric: str) -> str:
    if metric.startswith(f"{EVALUATED}/win_rate/"):
        return f"win rate against {metric.rpartition('/')[2]}, a draw counts ½"
    return UNITS.get(metric, metric)


def _canvas(width: float = 6.4, height: float = 4.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Axes = figure.subplots()
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}/") if isinstance(value, dict) else {name: value}
    return flat
