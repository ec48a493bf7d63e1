"""Writes what is recorded or generated into the pages that show it.

These are the figures in `results/`, the settings, and the help of all commands; and the README, the
documentation and the headers of the tuned examples.

python -m benchmarks.tables
"""

import csv
import itertools
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import click

from benchmarks.agents import place
from benchmarks.cluster_model import ROW_BYTES, Cost, worst
from benchmarks.measure import RESULTS, ROOT
from benchmarks.tuned_examples import FIGURES, TABLE
from rllib_cli.command import main as command
from rllib_cli.experiments import read_experiments
from rllib_cli.reproduce import spread
from rllib_mfq.algorithm.settings import SETTINGS
from rllib_mfq.arena.statistics import grouped, over_seeds
from rllib_mfq.envs.gaussian_squeeze import optimum
from rllib_mfq.experiments.battle import VARIATIONS, cross_play, read
from rllib_mfq.experiments.ising import crossings, largest_difference, summary
from rllib_mfq.experiments.magent2 import DRAWN, GREEDY, IQL
from rllib_mfq.experiments.magent2 import summary as returns
from rllib_mfq.experiments.runs import AGENT_STEPS

Row = dict[str, str]

HOW = {GREEDY: "greedily", DRAWN: "by drawing actions, as training ended"}
EXAMPLES = {path.stem for path in (ROOT / "tuned_examples").glob("*.yaml")}


def measured() -> dict[str, dict[str, list[Row]]]:
    """The recorded runs of the tuned examples: of each example and figure, rows over seeds."""
    found = _by("example", list(csv.DictReader(TABLE.open())))
    return {name: _by("figure", found[name]) for name in FIGURES if name in found}


def learning() -> Iterator[Row]:
    """What the tuned examples reach, over seeds."""
    for example, figures in measured().items():
        for figure, rows in figures.items():
            yield {
                "Tuned example": f"`{example}`",
                "Measure": figure,
                "Mean over seeds": _number(_mean(rows, "value")),
                "Each seed": _each(rows, "value"),
                "Rows": f"{_mean(rows, 'agent_steps') / 1e6:.2f} M",
                "Minutes on 2 cores": f"{_mean(rows, 'seconds') / 60:.1f}",
            }


def partial_view() -> Iterator[Row]:
    """Agents that see little, with and without a memory, over seeds."""
    for method, rows in _by("method", _rows("partial_view")).items():
        yield {
            "Network": method,
            "Against random, each seed": _each(rows, "win_rate_random"),
            "Against all of the other kind, each seed": _each(rows, "win_rate_other"),
            "Mean": _number(_mean(rows, "win_rate_other")),
            "Minutes a seed": f"{_mean(rows, 'seconds') / 60:.1f}",
        }


def speed() -> Iterator[Row]:
    """The budgets, and the rates behind them."""
    for name in ("sampling", "learning"):
        yield from _figures(_json(name))


def parts() -> Iterator[Row]:
    """What driver, memory and learner can take, each on its own."""
    recorded = _json("scaling")
    yield from _figures(recorded)
    for name, seconds in recorded["cost"].items():
        unit = "call" if name in ("ask", "update") else "row"
        yield {"What": f"`{name}` of the model", "Measured": f"{seconds * 1e6:,.2f} us/{unit}"}
    off = {"What": "the model against what was measured, at worst a factor of"}
    yield off | {"Measured": f"{worst(recorded['points']):.2f}"}


def scaling() -> Iterator[Row]:
    """Runners that cost nothing, and learners, against the model."""
    for point in _json("scaling")["points"]:
        yield {
            "Runners": str(point["runners"]),
            "Learners": str(point["learners"]),
            "Trained per row": f"{point['intensity']:g}",
            "Rows/s": f"{point['measured']:,.0f}",
            "Model": f"{point['model']:,.0f}",
            "Driver's processor time": f"{point['driver'] * 1e6:.2f} us/row",
        }


def clusters() -> Iterator[Row]:
    """What the model predicts of larger clusters."""
    cost = Cost(**_json("scaling")["cost"])
    for cores, intensity in itertools.product((16, 64, 256), (0.25, 0.5, 2.0)):
        runners, learners, reached = cost.best(cores, intensity)
        yield {
            "Cores": str(cores),
            "Trained per row": f"{intensity:g}",
            "Runners": str(runners),
            "Learners": str(learners),
            "Rows/s, predicted": f"{reached:,.0f}",
            "Link": f"{reached * ROW_BYTES / 1e6:,.0f} MB/s",
        }


def settings() -> Iterator[Row]:
    """MFQ's own settings: key, default and meaning."""
    for name, setting in SETTINGS.items():
        text = setting.text.rstrip(".").replace("|", "\\|")
        yield {"Key": f"`{name}`", "Default": f"`{setting.default}`", "Meaning": text}


def ising_rows() -> list[dict[str, Any]]:
    """Figures of the phase curve, with numbers for temperatures."""
    return [{**row, "temperature": float(row["temperature"])} for row in _rows("ising")]


