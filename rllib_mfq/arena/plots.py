"""Plots of recorded results: learning curves, tournaments, the phase diagram."""

import contextlib
import csv
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, product
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from ray.tune.utils import flatten_dict

from rllib_mfq.arena.output import replacing
from rllib_mfq.arena.statistics import grouped, t_interval, win_rates
from rllib_mfq.envs.ising import exact_magnetization
from rllib_mfq.mean_field.legal import did_you_mean
from rllib_mfq.population.population import Array

SUFFIXES = (".png", ".svg", ".pdf")
STEPS = "agent_steps_sampled_lifetime"
RETURN = "env_runners/episode_return_mean"
EVALUATED = "evaluation/env_runners"
EVALUATION = f"evaluation/{RETURN}"
WIN_RATE = f"{EVALUATED}/win_rate/"
MOST_LINES, WIDEST_NAME = 20, 48  # of a legend
PHASES = ("temperature", "seed", "method", "order_parameter")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which colour-blind people can tell apart."""
MARKERS = "osD^v<>"
LINES = ("-", "--", ":", "-.")
UNITS = {
    STEPS: "agent steps sampled (agents times steps)",
    RETURN: "return, sum over agents (reward)",
    EVALUATION: "return in evaluation, sum over agents (reward)",
    "training_iteration": "training iterations",
    "time_total_s": "training time (s)",
}
LEGAL = f"folders of Tune's results, a tournament's JSON, CSV with the columns {', '.join(PHASES)}"


@dataclass(frozen=True)
class Trial:
    """One of Tune's trials; nested keys are joined by `/`."""

    argument: str  # the folder or file that it was found by
    experiment: str  # name of the folder of its experiment
    config: dict[str, Any]  # without the seed
    results: list[dict[str, Any]]  # what it reported


def plot(
    results: Sequence[str | Path],
    metric: str | None = None,
    x: str | None = None,
    labels: Sequence[str] = (),
    on_skip: Callable[[str], None] = warnings.warn,
) -> Figure:
    """Draws results; what the files contain decides on the kind of picture.

    Args:
        results: paths, all of one of the kinds in `LEGAL`.
        metric: of learning curves; by default the win rate against an opponent, or the return, in
            evaluation if there is one.
        x: what learning curves are drawn over; `STEPS` by default.
        labels: names of the learning curves, in their order; curves of one name are joined.
        on_skip: is told, in a sentence, of every trial that lacks the metric or the x while
            others have both.

    Raises:
        ValueError: the results are of several kinds or of none, or lack the metric or the x.
    """
    paths = [Path(result).expanduser() for result in results]
    read = [(path, *_read(path)) for path in paths]
    kinds = {kind: path for path, kind, _ in read}
    if len(kinds) > 1:
        found = ", ".join(f"{path} ({kind})" for kind, path in kinds.items())
        raise ValueError(f"the results are of several kinds, {found}; plot one kind at a time.")
    (kind,), contents = kinds, [content for _, _, content in read]
    if kind == "learning curves":
        return plot_learning(list(chain(*contents)), metric, x, labels, on_skip)
    for option, value in (("metric", metric), ("x", x), ("label", labels)):
        if value:
            raise ValueError(f"{option} is {value!r}, which is for learning curves, not a {kind}.")
    if kind == "phase diagram":
        return plot_phases(list(chain(*contents)))
    if len(contents) > 1:
        raise ValueError(f"{paths[1]} is a second tournament; a heat map shows only one.")
    return plot_tournament(contents[0])


def save(figure: Figure, path: Path) -> None:
    """Writes a figure; the suffix, one of `SUFFIXES`, decides on the format."""
    with replacing(path) as part:
        figure.savefig(part, dpi=150, bbox_inches="tight")


