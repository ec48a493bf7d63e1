"""Translation: puts experiments of RLlib 1.x and 2.x into the words of today's RLlib.

`old_names.yaml` lists the keys that are renamed, those that have no meaning any more and are left
out with a notice, and those that are refused, since the run would be another one without them.
"""

import copy
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.tune.utils import flatten_dict

from rllib_cli.experiments import BadInput, Experiment
from rllib_cli.hooks import hooks
from rllib_cli.options import CHECKPOINTS
from rllib_mfq.algorithm.old_names import OLD_NAMES

_TABLES = yaml.safe_load(Path(__file__).with_name("old_names.yaml").read_text(encoding="utf-8"))

SPECIAL: set[str] = set(_TABLES["special"])
REPLAY_BUFFERS: dict[str, str] = _TABLES["replay_buffers"]
METRICS: dict[str, str] = _TABLES["metrics"]

EXPERIMENT = {"local_dir": "storage_path", "upload_dir": "storage_path"}  # keys of an experiment
EXPERIMENT |= {old: f"checkpoint_config/{new}" for old, new in CHECKPOINTS.items()}
CONFIG = {old: new for old, new in OLD_NAMES.items() if old not in SPECIAL}  # of any algorithm
CONFIG["vf_share_layers"] = "model/vf_share_layers"


def translate(name: str, experiment: Experiment) -> tuple[Experiment, list[str]]:
    """Copies an experiment into today's words; returns notices of what changed, too.

    Raises:
        BadInput: the experiment has a key that is refused.
    """
    experiment = copy.deepcopy(experiment)
    config: dict[str, Any] = experiment.get("config") or {}
    run = experiment["run"]
    renamed: list[str] = []
    notices: list[str] = []
    if isinstance(run, str):  # a class is from a Python file of today's RLlib
        own = hooks(run).old_names
        notices += [*_leave_out(name, experiment), *_leave_out(name, config, own)]
        renamed += _rename(name, experiment, EXPERIMENT)
        renamed += _rename(name, config, {**CONFIG, **(own or REPLAY_BUFFERS)})
        notices += _translate_values(name, run, config)
    if "env" in experiment:
        config["env"] = experiment.pop("env")
    experiment["config"] = config
    renamed += _translate_metrics(experiment)
    if not experiment["stop"] and not experiment.get("time_budget_s"):
        notices.append(
            "there is no stop: it trains until Ctrl-C or SIGTERM, which save a checkpoint; --stop "
            "'{time_total_s: 600}' ends it by itself"
        )
    if renamed:
        notices.insert(0, "old names are understood: " + ", ".join(renamed))
    return experiment, [f"{name}: {notice}." for notice in notices]


def metric(key: str, run: Any = None) -> str:
    """Today's name of a key of the results of the algorithm `run`."""
    evaluation = "evaluation/" if key.startswith("evaluation/") else ""
    old = key.removeprefix(evaluation).removeprefix("sampler_results/")
    if old.startswith("policy_reward_mean/"):
        return f"{evaluation}env_runners/{hooks(run).module_returns}/{old.partition('/')[2]}"
    return evaluation + METRICS[old] if old in METRICS else key


def mean_std_filter(env: Any, spaces: Any = None, device: Any = None) -> Any:
    """The connector that does what `observation_filter: MeanStdFilter` did."""
    return MeanStdFilter(multi_agent=hasattr(getattr(env, "unwrapped", env), "possible_agents"))


def _leave_out(
    name: str, mapping: dict[str, Any], understood: Collection[str] = ()
) -> Iterator[str]:
    """Refuses keys, takes out those without meaning that are not `understood`; yields notices."""
    for path, reason in _TABLES["refused"].items():
        holder, key = _holder(mapping, path)
        if holder.get(key):
            raise BadInput(f"{name}: {_dotted(path)} is of old RLlib; {reason}.")
    for path, reason in _TABLES["without_meaning"].items():
        holder, key = _holder(mapping, path)
        if path not in understood and holder.pop(key, None) is not None:
            yield f"{_dotted(path)} is left out: {reason}"


def _rename(name: str, mapping: dict[str, Any], table: Mapping[str, str]) -> Iterator[str]:
    """Renames the keys that a table lists; yields which."""
    for old, new in table.items():
        holder, key = _holder(mapping, old)
        value = holder.pop(key, None)
        if value is not None:
            holder, key = _holder(mapping, new, make=True)
            old, new = _dotted(old), _dotted(new)
            if holder.get(key) not in (None, value):
                raise BadInput(f"{name}: {old} is the old name of {new}; give one of the two.")
            holder[key] = value
            yield f"{old} is now {new}"


def _translate_metrics(experiment: Experiment) -> list[str]:
    """Renames the metrics of `stop`, checkpoints and the scheduler; returns which."""
    renamed = []

    def today(key: str) -> str:
        new = metric(key, experiment["run"])
        if new != key:
            renamed.append(f"{key} is now {new}")
        return new

    stop = flatten_dict(experiment.get("stop") or {})
    experiment["stop"] = {today(key): value for key, value in stop.items()}
    checkpoint = experiment["checkpoint_config"] = experiment.get("checkpoint_config") or {}
    score = checkpoint.get("checkpoint_score_attribute")
    if isinstance(score, str):
        if score.startswith("min-"):
            checkpoint["checkpoint_score_order"] = "min"
        checkpoint["checkpoint_score_attribute"] = today(score.removeprefix("min-"))
    scheduler = experiment.get("scheduler_config") or {}
    for key in ("metric", "time_attr"):
        if isinstance(scheduler.get(key), str):
            scheduler[key] = today(scheduler[key])
    return renamed


