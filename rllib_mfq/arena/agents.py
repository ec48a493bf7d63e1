"""Trained agents in a loop of the user's own: what a checkpoint plays, by the agents' names."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from magent2.environments.magent_env import magent_parallel_env
from pettingzoo import ParallelEnv
from ray.rllib.env.env_context import EnvContext

from rllib_mfq.algorithm.checkpoint import find_modules, saved_environment
from rllib_mfq.algorithm.environment import make_creator
from rllib_mfq.algorithm.opponents import NAMES, load_opponent
from rllib_mfq.algorithm.pretrained import PREFIX
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.agent_dicts import AgentDictPopulation
from rllib_mfq.population.fragment import Fragment
from rllib_mfq.population.magent2 import MAgent2Population
from rllib_mfq.population.population import Array, PopulationError, close
from rllib_mfq.population.sampler import Sampler
from rllib_mfq.population.views import agents_of, spaces_of


def load(
    agent: str | Path, env: Any = None, *, explore: bool = False, seed: int | None = None
) -> "Agents":
    """Loads trained agents, to act in a loop of one's own, without Ray being started.

        agents = rllib_mfq.load("pretrained:battle-mfq", env)
        observations, infos = env.reset()
        while env.agents:
            observations, rewards, *ends, infos = env.step(agents.act(observations))

    Args:
        agent: the folder of a checkpoint, `pretrained:NAME`, or another opponent that
            `evaluation_opponents` may name, such as `random`.
        env: the environment that the loop steps, a PettingZoo ParallelEnv or an RLlib
            MultiAgentEnv: it says how observations become rows, who lives, and where agents
            stand. Without it, spaces are those of the environment that the agents were trained
            in, which is made for that.
        explore: draw actions from the Boltzmann policy at the temperature that training ended
            with, as in evaluation; greedy otherwise.
        seed: of the draws; None takes another one every time.

    Returns:
        The agents; their method `act` plays.

    Raises:
        ValueError: there is no such checkpoint, or it cannot play a group of the environment.
        TypeError: `env` is no environment of many agents.
    """
    return Agents(str(agent), env, explore=explore, seed=seed)


class Agents:
    """Trained agents that remember, between calls of `act`, what they act on beside observations.

    That is the mean action of every agent's neighbours and, where the network has a memory, its
    state, last action and last reward. Actions are those that `rllib evaluate` plays: the same
    sampler chooses them. The arguments `agent`, `env`, `explore` and `seed` are those of `load`,
    which says what it raises.

    Attributes:
        groups: `{name: Group}`, the spaces of every group of agents.
    """

    def __init__(self, agent: str, env: Any, *, explore: bool, seed: int | None) -> None:
        if not (agent in NAMES or ":" in agent or find_modules(agent)):
            raise ValueError(
                f"agent is {agent!r}; it must be the folder of a checkpoint, or '{PREFIX}NAME'."
            )
        self._env = _Told(agent, env)
        self._population = AgentDictPopulation(self._env)
        self.groups = self._population.groups
        self._generator = torch.Generator()
        seed = self._generator.seed() if seed is None else seed
        self._generator.manual_seed(seed)
        self._opponent = load_opponent(agent, agent, self.groups, explore)
        players = self._opponent.players(self._generator)
        self._reads_rewards = any("previous_rewards" in p.carried for p in players.values())
        self._turns = _Turns(lambda index: self._population, 1, players)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Forgets everything that agents carry from step to step; call it before an episode.

        Args:
            seed: of the draws from here on; None lets them run on.
        """
        if seed is not None:
            self._generator.manual_seed(seed)
            self._turns.assign(self._opponent.players(self._generator))  # draw from it, too
        self._env.acting = {}
        self._turns.begin()

    def act(
        self,
        observations: Mapping[Any, Any],
        rewards: Mapping[Any, float] | None = None,
        terminations: Mapping[Any, bool] | None = None,
        truncations: Mapping[Any, bool] | None = None,
        infos: Mapping[Any, Any] | None = None,
    ) -> dict[Any, int]:
        """Chooses the actions of one step.

        The arguments are what `reset` and `step` of the environment return, `act(*env.step(...))`.
        Who observes acts, unless it is flagged as ended or the `env` of `load`, a ParallelEnv, no
        longer has it in `agents`. Without such an `env` leave those out who ended, or hand their
        flags over: else they act once more, and are somebody's neighbours. Who does not observe
        keeps what it carries until it observes again, or until `reset`. Agents may enter at any
        time; their mean action is zero.

        Args:
            observations: of every agent by its name, as the environment gives them.
            rewards: needed where the network reads the last one (`lstm_use_prev_reward`).
            terminations: who died. An RLlib environment's `__all__` is understood.
            truncations: who was cut off.
            infos: where action masks, positions or neighbours are in them.

        Returns:
            The action of every agent that acts, as the environment numbers them.

        Raises:
            PopulationError: an agent is of no known group, or an observation, a reward or a flag
                is not what the spaces and the API demand. The agents are then as after `reset`.
            ValueError: the network reads rewards and there are none.
        """
        if not isinstance(observations, Mapping):
            kind = type(observations).__name__
            raise PopulationError(f"observations are a {kind}; they must be a dict by agents.")
        if self._reads_rewards and self._env.acting and rewards is None:
            raise ValueError("the network reads the last reward: give act() the rewards, too.")
        self._env.tell(observations, rewards, terminations, truncations, infos)
        try:
            self._env.acting = self._population.by_agent(self._turns.next())
        except BaseException as error:
            self.reset()
            told = error.__cause__
            if isinstance(error, PopulationError) and isinstance(told, PopulationError):
                raise told from None  # without the place, which the user knows
            raise
        return dict(self._env.acting)


