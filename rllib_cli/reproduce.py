"""`rllib reproduce`: the paper's experiments, one command each."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click import IntRange, option

from rllib_cli.arena import EXPLORE, NO_PLOTS, PATH, RANDOM_STEPS, matches_bar, show_table
from rllib_cli.experiments import BadInput, find_example, read_experiments, refusing

RUNS = "Folder for figures and pictures; runs go into its runs/ and are not repeated."
OUT = option("--out", "-o", type=PATH, default=Path("results"), help=RUNS)
PROCESSES = option("--processes", type=IntRange(1), default=2, help="How many at a time (2).")
MAGENT2 = ["battlefield", "adversarial_pursuit", "tiger_deer", "combined_arms", "gather"]
"""Tuned examples, one for each environment."""

LEARNERS = click.Choice(["shared-table", "site-tables", "network"])
LEARNER = "One table for all sites (default), one each, or one network."


def _positive(context: click.Context, option: click.Parameter, value: Any) -> Any:
    for number in value if isinstance(value, tuple) else (value,):
        if not number > 0:
            raise BadInput(f"{option.opts[0]} is {number}; it must be above 0.")
    return value


def _even(context: click.Context, option: click.Parameter, value: int) -> int:
    if value % 2:
        raise BadInput(f"{option.opts[0]} is {value}; it must be even: half on each side.")
    return value


MATCHES = option(
    "--matches",
    type=IntRange(2),
    default=10,
    callback=_even,
    help="Matches of every pair (10); even.",
)
FIRST_STEPS = option("--random-steps", type=IntRange(0), default=3, help=f"{RANDOM_STEPS} (3)")
ROWS = option("--rows", type=IntRange(1), help="Rows that each seed trains on (6 million).")


@click.group()
def reproduce() -> None:
    """Repeats an experiment of the paper: trains over seeds, compares, writes and draws.

    What has been trained in --out before is not trained again.
    """


@reproduce.command()
@PROCESSES
@OUT
@option("--seeds", type=IntRange(2), default=5, help="How many runs of everything (5).")
@option("--learner", type=LEARNERS, default="shared-table", help=LEARNER)
@option("--size", type=IntRange(3), default=20, help="Sites per side (20).")
@option("--temperature", type=float, multiple=True, callback=_positive, help="Repeatable.")
def ising(out: Path, temperature: Sequence[float], **given: Any) -> None:
    """Order of the Ising model over temperature: learned, of Glauber dynamics, and exact."""
    with _into(out):
        from rllib_cli.train import train_variants
        from rllib_mfq.experiments import ising as experiment
        from rllib_mfq.experiments.runs import read_rows

        temperatures = temperature or experiment.TEMPERATURES
        rows = experiment.reproduce(train_variants, out, temperatures=temperatures, **given)
        file = experiment.file_in(out, given["learner"])
    show_table(experiment.summary(rows))
    for method, crossing in experiment.crossings(rows).items():
        click.echo(f"{method}: order falls through 0.5 at T = {crossing:.3f}")
    _draw(file.with_suffix(".png"), "plot_phases", read_rows(file))


@reproduce.command("gaussian_squeeze")
@PROCESSES
@OUT
@option("--seeds", type=IntRange(2), default=5, help="How many runs of everything (5).")
@option("--agents", type=IntRange(1), multiple=True, help="Repeatable.")
@option("--mu", default=400.0, callback=_positive, help="Centre of the squeeze (400).")
@option("--sigma", default=200.0, callback=_positive, help="Its width (200).")
def gaussian_squeeze(out: Path, agents: Sequence[int], **given: Any) -> None:
    """The share of the optimum that crowds of several sizes reach in the Gaussian squeeze."""
    with _into(out):
        from rllib_cli.train import train_variants
        from rllib_mfq.arena.statistics import grouped
        from rllib_mfq.experiments import gaussian_squeeze as experiment

        (base,) = read_experiments(find_example(experiment.EXAMPLE)).values()
        populations = agents or experiment.POPULATIONS
        rows = experiment.reproduce(train_variants, base, out, populations, **given)
    table = []
    for (method, size), found in grouped(rows, lambda r: (r["method"], r["num_agents"])).items():
        share = spread([row["share_of_optimum"] for row in found])
        table.append({"method": method, "agents": size, "share of the optimum": share})
    show_table(table)


@reproduce.command()
@PROCESSES
@OUT
@option("--seeds", type=IntRange(2), default=10, help="How many runs of everything (10).")
@MATCHES
@FIRST_STEPS
@ROWS
@option("--pretrained", type=PATH, help="Write the best agents into this folder.")
def battle(out: Path, **given: Any) -> None:
    """Mean field against independent Q-learning, 64 against 64, all seeds against all."""
    with _into(out), _into(given["pretrained"] or out, "--pretrained"), matches_bar() as show:
        from rllib_cli.train import train_variants
        from rllib_mfq.arena.statistics import over_seeds
        from rllib_mfq.experiments import battle as experiment

        rows = experiment.reproduce(train_variants, out, on_matches=show, **given)
    show_table(rows)
    content = experiment.read(out)
    mean, half = over_seeds(experiment.cross_play(content, "mfq", "iql"))
    click.echo(f"MFQ against IQL: {mean:.2f} ± {half:.2f} (95 % interval over seeds of both)")
    _draw(out / "battle_crossplay.png", "plot_tournament", content)


@reproduce.command()
@PROCESSES
@OUT
@option("--seeds", type=IntRange(2), default=3, help="How many runs of everything (3).")
@MATCHES
@FIRST_STEPS
@ROWS
@option(
    "--change", "changes", multiple=True, help="One of the changes; repeatable, all by default."
)
def sweep(out: Path, **given: Any) -> None:
    """What one change of a setting does in battle, against independent Q-learning."""
    with _into(out), matches_bar() as show:
        from rllib_cli.train import train_variants
        from rllib_mfq.arena.statistics import grouped
        from rllib_mfq.experiments import battle as experiment

        for change in given["changes"]:
            if change not in experiment.VARIATIONS:
                legal = ", ".join(map(repr, experiment.VARIATIONS))
                raise BadInput(f"--change is {change!r}; legal are {legal}.")
        rows = experiment.sweep(train_variants, out, on_matches=show, **given)
    table = []
    for change, found in grouped(rows, lambda row: row["method"]).items():
        won = spread([row["win_rate_iql"] for row in found])
        table.append({"change": change, "win rate against IQL": won, "seeds": len(found)})
    show_table(table)


@reproduce.command()
@PROCESSES
@OUT
@option("--env", "envs", multiple=True, type=click.Choice(MAGENT2), help="Repeatable; all five.")
@option("--seeds", type=IntRange(2), default=5, help="How many runs of everything (5).")
@option("--episodes", type=IntRange(1), default=8, help="That each seed plays per side (8).")
@option("--rows", type=IntRange(1), help="Rows that each run trains on; default: the example's.")
@EXPLORE
def magent2(out: Path, envs: Sequence[str], **given: Any) -> None:
    """Three neighbourhoods against independent Q-learning in MAgent2's other environments.

    It goes on where it stopped: runs that have ended are not repeated.
    """
    with _into(out):
        from rllib_cli.train import train_variants
        from rllib_mfq.experiments import magent2 as experiment
        from rllib_mfq.experiments.runs import read_rows

        examples = {name: _example(name) for name in envs or MAGENT2}
        experiment.reproduce(train_variants, examples, out, **given)
    show_table(experiment.summary(read_rows(out / experiment.FILE)))


def _example(name: str) -> dict[str, Any]:
    (example,) = read_experiments(find_example(name)).values()
    return example


def spread(values: Sequence[float]) -> str:
    """`0.96 ± 0.01`: the mean, and half the width of its 95 % t interval over seeds."""
    import numpy as np

    from rllib_mfq.arena.statistics import t_interval

    mean, half = t_interval(np.asarray(values, float))
    return f"{mean:.3f}" if len(values) < 2 else f"{mean:.3f} ± {half:.3f}"


@contextlib.contextmanager
def _into(folder: Path, option: str = "--out") -> Iterator[None]:
    """Makes a folder, checks that it can be written to, and turns errors into BadInput."""
    from rllib_mfq.arena.output import check_output

    try:
        with refusing():
            folder.mkdir(parents=True, exist_ok=True)
            check_output(folder / "figures.csv")
            yield
    except OSError as error:
        raise BadInput(f"{option} {folder}: {error.strerror or error}.") from error


def _draw(file: Path, function: str, data: Any) -> None:
    """Draws a picture, where matplotlib is installed."""
    try:
        from rllib_mfq.arena import plots
    except ImportError:
        click.echo(f"{file} {NO_PLOTS}", err=True)
    else:
        plots.save(getattr(plots, function)(data), file)
        click.echo(f"written to {file.parent}; {file.name} shows it", err=True)