def ising() -> Iterator[Row]:
    """Learned order, Glauber's and the exact one, and where the order is lost."""
    yield from summary(ising_rows())
    lost = crossings(ising_rows())
    yield {
        "T": "order 0.5 at",
        **{method: f"{temperature:.3f}" for method, temperature in lost.items()},
        "difference": f"{lost['MFQ'] - lost['Glauber']:+z.3f}",
    }


def squeeze() -> Iterator[Row]:
    """Shares of the optimum, over seeds."""
    for method, rows in _by("method", _rows("gaussian_squeeze")).items():
        sizes = _by("num_agents", rows)
        yield {"Method": method} | {f"{n} agents": _spread(mine) for n, mine in sizes.items()}


def battle() -> Iterator[Row]:
    """Both methods against random play and against each other, over seeds."""
    played, rows = read(RESULTS), _by("method", _rows("battle"))
    for method, other, name in (("mfq", "iql", "MFQ, both groups' means"), ("iql", "mfq", "IQL")):
        rates = cross_play(played, method, other)
        yield {
            "Method": name,
            "Against random, worst seed": _number(
                min(float(row["win_rate_random"]) for row in rows[method])
            ),
            "Against the other, each seed": ", ".join(map(_number, rates.mean(axis=1))),
            "Mean, 95 % interval over seeds of both": "{:.2f} ± {:.2f}".format(*over_seeds(rates)),
            "Minutes a seed on 1 core": f"{_mean(rows[method], 'seconds') / 60:.1f}",
        }


def variations() -> Iterator[Row]:
    """What else was tried: win rates against independent learners and others, over seeds."""
    order = ["mfq", *VARIATIONS]
    found = _by("method", _rows("battle_variations"))
    for name, rows in sorted(found.items(), key=lambda item: order.index(item[0])):
        columns = [c.removeprefix("win_rate_") for c in rows[0] if c.startswith("win_rate_")]
        yield {
            "Change": "none" if name == "mfq" else name,
            "Against IQL, each seed": _each(rows, "win_rate_iql"),
            **{f"Mean against {c}": _number(_mean(rows, f"win_rate_{c}")) for c in columns},
            "Minutes a seed": f"{_mean(rows, 'seconds') / 60:.1f}",
        }


def self_play() -> Iterator[Row]:
    """Who was trained against whom: mean win rates against each other, over seeds of both."""
    played = _json("battle_self_play")
    methods = grouped(played["agents"], lambda name: name.rpartition("-")[0])
    names = {"mfq": "itself (no change)", "iql": "itself, without a mean action"}
    for mine, seeds in methods.items():
        elo = [f"{played['ratings'][name]:.0f}" for name in sorted(seeds)]
        line = {"Trained against": names.get(mine, mine), "Elo, each seed": ", ".join(elo)}
        for other in methods:
            rates = cross_play(played, mine, other)
            against = f"against {names.get(other, other)}"
            line[against] = "" if other == mine else "{:.2f} ± {:.2f}".format(*over_seeds(rates))
        yield line


def magent2() -> Iterator[Row]:
    """MAgent2 beyond battle: returns of independent learners, and what mean fields add to them."""
    for env, recorded in _by("env", _rows("magent2")).items():
        rows = f"{_mean(recorded, 'agent_steps') / 1e6:.1f} M"
        sides = grouped(returns(recorded), lambda line: (line["play"], line["side"]))
        for (play, side), lines in sides.items():
            of = {line["method"]: line for line in lines}
            iql = of.pop(IQL)["return"]
            leads = {f"Lead of {method}": line["lead over IQL"] for method, line in of.items()}
            name = f"`{env}`" if play == GREEDY else f"`{env}`, {play}"
            yield {"Environment": name, "Side": side, "Rows": rows, "Return of IQL": iql, **leads}


def agents() -> Iterator[Row]:
    """What the agents of the package win: by cells of the map's side, steps, and random ones."""
    for agent, mine in _by("agent", sorted(_rows("agents"), key=place)).items():
        for opponent, rows in _by("opponent", mine).items():
            line = {"Agent": f"`{agent}`", "Opponent": f"`{opponent}`"}
            for row in rows:
                drawn = f" ({row['draws']} of {row['matches']} drawn)"
                line[f"{row['map_size']}, {row['max_cycles']}, {row['random_steps']}"] = _number(
                    float(row["win_rate"])
                ) + (drawn if row["draws"] != "0" else "")
            yield line


