"""The `rllib` command: its commands and options, on click.

Imports no Ray: what a command does is imported when it runs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from rllib_cli import arena, examples
from rllib_cli.experiments import BadInput, read_experiments
from rllib_cli.namesakes import other_commands
from rllib_cli.options import Options, apply_options, experiment_from_options, use_token
from rllib_cli.reproduce.command import reproduce

Command = Callable[..., None]

TRUST = "Loading a checkpoint unpickles it: load only checkpoints you trust."

OBSOLETE = {
    "--ray-ui/--no-ray-ui": "start Ray's dashboard with `ray start --head`",
    "--ray-num-nodes": "start more nodes with `ray start` and give --ray-address",
    "--trace/--no-trace": "it was TensorFlow's",
    "--eager/--no-eager": "it was TensorFlow's",
    "--torch/--no-torch": "torch is what RLlib trains with",
    "--export-formats": "a checkpoint holds the networks",
    "--resources-per-trial": "RLlib sums them up from num_env_runners and num_learners",
    "--upload-dir": "--storage-path takes URIs, too",
}
"""Options of training that have lost their meaning, and what to know instead."""

OBSOLETE_IN_EVALUATION = {
    "--local-mode/--no-local-mode": "it plays in one process anyway",
    "--save-info/--no-save-info": "--out writes JSON",
    "--use-shelve/--no-use-shelve": "--out writes JSON",
    "--track-progress/--no-track-progress": "every episode is printed",
    "--video-dir": "--render shows a window",
}

TRAIN_OPTIONS = [
    click.option("--stop", "-s", help="When to stop, as JSON or YAML, instead of the file's."),
    click.option("--num-samples", type=click.IntRange(1), help="Trials per grid point."),
    click.option("--checkpoint-freq", type=click.IntRange(0), help="Iterations in between."),
    click.option(
        "--checkpoint-at-end/--no-checkpoint-at-end",
        default=None,
        help="Leave a checkpoint at the end (default).",
    ),
    click.option("--keep-checkpoints-num", type=click.IntRange(1), help="Keep only the best N."),
    click.option("--checkpoint-score-attr", help="The result they are ranked by; min-X for least."),
    click.option(
        "--storage-path", "--local-dir", help="Folder or URI for results and checkpoints."
    ),
    click.option("--experiment-name", "-n", help="Name of the experiment and its folder."),
    click.option("--restore", help=f"Start from this checkpoint. {TRUST}"),
    click.option("--resume", is_flag=True, help="Go on with the run of the same name."),
    click.option("--max-failures", type=int, help="Restarts of a failed trial."),
    click.option("--scheduler", help="fifo, asha, pbt, ... of Tune."),
    click.option("--scheduler-config", help="Its settings, as JSON or YAML."),
    click.option("--ray-address", help="Join the Ray cluster at this address; auto finds one."),
    click.option("--ray-num-cpus", type=int, help="CPUs that Ray shall count with."),
    click.option("--ray-num-gpus", type=int, help="GPUs that Ray shall count with."),
    click.option("--ray-object-store-memory", type=int, help="Bytes of shared memory."),
    click.option("--local-mode", is_flag=True, help="One process: no remote runners or learners."),
    click.option("--framework", help="torch; others are accepted with a notice."),
    click.option("--log-info", "-v", "verbose", count=True, help="More logs; -vv: all."),
    click.option("--log-debug", is_flag=True, hidden=True),
    click.option("--wandb-key", help="Log to Weights & Biases with this API key."),
    click.option("--wandb-project", help="Its project."),
    click.option("--wandb-run-name", help="Its run."),
    click.option("--seed", type=int, help="Seed of every experiment."),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="Any config key, dotted if nested; the value is YAML. Repeatable.",
    ),
    click.option("--as-test", is_flag=True, help="Exit 1 unless a goal in stop is reached."),
    click.option(
        "--import", "plugins", multiple=True, help="Import a module that registers things."
    ),
]


def obsolete(options: dict[str, str]) -> Callable[[Command], Command]:
    """Adds options that do nothing but say so, hidden from the help."""

    def notice(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            name = parameter.opts[0]
            reason = next(why for names, why in options.items() if names.split("/")[0] == name)
            click.echo(f"note: {name} is ignored: {reason}.", file=sys.stderr)

    def add(command: Command) -> Command:
        for names in options:
            command = click.option(
                names, default=None, hidden=True, expose_value=False, callback=notice
            )(command)
        return command

    return add


def train_options(command: Command) -> Command:
    """Adds the options of training."""
    command = obsolete(OBSOLETE)(command)
    for option in reversed(TRAIN_OPTIONS):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, asked: _show_versions(context) if asked else None,
    help="Show the versions of this package and of Ray.",
)
def main() -> None:
    """Trains and plays RLlib's algorithms, mean field Q-learning (MFQ) among them.

    \b
    rllib example list
    rllib train file battle_small.yaml
    rllib train --run MFQ --env battle_v4 --stop '{time_total_s: 600}'
    rllib evaluate CHECKPOINT --opponent random
    rllib tournament random CHECKPOINT CHECKPOINT
    """  # noqa: D301 - click keeps the lines behind a backspace
    for other in other_commands():
        click.echo(f"note: {other}", file=sys.stderr)


@main.group(invoke_without_command=True)
@click.option("--run", "--algo", "-r", "-a", "run", help="Algorithm, such as MFQ or PPO.")
@click.option("--env", "-e", help="Environment, such as battle_v4 or CartPole-v1.")
@click.option("--config", "-c", help="Config of the algorithm, as JSON or YAML.")
@click.option(
    "--config-file", "-f", type=click.Path(path_type=Path), help="As `rllib train file` takes it."
)
@train_options
@click.pass_context
def train(
    context: click.Context,
    run: str | None,
    env: str | None,
    config: str | None,
    config_file: Path | None,
    log_debug: bool,
    **options: Any,
) -> None:
    """Trains what a file or the options say."""
    if context.invoked_subcommand:
        for option in context.command.params:
            if option.name and _given(context, option.name):
                command = context.invoked_subcommand
                raise BadInput(f"{option.opts[0]} stands before {command}; put it behind.")
        return
    given = _options(log_debug, options)
    if config_file is not None:
        for name, value in (("--run", run), ("--env", env), ("--config", config)):
            if value is not None:
                raise BadInput(f"{name} is {value!r}, but {config_file} says that; use --set.")
        _run(lambda: read_experiments(config_file), given)
    else:
        _run(lambda: experiment_from_options(run, env, config, given), given)


@train.command("file")
@click.argument("path", type=click.Path(path_type=Path))
@train_options
def train_file(path: Path, log_debug: bool, **options: Any) -> None:
    """Trains the experiments of PATH: .yaml, .json, or .py with `config` and perhaps `stop`."""
    _run(lambda: read_experiments(path), _options(log_debug, options))


@main.command()
@click.argument("checkpoint")
@click.option("--run", "--algo", "-r", "-a", "algo", help="Refuse a checkpoint of another one.")
@click.option("--env", "-e", help="Play in this environment instead of the one trained in.")
@click.option("--config", "-c", help="Changes of the config, as JSON or YAML.")
@click.option("--episodes", type=click.IntRange(1), help="How many episodes (10).")
@click.option("--steps", type=click.IntRange(1), help="Whole episodes until so many steps.")
@click.option("--opponent", help="random, or a checkpoint: MFQ plays matches, sides in turn.")
@click.option("--render/--no-render", default=False, help="Show it in a window.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here.")
@click.option("--seed", type=int, help="Seed of the environments and draws.")
@click.option("--log-info", "-v", "verbose", count=True, help="More logs; -vv: all.")
@click.option("--import", "plugins", multiple=True, help="Import a module that registers things.")
@obsolete(OBSOLETE_IN_EVALUATION)
def evaluate(checkpoint: str, **options: Any) -> None:
    """Plays CHECKPOINT greedily and prints every episode.

    Loading a checkpoint unpickles it: load only checkpoints you trust.
    """
    with _told_in_one_sentence(options["verbose"]):
        from rllib_cli.evaluate import Play
        from rllib_cli.evaluate import evaluate as play

        play(checkpoint, Play(**options))


for command in (arena.render, arena.tournament, arena.plot, reproduce):
    main.add_command(command)


@main.command(hidden=True, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1)
def rollout(arguments: tuple[str, ...]) -> None:
    """The old name of `evaluate`."""
    raise BadInput("`rllib rollout` is called `rllib evaluate` now.")


@main.group()
def example() -> None:
    """Lists, shows and runs the examples that come with the package."""


@example.command("list")
@click.option("--filter", "-f", "word", default="", help="Only those with this in the name.")
def example_list(word: str) -> None:
    """Lists the examples."""
    names = [name for name in examples.names() if word.lower() in name]
    for name in names:
        click.echo(f"{name:{max(map(len, names))}}  {examples.title(name)}")


@example.command("get")
@click.argument("name")
def example_get(name: str) -> None:
    """Prints the YAML of an example."""
    click.echo(examples.find(name).read_text(encoding="utf-8"), nl=False)


@example.command("run")
@click.argument("name")
@train_options
def example_run(name: str, log_debug: bool, **options: Any) -> None:
    """Trains an example; takes the options of `rllib train file`."""
    _run(lambda: read_experiments(examples.find(name)), _options(log_debug, options))


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _options(log_debug: bool, options: dict[str, Any]) -> Options:
    given = Options(**options)
    given.verbose = 2 if log_debug else given.verbose
    return given


def _run(read: Callable[[], dict[str, Any]], options: Options) -> None:
    """Reads experiments, at once, and trains them, once Ray is imported."""
    with _told_in_one_sentence(options.verbose):
        experiments = read()
        apply_options(experiments, options)  # what does not parse is told before the wait
        use_token(options)
        from rllib_cli.train import train as train_experiments

        code = train_experiments(experiments, options)
    if code:
        raise SystemExit(code)


@contextlib.contextmanager
def _told_in_one_sentence(verbose: int) -> Iterator[None]:
    """Leaves the traceback of bad input to -vv."""
    try:
        yield
    except BadInput:
        if verbose > 1:
            traceback.print_exc()
        raise


def _show_versions(context: click.Context) -> None:
    for package in ("rllib_mfq", "ray"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed, run from its source)"
        click.echo(f"{package} {version}")
    context.exit()
