"""Progress: what is printed while trials run, and a closing line of each trial."""

import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict

from rllib_cli.hooks import Hooks
from rllib_cli.results import EVALUATED, RETURN
from rllib_cli.storage import is_full
from rllib_mfq.algorithm.figures import BASELINE, GROUP_RETURNS_MEAN
from rllib_mfq.mean_field.legal import is_number

SECONDS_BETWEEN_REPORTS = 10  # on a terminal
SECONDS_IN_FILES = 60  # into a pipe or a file
LINES_PER_HEADER = 20
WIDEST_SETTING = 18

EVALUATION = f"{EVALUATED}/episode_return_mean"
WIN_RATE = f"{EVALUATED}/win_rate/"
WORDS = {"evaluation": "eval", "env_runners": "", "opponents": "", "learners": ""}
WORDS |= {"episode_return_mean": "return", "group_returns_mean": "return"}
WORDS |= {"num_env_steps_sampled_lifetime": "steps"}
"""Parts of keys, and what they are called in the head of a column."""


class Progress(tune.ProgressReporter):
    """Tune's reporter: a line per report of one trial, a table of several.

    Args:
        hooks: of the algorithm.
        searched: the keys of the config that differ between trials.
        goals: the keys of results that the run stops on or is ranked by, which are shown.
    """

    def __init__(
        self, hooks: Hooks, searched: Sequence[str] = (), goals: Sequence[str] = ()
    ) -> None:
        self._hooks = hooks
        self._searched = searched
        self._goals = goals
        self._started = time.monotonic()
        self._pause = SECONDS_BETWEEN_REPORTS if sys.stdout.isatty() else SECONDS_IN_FILES
        self._next_report = 0.0
        self._next_wait = self._started + self._pause
        self._widths: dict[str, int] = {}  # of the columns below the last head
        self._lines = 0
        self._iterations: list[int] = []

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Whether some seconds have passed and there is something new; else says it waits."""
        iterations = [(trial.last_result or {}).get("training_iteration", 0) for trial in trials]
        now = time.monotonic()
        early = now < self._next_report and not done
        if early or iterations == self._iterations or not any(iterations):
            if now >= self._next_wait and not done and not any(iterations):
                self._next_wait = now + self._pause
                started = any(trial.status == Trial.RUNNING for trial in trials)
                doing = "in the first iteration" if started else "starting"
                click.echo(f"{clock(now - self._started)}  {doing}")
            return False
        self._next_report = now + self._pause
        self._iterations = iterations
        return True

    def report(self, trials: list[Trial], done: bool, *sys_info: str) -> None:
        """Prints."""
        if len(trials) > 1:
            click.echo(table([self._row(trial) for trial in trials]) + "\n")
            return
        row = figures(trials[0], self._hooks, self._goals)
        needed = {name: max(len(name), len(text), 6) for name, text in row.items()}
        same = list(row) == list(self._widths)
        fits = same and all(needed[name] <= width for name, width in self._widths.items())
        if not fits or self._lines % LINES_PER_HEADER == 0:
            self._widths = needed
            click.echo(_aligned(list(row), _fitting([*needed.values()])))
        click.echo(_aligned(list(row.values()), _fitting([*self._widths.values()])))
        self._lines += 1

    def _row(self, trial: Trial) -> dict[str, str]:
        settings = {
            key.rpartition("/")[2]: text for key, text in _settings(trial, self._searched).items()
        }
        row = {"trial": _number(trial), "status": trial.status.lower()}
        row |= figures(trial, self._hooks, self._goals)
        rest = {name: row.pop(name) for name in list(row)[5:]}  # after the first win rate
        return row | settings | {name: text for name, text in rest.items() if name not in settings}


def figures(trial: Trial, hooks: Hooks, goals: Sequence[str] = ()) -> dict[str, str]:
    """The figures of a trial's last result, as text under short names, most important first.

    In brackets beside a return against an opponent: what the opponent itself earns in that place.
    """
    result = flatten_dict(trial.last_result or {})
    row = {"iter": str(result.get("training_iteration", 0))}
    row["time"] = clock(result.get("time_total_s", 0))
    rates = [key for key in goals if key.startswith(WIN_RATE)]
    columns = [("win rate" if len(rates) == 1 else short_name(key), key, ".2f") for key in rates]
    known = hooks.columns(result)
    config = trial.config or {}
    evaluated = config.get("evaluation_interval") and not config.get("evaluation_opponents")
    shown = {"training_iteration", "time_total_s", *(key for _, key, _ in (*columns, *known))}
    beside = {_baseline(key) for key in goals}
    for key in (*goals, *([EVALUATION] if evaluated else [])):
        if key not in shown | beside:
            shown.add(key)
            form = "count" if "steps" in key else ".1f" if "return" in key else ".3g"
            columns.append((short_name(key), key, form))
    for name, key, form in (*columns, *known):
        row[name] = _text(result.get(key), form)
        if is_number(itself := result.get(_baseline(key))):
            row[name] += f" ({_text(itself, form)})"
    return row


def clock(seconds: float) -> str:
    """A time as `1:05` or `2:01:05`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def short_name(key: str) -> str:
    """A key of results as a few words: `evaluation/env_runners/win_rate/x` is `win x`."""
    parts = key.split("/")
    if key.startswith(WIN_RATE):
        return f"win {parts[-1]}"
    if key.startswith(f"{EVALUATED}/opponents/") and parts[-2] in (GROUP_RETURNS_MEAN, BASELINE):
        opponent, kind, group = parts[-3:]
        return f"{group} vs {opponent}" if kind == GROUP_RETURNS_MEAN else f"{opponent} as {group}"
    words = [WORDS.get(word, word.replace("_", " ")) for word in parts]
    return " ".join(filter(None, words))


