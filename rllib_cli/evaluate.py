"""Evaluation: plays a checkpoint and says how every episode went."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_cli.checkpoint import CLASS, check_checkpoint
from rllib_cli.experiments import BadInput, parse_mapping
from rllib_cli.options import Options
from rllib_cli.session import be_quiet, import_plugins, start_ray
from rllib_mfq import MFQ
from rllib_mfq.algorithm.pretrained import PREFIX, header, load_pretrained
from rllib_mfq.algorithm.rl_module import ACTING

Record = dict[str, Any]
"""What is written about an episode; `share` is 1 for a win, a half for a draw and 0 for a loss."""


@dataclass
class Play:
    """The options of `rllib evaluate`."""

    algo: str | None = None
    env: str | None = None
    config: str | None = None
    episodes: int | None = None
    steps: int | None = None
    opponent: str | None = None
    render: bool = False
    out: Path | None = None
    seed: int | None = None
    verbose: int = 0
    plugins: tuple[str, ...] = ()


def evaluate(checkpoint: str, play: Play) -> None:
    """Plays a checkpoint greedily, prints a line per episode and a summary.

    Raises:
        BadInput: the checkpoint is none, or cannot be played like that.
    """
    pretrained = checkpoint.startswith(PREFIX)
    path = checkpoint if pretrained else check_checkpoint(checkpoint)
    if play.out and not play.out.absolute().parent.is_dir():
        raise BadInput(f"--out {play.out}: the folder {play.out.parent} does not exist.")
    be_quiet(play.verbose)
    import_plugins(play.plugins)
    try:
        algorithm_class, saved = _pretrained(path) if pretrained else _saved(path)
    except ValueError as error:
        raise BadInput(str(error)) from error
    config = _config(path, algorithm_class, saved, play)
    start_ray(Options(verbose=play.verbose, ray_address="local", ray_num_cpus=1))
    try:
        algorithm = config.build_algo()
        if pretrained:
            algorithm.env_runner.module["shared"].set_state(load_pretrained(path).get_state())
        else:
            algorithm.restore_from_path(path)
        if play.opponent:  # RLlib restores the runner that trains, and syncs this one when asked
            weights = algorithm.env_runner.module.get_state(inference_only=True)
            algorithm.eval_env_runner.module.set_state(weights)
    except Exception as error:
        raise _told(checkpoint, error) from error
    try:
        records = _play(algorithm, play)
    finally:
        algorithm.stop()
    summary = summarise(records)
    click.echo(_summary_line(summary, play.opponent))
    if play.out:
        content = {
            "checkpoint": path,
            "algorithm": type(algorithm).__name__,
            "env": str(config.env),
            "opponent": play.opponent,
            "episodes": records,
            "summary": summary,
        }
        play.out.write_text(json.dumps(content, indent=2, default=float) + "\n")
        click.echo(f"written to {play.out}", file=sys.stderr)


def summarise(records: list[Record]) -> dict[str, float]:
    """Means over episodes; `win_rate` where there was an opponent."""
    summary = {
        "episodes": len(records),
        "return_mean": fmean(record["return"] for record in records),
        "return_min": min(record["return"] for record in records),
        "return_max": max(record["return"] for record in records),
        "steps_mean": fmean(record["steps"] for record in records),
    }
    if "share" in records[0]:
        summary["win_rate"] = fmean(record["share"] for record in records)
    for group in records[0].get("returns", {}):
        summary[f"return_mean/{group}"] = fmean(record["returns"][group] for record in records)
    return summary


def _saved(path: str) -> tuple[type[Algorithm], AlgorithmConfig]:
    """The algorithm of a checkpoint and its config."""
    with next(Path(path).glob(f"{CLASS}.*")).open("rb") as file:
        saved = pickle.load(file)  # as the help says
    return saved["class"], AlgorithmConfig.from_state(saved["ctor_args_and_kwargs"][0][0])


def _pretrained(path: str) -> tuple[type[Algorithm], AlgorithmConfig]:
    """As `_saved`, for an agent that comes with the package: one module for all groups."""
    about = header(path)
    config = MFQ.get_default_config().environment(about["env"], env_config=about["env_config"])
    config.multi_agent(policies=["shared"])
    acting = {key: value for key, value in about["model_config"].items() if key in ACTING}
    network = {key: value for key, value in about["model_config"].items() if key not in ACTING}
    acting.pop("mean_action_dim", None)
    return MFQ, config.training(**acting).rl_module(model_config=network)


def _config(
    path: str, algorithm: type[Algorithm], config: AlgorithmConfig, play: Play
) -> AlgorithmConfig:
    """A config, changed so that one process plays it in one environment."""
    if play.algo and play.algo != algorithm.__name__:
        raise BadInput(f"--algo is {play.algo!r}, but {path} is of {algorithm.__name__}.")
    if not config.enable_rl_module_and_learner:
        raise BadInput(f"{path} is of the old API stack; `rllib evaluate` plays the new one's.")
    config = config.copy(copy_frozen=False)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=1)
    config.learners(num_learners=0, num_gpus_per_learner=0)
    config.num_aggregator_actors_per_learner = 0
    config.evaluation(evaluation_interval=None, evaluation_num_env_runners=0)
    config.debugging(seed=play.seed)
    if play.env:
        config.environment(play.env)
    if play.config:
        config.update_from_dict(parse_mapping(play.config, "--config"))
    if play.render:
        config.environment(env_config={"render_mode": "human"})
    if isinstance(algorithm.get_default_config(), type(MFQ.get_default_config())):
        _configure_mfq(config, play)
    elif play.opponent:
        raise BadInput(f"--opponent is {play.opponent!r}; {algorithm.__name__} plays no matches.")
    return config


def _configure_mfq(config: Any, play: Play) -> None:
    config.evaluation_opponents = {}
    config.self_play = {"opponent": "latest"}  # whoever it trained against, it plays itself
    config.replay_capacity = max(config.replay_capacity, 1)
    if play.env or play.config:
        config.groups = None  # the environment may be another one
    if play.render:
        config.callbacks(on_episode_step=_render)
    if play.opponent:
        ready = play.opponent == "random" or play.opponent.startswith(PREFIX)
        spec = play.opponent if ready else check_checkpoint(play.opponent)
        config.evaluation(
            evaluation_interval=1,
            evaluation_duration=1,
            evaluation_opponents={"opponent": spec},
        )


def _render(*, env: Any, **kwargs: Any) -> None:
    env.render()


def _play(algorithm: Algorithm, play: Play) -> list[Record]:
    runner = algorithm.eval_env_runner if play.opponent else algorithm.env_runner
    records: list[Record] = []
    episodes = play.episodes or (None if play.steps else 10)
    while (episodes is None or len(records) < episodes) and (
        play.steps is None or sum(record["steps"] for record in records) < play.steps
    ):
        samples = runner.sample(num_episodes=1, explore=False)
        for episode in samples[0].episodes if isinstance(algorithm, MFQ) else samples:
            records.append(_record(len(records) + 1, episode))
            click.echo(_line(records[-1], play.opponent))
        runner.get_metrics()  # which would pile up
    return records


def _record(number: int, episode: Any) -> Record:
    """The figures of an episode: MFQ's, or RLlib's of one or of many agents."""
    record: Record = {
        "episode": number,
        "return": float(episode.get_return()),
        "steps": int(episode.env_steps()),
    }
    if hasattr(episode, "shares"):
        record |= {"returns": dict(episode.returns), "result": episode.result}
        mine = episode.custom_data.get("mine")
        if mine:
            record |= {
                "side": mine,
                "return": float(episode.returns[mine]),
                "share": float(episode.shares()[mine]),
            }
    elif hasattr(episode, "agent_episodes"):
        record["returns"] = {
            str(agent): float(each.get_return()) for agent, each in episode.agent_episodes.items()
        }
    return record


def _line(record: Record, opponent: str | None) -> str:
    parts = []
    if "side" in record:
        outcome = {1.0: "won", 0.0: "lost"}.get(record["share"], "drew")
        against = "random" if opponent == "random" else "the opponent"
        parts += [f"{outcome} as {record['side']} against {against}"]
    parts += [f"return {record['return']:.1f}"]
    if "side" not in record:
        returns = record.get("returns", {})
        parts += [f"{who} {value:.1f}" for who, value in returns.items() if 1 < len(returns) < 5]
    for name, values in record.get("result", {}).items():
        parts.append(f"{name} " + " ".join(f"{who} {value:g}" for who, value in values.items()))
    return f"episode {record['episode']}: {', '.join(parts)}, {record['steps']} steps"


def _summary_line(summary: dict[str, float], opponent: str | None) -> str:
    against = "random" if opponent == "random" else "the opponent"
    won = "win_rate" in summary
    rate = f"win rate {summary['win_rate']:.2f} against {against}, " if won else ""
    return (
        f"{summary['episodes']} episodes: {rate}mean return {summary['return_mean']:.1f} "
        f"(from {summary['return_min']:.1f} to {summary['return_max']:.1f}), "
        f"{summary['steps_mean']:.0f} steps on average"
    )


def _told(checkpoint: str, error: Exception) -> BadInput:
    message = " ".join(str(error).split()) or type(error).__name__
    return BadInput(f"{checkpoint} cannot be played: {message}")
