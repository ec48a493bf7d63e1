"""Mean field Q-learning for Ray RLlib.

Importing the package registers the algorithm "MFQ", MAgent2's environments and the paper's own
two, "ising_v0" and "gaussian_squeeze_v0", with Tune.
"""

from __future__ import annotations

import functools

from ray.tune.registry import register_env, register_trainable

from rllib_mfq.algorithm.config import MFQConfig
from rllib_mfq.algorithm.env_runner import MFQEnvRunner
from rllib_mfq.algorithm.environment import ENVIRONMENTS, make_environment
from rllib_mfq.algorithm.learner import MFQTorchLearner
from rllib_mfq.algorithm.mfq import MFQ
from rllib_mfq.algorithm.old_stack import MFQRolloutWorker, MFQTorchPolicy
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.arena.agents import Agents, load
from rllib_mfq.envs.gaussian_squeeze import GaussianSqueezePopulation
from rllib_mfq.envs.ising import IsingPopulation
from rllib_mfq.mean_field.mean_action import postprocess_mean_actions
from rllib_mfq.mean_field.neighborhood import GroupActions, Neighborhood
from rllib_mfq.population.magent2 import magent2
from rllib_mfq.population.opponent_policy import OpponentPolicy
from rllib_mfq.population.player import Scene
from rllib_mfq.population.population import Group, Population, PopulationError, Rows, Step

__version__ = "0.2.0"

__all__ = [
    "MFQ",
    "Agents",
    "GaussianSqueezePopulation",
    "Group",
    "GroupActions",
    "IsingPopulation",
    "MFQConfig",
    "MFQEnvRunner",
    "MFQRolloutWorker",
    "MFQTorchLearner",
    "MFQTorchPolicy",
    "MFQTorchRLModule",
    "Neighborhood",
    "OpponentPolicy",
    "Population",
    "PopulationError",
    "Rows",
    "Scene",
    "Step",
    "load",
    "magent2",
    "postprocess_mean_actions",
    "register",
]


def register() -> None:
    """Registers "MFQ" and the environments with Tune; harmless to call again.

    Ray forgets registrations at `ray.shutdown()`. An `MFQConfig` needs none; `tune.run("MFQ")`
    and other algorithms that play these environments do, in a second Ray session.
    """
    register_trainable("MFQ", MFQ)
    for name in ENVIRONMENTS:
        register_env(name, functools.partial(make_environment, name))


register()
