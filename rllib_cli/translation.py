"""Translation: puts experiments of RLlib 1.x and 2.x into the words of today's RLlib.

What still has a meaning is renamed, what has none is left out with a notice, and what would
change the run if it were left out is refused.
"""

from __future__ import annotations

from typing import Any

from rllib_cli.experiments import BadInput, Experiment
from rllib_cli.old_names import (
    BUFFERS,
    CONFIG,
    DQN_CONFIG,
    EXPERIMENT,
    METRICS,
    MFQ_CONFIG,
    REFUSED,
    WITHOUT_MEANING,
)


def translate(name: str, experiment: Experiment) -> tuple[Experiment, list[str]]:
    """Puts an experiment into today's words.

    Args:
        name: of the experiment.
        experiment: as read.

    Returns:
        A new experiment, and what changed, one sentence each.

    Raises:
        BadInput: it has a key that is refused.
    """
    experiment = _copy(experiment)
    config: dict[str, Any] = experiment.get("config") or {}
    renamed: list[str] = []
    notices: list[str] = []
    if isinstance(experiment["run"], str):  # a Python file is of today's RLlib by itself
        _refuse_or_leave_out(name, experiment, notices)
        _refuse_or_leave_out(name, config, notices)
        _rename(name, experiment, EXPERIMENT, renamed)
        specific = MFQ_CONFIG if experiment["run"] == "MFQ" else DQN_CONFIG
        _rename(name, config, CONFIG | specific, renamed)
        notices += _translate_values(name, experiment["run"], config)
    if "env" in experiment:
        config["env"] = experiment.pop("env")
    experiment["config"] = config
    _translate_metrics(experiment, renamed)
    if not experiment["stop"] and not experiment.get("time_budget_s"):
        notices.append("there is no stop: it trains until Ctrl-C")
    if renamed:
        notices.insert(0, "old names are understood: " + ", ".join(renamed))
    return experiment, [f"{name}: {notice}." for notice in notices]


def metric(key: str, run: Any = None) -> str:
    """Today's name of a key of the results of `run`."""
    evaluation = "evaluation/" if key.startswith("evaluation/") else ""
    old = key.removeprefix(evaluation).removeprefix("sampler_results/")
    if old.startswith("policy_reward_mean/"):
        returns = "module_episode_returns_mean" if run == "MFQ" else "module_episode_return_mean"
        return f"{evaluation}env_runners/{returns}/{old.partition('/')[2]}"
    return evaluation + METRICS[old] if old in METRICS else key


def _refuse_or_leave_out(name: str, mapping: dict[str, Any], notices: list[str]) -> None:
    for key, reason in REFUSED.items():
        if _get(mapping, key):
            raise BadInput(f"{name}: {_dotted(key)} is of old RLlib; {reason}.")
    for key, reason in WITHOUT_MEANING.items():
        if _pop(mapping, key) is not None:
            notices.append(f"{_dotted(key)} is left out: {reason}")


def _rename(name: str, mapping: dict[str, Any], table: dict[str, str], renamed: list[str]) -> None:
    for key, new in table.items():
        value = _pop(mapping, key)
        if value is None:
            continue
        if _get(mapping, new) not in (None, value):
            old, new = _dotted(key), _dotted(new)
            raise BadInput(f"{name}: {old} is the old name of {new}; give one of the two.")
        _put(mapping, new, value)
        renamed.append(f"{_dotted(key)} is now {_dotted(new)}")


def _translate_metrics(experiment: Experiment, renamed: list[str]) -> None:
    def today(key: str) -> str:
        new = metric(key, experiment["run"])
        if new != key:
            renamed.append(f"{key} is now {new}")
        return new

    experiment["stop"] = {
        today(key): value for key, value in _flat(experiment.get("stop") or {}).items()
    }
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


