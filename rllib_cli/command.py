"""The `rllib` command: its commands and options, on click."""

import contextlib
import importlib.metadata
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click import argument, option
from click.core import ParameterSource

from rllib_cli import arena, options
from rllib_cli.completion import complete_agent, complete_env, complete_example
from rllib_cli.experiments import (
    SUFFIXES,
    BadInput,
    examples,
    find_example,
    read_experiments,
    refusing,
)
from rllib_cli.plugins import import_from, import_plugins
from rllib_cli.reproduce import reproduce


def _show_versions(context: click.Context, option: click.Parameter, asked: bool) -> None:
    for package in ("rllib_mfq", "ray") if asked else ():
        versions = (found.version for found in importlib.metadata.distributions(name=package))
        click.echo(f"{package} {next(versions, '(not installed, run from its source)')}")
    if asked:
        context.exit()


class _Commands(click.Group):
    """A group whose refusals of unknown words name what was meant."""

    def invoke(self, context: click.Context) -> Any:
        """Runs a command; of an unknown option it suggests no hidden one."""
        try:
            return super().invoke(context)
        except click.NoSuchOption as error:
            known = error.ctx.command.params if error.ctx else []
            lost = [each for each in known if getattr(each, "hidden", False)]
            hidden = {word for each in lost for word in (*each.opts, *each.secondary_opts)}
            near = [word for word in error.possibilities or () if word not in hidden]
            raise click.NoSuchOption(error.option_name, None, near, error.ctx) from None

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command; of a file or an example it says which command takes it."""
        word = words[0]
        if self.get_command(context, word) is None:
            if Path(word).suffix in SUFFIXES:
                raise BadInput(f"{word} is no command; write `rllib train file {word}`.")
            if word in examples():
                raise BadInput(f"{word} is no command; write `rllib example run {word}`.")
        return super().resolve_command(context, words)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_versions,
    help="Show the versions of this package and of Ray.",
)
def main() -> None:
    """Trains and plays RLlib's algorithms, mean field Q-learning (MFQ) among them.

    \b
    rllib example list
    rllib train file tuned_examples/battle_small.yaml
    rllib train --run MFQ --env battle_v4 --stop '{time_total_s: 600}'
    rllib evaluate CHECKPOINT --opponent random
    rllib tournament random CHECKPOINT CHECKPOINT
    """  # noqa: D301 - click keeps the lines behind a backspace
    import_from(os.getcwd())
    for other in other_commands():
        click.echo(f"note: {other}", err=True)


@main.group(cls=_Commands, invoke_without_command=True)
@option("--run", "--algo", "-r", "-a", "run", help="Algorithm, such as MFQ or PPO.")
@option("--env", "-e", help="Environment, such as battle_v4.", shell_complete=complete_env)
@option("--config", "-c", help="Config of the algorithm, as JSON or YAML.")
@option("--config-file", "-f", type=arena.PATH, help="Same as `rllib train file`.")
@options.train_options
@click.pass_context
def train(context: click.Context, config_file: Path | None, **given: Any) -> None:
    """Trains the experiments that a file or the options describe."""
    if command := context.invoked_subcommand:
        for each in context.command.params:
            if context.get_parameter_source(each.name or "") is ParameterSource.COMMANDLINE:
                raise BadInput(f"{each.opts[0]} stands before {command}; write it after PATH.")
        return
    described = {name: given.pop(name) for name in ("run", "env", "config")}
    rest = options.Options(**given)
    for name, value in described.items():
        if config_file and value is not None:
            problem = f"--{name} is {value!r}, but {config_file} gives one, too"
            raise BadInput(f"{problem}; change the file, or use --set.")
    if config_file:
        _run(lambda: read_experiments(config_file), rest)
    else:
        _run(lambda: options.experiment_from_options(**described, options=rest), rest)


@train.command("file")
@argument("path", type=arena.PATH)
@options.train_options
def train_file(path: Path, **given: Any) -> None:
    """Trains the experiments of PATH: .yaml, .json, or .py with `config` and perhaps `stop`."""
    _run(lambda: read_experiments(path), options.Options(**given))


@main.command()
@argument("checkpoint", shell_complete=complete_agent)
@options.play_options
def evaluate(checkpoint: str, **given: Any) -> None:
    """Plays CHECKPOINT greedily and prints every episode.

    A checkpoint with classes of its own is unpickled: load only checkpoints you trust.
    """
    with _traceback_if(given["verbose"] > 1):
        from rllib_cli.evaluate import evaluate as play

        play(checkpoint, options.Play(**given))


@main.command()
@argument("checkpoints", nargs=-1, required=True, shell_complete=complete_agent)
@option("--out", "-o", required=True, type=arena.PATH, help="Write the new checkpoint here.")
@arena.PLUGINS
def average(checkpoints: tuple[str, ...], out: Path, plugins: tuple[str, ...]) -> None:
    """Averages the weights of CHECKPOINTS of one run, the last one last, into a new checkpoint.

    Checkpoints are unpickled: load only those you trust.
    """
    from rllib_cli.session import be_quiet

    be_quiet(0)
    import_plugins(plugins)
    from rllib_mfq.algorithm.averaging import average_checkpoints

    with refusing("", ValueError, ImportError, OSError):
        average_checkpoints(checkpoints, out)
    played = shlex.quote(str(out))
    click.echo(f"mean of {len(checkpoints)} checkpoints; play it: rllib evaluate {played}")


for command in (arena.render, arena.tournament, arena.plot, reproduce):
    main.add_command(command)


@main.command(hidden=True, context_settings={"ignore_unknown_options": True})
@argument("arguments", nargs=-1)
def rollout(arguments: tuple[str, ...]) -> None:
    """The old name of `evaluate`."""
    raise BadInput("`rllib rollout` is called `rllib evaluate` now.")


@main.group()
def example() -> None:
    """Lists, shows and runs the examples that come with the package."""


@example.command("list")
@option("--filter", "-f", "word", default="", help="Only examples with this word in the name.")
def example_list(word: str) -> None:
    """Lists the examples."""
    files = {name: path for name, path in examples().items() if word.lower() in name}
    for name, path in files.items():
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        click.echo(f"{name:{max(map(len, files))}}  {title}")


@example.command("get")
@argument("name", shell_complete=complete_example)
def example_get(name: str) -> None:
    """Prints the YAML of an example."""
    click.echo(find_example(name).read_text(encoding="utf-8"), nl=False)


@example.command("run")
@argument("name", shell_complete=complete_example)
@options.train_options
def example_run(name: str, **given: Any) -> None:
    """Trains an example; takes the options of `rllib train file`."""
    _run(lambda: read_experiments(find_example(name)), options.Options(**given))


def _run(read: Callable[[], dict[str, Any]], given: options.Options) -> None:
    """Reads and checks experiments, then imports Ray and trains them."""
    with _traceback_if(given.verbose > 1):
        experiments = read()
        options.apply_options(experiments, given)  # refuses bad input before Ray is imported
        options.use_token(given)
        from rllib_cli.train import train as train_experiments

        code = train_experiments(experiments, given)
    sys.exit(code)


@contextlib.contextmanager
def _traceback_if(asked: bool) -> Iterator[None]:
    """Prints the traceback of bad input if it is asked for; the message follows in any case."""
    try:
        yield
    except BadInput:
        if asked:
            traceback.print_exc()
        raise


def other_commands() -> list[str]:
    """A sentence on every other `rllib` that could run instead; Ray up to 2.41 installs one."""
    found = []
    for entry in importlib.metadata.entry_points(group="console_scripts", name="rllib"):
        if entry.dist is not None and entry.module.partition(".")[0] != __package__:
            found.append(
                f"{entry.dist.name} {entry.dist.version} installs an rllib command, too, in the "
                "same place; reinstall rllib_mfq, or use `python -m rllib_cli`."
            )
    here = Path(sys.argv[0])
    first = shutil.which("rllib") if here.name == "rllib" else None
    if first and Path(first).resolve() != here.resolve():
        found.append(f"the rllib that comes first on the PATH is another one, {first}.")
    return found
