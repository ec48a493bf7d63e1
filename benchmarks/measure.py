"""Measuring: rates that are compared in one run, and the file that records them."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from rllib_mfq.arena.output import write_json
from rllib_mfq.arena.provenance import provenance
from rllib_mfq.experiments.runs import Run, finished

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


def start_ray() -> None:
    ray.init(
        "local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )


def train_by_command(path: Path, storage: str, *options: str) -> list[Run]:
    """Trains a YAML file by the command that a user would type; returns its runs."""
    rllib = Path(sys.executable).with_name("rllib")
    command = [rllib, "train", "file", path, *options, "--storage-path", storage]
    subprocess.run(command, cwd=ROOT, check=True)
    logs = [*Path(storage).rglob("result.json")]
    runs = [run for log in logs if (run := finished(log.parent))]
    assert len(runs) == len(logs)
    return runs


def timed(work: Callable[[], int], seconds: float = 0.0) -> Callable[[], float]:
    """A function that calls `work` for so long, at least once, and returns its rows per second."""

    def rate() -> float:
        started, rows = time.perf_counter(), work()
        while time.perf_counter() - started < seconds:
            rows += work()
        return rows / (time.perf_counter() - started)

    return rate


def rates(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls every case once per repeat, in turn, so that a slow moment slows all of them."""
    rounds = [{name: measure() for name, measure in cases.items()} for _ in range(repeats)]
    return {name: [each[name] for each in rounds] for name in cases}


def speed(found: list[float]) -> dict[str, Any]:
    """A figure: the median of a case's rates."""
    return {"value": statistics.median(found), "unit": "rows/s"}


def ratio(found: list[float], against: list[float], must: float, aim: float) -> dict[str, Any]:
    """A figure: the median over the repeats of one case's rate divided by another's."""
    value = statistics.median(a / b for a, b in zip(found, against, strict=True))
    return {"value": value, "unit": "x", "must": must, "aim": aim}


def record(name: str, figures: Mapping[str, Mapping[str, Any]], **more: Any) -> None:
    """Prints figures as a table; writes them, and what else there is, to `results/<name>.json`."""
    for what, figure in figures.items():
        must = f"   must {figure['must']:<5g} aim {figure['aim']:g}" if "must" in figure else ""
        print(f"{what:<78} {figure['value']:>10,.2f} {figure['unit']:<7}{must}")
    RESULTS.mkdir(exist_ok=True)
    rows = [{"what": what, **figure} for what, figure in figures.items()]
    content = {"command": f"python -m benchmarks.{name}", **provenance(), "figures": rows, **more}
    write_json(RESULTS / f"{name}.json", content)
