"""Class paths: texts in a config that name a class, checked before RLlib calls what they name.

A config may come from a file of someone else. RLlib imports whatever a path names and calls it with
arguments from the same file, so `os.system` would do, too.
"""

from collections.abc import Mapping
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.learner.learner import Learner
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.evaluation.collectors.sample_collector import SampleCollector
from ray.rllib.models.modelv2 import ModelV2
from ray.rllib.offline.input_reader import InputReader
from ray.rllib.offline.offline_evaluator import OfflineEvaluator
from ray.rllib.policy.policy import Policy
from ray.rllib.utils.exploration.exploration import Exploration
from ray.rllib.utils.replay_buffers.base import ReplayBufferInterface
from ray.rllib.utils.schedules.schedule import Schedule

from rllib_mfq.algorithm.environment import make_creator
from rllib_mfq.mean_field.legal import class_of, find

CLASSES: dict[str, tuple[type, ...]] = {
    "callbacks": (RLlibCallback,),
    "callbacks_class": (RLlibCallback,),
    "custom_model": (ModelV2,),
    "env_runner_cls": (EnvRunner,),
    "learner_class": (Learner,),
    "_learner_class": (Learner,),
    "policy_class": (Policy,),
    "sample_collector": (SampleCollector,),
    "worker_cls": (EnvRunner,),
}
"""Keys, at any depth, whose value may be the path of a class, and what the class must be."""

TYPED: dict[str, tuple[type, ...]] = {
    "exploration_config": (Exploration, Schedule),
    "off_policy_estimation_methods": (OfflineEvaluator,),
    "replay_buffer_config": (ReplayBufferInterface,),
}
"""Keys whose value may hold classes under the key `type`, at any depth."""

ARGUMENTS = {
    *("custom_model_config", "encoder_config", "env_config", "evaluation_opponents"),
    *("learner_config_dict", "q_network_config"),
}
"""Keys whose values RLlib hands on as they are."""


def check_class_paths(config: Mapping[str, Any]) -> None:
    """Checks every text of a config dict that RLlib would call by its path; nothing is called.

    Raises:
        ValueError: one sentence with the key, the path and what it must name.
    """
    _check(config, ())


def _check(value: Any, types: tuple[type, ...]) -> None:
    """Checks a part of a config; `types` are what its entries `type` may name."""
    for part in value if isinstance(value, list | tuple) else ():
        _check(part, types)
    for key, part in value.items() if isinstance(value, Mapping) else ():
        if key in ARGUMENTS:
            continue
        if key == "env" and part is not None:
            make_creator(part)
        elif key == "policy_mapping_fn" and isinstance(part, Mapping):
            _check_callable(part.get("type"))
        elif key in ("input", "input_") and isinstance(part, str) and find(part) is not None:
            class_of(key, part, InputReader)  # any other text names files
        elif bases := types if key == "type" else CLASSES.get(key, ()):
            for each in part if isinstance(part, list | tuple) else [part]:
                _check_class(key, each, bases)
        else:
            _check(part, TYPED.get(key, types))


def _check_class(key: str, value: Any, bases: tuple[type, ...]) -> None:
    """Checks a class or its path; words without dots are RLlib's names, such as EpsilonGreedy."""
    is_path = isinstance(value, str) and not value.isidentifier()
    if isinstance(value, type) or is_path:
        class_of(key, value, *bases)


def _check_callable(path: Any) -> None:
    """Refuses a `policy_mapping_fn` that RLlib could not call after it has made it."""
    found = find(path) if isinstance(path, str) else path
    if not isinstance(found, type) or not any("__call__" in vars(c) for c in found.__mro__):
        raise ValueError(
            f"policy_mapping_fn has the type {path!r}; it must be the path of a class with a "
            "method __call__."
        )