def headers() -> dict[str, str]:
    """What was measured with each tuned example, in words."""
    texts = {}
    for example, figures in measured().items():
        if example not in EXAMPLES:
            continue
        values = "; ".join(f"{figure} {_each(rows, 'value')}" for figure, rows in figures.items())
        runs = next(iter(figures.values()))  # all figures are of the same runs
        seeds, seconds = (", ".join(row[key] for row in runs) for key in ("seed", "seconds"))
        texts[example] = f"{values} (seeds {seeds}; {seconds} s; results/tuned_examples.csv)"
    rows = ising_rows()
    texts["ising"] = (
        f"order within {largest_difference(rows):.3f} of Glauber dynamics at every temperature "
        f"({len({row['seed'] for row in rows})} seeds); results/ising.csv"
    )
    rows = [r for r in _by("method", _rows("gaussian_squeeze"))["MFQ"] if r["num_agents"] == "1000"]
    texts["gaussian_squeeze"] = (
        f"{_spread(rows)} of the optimum, {optimum(400.0, 200.0)[1]:.1f} ({len(rows)} seeds, "
        f"{_mean(rows, 'seconds'):.0f} s each); results/gaussian_squeeze.csv"
    )
    rates = cross_play(read(RESULTS), "mfq", "iql")
    texts["battle_crossplay"] = (
        "win rate against independent Q-learning {:.2f} ± {:.2f} ".format(*over_seeds(rates))
        + f"({rates.shape[0]} x {rates.shape[1]} seeds); results/battle_crossplay.json"
    )
    for env, rows in _by("env", _rows("magent2")).items():
        (example,) = read_experiments(ROOT / "tuned_examples" / f"{env}.yaml").values()
        budget = example["stop"][AGENT_STEPS]
        # Some are measured against random play already, some at another budget.
        if env in texts or abs(_mean(rows, "agent_steps") / budget - 1) > 0.1:
            continue
        mine = _by("method", rows)["MFQ, group"]  # as the example is
        lines = [line for line in returns(rows) if line["method"] == "MFQ, group"]
        sides = "; ".join(
            f"played {HOW[play]}: "
            + ", ".join(f"of {line['side']} {line['return']}" for line in found)
            for play, found in grouped(lines, lambda line: line["play"]).items()
        )
        rivals = ", against independent learners" if len({row["side"] for row in mine}) > 1 else ""
        texts[env] = (
            f"return {sides} ({len({row['seed'] for row in mine})} seeds{rivals}; "
            f"{_mean(mine, 'seconds'):.0f} s each; results/magent2.csv)"
        )
    return texts


def commands(group: click.Command = command, name: str = "rllib") -> Iterator[str]:
    """The help of a command and of all below it, as sections of a page."""
    context = click.Context(group, info_name=name, terminal_width=82, max_content_width=82)
    yield f"### {name}\n\n```text\n{group.get_help(context)}\n```"
    for part, below in getattr(group, "commands", {}).items():
        if not below.hidden:
            yield from commands(below, f"{name} {part}")


def files() -> dict[Path, str]:
    """Every file that shows figures, as it should be."""
    found = {}
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in pages:
        text = path.read_text()
        for what in set(re.findall(r"<!-- (\w+) -->", text)) - {"end"}:
            content = globals()[what]()
            new = "\n\n".join(content) if what == "commands" else _markdown(content)
            begin, end = f"<!-- {what} -->\n", "<!-- end -->"
            text = _replaced(f"{begin}.*?{end}", f"{begin}{new}\n{end}", text)
            found[path] = text
    for example, text in headers().items():
        path = ROOT / "tuned_examples" / f"{example}.yaml"
        first, rest = "# Measured  ", "#           "
        header = textwrap.fill(text, 98, initial_indent=first, subsequent_indent=rest)
        found[path] = _replaced(r"# Measured.*?(?=\n# Costs)", header, path.read_text())
    return found


def _replaced(pattern: str, new: str, text: str) -> str:
    return re.sub(pattern, lambda _: new, text, flags=re.DOTALL)


def _json(name: str) -> dict[str, Any]:
    """What a benchmark recorded."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def _figures(recorded: dict[str, Any]) -> Iterator[Row]:
    """The figures of a benchmark, and their goals."""
    for figure in recorded["figures"]:
        digits = 0 if figure["unit"] == "rows/s" else 2
        yield {
            "What": figure["what"],
            "Measured": f"{figure['value']:,.{digits}f} {figure['unit']}",
            "Goal": f"{figure['must']:g}, aim {figure['aim']:g}" if "must" in figure else "",
        }


def _rows(name: str) -> list[Row]:
    """The recorded table of an experiment."""
    return list(csv.DictReader((RESULTS / f"{name}.csv").open()))


def _by(column: str, rows: list[Row]) -> dict[str, list[Row]]:
    return grouped(rows, lambda row: row[column])


def _markdown(rows: Iterable[Row]) -> str:
    """A table; its columns are the keys of the first row."""
    lines = list(rows)
    body = [f"| {' | '.join(row.get(name, '') for name in lines[0])} |" for row in lines]
    return "\n".join([f"| {' | '.join(lines[0])} |", "|---" * len(lines[0]) + "|", *body])


def _mean(rows: list[Row], column: str) -> float:
    return mean(float(row[column]) for row in rows)


def _each(rows: list[Row], column: str) -> str:
    return ", ".join(_number(float(row[column])) for row in rows)


def _spread(rows: list[Row]) -> str:
    return spread([float(row["share_of_optimum"]) for row in rows])


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
