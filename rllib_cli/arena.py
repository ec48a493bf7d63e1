"""The commands that play and show matches: `render`, `tournament` and `plot`."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click
from click import IntRange, argument, option

from rllib_cli.completion import complete_agent, complete_env
from rllib_cli.experiments import BadInput, parse_mapping, refusing
from rllib_cli.plugins import import_plugins

if TYPE_CHECKING:
    from rllib_mfq.arena.statistics import Pair
    from rllib_mfq.arena.tournament import Tournament

MOST_AGENTS_IN_PAIRS = 6
WIDEST_NAME = 24
ENV_CONFIG = option(
    "--env-config",
    callback=lambda context, option, text: parse_mapping(text or "", "--env-config"),
    help="Arguments of the environment to change, as JSON or YAML.",
)
DRAWS = "Checkpoints draw actions from their Boltzmann policies, else they play greedily."
EXPLORE = option("--explore/--no-explore", default=False, help=DRAWS)
RANDOM_STEPS = "Steps that both sides play at random when a match begins, so that matches differ."
PLUGINS = option(
    "--import", "plugins", multiple=True, help="Import a module that registers things."
)
PATH = click.Path(path_type=Path)
NO_PLOTS = 'needs matplotlib: pip install "rllib_mfq[render]".'


@click.command()
@argument("checkpoint", shell_complete=complete_agent)
@argument("opponent", required=False, shell_complete=complete_agent)
@option("--out", "-o", required=True, type=PATH, help="Write the .gif or .mp4 here.")
@ENV_CONFIG
@option("--seed", type=IntRange(0), default=0, help="Seed of environment and draws (0).")
@PLUGINS
@EXPLORE
def render(out: Path, **options: Any) -> None:
    """Films one match of CHECKPOINT, the first group, against OPPONENT.

    OPPONENT is random (default), still, rush, hold, flee, pretrained:NAME, a checkpoint, or a class
    of your own, my_package.my_module:MyClass.

    A checkpoint with classes of its own is unpickled: load only checkpoints you trust.
    """
    from rllib_cli.session import be_quiet

    be_quiet(0)
    import_plugins(options.pop("plugins"))
    from rllib_mfq.arena.render import check_animation, film_match, write_animation

    with refusing("--out "):
        check_animation(out)
    with refusing():
        pictures, match = film_match(**options)
    write_animation(pictures, out, match.custom_data["frames_per_second"])
    scores = ", ".join(f"{group} {value:z.1f}" for group, value in match.returns.items())
    click.echo(f"{match.length} steps, returns {scores}; written to {out}")


@click.command()
@argument(
    "agents",
    nargs=-1,
    required=True,
    metavar="AGENT AGENT ...",
    shell_complete=complete_agent,
)
@option("--matches", type=int, default=20, help="Matches per pair, half on each side (20).")
@option(
    "--env",
    "-e",
    help="Environment; by default that of the first checkpoint.",
    shell_complete=complete_env,
)
@ENV_CONFIG
@option("--seed", type=int, default=0, help="Seed of the environments and of random draws.")
@option("--random-steps", type=IntRange(0), default=0, help=RANDOM_STEPS)
@option("--processes", type=IntRange(1), help="How many play; default: one per core.")
@option("--out", "-o", type=PATH, help="Write JSON here.")
@option("--plot", type=PATH, help="Draw a heat map here: .png, .svg or .pdf.")
@PLUGINS
@EXPLORE
def tournament(agents: Sequence[str], out: Path | None, plot: Path | None, **options: Any) -> None:
    """Plays every AGENT against every other one, and rates them.

    An AGENT is random, still, rush, hold, flee, pretrained:NAME, a checkpoint, or a class of your
    own, my_package.my_module:MyClass.

    A checkpoint with classes of its own is unpickled: load only checkpoints you trust.
    """
    from rllib_cli.session import be_quiet

    be_quiet(0)
    import_plugins(options.pop("plugins"))
    from rllib_mfq.arena.output import check_output, write_json
    from rllib_mfq.arena.tournament import name_agents, play_tournament

    if out:
        with refusing("--out "):
            check_output(out)
    if plot:
        _check_picture("--plot", plot)
    with matches_bar() as show, refusing():
        played = play_tournament(name_agents(agents), on_matches=show, **options)
    _show(played)
    content = played.content() | {"command": shlex.join(["rllib", *sys.argv[1:]])}
    if out:
        write_json(out, content)
    if plot:
        from rllib_mfq.arena.plots import plot_tournament, save

        with refusing():
            save(plot_tournament(content), plot)
    for path in filter(None, (out, plot)):
        click.echo(f"written to {path}", err=True)


@click.command()
@argument("results", nargs=-1, required=True, metavar="RESULTS...")
@option("--out", "-o", type=PATH, help="The picture: .png, .svg or .pdf; default: RESULTS.png.")
@option("--metric", help="What learning curves show; by default the win rate or return.")
@option("--x", help="What they are drawn over; by default agent steps.")
@option("--label", "labels", multiple=True, help="Name of a learning curve. Repeatable.")
def plot(results: Sequence[str], out: Path | None, **options: Any) -> None:
    """Draws RESULTS: folders of training runs, a tournament's JSON, or a phase diagram's CSV.

    Learning curves are means over seeds with 95 % intervals.
    """
    if out is None:
        out = Path(f"{Path(results[0]).resolve().stem}.png")
        if out.exists():
            raise BadInput(f"{out} exists; give --out a name.")
    _check_picture("--out", out)
    from rllib_mfq.arena import plots

    with refusing():
        figure = plots.plot(results, **options, on_skip=note)
    plots.save(figure, out)
    click.echo(f"written to {out}", err=True)


def note(sentence: str) -> None:
    """Prints a note on standard error."""
    click.echo(f"note: {sentence}", err=True)


def show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as aligned columns."""
    from rllib_cli.progress import table

    click.echo(table([{key: f"{value}" for key, value in row.items()} for row in rows]))