def plot_learning(
    trials: Sequence[Trial],
    metric: str | None,
    x: str | None,
    labels: Sequence[str],
    on_skip: Callable[[str], None],
) -> Figure:
    """Draws means over seeds, with 95 % t intervals."""
    x = x or STEPS
    metric = metric or _default_metric(trials)
    series: dict[int, tuple[Array, Array]] = {}
    problems: list[ValueError] = []
    for trial in trials:
        try:
            series[id(trial)] = _series(trial, x, metric)
        except ValueError as error:
            problems.append(error)
    if not series:
        raise problems[0]
    for problem in problems:
        on_skip(f"a trial is left out: {problem}")
    trials = [trial for trial in trials if id(trial) in series]
    alike = grouped(
        trials, lambda t: json.dumps([t.argument, t.experiment, t.config], sort_keys=True)
    ).values()
    firsts = [trial for trial, *_ in alike]
    names = [_name(trial, firsts) for trial in firsts]
    if labels and len(labels) != len(names):
        found = f"{len(names)} curves: {', '.join(names)}"
        raise ValueError(f"there are {len(labels)} labels for {found}.")
    curves: dict[str, list[tuple[Array, Array]]] = {}
    for label, group in zip(labels or names, alike, strict=True):
        curves.setdefault(label, []).extend(series[id(trial)] for trial in group)
    figure, axes = _canvas(_words(x), _words(metric))
    styles = cycle(product(LINES, COLORS))  # of more curves than colours, other lines
    for (label, runs), (line, color) in zip(curves.items(), styles, strict=False):
        at, mean, half = mean_curve(runs)
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
        dot = "." if len(at) == 1 else ""
        axes.plot(at, mean, line, marker=dot, color=color, label=f"{label}{seeds}")
        axes.fill_between(at, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 2M for 2000000
    if metric.startswith(WIN_RATE):
        axes.set_ylabel(f"win rate against {metric.rpartition('/')[2]}, a draw counts ½")
        axes.set_ylim(-0.03, 1.03)
    first, *others = {trial.experiment for trial in trials}
    title = [] if labels or others or first in names else [first]
    title += ["mean and 95 % interval"] if len(trials) > len(curves) else []
    _show_legend(figure, axes, ", ".join(title))
    return figure


def _show_legend(figure: Figure, axes: Axes, title: str) -> None:
    """Names the curves on the right of the axes, which keep their size."""
    handles, names = axes.get_legend_handles_labels()
    shown = [fill(name, WIDEST_NAME, max_lines=2, placeholder=" …") for name in names]
    lines = np.cumsum([name.count("\n") + 1 for name in shown])
    if lines[-1] > MOST_LINES:
        kept = int((lines < MOST_LINES).sum())
        shown = [*shown[:kept], f"and {len(shown) - kept} more"]
        handles = [*handles[:kept], Line2D([], [], linestyle="none")]
    legend = figure.legend(
        handles, shown, title=title, loc="outside right upper", fontsize=9, frameon=False
    )
    width = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.dpi
    figure.set_figwidth(figure.get_figwidth() + width + 0.1)


def mean_curve(runs: Sequence[tuple[Array, Array]]) -> tuple[Array, Array, Array]:
    """Joins the curves of several seeds, each an ascending x and y.

    Returns every x of any run within the range that all runs cover; the mean of the runs there,
    interpolated linearly; and half the width of its 95 % t interval, NaN for a single run.
    Raises a ValueError if the runs have no x in common.
    """
    low, high = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    every = np.unique(np.concatenate([x for x, _ in runs]))
    at = every[(every >= low) & (every <= high)]
    if not len(at):
        raise ValueError(f"the seeds have no x in common: one begins at {low}, one ends at {high}.")
    mean, half = t_interval(np.array([np.interp(at, x, y) for x, y in runs]))
    return at, mean, half


def plot_tournament(content: Mapping[str, Any]) -> Figure:
    """Draws a heat map of win rates, the best rated agent first."""
    ratings = content["ratings"]
    names = sorted(ratings, key=lambda name: -ratings[name])
    rates = win_rates(names, content["pairs"])
    size = (2.8 + 0.72 * len(names), 2.2 + 0.62 * len(names))
    figure, axes = _canvas("against", "agent (Elo points)", size, layout=None)
    axes.set_facecolor("0.85")  # shows where pairs did not meet
    image = axes.imshow(rates, cmap="PuOr_r", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(rates):
        if not math.isnan(value):
            dark = abs(value - 0.5) > 0.33
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="wk"[not dark])
    places = range(len(names))
    axes.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, [f"{name} ({points(ratings[name])})" for name in names])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(
        image, ax=axes, fraction=0.04, pad=0.03, label="win rate, a draw counts ½"
    ).outline.set_visible(False)
    return figure