def _baseline(key: str) -> str:
    """The result that stands beside a return against an opponent; "" for any other key."""
    is_return = key.startswith(f"{EVALUATED}/opponents/") and f"/{GROUP_RETURNS_MEAN}/" in key
    return key.replace(GROUP_RETURNS_MEAN, BASELINE) if is_return else ""


def beside(figures: Mapping[str, Any], opponent: str) -> list[str]:
    """What is returned to each group against an opponent, beside what the opponent itself earns.

    `figures` are those under `opponents`; empty where there are no such, since there is a win rate.
    """
    return [
        f"{group} {figures[GROUP_RETURNS_MEAN][group]:z.1f} against {opponent} "
        f"({opponent} itself {value:z.1f})"
        for group, value in sorted(figures.get(BASELINE, {}).items())
        if group in figures.get(GROUP_RETURNS_MEAN, {})
    ]


def describe(value: Any) -> str:
    """A value of a config as short text: 0.000342 for 0.00034171, `radius 4` for a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {describe(part)}" for key, part in value.items())
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDEST_SETTING else f"{text[: WIDEST_SETTING - 1]}…"


def table(rows: list[dict[str, str]]) -> str:
    """Rows as aligned columns; where the terminal is too narrow, the last columns are left out."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    lines = [header, *([row.get(name, "-") for name in header] for row in rows)]
    widths = _fitting([max(map(len, column)) for column in zip(*lines, strict=True)])
    return "\n".join(_aligned(line, widths) for line in lines)


def summary(
    trial: Trial,
    searched: Sequence[str] = (),
    error: Exception | None = None,
    metric: str | None = None,
) -> str:
    """The closing line of a trial: what it reached and where its checkpoint is, or its error.

    `metric` is the one that a scheduler optimises, if there is one: it is shown, once.
    """
    name = str(trial.storage.experiment_dir_name)
    if searched:
        settings = (f"{key}={text}" for key, text in _settings(trial, searched).items())
        name += f" {_number(trial)} ({', '.join(settings)})"
    if trial.status == Trial.ERROR:
        lines = str(error or trial.get_error() or "").strip().splitlines()
        full = [folder for folder in (trial.path, tempfile.gettempdir()) if is_full(folder)]
        told = any(os.strerror(errno.ENOSPC) in line for line in lines[-1:])
        # An error of ours is a sentence, which needs no class before it.
        last = [re.sub(r"^rllib_mfq\.[\w.]+: ", "", line) for line in lines[-1:]]
        reasons = last + [f"no space left in {folder}" for folder in full if not told]
        return f"{name}: failed: {'; '.join(reasons) or 'see above'}"
    result = trial.last_result or {}
    flat = flatten_dict(result)
    played = result.get("evaluation", {}).get("env_runners", {})
    rates = {who: rate for who, rate in played.get("win_rate", {}).items() if is_number(rate)}
    opponents = (trial.config or {}).get("evaluation_opponents") or ()
    reached = [f"win rate against {who} {rates[who]:.2f}" for who in opponents if who in rates]
    shown = {f"{WIN_RATE}{who}" for who in opponents if who in rates}
    for who in opponents:
        reached += beside(played.get("opponents", {}).get(who, {}), who)
    if not reached:
        # Evaluation plays greedily, so it says more than training, which explores.
        where = EVALUATION if flat.get(EVALUATION) is not None else RETURN
        value, shown = flat.get(where), {where}
        known = f"{short_name(where)} {_text(value, '.1f')}"
        reached = [known if is_number(value) else "no episode has ended yet"]
    best = flat.get(metric)
    if metric and metric not in shown and is_number(best):
        reached.insert(0, f"{short_name(metric)} {best:.3g}")
    checkpoint = trial.checkpoint.path if trial.checkpoint else "none"
    return (
        f"{name}: {', '.join(reached)} after {result.get('time_total_s', 0):.0f} s; "
        f"checkpoint {checkpoint}"
    )


def _settings(trial: Trial, searched: Sequence[str]) -> dict[str, str]:
    """The searched settings of a trial as text, under their keys with slashes."""
    found = {}
    for key in searched:
        value: Any = trial.config
        for part in key.split("/"):
            if isinstance(value, list | tuple):
                value = value[int(part)]
            else:
                value = value.get(part) if isinstance(value, Mapping) else None
        found[key] = describe(value)
    return found


def _number(trial: Trial) -> str:
    """`00003` of the trial 1a2b3_00003."""
    return str(trial.trial_id).rpartition("_")[2]


def _fitting(widths: list[int]) -> list[int]:
    """The widths of the columns that fit into the terminal, at least three of them."""
    while (
        len(widths) > 3 and sum(widths) + 2 * (len(widths) - 1) > shutil.get_terminal_size().columns
    ):
        widths.pop()
    return widths


def _aligned(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.rjust(size) for text, size in zip(texts, widths, strict=False))


def _text(value: Any, form: str) -> str:
    """A figure in a format; a count as `75.2k` or `1.23M`."""
    if form != "count":
        return format(float(value), f"z{form}") if is_number(value) else "-"  # z: never -0
    steps = value or 0
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if steps >= size:
            return f"{steps / size:{'.3g' if steps < 999.5 * size else '.0f'}}{unit}"
    return str(int(steps))
