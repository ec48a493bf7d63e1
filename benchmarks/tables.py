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
from typing import Any

from benchmarks.measure import RESULTS, ROOT
from benchmarks.tuned_examples import FIGURES, TABLE
from rllib_cli.reproduce import battle, ising
from rllib_cli.reproduce.command import spread
from rllib_mfq.envs.gaussian_squeeze import optimum

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


def _rows(name: str) -> list[dict[str, str]]:
    """A recorded reproduction."""
    return list(csv.DictReader((RESULTS / f"{name}.csv").open()))


def _markdown(lines: list[dict[str, str]]) -> str:
    head = list(lines[0])
    body = [f"| {' | '.join(line[name] for name in head)} |" for line in lines]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *body])


def ising_rows() -> list[dict[str, Any]]:
    """Figures of the phase curve, with numbers for temperatures."""
    return [{**row, "temperature": float(row["temperature"])} for row in _rows("ising")]


def ising_table() -> str:
    """Learned order, Glauber's and the exact one, and where the order is lost."""
    crossings = ising.crossings(ising_rows())
    last = {"T": "order 0.5 at"} | {name: f"{t:.3f}" for name, t in crossings.items()}
    last["difference"] = f"{crossings['MFQ'] - crossings['Glauber']:+.3f}"
    lines = ising.summary(ising_rows())
    return _markdown([*lines, dict.fromkeys(lines[0], "") | last])


def squeeze_table() -> str:
    """Shares of the optimum, over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in _rows("gaussian_squeeze"):
        shares = found.setdefault(row["method"], {}).setdefault(row["num_agents"], [])
        shares.append(float(row["share_of_optimum"]))
    return _markdown(
        [
            {"Method": method}
            | {f"{agents} agents": spread(shares) for agents, shares in sizes.items()}
            for method, sizes in found.items()
        ]
    )


def squeeze_header() -> str:
    """What the example itself reached, over seeds."""
    mine = [
        row
        for row in _rows("gaussian_squeeze")
        if (row["method"], row["num_agents"]) == ("MFQ", "1000")
    ]
    shares = spread([float(row["share_of_optimum"]) for row in mine])
    best = optimum(400.0, 200.0)[1]
    seconds = statistics.mean(float(row["seconds"]) for row in mine)
    text = f"{shares} of the optimum, {best:.1f} ({len(mine)} seeds, {seconds:.0f} s each)"
    return f"{text}; results/gaussian_squeeze.csv"


def ising_header() -> str:
    """How far the learned order is from Glauber's."""
    rows = [r for r in ising_rows() if not 1.0 <= r["temperature"] <= 1.3]
    far = max(abs(float(line["difference"])) for line in ising.summary(rows))
    seeds = len({row["seed"] for row in rows})
    return (
        f"order within {far:.3f} of Glauber dynamics at every temperature below 1.0 and above "
        f"1.3 ({seeds} seeds); results/ising.csv"
    )


def battle_table() -> str:
    """Both methods against random play and against each other, over seeds."""
    content, rows = battle.read(RESULTS), _rows("battle")
    lines = []
    for method, name in (("mfq", "MFQ, both groups' means"), ("iql", "IQL")):
        mine = [row for row in rows if row["method"] == method]
        rates = battle.cross_play(content, method, "mfq" if method == "iql" else "iql")
        mean, half = battle.over_seeds(rates)
        against = [float(row["win_rate_random"]) for row in mine]
        seconds = statistics.mean(float(row["seconds"]) for row in mine)
        each = ", ".join(_number(float(rate)) for rate in rates.mean(axis=1))
        lines.append(
            {
                "Method": name,
                "Against random, each seed": ", ".join(map(_number, against)),
                "Against the other, each seed": each,
                "Mean, 95 % interval over seeds of both": f"{mean:.2f} ± {half:.2f}",
                "Minutes a seed on 1 core": f"{seconds / 60:.1f}",
            }
        )
    return _markdown(lines)


def battle_header() -> str:
    """The cross-play figure."""
    rates = battle.cross_play(battle.read(RESULTS), "mfq", "iql")
    mean, half = battle.over_seeds(rates)
    return (
        f"win rate against independent Q-learning {mean:.2f} ± {half:.2f} "
        f"({rates.shape[0]} x {rates.shape[1]} seeds); results/battle_crossplay.json"
    )


def variations_table() -> str:
    """What else was tried, against the same independent learners."""
    tried: dict[str, list[dict[str, str]]] = {}
    for row in _rows("battle_variations"):
        tried.setdefault(row["method"], []).append(row)
    everything = {"as above": [r for r in _rows("battle") if r["method"] == "mfq"], **tried}
    return _markdown(
        [
            {
                "Change": name,
                "Win rate against IQL, each seed": ", ".join(
                    _number(float(row["win_rate_iql"])) for row in rows
                ),
                "Mean": _number(statistics.mean(float(row["win_rate_iql"]) for row in rows)),
            }
            for name, rows in everything.items()
        ]
    )


def header(example: str) -> str:
    """The `Measured` lines of a tuned example."""
    figures = measured()[example]
    parts = []
    for figure, rows in figures.items():
        values = ", ".join(_number(float(row["value"])) for row in rows)
        parts.append(f"{figure} {values}")
    seconds = ", ".join(row["seconds"] for row in rows)
    seeds = ", ".join(row["seed"] for row in rows)
    return _measured(f"{'; '.join(parts)} (seeds {seeds}; {seconds} s; results/tuned_examples.csv)")


def _measured(text: str) -> str:
    """Text as the `Measured` lines of an example's header."""
    lines = textwrap.wrap(text, 86)
    return "\n".join(["# Measured  " + lines[0], *("#           " + line for line in lines[1:])])


def files() -> dict[Path, str]:
    """Every file that shows figures, as it should be."""
    readme = (ROOT / "README.md").read_text()
    tables = {
        "learning": learning_table,
        "speed": speed_table,
        "ising": ising_table,
        "squeeze": squeeze_table,
        "battle": battle_table,
        "variations": variations_table,
    }
    for name, table in tables.items():
        pattern, text = rf"(<!-- {name} -->\n).*?(<!-- end -->)", table()
        readme = re.sub(pattern, lambda m, t=text: f"{m[1]}{t}\n{m[2]}", readme, flags=re.S)
    found = {ROOT / "README.md": readme}
    headers = {example: header(example) for example in measured()} | {
        "ising": _measured(ising_header()),
        "gaussian_squeeze": _measured(squeeze_header()),
        "battle_crossplay": _measured(battle_header()),
    }
    for example, text in headers.items():
        path = ROOT / "tuned_examples" / f"{example}.yaml"
        pattern = r"# Measured.*?(?=\n# Costs)"
        found[path] = re.sub(pattern, lambda m, t=text: t, path.read_text(), flags=re.S)
    return found


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