@contextlib.contextmanager
def matches_bar() -> Iterator[Callable[[int, int], None]]:
    """On a terminal, shows how many matches have been played; 0 begins a new bar."""
    with contextlib.ExitStack() as stack:
        bar: Any = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if done == 0:
                stack.close()
                progress = click.progressbar(length=total, label="matches", file=sys.stderr)
                bar = stack.enter_context(progress)
            bar.update(done - bar.pos)

        yield show if sys.stderr.isatty() else lambda done, total: None


def _check_picture(option: str, path: Path) -> None:
    try:
        from rllib_mfq.arena.plots import SUFFIXES
    except ImportError as error:
        raise BadInput(f"{option} {NO_PLOTS}") from error
    from rllib_mfq.arena.output import check_output

    with refusing(f"{option} "):
        check_output(path, SUFFIXES)


def _show(played: "Tournament") -> None:
    """Prints the agents, best first, and every pair if there are few agents."""
    if played.returns:
        _show_returns(played)
        return
    show_table([_agent_row(played, name) for name in played.agents])
    if len(played.agents) <= MOST_AGENTS_IN_PAIRS:
        click.echo()
        show_table([_pair_row(pair) for pair in played.pairs])
    if any(pair.distinct <= 2 < pair.matches for pair in played.pairs):
        note = "note: some pairs played the same match again and again: nothing is drawn at random"
        click.echo(f"{note}; try --random-steps 5, or --explore.", err=True)


def _show_returns(played: "Tournament") -> None:
    """Prints the returns of groups in which nobody wins, by who played them and whom it met."""
    click.echo(f"{played.env}: the groups differ, so nobody wins; returns of each group:")
    for group, table in played.returns.items():
        click.echo()
        met = [name for name in played.agents if any(name in row for row in table.values())]
        show_table(
            [
                {f"{group} played by": _short(name)}
                | {f"against {_short(other)}": _figure(row.get(other)) for other in met}
                for name in met
                if (row := table.get(name))
            ]
        )


def _figure(value: float | None) -> str:
    """A figure with one digit; `-` if there is none, and never `-0`."""
    return "-" if value is None else f"{value:z.1f}"


def _agent_row(played: "Tournament", name: str) -> dict[str, Any]:
    pairs = [pair for pair in played.pairs if name in (pair.a, pair.b)]
    won = sum(pair.wins if name == pair.a else pair.losses for pair in pairs)
    drew = sum(pair.draws for pair in pairs)
    kills = [pair.kills_a if name == pair.a else pair.kills_b for pair in pairs]
    known = [each for each in kills if each is not None]  # of all pairs or of none
    matches = len(pairs) * played.matches
    row: dict[str, Any] = {"agent": _short(name), "rating": f"{round(played.ratings[name])}"}
    row |= {"matches": matches} | {"won": won, "drew": drew, "lost": matches - won - drew}
    row["win rate"] = f"{(won + drew / 2) / matches:.2f}"
    return row | {"kills per match": f"{fmean(known):.1f}" if known else "-"}


def _pair_row(pair: "Pair") -> dict[str, Any]:
    row: dict[str, Any] = {"agent": _short(pair.a), "against": _short(pair.b)}
    row |= {"won": pair.wins, "drew": pair.draws, "lost": pair.losses}
    row["won, 95 %"] = f"{pair.wilson_low:.2f} to {pair.wilson_high:.2f}"
    row["as first"] = f"{pair.wins_first} of {pair.matches // 2}"
    if pair.kills_a is not None:
        row["kills"] = f"{pair.kills_a:.1f} : {pair.kills_b:.1f}"
    return row


def _short(name: str) -> str:
    """A name, or of a long name its end, since names differ at the end."""
    return name if len(name) <= WIDEST_NAME else f"…{name[1 - WIDEST_NAME :]}"