def _translate_values(name: str, run: str, config: dict[str, Any]) -> Iterator[str]:
    """Translates the keys of a config that have other values today; yields notices."""
    framework = config.pop("framework", None) or config.pop("framework_str", "torch")
    if framework != "torch":
        yield f"framework {framework!r} is left out: RLlib trains with torch only"
    own = hooks(run).own_keys  # the algorithm's config reads these itself
    if "prioritized_replay" in own:
        yield from _translate_memory(name, run, config)
    if config.get("enable_rl_module_and_learner") is False:
        return  # the old API stack still understands the rest
    if gpus := config.pop("num_gpus", 0):
        config.setdefault("num_learners", int(gpus) if gpus > 1 else 0)
        config.setdefault("num_gpus_per_learner", min(gpus, 1))
        yield "num_gpus is now num_learners and num_gpus_per_learner"
    if config.get("observation_filter") and "observation_filter" not in own:
        kind = config.pop("observation_filter")
        if kind == "MeanStdFilter":
            config["_env_to_module_connector"] = mean_std_filter
            yield "observation_filter is now the connector MeanStdFilter"
        elif kind != "NoFilter":
            raise BadInput(f"{name}: observation_filter is {kind!r}; legal is MeanStdFilter.")
    if config.get("exploration_config") and "exploration_config" not in own:
        exploration = config.pop("exploration_config")
        kind = exploration.get("type", "EpsilonGreedy")
        if run != "DQN":
            yield f"exploration_config is left out: {run} draws from its policy"
        elif kind != "EpsilonGreedy":
            raise BadInput(f"{name}: exploration_config is {kind!r}; DQN explores by epsilon only.")
        else:
            steps = int(exploration.get("epsilon_timesteps", 10_000))
            first = exploration.get("initial_epsilon", 1.0)
            config["epsilon"] = [[0, first], [steps, exploration.get("final_epsilon", 0.05)]]
            yield "exploration_config is now epsilon, a schedule"
    if "prioritized_replay" not in own:
        yield from _translate_buffer(config)
    if "model" in config:
        model = config.pop("model") or {}
        known = vars(DefaultModelConfig())
        settings = {key: value for key, value in model.items() if key in known}
        config["model_config"] = settings | config.get("model_config", {})
        if settings:
            yield "model is now model_config"
        yield from (f"model.{k} is left out: no network reads it" for k in model if k not in known)
    if "model_config" in config and "model_config" not in own:
        config["_model_config"] = config.pop("model_config")


def _translate_buffer(config: dict[str, Any]) -> Iterator[str]:
    """Names the replay buffer of today's RLlib; yields notices."""
    buffer = config.get("replay_buffer_config") or {}
    if buffer.get("type") in _TABLES["buffers"]:
        old, prefix = buffer["type"], "MultiAgent" if "multiagent" in config else ""
        buffer["type"] = prefix + _TABLES["buffers"][old]
        yield f"replay_buffer_config.type {old} is now {buffer['type']}"
    prioritized = config.pop("prioritized_replay", None)
    if prioritized is not None:
        kind = "PrioritizedEpisodeReplayBuffer" if prioritized else "EpisodeReplayBuffer"
        config.setdefault("replay_buffer_config", {})["type"] = kind
        yield f"prioritized_replay is now replay_buffer_config.type {kind}"


def _translate_memory(name: str, run: str, config: dict[str, Any]) -> Iterator[str]:
    """Tells from the type of a replay buffer whether it has priorities; yields notices.

    Raises BadInput if `replay_buffer_config` has something that the algorithm's memory has not.
    """
    buffer = config.pop("replay_buffer_config", None) or {}
    kind = buffer.pop("type", None)
    if kind is not None:
        prioritized = "Prioritized" in str(kind)
        if config.setdefault("prioritized_replay", prioritized) != prioritized:
            raise BadInput(
                f"{name}: replay_buffer_config.type is {kind!r}, but prioritized_replay is "
                f"{not prioritized}; give one of the two."
            )
        yield f"replay_buffer_config.type {kind} is now prioritized_replay: {prioritized}"
    for key in buffer:
        raise BadInput(f"{name}: replay_buffer_config has {key!r}; {run}'s memory has no such key.")


def _dotted(path: str) -> str:
    return path.replace("/", ".")


def _holder(mapping: dict[str, Any], path: str, make: bool = False) -> tuple[dict[str, Any], str]:
    """The nested mapping that may hold the last part of a path, and that part."""
    *parts, last = path.split("/")
    for part in parts:
        inner = mapping.get(part)
        if not isinstance(inner, dict):
            inner = {}
            if make:
                mapping[part] = inner
        mapping = inner
    return mapping, last
