"""Environments of PettingZoo, RLlib and Gymnasium as populations.

An environment that has its agents in arrays is better written as a `Population`.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from magent2.environments.magent_env import magent_parallel_env
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import BaseParallelWrapper
from pettingzoo.utils.conversions import aec_to_parallel

from rllib_mfq.population.agent_dicts import AgentDictPopulation
from rllib_mfq.population.magent2 import MAgent2Population
from rllib_mfq.population.population import GYM_GROUP, Population


def as_population(env: Any) -> Population:
    """Makes a population of an environment.

    Args:
        env: a `Population`, or an environment with one as its attribute `population`: the
            population is returned as it is. A PettingZoo `ParallelEnv`, also inside RLlib's
            `ParallelPettingZooEnv`; those of MAgent2 are played by their native calls, also
            inside wrappers that change neither `reset` nor `step`. An RLlib `MultiAgentEnv`. Or a
            `gymnasium.Env`, whose one agent is of the group `GYM_GROUP`.

    Raises:
        TypeError: `env` is none of these, or its agents take turns (a PettingZoo AECEnv) and
            PettingZoo's `aec_to_parallel` cannot let them act at once.
        PopulationError: its spaces are not what `AgentDictPopulation` demands.
    """
    if isinstance(env, Population):
        return env
    inside = getattr(env, "population", None)
    if isinstance(inside, Population):
        return inside
    env = getattr(env, "par_env", env)
    core, plain = env, BaseParallelWrapper
    inherited = (plain.reset, plain.step)
    while isinstance(core, plain) and (type(core).reset, type(core).step) == inherited:
        core = core.env
    if isinstance(core, magent_parallel_env):
        return MAgent2Population(core)
    if isinstance(env, ParallelEnv):
        return AgentDictPopulation(env)
    kind = type(env).__name__
    turns = next((e for e in (env, getattr(env, "env", None)) if isinstance(e, AECEnv)), None)
    if turns is not None:
        if turns.metadata.get("is_parallelizable"):
            return AgentDictPopulation(aec_to_parallel(turns))
        kind = turns.metadata.get("name", kind)
        kind += ", whose agents take turns (AEC) and are not `is_parallelizable` in its metadata"
    elif hasattr(env, "possible_agents") or hasattr(env, "get_observation_space"):
        return AgentDictPopulation(env)
    elif isinstance(env, gym.Env):
        return AgentDictPopulation(_OneAgent(env))
    raise TypeError(
        f"env is a {kind}; legal are a Population, a PettingZoo ParallelEnv, an RLlib "
        "MultiAgentEnv and a gymnasium.Env."
    )


class _OneAgent:
    """A Gymnasium environment as one that steps a dict of one agent."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._env, self.render, self.close = env, env.render, env.close
        self.observation_spaces = {GYM_GROUP: env.observation_space}
        self.action_spaces = {GYM_GROUP: env.action_space}

    def reset(self, *, seed: int | None) -> Any:
        return _of_one(self._env.reset(seed=seed))

    def step(self, actions: Mapping[str, int]) -> Any:
        return _of_one(self._env.step(actions[GYM_GROUP]))


def _of_one(result: Any) -> Any:
    """What a Gymnasium environment returned, as dicts of one agent; else as it is."""
    return tuple({GYM_GROUP: part} for part in result) if isinstance(result, tuple) else result
