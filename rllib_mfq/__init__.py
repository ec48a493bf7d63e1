"""Mean field Q-learning for Ray RLlib.

Importing the package registers the algorithm "MFQ", MAgent2's environments and the paper's own
two, "ising_v0" and "gaussian_squeeze_v0", with Tune.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ray.tune.registry import register_env, register_trainable

from rllib_mfq.algorithm.config import MFQConfig
from rllib_mfq.algorithm.env_runner import MFQEnvRunner
from rllib_mfq.algorithm.learner import MFQTorchLearner
from rllib_mfq.algorithm.mfq import MFQ
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.algorithm.rollout_worker import MFQRolloutWorker
from rllib_mfq.algorithm.torch_policy import MFQTorchPolicy
from rllib_mfq.envs.gaussian_squeeze import GaussianSqueezePopulation
from rllib_mfq.envs.ising import IsingPopulation
from rllib_mfq.mean_field.mean_action import postprocess_mean_actions
from rllib_mfq.mean_field.neighborhood import Neighborhood, did_you_mean
from rllib_mfq.population.magent2 import ENVIRONMENTS, magent2
from rllib_mfq.population.population import Group, Population, PopulationError, Rows, Step

__version__ = "0.1.0"

__all__ = [
    "MFQ",
    "GaussianSqueezePopulation",
    "Group",
    "IsingPopulation",
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


MAKERS: dict[str, Callable[..., Population]] = {
    **{name: functools.partial(magent2, name) for name in ENVIRONMENTS},
    "ising_v0": IsingPopulation,
    "gaussian_squeeze_v0": GaussianSqueezePopulation,
}
"""The environments registered with Tune; their `env_config` is the maker's arguments."""


def _make(name: str, config: dict[str, Any]) -> Population:
    maker = MAKERS[name]
    if inspect.isclass(maker):
        legal = inspect.signature(maker).parameters
        for argument in config:
            if argument not in legal:
                raise ValueError(
                    f"{name} has no argument {argument!r}{did_you_mean(argument, legal)}; legal "
                    f"are {sorted(legal)}."
                )
    return maker(**config)


def register() -> None:
    """Registers "MFQ" and the environments with Tune; harmless to call again.

    Ray forgets registrations at `ray.shutdown()`; `MFQConfig` calls this, so that only a bare
    `tune.run("MFQ")` in a second Ray session needs it.
    """
    register_trainable("MFQ", MFQ)
    for name in MAKERS:
        register_env(name, functools.partial(_make, name))


register()
