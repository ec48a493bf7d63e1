"""Measuring: rates that are compared in one run, and the file that records them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rllib_mfq.arena.provenance import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"


def rates(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls every case once per repeat, in turn, so that a slow moment slows all of them.

    Args:
        cases: functions that do some work and return a rate.
        repeats: how often.

    Returns:
        The rates of each case, in the order of the repeats.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            found[name].append(run())
    return found


def ratio(found: Mapping[str, list[float]], case: str, against: str) -> float:
    """Median over the repeats of one case's rate divided by another's."""
    pairs = zip(found[case], found[against], strict=True)
    return statistics.median(mine / other for mine, other in pairs)


def record(name: str, command: str, figures: list[dict[str, Any]]) -> None:
    """Prints figures as a table and writes them to `results/<name>.json`."""
    for figure in figures:
        must = f"   must {figure['must']:<5g} aim {figure['aim']:g}" if "must" in figure else ""
        print(f"{figure['what']:<78} {figure['value']:>10,.2f} {figure['unit']:<7}{must}")
    RESULTS.mkdir(exist_ok=True)
    content = {"command": command, **environment(), "figures": figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
