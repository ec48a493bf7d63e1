"""Progress: the lines a person watches while trials run, and the ones that remain."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from ray import tune
from ray.tune.experiment import Trial

SECONDS_BETWEEN_REPORTS = 10
LINES_PER_HEADER = 20
WIDEST_SETTING = 18


class Progress(tune.ProgressReporter):
    """Tune's reporter on a terminal: a line per report of one trial, a table of several.

    Args:
        searched: the keys of the config that differ between trials.
    """

    def __init__(self, searched: Sequence[str] = ()) -> None:
        self._searched = searched
        self._next_report = 0.0
        self._header: list[str] = []
        self._lines = 0
        self._iterations: tuple[int, ...] = ()

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Whether some seconds have passed and there is something new."""
        iterations = tuple(_result(trial).get("training_iteration", 0) for trial in trials)
        if iterations == self._iterations or not any(iterations):
            return False
        if time.monotonic() < self._next_report and not done:
            return False
        self._next_report = time.monotonic() + SECONDS_BETWEEN_REPORTS
        self._iterations = iterations
        return True

    def report(self, trials: list[Trial], done: bool, *sys_info: str) -> None:
        """Prints."""
        if len(trials) == 1:
            self._report_one(figures(trials[0]))
        else:
            click.echo(table([self._row(trial) for trial in trials]) + "\n")

    def _report_one(self, row: dict[str, str]) -> None:
        if list(row) != self._header or self._lines % LINES_PER_HEADER == 0:
            self._header = list(row)
            click.echo(_line(self._header, self._header))
        click.echo(_line(self._header, list(row.values())))
        self._lines += 1

    def _row(self, trial: Trial) -> dict[str, str]:
        settings = {
            key.rpartition("/")[2]: describe(value)
            for key, value in _settings(trial, self._searched)
        }
        row = {"trial": _number(trial), "status": trial.status.lower()} | figures(trial)
        rest = {name: row.pop(name) for name in list(row)[5:]}  # after the first win rate
        return row | settings | {name: text for name, text in rest.items() if name not in settings}


def figures(trial: Trial) -> dict[str, str]:
    """What matters of a trial's last result, as text under short names, most important first."""
    result, config = _result(trial), trial.config or {}
    row = {
        "iter": f"{result.get('training_iteration', 0)}",
        "time": _clock(result.get("time_total_s", 0.0)),
    }
    runners = result.get("env_runners", {})
    rates = result.get("evaluation", {}).get("env_runners", {}).get("win_rate", {})
    opponents = config.get("evaluation_opponents") or {}
    for opponent in opponents:
        name = "win rate" if len(opponents) == 1 else f"win {opponent}"
        row[name] = _text(rates.get(opponent), ".2f")
    groups = runners.get("group_returns_mean", {})
    if 1 < len(groups) < 4:
        for group, value in sorted(groups.items()):
            row[f"return {group}"] = _text(value, ".1f")
    else:
        row["return"] = _text(runners.get("episode_return_mean"), ".1f")
    if "agent_steps_sampled_lifetime" in result:
        row["rows"] = _count(result["agent_steps_sampled_lifetime"])
        row["rows/s"] = _text(result.get("agent_steps_per_second"), ",.0f")
        modules = result.get("learners", {}).values()
        warm = [m["temperature"] for m in modules if isinstance(m, dict) and "temperature" in m]
        row["temperature"] = _text(warm[0] if warm else None, ".3g")
    else:
        row["steps"] = _count(result.get("num_env_steps_sampled_lifetime", 0))
        row["length"] = _text(runners.get("episode_len_mean"), ".1f")
    return row


def describe(value: Any) -> str:
    """A value of a config, short: 0.00034 for 0.00034171, and `radius 4` for a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {describe(part)}" for key, part in value.items())
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDEST_SETTING else f"{text[: WIDEST_SETTING - 1]}…"


def table(rows: list[dict[str, str]]) -> str:
    """Rows as aligned columns; the last columns are dropped where the terminal is too narrow."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    lines = [header, *([row.get(name, "-") for name in header] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    width = shutil.get_terminal_size().columns
    while len(widths) > 3 and sum(widths) + 2 * (len(widths) - 1) > width:
        widths.pop()
    return "\n".join(
        "  ".join(text.rjust(size) for text, size in zip(line, widths, strict=False))
        for line in lines
    )


def summary(trial: Trial, searched: Sequence[str] = ()) -> str:
    """The closing line of a trial: what it reached and where its checkpoint is."""
    name = str(trial.storage.experiment_dir_name)
    if searched:
        settings = (f"{key}={describe(value)}" for key, value in _settings(trial, searched))
        name += f" {_number(trial)} ({', '.join(settings)})"
    if trial.status == Trial.ERROR:
        error = (str(trial.get_error() or "").strip().splitlines() or ["see above"])[-1]
        return f"{name}: failed: {error}"
    result = _result(trial)
    evaluated = result.get("evaluation", {}).get("env_runners", {})
    reached = [
        f"win rate against {opponent} {evaluated['win_rate'][opponent]:.2f}"
        for opponent in evaluated.get("opponents", {})
    ]
    if not reached:  # greedy play, if it was evaluated, says more than play that explores
        figures = evaluated or result.get("env_runners", {})
        reached = [f"return {figures.get('episode_return_mean', math.nan):.1f}"]
    checkpoint = trial.checkpoint.path if trial.checkpoint else "none"
    return (
        f"{name}: {', '.join(reached)} after {result.get('time_total_s', 0):.0f} s; "
        f"checkpoint {checkpoint}"
    )


def _settings(trial: Trial, searched: Sequence[str]) -> list[tuple[str, Any]]:
    found = []
    for key in searched:
        value: Any = trial.config
        for part in key.split("/"):
            if isinstance(value, Mapping):
                value = value.get(part)
            else:
                value = value[int(part)] if isinstance(value, list | tuple) else None
        found.append((key, value))
    return found


def _result(trial: Trial) -> dict[str, Any]:
    return trial.last_result or {}


def _number(trial: Trial) -> str:
    """`00003` of the trial 1a2b3_00003."""
    return str(trial.trial_id).rpartition("_")[2]


def _line(header: list[str], texts: list[str]) -> str:
    widths = [max(len(name), 6) for name in header]
    return "  ".join(text.rjust(size) for text, size in zip(texts, widths, strict=True))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _count(steps: float) -> str:
    """`75.2k`, `1.23M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if steps >= size:
            return (
                f"{steps / size:.3g}{unit}" if steps < 999.5 * size else f"{steps / size:.0f}{unit}"
            )
    return str(int(steps))


def _text(value: Any, form: str) -> str:
    number = isinstance(value, int | float) and not math.isnan(value)
    return format(float(value), form) if number else "-"