class _Turns(Sampler):
    """A sampler of which each turn first takes in what came of the last one."""

    def begin(self) -> None:
        """Starts anew. Nobody is there yet: who enters at the first turn has not played a step."""
        self.sample(num_steps=0, fresh=True, keep=False)
        self._episodes[0].length = -1

    def next(self) -> dict[str, Any]:
        """The actions of those who act now, `{group: [n]}` int32."""
        self._play(Fragment({}, 0, {}, []))
        self._choose_actions(keep=False)
        blocks = {group: self._block(0, group) for group in self.groups}
        return {g: block.data["actions"][block.slices[g]] for g, block in blocks.items()}


class _Told:
    """An environment that somebody else steps, who tells what it returned."""

    def __init__(self, agent: str, env: Any) -> None:
        population = as_population(_make(agent) if env is None else env)
        if isinstance(population, AgentDictPopulation):
            inside = population.env
            self.possible_agents = agents_of(inside)
            spaces = [spaces_of(inside, each) for each in self.possible_agents]
        else:
            self.possible_agents = list(population.groups)
            spaces = [(group[0], group[1]) for group in population.groups.values()]
        self.observation_spaces, self.action_spaces = (
            dict(zip(self.possible_agents, (pair[i] for pair in spaces), strict=True))
            for i in range(2)
        )
        self.acting: dict[Any, int] = {}  # who acted last
        self._env: Any = None  # if it is here
        if env is None:
            close(population)
            return
        self._env = getattr(env, "par_env", env)
        for name in ("positions", "edges"):
            if callable(method := getattr(self._env, name, None)):
                setattr(self, name, method)
        if isinstance(population, MAgent2Population):
            self.positions = functools.partial(_places, population.parallel_env)

    def tell(
        self,
        observations: Mapping[Any, Any],
        rewards: Mapping[Any, float] | None,
        terminations: Mapping[Any, bool] | None,
        truncations: Mapping[Any, bool] | None,
        infos: Mapping[Any, Any] | None,
    ) -> None:
        """Keeps what `step` is to return."""
        ends, cuts = dict(terminations or {}), truncations or {}
        if isinstance(self._env, ParallelEnv):  # RLlib does not look at the list
            gone = {*observations, *self.acting}.difference(self.agents)
            if gone and not self.acting and gone.issuperset(observations):
                raise ValueError(
                    f"agent {next(iter(observations))!r} observes and nobody who does is in "
                    "`agents` of load's env; it must be the one that the loop steps."
                )
            ends |= {agent: True for agent in gone if not cuts.get(agent)}
        self._told = observations, rewards or {}, ends, cuts, infos

    @property
    def agents(self) -> list[Any]:
        """Who lives, as far as the environment has a list."""
        return getattr(self._env, "agents", [])

    def reset(self, seed: int | None) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Nobody is there yet: who is, enters at the first step."""
        return {}, {}

    def step(self, actions: Mapping[Any, int]) -> Any:
        """What was told."""
        return self._told


def _places(env: magent_parallel_env) -> dict[str, Array]:
    """Where the living agents of a MAgent2 environment stand, `[2]` integers each."""
    names, engine = env.possible_agents, env.env
    return {
        names[number]: place
        for handle in env.handles
        for number, place in zip(engine.get_agent_id(handle), engine.get_pos(handle), strict=True)
    }


def _make(agent: str) -> Any:
    """The environment in which an agent was trained."""
    settings = saved_environment(agent)
    if not settings:
        raise ValueError(f"{agent!r} does not say what it plays: give load() the environment.")
    create = make_creator(settings["env"])
    return create(EnvContext(settings["env_config"], worker_index=0))