def _translate_values(name: str, run: Any, config: dict[str, Any]) -> list[str]:
    """Keys of the config whose values changed, too."""
    notices = []
    framework = config.pop("framework", None) or config.pop("framework_str", "torch")
    if framework != "torch":
        notices.append(f"framework {framework!r} is left out: RLlib trains with torch only")
    gpus = config.pop("num_gpus", 0)
    if gpus:
        config.setdefault("num_learners", int(gpus) if gpus > 1 else 0)
        config.setdefault("num_gpus_per_learner", min(gpus, 1))
        notices.append("num_gpus is now num_learners and num_gpus_per_learner")
    if config.get("enable_rl_module_and_learner") is False:
        return notices  # the old API stack still understands the rest
    kind = config.get("observation_filter")
    if kind and run != "MFQ":  # MFQ's own check refuses it
        config.pop("observation_filter")
        if kind == "MeanStdFilter":
            config["_env_to_module_connector"] = mean_std_filter
            notices.append("observation_filter is now the connector MeanStdFilter")
        elif kind != "NoFilter":
            raise BadInput(f"{name}: observation_filter is {kind!r}; legal is MeanStdFilter.")
    exploration = config.get("exploration_config")
    if exploration and run == "DQN":
        kind = exploration.get("type", "EpsilonGreedy")
        if kind != "EpsilonGreedy":
            raise BadInput(f"{name}: exploration_config is {kind!r}; DQN explores by epsilon only.")
        config.pop("exploration_config")
        first, last = (
            exploration.get("initial_epsilon", 1.0),
            exploration.get("final_epsilon", 0.05),
        )
        config["epsilon"] = [[0, first], [int(exploration.get("epsilon_timesteps", 10_000)), last]]
        notices.append("exploration_config is now epsilon, a schedule")
    elif exploration and run != "MFQ":  # MFQ's own check names temperature
        config.pop("exploration_config")
        notices.append(f"exploration_config is left out: {run} draws from its policy")
    buffer = config.get("replay_buffer_config") or {}
    if buffer.get("type") in BUFFERS:
        prefix = "MultiAgent" if "multiagent" in config else ""
        new = prefix + BUFFERS[buffer["type"]]
        notices.append(f"replay_buffer_config.type {buffer['type']} is now {new}")
        buffer["type"] = new
    prioritized = config.pop("prioritized_replay", None)
    if prioritized is not None:
        kind = "PrioritizedEpisodeReplayBuffer" if prioritized else "EpisodeReplayBuffer"
        _put(config, "replay_buffer_config/type", kind)
        notices.append(f"prioritized_replay is now replay_buffer_config.type {kind}")
    if "model" in config:
        notices += _translate_model(config)
    if "model_config" in config and run != "MFQ":  # MFQ takes it as it is
        config["_model_config"] = config.pop("model_config")
    return notices


def mean_std_filter(env: Any, spaces: Any = None, device: Any = None) -> Any:
    """The connector that does what `observation_filter: MeanStdFilter` did."""
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    return MeanStdFilter(multi_agent=hasattr(getattr(env, "unwrapped", env), "possible_agents"))


def _translate_model(config: dict[str, Any]) -> list[str]:
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    known = set(vars(DefaultModelConfig()))
    model = config.pop("model") or {}
    settings = {key: value for key, value in model.items() if key in known}
    config["model_config"] = settings | config.get("model_config", {})
    left_out = [
        f"model.{key} is left out: no network reads it" for key in model if key not in known
    ]
    return ["model is now model_config", *left_out] if settings else left_out


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}/") if isinstance(value, dict) else {name: value}
    return flat


def _dotted(path: str) -> str:
    return path.replace("/", ".")


def _copy(value: Any) -> Any:
    return {key: _copy(part) for key, part in value.items()} if isinstance(value, dict) else value


def _get(mapping: dict[str, Any], path: str) -> Any:
    value: Any = mapping
    for part in path.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _pop(mapping: dict[str, Any], path: str) -> Any:
    *parts, last = path.split("/")
    for part in parts:
        mapping = mapping.get(part, {})
        if not isinstance(mapping, dict):
            return None
    return mapping.pop(last, None)


def _put(mapping: dict[str, Any], path: str, value: Any) -> None:
    *parts, last = path.split("/")
    for part in parts:
        mapping = mapping.setdefault(part, {})
    mapping[last] = value
