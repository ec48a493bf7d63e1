"""Completion: what a shell offers for the values of arguments and options.

A shell asks at every press of the tab key, so nothing here imports Ray.
"""

from pathlib import Path
from typing import Any

from click.shell_completion import CompletionItem

from rllib_cli.experiments import examples

ENVIRONMENTS = ["adversarial_pursuit_v4", "atari", "battle_v4", "battlefield_v5"]
ENVIRONMENTS += ["combined_arms_v6", "gather_v5", "gaussian_squeeze_v0", "ising_v0"]
ENVIRONMENTS += ["tiger_deer_v4"]
"""The package's own environments, which only an import of Ray could tell."""

AGENTS = ["random", "still", "rush", "hold", "flee"]
AGENTS += ["pretrained:battle-iql", "pretrained:battle-iql-0.1"]
AGENTS += ["pretrained:battle-mfq", "pretrained:battle-mfq-0.1"]
RUNS = ("~/ray_results", ".")
"""Folders of runs: Tune's default, and the current one."""


def complete_example(context: Any, parameter: Any, typed: str) -> list[str]:
    """Names of examples."""
    return [name for name in examples() if name.startswith(typed)]


def complete_env(context: Any, parameter: Any, typed: str) -> list[str]:
    """Names of environments: the package's own and Gymnasium's."""
    import gymnasium

    return sorted(name for name in {*ENVIRONMENTS, *gymnasium.registry} if name.startswith(typed))


def complete_agent(context: Any, parameter: Any, typed: str) -> list[CompletionItem]:
    """Checkpoints in folders of runs, the newest first, what may stand for one, and all files."""
    folders = [path for run in RUNS for path in Path(run).expanduser().glob("*/*/checkpoint_*")]
    newest = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)
    found = [name for name in (*map(str, newest), *AGENTS) if name.startswith(typed)]
    return [*map(CompletionItem, found), CompletionItem(typed, type="file")]
