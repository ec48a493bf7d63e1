"""Evaluation: plays a checkpoint and says how every episode went."""

import math
from statistics import fmean
from typing import Any

import click
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_cli.experiments import BadInput, parse_mapping, refusing
from rllib_cli.hooks import Hooks, Record, hooks, load_config
from rllib_cli.options import Options, Play
from rllib_cli.plugins import import_plugins
from rllib_cli.session import be_quiet, start_ray
from rllib_mfq.arena.output import check_output, write_json

HERE = {
    "num_env_runners": 0,
    "num_envs_per_env_runner": 1,
    "num_learners": 0,
    "num_gpus_per_learner": 0,
    "num_aggregator_actors_per_learner": 0,
    "evaluation_interval": None,
    "evaluation_num_env_runners": 0,
    "evaluation_duration": 1,
    "evaluation_config": {"explore": False},
}
"""One process that plays in one environment, as many episodes as the options say."""


def evaluate(checkpoint: str, play: Play) -> None:
    """Plays a checkpoint or `pretrained:NAME` greedily; prints a line per episode and a summary."""
    if play.out:
        with refusing("--out "):
            check_output(play.out)
    be_quiet(play.verbose)
    import_plugins(play.plugins)
    with refusing():
        path, kind, saved = load_config(checkpoint)
        if play.algo and play.algo != kind.__name__:
            raise BadInput(f"--algo is {play.algo!r}, but {path} is of {kind.__name__}.")
        if not saved.enable_rl_module_and_learner:
            old = f"{path} is a checkpoint of the old API stack"
            raise BadInput(f"{old}; `rllib evaluate` plays those of the new API stack.")
        player, config = hooks(kind), _config(saved, play)
        player.configure_play(config, play)
    start_ray(
        Options(verbose=play.verbose, ray_address="local", ray_num_cpus=1, plugins=play.plugins)
    )
    with refusing(f"{checkpoint} cannot be played: ", Exception):
        algorithm = config.build_algo()
        player.restore(algorithm, path)
    try:
        records = _play(algorithm, player, play)
        baseline = player.baseline(algorithm)
    finally:
        algorithm.stop()
    summary = _summary(records)
    for side, value in baseline.items():
        summary[f"baseline_return_mean/{side}"] = value
        mine = [record["return"] for record in records if record["side"] == side]
        if mine:
            click.echo(
                f"as {side}: mean return {fmean(mine):z.1f}; {_against(play)[9:]} in its place "
                f"{value:z.1f}"
            )
    rate = f"win rate {summary['win_rate']:.2f}{_against(play)}, " if "win_rate" in summary else ""
    click.echo(
        f"{len(records)} episodes: {rate}mean return {summary['return_mean']:z.1f} "
        f"(from {summary['return_min']:z.1f} to {summary['return_max']:z.1f}), "
        f"{summary['steps_mean']:.0f} steps on average"
    )
    if play.out:
        content: dict[str, Any] = {"checkpoint": path, "algorithm": kind.__name__}
        content |= {"env": str(config.env), "opponent": play.opponent}
        content |= {"episodes": records, "summary": summary}
        write_json(play.out, content)
        click.echo(f"written to {play.out}", err=True)


def _config(saved: AlgorithmConfig, play: Play) -> AlgorithmConfig:
    """The config of a checkpoint, changed so that one process plays in one environment."""
    config = saved.copy(copy_frozen=False)
    config.evaluation_config = {}  # another environment, perhaps
    config.update_from_dict(HERE)
    config.debugging(seed=play.seed)
    if play.env:
        config.environment(play.env)
    given = parse_mapping(play.config or "{}", "--config")
    if given.get("explore"):
        raise BadInput(f"--config has explore {given['explore']}; `rllib evaluate` plays greedily.")
    config.update_from_dict(given)
    for key, value in HERE.items():
        if (asked := config.get(key)) != value:
            raise BadInput(
                f"--config sets {key} to {asked!r}; it must stay {value!r}, for `rllib evaluate` "
                "plays in one process, as many episodes as --episodes or --steps say."
            )
    if play.render:
        config.environment(env_config={"render_mode": "human"})
    return config


def _play(algorithm: Algorithm, player: Hooks, play: Play) -> list[Record]:
    """Plays as many episodes as the options say, or whole episodes until there are enough steps."""
    records: list[Record] = []
    episodes, steps = play.episodes or (math.inf if play.steps else 10), play.steps or math.inf
    while len(records) < episodes and sum(record["steps"] for record in records) < steps:
        for episode in player.sample(algorithm):
            record = {"episode": len(records) + 1, "return": float(episode.get_return())}
            record["steps"] = int(episode.env_steps())
            records.append(record | player.record(episode))
            click.echo(_line(records[-1], play))
    return records


def _line(record: Record, play: Play) -> str:
    parts = [f"return {record['return']:z.1f}"]
    returns = record.get("returns", {})
    if "side" in record:
        known = {1.0: "won ", 0.0: "lost ", 0.5: "drew ", None: ""}[record.get("share")]
        parts.insert(0, f"{known}as {record['side']}{_against(play)}")
    elif 1 < len(returns) < 5:
        parts += [f"{who} {value:z.1f}" for who, value in returns.items()]
    for name, values in record.get("result", {}).items():
        parts.append(f"{name} " + " ".join(f"{who} {value:g}" for who, value in values.items()))
    return f"episode {record['episode']}: {', '.join(parts)}, {record['steps']} steps"


def _against(play: Play) -> str:
    return f" against {'random' if play.opponent == 'random' else 'the opponent'}"


def _summary(records: list[Record]) -> dict[str, Any]:
    """Means over episodes; `win_rate` where there was an opponent."""
    returns = [record["return"] for record in records]
    summary = {"episodes": len(records), "return_mean": fmean(returns)}
    summary |= {"return_min": min(returns), "return_max": max(returns)}
    summary["steps_mean"] = fmean(record["steps"] for record in records)
    shares = [record["share"] for record in records if "share" in record]
    if shares:  # of the matches in which winning means something
        summary["win_rate"] = fmean(shares)
    # Who is there may differ from episode to episode.
    for group in dict.fromkeys(name for record in records for name in record.get("returns", {})):
        theirs = [record["returns"][group] for record in records if group in record["returns"]]
        summary[f"return_mean/{group}"] = fmean(theirs)
    return summary