def plot_phases(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the order parameter of the Ising model over temperature, and the exact one."""
    temperatures = [float(row["temperature"]) for row in rows]
    figure, axes = _canvas("temperature T (reward)", "order parameter |mean spin|")
    line = np.linspace(min(temperatures), max(temperatures), 1000)
    axes.plot(line, exact_magnetization(line), color="0.4", label="exact, infinite lattice")
    methods = grouped(rows, lambda row: row["method"])
    # The second one is small, and on top: what has learned well lies under what it has learned.
    styles = zip(cycle(MARKERS), cycle(COLORS), cycle((10, 4)), strict=False)
    for (method, mine), (marker, color, size) in zip(methods.items(), styles, strict=False):
        here = grouped(mine, lambda row: float(row["temperature"]))
        at = sorted(here)
        orders = [np.array([float(row["order_parameter"]) for row in here[t]]) for t in at]
        mean, half = np.array([t_interval(values) for values in orders]).T
        look: dict[str, Any] = {"fmt": marker, "color": color, "markersize": size, "capsize": 3}
        axes.errorbar(at, mean, np.nan_to_num(half), label=method, **look)
    axes.set_ylim(-0.03, 1.03)
    axes.legend(title="mean and 95 % interval over seeds", frameon=False)
    return figure


def _read(path: Path) -> tuple[str, Any]:
    """Of what kind a result is, and what it holds."""
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if path.is_dir() or path.name == "result.json":
        files = sorted(path.rglob("result.json")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path} holds no result.json of Tune.")
        return "learning curves", [_trial(str(path), file) for file in files]
    with contextlib.suppress(ValueError, TypeError):
        if path.suffix == ".csv":
            rows = list(csv.DictReader(path.read_text().splitlines()))
            if rows and set(PHASES) <= set(rows[0]):
                return "phase diagram", rows
        elif {"pairs", "ratings"} <= set(content := json.loads(path.read_text())):
            return "tournament", content
    raise ValueError(f"{path} is nothing that can be plotted; legal are {LEGAL}.")


def _trial(argument: str, file: Path) -> Trial:
    """The trial of a `result.json`."""
    lines = file.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be cut off
    config = ([flatten_dict(row.pop("config", {})) for row in rows] or [{}])[-1]
    for key in ("seed", "time_limit_s"):  # they tell no curves apart
        config.pop(key, None)
    return Trial(argument, file.parent.parent.name, config, [flatten_dict(row) for row in rows])


def _default_metric(trials: Sequence[Trial]) -> str:
    known = {key for trial in trials for row in trial.results[-1:] for key in row}
    for key in sorted(known):
        opponent = f"{EVALUATED}/opponents/{key.removeprefix(WIN_RATE)}/"
        if key.startswith(WIN_RATE) and any(other.startswith(opponent) for other in known):
            return key
    if any(key.startswith(f"{EVALUATED}/opponents/") for key in known):
        return RETURN  # an evaluated return is then that of sides against opponents, mixed
    return EVALUATION if EVALUATION in known else RETURN


def _words(key: str) -> str:
    """What an axis over a key of results is called."""
    if key in UNITS:
        return UNITS[key]
    return ", ".join(part.replace("_", " ") for part in key.split("/") if part != "env_runners")


def points(rating: float) -> str:
    """A rating with its sign, and 0 without one."""
    return f"{round(rating):+d}" if round(rating) else "0"


def _name(trial: Trial, curves: Sequence[Trial]) -> str:
    """What tells a curve from others of its experiment; after its name if there are several."""
    others = [t for t in curves if t.experiment == trial.experiment and t is not trial]
    parts = {
        f"{key.rpartition('/')[2]}={_short(value)}"
        for key, value in trial.config.items()
        if any(other.config.get(key) != value for other in others)
    }
    if any(other.config == trial.config for other in others):
        parts = {trial.argument}
    several = any(other.experiment != trial.experiment for other in curves)
    told = ", ".join(sorted(parts))
    return f"{trial.experiment} ({told})" if told and several else told or trial.experiment


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _evaluated(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The results whose evaluation is their own; MFQ reports it until there is a newer one."""
    parts = [{k: v for k, v in row.items() if k.startswith("evaluation/")} for row in results]
    pairs = zip(results, parts, [{}, *parts], strict=False)
    return [row for row, own, before in pairs if own not in (before, {})]


def _series(trial: Trial, x: str, metric: str) -> tuple[Array, Array]:
    """x, ascending, and the finite values of one trial."""
    if not trial.results:
        raise ValueError(f"a run of {trial.experiment} has no results yet.")
    known = dict.fromkeys(key for row in trial.results for key in row)
    for option, key in (("x", x), ("metric", metric)):
        if key not in known:
            why = "; no episode has ended" if key == RETURN else did_you_mean(key, known)
            raise ValueError(f"{option} is {key!r}, which {trial.experiment} never reports{why}.")
    evaluation = metric.startswith("evaluation/")
    results = _evaluated(trial.results) if evaluation else trial.results
    try:
        pairs = np.array([(row.get(x), row.get(metric)) for row in results], float)
    except (TypeError, ValueError):
        raise ValueError(f"metric is {metric!r}, over {x!r}; both must be numbers.") from None
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if not len(pairs):
        raise ValueError(f"metric is {metric!r}, of which {trial.experiment} has no finite value.")
    _, first = np.unique(pairs[:, 0], return_index=True)
    return pairs[first, 0], pairs[first, 1]


def _canvas(
    x: str,
    y: str,
    size: tuple[float, float] = (6.4, 4.4),
    layout: Literal["constrained"] | None = "constrained",
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout=layout)
    axes: Axes = figure.subplots()
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
