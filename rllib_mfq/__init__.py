"""Mean field Q-learning for Ray RLlib.

Importing the package registers the algorithm "MFQ" and the MAgent2 environments with Tune.
"""

from __future__ import annotations

import functools
from typing import Any

from ray.tune.registry import register_env, register_trainable

from rllib_mfq.algorithm.config import MFQConfig
from rllib_mfq.algorithm.env_runner import MFQEnvRunner
from rllib_mfq.algorithm.learner import MFQTorchLearner
from rllib_mfq.algorithm.mfq import MFQ
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.algorithm.rollout_worker import MFQRolloutWorker
from rllib_mfq.algorithm.torch_policy import MFQTorchPolicy
from rllib_mfq.mean_field.mean_action import postprocess_mean_actions
from rllib_mfq.mean_field.neighborhood import Neighborhood
from rllib_mfq.population.magent2 import ENVIRONMENTS, magent2
from rllib_mfq.population.population import Group, Population, PopulationError, Rows, Step

__version__ = "0.1.0"

__all__ = [
    "MFQ",
    "Group",
    "MFQConfig",
    "MFQEnvRunner",
    "MFQRolloutWorker",
    "MFQTorchLearner",
    "MFQTorchPolicy",
    "MFQTorchRLModule",
    "Neighborhood",
    "Population",
    "PopulationError",
    "Rows",
    "Step",
    "magent2",
    "postprocess_mean_actions",
    "register",
]


def _make_magent2(name: str, config: dict[str, Any]) -> Population:
    return magent2(name, **config)


def register() -> None:
    """Registers "MFQ" and the environments with Tune; harmless to call again.

    Ray forgets registrations at `ray.shutdown()`; `MFQConfig` calls this, so that only a bare
    `tune.run("MFQ")` in a second Ray session needs it.
    """
    register_trainable("MFQ", MFQ)
    for name in ENVIRONMENTS:
        register_env(name, functools.partial(_make_magent2, name))


register()
