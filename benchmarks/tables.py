"""Writes the measured figures in `results/` into the README and the tuned examples' headers.

python -m benchmarks.tables
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import textwrap
from pathlib import Path

from benchmarks.measure import RESULTS, ROOT
from benchmarks.tuned_examples import FIGURES, TABLE

Measured = dict[str, dict[str, list[dict[str, str]]]]  # example -> figure -> rows over seeds


def measured() -> Measured:
    """The recorded runs of the tuned examples."""
    found: Measured = {}
    for row in csv.DictReader(TABLE.open()):
        found.setdefault(row["example"], {}).setdefault(row["figure"], []).append(row)
    return {example: found[example] for example in FIGURES if example in found}


def learning_table() -> str:
    """What the tuned examples reach, over seeds."""
    lines = [
        "| Tuned example | Measure | Mean over seeds | Each seed | Rows | Minutes on 2 cores |",
        "|---|---|---|---|---|---|",
    ]
    for example, figures in measured().items():
        for figure, rows in figures.items():
            values = [float(row["value"]) for row in rows]
            minutes = statistics.mean(float(row["seconds"]) for row in rows) / 60
            agent_steps = statistics.mean(float(row["agent_steps"]) for row in rows) / 1e6
            lines.append(
                f"| [{example}](tuned_examples/{example}.yaml) | {figure} "
                f"| {_number(statistics.mean(values))} | {', '.join(map(_number, values))} "
                f"| {agent_steps:.2f} M | {minutes:.1f} |"
            )
    return "\n".join(lines)


def speed_table() -> str:
    """The budgets, and the rates behind them."""
    lines = ["| What | Measured | Goal |", "|---|---|---|"]
    for name in ("sampling", "learning"):
        for figure in json.loads((RESULTS / f"{name}.json").read_text())["figures"]:
            ratio = "must" in figure
            value = f"{figure['value']:.2f} x" if ratio else f"{figure['value']:,.0f} rows/s"
            goal = f"{figure['must']:g}, aim {figure['aim']:g}" if ratio else ""
            lines.append(f"| {figure['what']} | {value} | {goal} |")
    return "\n".join(lines)


def header(example: str) -> str:
    """The `Measured` lines of a tuned example."""
    figures = measured()[example]
    parts = []
    for figure, rows in figures.items():
        values = ", ".join(_number(float(row["value"])) for row in rows)
        parts.append(f"{figure} {values}")
    seconds = ", ".join(row["seconds"] for row in rows)
    seeds = ", ".join(row["seed"] for row in rows)
    text = f"{'; '.join(parts)} (seeds {seeds}; {seconds} s; results/tuned_examples.csv)"
    lines = textwrap.wrap(text, 86)
    return "\n".join(["# Measured  " + lines[0], *("#           " + line for line in lines[1:])])


def files() -> dict[Path, str]:
    """Every file that shows figures, as it should be."""
    readme = (ROOT / "README.md").read_text()
    for name, table in (("learning", learning_table()), ("speed", speed_table())):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        readme = re.sub(pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", readme, flags=re.S)
    found = {ROOT / "README.md": readme}
    for example in measured():
        path = ROOT / "tuned_examples" / f"{example}.yaml"
        pattern = r"# Measured.*?(?=\n# Costs)"
        found[path] = re.sub(pattern, lambda m, e=example: header(e), path.read_text(), flags=re.S)
    return found


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
