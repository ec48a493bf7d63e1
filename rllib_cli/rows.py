"""Rows: the results of a trial in its `result.json` and `progress.csv`.

Tune's own loggers write to a temporary folder, which is copied every ten seconds, so a run that is
killed lacks rows that its checkpoints have; and their CSV keeps only the columns of its first row.
They still serve runs whose storage is no folder of this machine.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback
from ray.tune.result import EXPR_PROGRESS_FILE
from ray.tune.utils import flatten_dict
from ray.tune.utils.util import SafeFallbackEncoder

STEP = "training_iteration"


class Rows(JsonLoggerCallback):  # in the place of the one that Tune would add
    """Writes a row into `result.json` as soon as Tune has it, before the iteration's checkpoint.

    Tune takes a callback for a logger of one kind only, so `progress.csv` is another one's.
    """

    def log_trial_start(self, trial: Trial) -> None:
        """Writes `params.json`; takes out the rows of an earlier run in the same folder."""
        if trial.checkpoint is None:
            go_back(Path(trial.path), 0)
        trial.init_local_path()
        self.update_config(trial, trial.config)

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Writes a row."""
        folder = Path(trial.path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / EXPR_RESULT_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, cls=SafeFallbackEncoder) + "\n")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial) -> None:
        """Takes out the rows that a trial which failed makes anew from its last checkpoint."""
        latest = trial.run_metadata.checkpoint_manager.latest_checkpoint_result
        go_back(Path(trial.path), latest.metrics[STEP] if latest else 0)

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        """Has nothing to close."""


class Table(CSVLoggerCallback):  # in the place of the one that Tune would add
    """Writes a row into `progress.csv`, too; comes after `Rows`, which takes rows out."""

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        """Writes a row."""
        add_row(Path(trial.path, EXPR_PROGRESS_FILE), flat(result))

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        """Has nothing to close."""


def flat(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as a row of a CSV: nested keys have slashes, and what is not known is empty."""
    row = flatten_dict({key: value for key, value in result.items() if key != "config"})
    nan = {key for key, value in row.items() if isinstance(value, float) and math.isnan(value)}
    return {key: "" if value is None or key in nan else value for key, value in row.items()}


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row to a CSV; columns that it does not have yet are added to all rows."""
    known = read_header(path)
    new = [key for key in row if key not in known]
    if new:
        write_csv(path, [*known, *new], [*read_csv(path), row])
        return
    with path.open("a", encoding="utf-8", newline="") as file:
        csv.DictWriter(file, known).writerow(row)


def read_header(path: Path) -> list[str]:
    """The columns of a CSV, none if it does not exist."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file), [])


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV, none if it does not exist."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a whole CSV, in the place of one that is there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    replace(path, text.getvalue())


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows of `result.json`; a last one that was cut off is left out."""
    path, rows = folder / EXPR_RESULT_FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def go_back(folder: Path, iteration: int) -> None:
    """Takes out the rows after an iteration, which will be made anew."""
    if not (folder / EXPR_RESULT_FILE).exists():
        return
    kept = [row for row in read_results(folder) if row[STEP] <= iteration]
    replace(folder / EXPR_RESULT_FILE, "".join(json.dumps(row) + "\n" for row in kept))
    path, rows = folder / EXPR_PROGRESS_FILE, [flat(row) for row in kept]
    columns = dict.fromkeys([*read_header(path), *(key for row in rows for key in row)])
    write_csv(path, list(columns), rows)


def replace(path: Path, text: str) -> None:
    """Writes a file, which is never half there."""
    part = path.with_name(f".{path.name}")
    part.write_text(text, encoding="utf-8", newline="")
    os.replace(part, path)
