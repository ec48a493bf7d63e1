"""The commands that play and show matches: `render`, `tournament` and `plot`.

Imports no Ray: what a command does is imported when it runs.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rllib_cli.experiments import BadInput, parse_mapping

if TYPE_CHECKING:
    from rllib_mfq.arena.tournament import Pair, Tournament

MOST_AGENTS_IN_PAIRS = 6
WIDEST_NAME = 24
EXPLORE = click.option(
    "--explore/--no-explore",
    default=False,
    help="Checkpoints draw from their Boltzmann policies; greedy by default.",
)
OUTPUT = click.Path(path_type=Path)


@click.command()
@click.argument("checkpoint")
@click.argument("opponent", required=False)
@click.option("--out", "-o", required=True, type=OUTPUT, help="Write the .gif or .mp4 here.")
@click.option("--env-config", help="Changes of the environment's, as JSON or YAML.")
@click.option("--seed", type=int, default=0, help="Seed of the environment and of draws.")
@EXPLORE
def render(
    checkpoint: str,
    opponent: str | None,
    out: Path,
    env_config: str | None,
    seed: int,
    explore: bool,
) -> None:
    """Films one match of CHECKPOINT, the first group, against OPPONENT (random, a checkpoint).

    Loading a checkpoint unpickles it: load only checkpoints you trust.
    """
    changes = parse_mapping(env_config or "{}", "--env-config")
    from rllib_mfq.arena.render import check_animation, film_match, write_animation

    with _bad_input("--out "):
        check_animation(out)
    with _bad_input():
        pictures, match = film_match(checkpoint, opponent, changes, seed, explore)
    write_animation(pictures, out)
    scores = ", ".join(f"{group} {value:.1f}" for group, value in match.returns.items())
    click.echo(f"{match.length} steps, returns {scores}; written to {out}")


@click.command()
@click.argument("agents", nargs=-1, required=True, metavar="AGENT AGENT ...")
@click.option("--matches", type=int, default=20, help="Of every pair, half on each side (20).")
@click.option("--env", "-e", help="Environment; by default that of the first checkpoint.")
@click.option("--env-config", help="Changes of the environment's, as JSON or YAML.")
@click.option("--seed", type=int, default=0, help="Seed of the environments and of draws.")
@click.option("--processes", type=click.IntRange(1), help="How many play; one per core.")
@click.option("--out", "-o", type=OUTPUT, help="Write JSON here.")
@click.option("--plot", type=OUTPUT, help="Draw a heat map here: .png, .svg or .pdf.")
@click.option("--import", "plugins", multiple=True, help="Import a module that registers things.")
@EXPLORE
def tournament(
    agents: tuple[str, ...],
    env: str | None,
    env_config: str | None,
    out: Path | None,
    plot: Path | None,
    plugins: tuple[str, ...],
    **options: Any,
) -> None:
    """Plays every AGENT (random, a checkpoint) against every other one, and rates them.

    Loading a checkpoint unpickles it: load only checkpoints you trust.
    """
    changes = parse_mapping(env_config or "{}", "--env-config")
    from rllib_cli.session import be_quiet, import_plugins
    from rllib_cli.validation import check_env

    be_quiet(0)
    import_plugins(plugins)
    if env:
        check_env("--env", env)
    from rllib_mfq.arena.output import check_output, replacing
    from rllib_mfq.arena.tournament import name_agents, play_tournament

    if out:
        with _bad_input("--out "):
            check_output(out)
    if plot:
        _check_picture("--plot", plot)
    with matches_bar() as show, _bad_input():
        played = play_tournament(name_agents(agents), env, changes, on_matches=show, **options)
    _show(played)
    content = played.content() | {"command": shlex.join(["rllib", *sys.argv[1:]])}
    if out:
        with replacing(out) as part:
            part.write_text(json.dumps(content, indent=1) + "\n")
    if plot:
        from rllib_mfq.arena.plots import plot_tournament, save

        save(plot_tournament(content), plot)
    for path in filter(None, (out, plot)):
        click.echo(f"written to {path}", file=sys.stderr)


@click.command()
@click.argument("results", nargs=-1, required=True, metavar="RESULTS...")
@click.option("--out", "-o", required=True, type=OUTPUT, help="The picture: .png, .svg or .pdf.")
@click.option("--metric", help="Of learning curves; the win rate or else the return.")
@click.option("--x", help="What learning curves are drawn over; agent steps.")
@click.option("--label", "labels", multiple=True, help="Name of a learning curve. Repeatable.")
def plot(results: tuple[str, ...], out: Path, **options: Any) -> None:
    """Draws RESULTS: folders of training runs, a tournament's JSON, or a phase diagram's CSV.

    Learning curves are means over seeds with 95 % intervals.
    """
    _check_picture("--out", out)
    from rllib_mfq.arena import plots

    with _bad_input():
        figure = plots.plot(results, **options)
    plots.save(figure, out)
    click.echo(f"written to {out}", file=sys.stderr)


def _check_picture(option: str, path: Path) -> None:
    try:
        from rllib_mfq.arena.plots import SUFFIXES
    except ImportError as error:
        raise BadInput(f'{option} needs matplotlib: pip install "rllib_mfq[render]".') from error
    from rllib_mfq.arena.output import check_output

    with _bad_input(f"{option} "):
        check_output(path, SUFFIXES)


@contextlib.contextmanager
def matches_bar() -> Iterator[Callable[[int, int], None]]:
    """Shows how many matches are played, on a terminal; each tournament begins with 0."""
    with contextlib.ExitStack() as stack:
        bar: Any = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if not sys.stderr.isatty():
                return
            if done == 0:
                stack.close()
                progress = click.progressbar(length=total, label="matches", file=sys.stderr)
                bar = stack.enter_context(progress)
            bar.update(done - bar.pos)

        yield show


@contextlib.contextmanager
def _bad_input(prefix: str = "") -> Iterator[None]:
    try:
        yield
    except (ValueError, ImportError) as error:
        raise BadInput(prefix + " ".join(str(error).split())) from error


def _show(played: Tournament) -> None:
    """Prints the agents, best first, and every pair where these are few."""
    from rllib_cli.progress import table

    click.echo(table([_agent_row(played, name) for name in played.agents]))
    if len(played.agents) <= MOST_AGENTS_IN_PAIRS:
        click.echo("\n" + table([_pair_row(pair) for pair in played.pairs]))
    if any(pair.distinct <= 2 < pair.matches for pair in played.pairs):
        click.echo(
            "note: some pairs played one and the same match on each side, again and again: "
            "nothing in it is drawn; --explore draws the actions.",
            file=sys.stderr,
        )


def _agent_row(played: Tournament, name: str) -> dict[str, str]:
    wins = draws = losses = 0
    kills: float | None = 0.0
    for pair in played.pairs:
        if name in (pair.a, pair.b):
            mine = name == pair.a
            wins += pair.wins if mine else pair.losses
            draws += pair.draws
            losses += pair.losses if mine else pair.wins
            killed = pair.kills_a if mine else pair.kills_b
            kills = None if killed is None or kills is None else kills + killed * pair.matches
    matches = wins + draws + losses
    return {
        "agent": _short(name),
        "rating": f"{played.ratings[name]:.0f}",
        "matches": f"{matches}",
        "won": f"{wins}",
        "drew": f"{draws}",
        "lost": f"{losses}",
        "win rate": f"{(wins + draws / 2) / matches:.2f}" if matches else "-",
        "kills per match": f"{kills / matches:.1f}" if matches and kills is not None else "-",
    }


def _pair_row(pair: Pair) -> dict[str, str]:
    row = {
        "agent": _short(pair.a),
        "against": _short(pair.b),
        "won": f"{pair.wins}",
        "drew": f"{pair.draws}",
        "lost": f"{pair.losses}",
        "won, 95 %": f"{pair.wilson_low:.2f} to {pair.wilson_high:.2f}",
        "as first": f"{pair.wins_first} of {pair.matches // 2}",
    }
    if pair.kills_a is not None and pair.kills_b is not None:
        row["kills"] = f"{pair.kills_a:.1f} : {pair.kills_b:.1f}"
    return row


def _short(name: str) -> str:
    """The end of a long name, which is where names differ."""
    return name if len(name) <= WIDEST_NAME else f"…{name[1 - WIDEST_NAME :]}"
