"""`rllib reproduce`: the paper's experiments, one command each.

Imports no Ray: what a command does is imported when it runs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rllib_cli.arena import matches_bar
from rllib_cli.experiments import BadInput

Command = Callable[..., None]

OPTIONS = [
    click.option(
        "--out",
        "-o",
        type=click.Path(path_type=Path),
        default=Path("results"),
        help="Folder for figures and pictures; runs go into its runs/ and are not repeated.",
    ),
    click.option("--processes", type=click.IntRange(1), default=2, help="How many at a time (2)."),
]


def options(seeds: int) -> Callable[[Command], Command]:
    """Adds the options that all reproductions have."""

    def add(command: Command) -> Command:
        help_ = f"Runs of everything ({seeds})."
        command = click.option("--seeds", type=click.IntRange(2), default=seeds, help=help_)(
            command
        )
        for option in OPTIONS:
            command = option(command)
        return command

    return add


@click.group()
def reproduce() -> None:
    """Repeats an experiment of the paper: trains over seeds, compares, writes and draws.

    What has been trained in --out before is not trained again.
    """


@reproduce.command()
@options(seeds=3)
@click.option(
    "--learner",
    type=click.Choice(["shared-table", "site-tables", "network"]),
    default="shared-table",
    help="One table for all sites (default), one each, or one network.",
)
@click.option("--size", type=click.IntRange(3), default=20, help="Sites per side (20).")
@click.option("--temperature", "temperatures", type=float, multiple=True, help="Repeatable.")
def ising(out: Path, **given: Any) -> None:
    """Order of the Ising model over temperature, against Glauber dynamics and the exact one."""
    if not all(temperature > 0 for temperature in given["temperatures"]):
        raise BadInput(f"--temperature is {min(given['temperatures'])}; it must be above 0.")
    with _into(out):
        from rllib_cli.reproduce import ising as experiment

        given["temperatures"] = given["temperatures"] or experiment.TEMPERATURES
        rows = experiment.reproduce(out, **given)
    _table(experiment.summary(rows))
    for method, temperature in experiment.crossings(rows).items():
        click.echo(f"{method}: order falls through 0.5 at T = {temperature:.3f}")
    _draw(out / "ising.png", "plot_phases", [{k: str(v) for k, v in row.items()} for row in rows])


@reproduce.command("gaussian_squeeze")
@options(seeds=5)
@click.option("--agents", "populations", type=click.IntRange(1), multiple=True, help="Repeatable.")
@click.option("--mu", type=float, default=400.0, help="Centre of the squeeze (400).")
@click.option("--sigma", type=float, default=200.0, help="Its width (200).")
def gaussian_squeeze(out: Path, **given: Any) -> None:
    """What crowds of several sizes reach of the optimum of the Gaussian squeeze."""
    for name in ("mu", "sigma"):
        if not given[name] > 0:
            raise BadInput(f"--{name} is {given[name]}; it must be above 0.")
    with _into(out):
        from rllib_cli.reproduce import gaussian_squeeze as experiment

        given["populations"] = given["populations"] or experiment.POPULATIONS
        rows = experiment.reproduce(out, **given)
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        key = (row["method"], row["num_agents"])
        found.setdefault(key, []).append(row["share_of_optimum"])
    _table(
        [
            {"method": method, "agents": f"{agents}", "share of the optimum": spread(shares)}
            for (method, agents), shares in found.items()
        ]
    )


@reproduce.command()
@options(seeds=5)
@click.option("--matches", type=click.IntRange(2), default=50, help="Of every pair (50); even.")
@click.option("--rows", type=click.IntRange(1), help="Rows to train a seed on (6 million).")
@click.option("--variations", is_flag=True, help="Train and play what else was tried, too.")
@click.option(
    "--pretrained", type=click.Path(path_type=Path), help="Write the best agents into this folder."
)
def battle(out: Path, pretrained: Path | None, matches: int, **given: Any) -> None:
    """Mean field against independent Q-learning at 64 against 64, every seed against every."""
    if matches % 2:
        raise BadInput(f"--matches is {matches}; it must be even: half on each side.")
    with _into(out), _into(pretrained or out, "--pretrained"):
        from rllib_cli.reproduce import battle as experiment

        with matches_bar() as show:
            rows = experiment.reproduce(
                out, pretrained=pretrained, matches=matches, on_matches=show, **given
            )
    _table([{key: f"{value}" for key, value in row.items()} for row in rows])
    content = experiment.read(out)
    mean, half = experiment.over_seeds(experiment.cross_play(content, "mfq", "iql"))
    click.echo(f"MFQ against IQL: {mean:.2f} ± {half:.2f} (95 % interval over seeds of both)")
    _draw(out / "battle_crossplay.png", "plot_tournament", content)


def spread(values: Sequence[float]) -> str:
    """`0.96 ± 0.01`: the mean, and half the width of its 95 % t interval over seeds."""
    import numpy as np

    from rllib_mfq.arena.interval import t_interval

    mean, half = t_interval(np.asarray(values, float))
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {half:.3f}"


@contextlib.contextmanager
def _into(folder: Path, option: str = "--out") -> Iterator[None]:
    """Makes a folder that can be written to, and tells what goes wrong in one sentence."""
    from rllib_mfq.arena.output import check_output

    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_output(folder / "figures.csv")
        yield
    except OSError as error:
        raise BadInput(f"{option} {folder}: {error.strerror or error}.") from error
    except ValueError as error:
        raise BadInput(" ".join(str(error).split())) from error


def _table(rows: Sequence[Mapping[str, str]]) -> None:
    from rllib_cli.progress import table

    click.echo(table([dict(row) for row in rows]))


def _draw(file: Path, function: str, data: Any) -> None:
    """Draws a picture, where matplotlib is installed."""
    try:
        from rllib_mfq.arena import plots
    except ImportError:
        click.echo(f'{file} needs matplotlib: pip install "rllib_mfq[render]".', file=sys.stderr)
        return
    plots.save(getattr(plots, function)(data), file)
    click.echo(f"written to {file.parent}; {file.name} shows it", file=sys.stderr)
