"""Environments of PettingZoo, RLlib and Gymnasium as populations.

They hand over one value per agent in dicts, so only this file has Python loops over agents. An
environment that has its agents in arrays is better written as a `Population`.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from magent2.environments.magent_env import magent_parallel_env
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils import BaseParallelWrapper

from rllib_mfq.population.magent2 import MAgent2Population
from rllib_mfq.population.population import (
    GYM_GROUP,
    Array,
    Group,
    Population,
    PopulationError,
    Rows,
    Step,
    group_of,
)

MASK = "action_mask"


def as_population(env: Any) -> Population:
    """Makes a population of an environment.

    Args:
        env: a `Population`, or an environment with one as its attribute `population`: the
            population is returned as it is. A PettingZoo `ParallelEnv`, also inside RLlib's
            `ParallelPettingZooEnv`; those of MAgent2 are played by their native calls, also
            inside wrappers that change neither `reset` nor `step`. An RLlib `MultiAgentEnv`. Or a
            `gymnasium.Env`, whose one agent is of the group `GYM_GROUP`.

    Raises:
        TypeError: `env` is none of these, or its agents take turns (a PettingZoo AECEnv).
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
    if isinstance(env, AECEnv) or isinstance(getattr(env, "env", None), AECEnv):
        kind += ", whose agents take turns (AEC)"
    elif hasattr(env, "possible_agents") or hasattr(env, "get_observation_space"):
        return AgentDictPopulation(env)
    elif isinstance(env, gym.Env):
        return AgentDictPopulation(_OneAgent(env))
    raise TypeError(
        f"env is a {kind}; legal are a Population, a PettingZoo ParallelEnv, an RLlib "
        "MultiAgentEnv and a gymnasium.Env."
    )


class AgentDictPopulation(Population):
    """An environment that steps a dict of agents: a ParallelEnv or a MultiAgentEnv.

    Groups: see `group_of`. Agents of one group have equal spaces.

    Spaces: actions are Discrete; where they do not start at 0 they are shifted. A Box stays
    what it is, but float64 becomes float32; other observations are flattened, to float32.

    Masks: the part `action_mask` of a Dict observation, whose other parts are the observation.
    Else `infos[agent]["action_mask"]`, if `reset` gives it for some agent; to an agent without
    one, every action is legal.

    Positions: what the environment's method `positions()` returns, `{agent: coordinates}`, or
    else `infos[agent]["position"]`, if `reset` gives one for every agent.

    Lives: every living agent observes at every step; agents may enter and end at any time, and
    `__all__` ends those that are left. A MultiAgentEnv may leave out rewards of 0. Rewards of
    agents that did not act are not used.

    Raises:
        PopulationError: the spaces are not as above.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self._needs_rewards = isinstance(env, ParallelEnv)
        self._ids: dict[Any, int] = {}  # in the order of `possible_agents`, then of appearance
        self._views: dict[str, _View] = {}
        agents = _agents(env)
        for agent in agents:
            if group_of(agent) not in self._views:
                self._views[group_of(agent)] = _View(agent, _spaces(env, agent))
        self._by_group(agents)
        self.groups = {g: Group(v.space, v.action_space) for g, v in self._views.items()}
        self._observing: dict[str, list[Any]] = {}  # the agents of the current rows
        self._acting: dict[str, list[Any]] = {}  # those of them that act next

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; the seed is passed on."""
        self._take(*self.env.reset(seed=seed))
        placed = bool(self._obs) and all(agent in self._places for agent in self._obs)
        self._place_shape = np.shape(self._places[next(iter(self._obs))]) if placed else None
        self._has_masks = any(MASK in self._infos.get(agent, {}) for agent in self._obs)
        entering = self._by_group(self._obs)
        return {g: self._rows(g, a, np.zeros(len(a), bool)) for g, a in entering.items()}

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Plays one action per agent that acts, in row order.

        Raises:
            PopulationError: an agent lacks an observation, reward, position or legal action.
        """
        played: dict[Any, int] = {}
        for group, agents in self._acting.items():
            shifted = actions[group] + self._views[group].first_action
            played.update(zip(agents, shifted.tolist(), strict=True))
        obs, rewards, ends, cuts, infos = self.env.step(played)
        self._take(obs, infos)
        all_end, all_cut = bool(ends.get("__all__")), bool(cuts.get("__all__"))
        new = (a for a in obs if not (a in played or ends.get(a) or cuts.get(a)))
        steps = {}
        for group, newcomers in self._by_group([] if all_end or all_cut else new).items():
            acted = self._acting[group]
            dead = [bool(ends.get(a) or (all_end and not cuts.get(a))) for a in acted]
            terminated = np.array(dead, bool)
            truncated = np.array([bool(cuts.get(a)) or all_cut for a in acted], bool) & ~terminated
            seen = np.array([agent in obs for agent in acted], bool) | terminated
            _check(group, acted, seen | ~truncated, "was truncated without a last observation")
            _check(group, acted, seen, "neither ended nor observes, as it must every step")
            if self._needs_rewards:
                paid = np.array([agent in rewards for agent in acted], bool)
                _check(group, acted, paid, "acted but has no reward")
            reward = np.array([rewards.get(agent, 0.0) for agent in acted], float)
            stay = [agent for agent, over in zip(acted, dead, strict=True) if not over]
            last = np.append(truncated[~terminated], np.zeros(len(newcomers), bool))
            rows = self._rows(group, stay + newcomers, last)
            steps[group] = Step(reward, terminated, truncated, rows)
        return steps

    def observe(self, group: str, out: Array) -> None:
        """Writes the current observations into `out`, `[n, *obs]`."""
        view = self._views[group]
        for row, agent in enumerate(self._observing[group]):
            out[row] = view.read(agent, self._obs[agent])

    def render(self) -> Any:
        """What the environment renders."""
        return self.env.render()

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def _take(self, obs: Mapping[Any, Any], infos: Mapping[Any, Any] | None) -> None:
        self._obs, self._infos = obs, infos or {}
        method = getattr(self.env, "positions", None)
        given = {a: info["position"] for a, info in self._infos.items() if "position" in info}
        self._places: Mapping[Any, Any] = method() if callable(method) else given

    def _by_group(self, agents: Iterable[Any]) -> dict[str, list[Any]]:
        """The agents of every group; whoever is seen for the first time gets a number."""
        found: dict[str, list[Any]] = {group: [] for group in self._views}
        for agent in agents:
            group = group_of(agent)
            if agent not in self._ids:
                if group not in self._views:
                    raise PopulationError(
                        f"agent {agent!r} is of group {group!r}, but possible_agents name only "
                        f"agents of {list(self._views)}."
                    )
                self._views[group].compare(agent, _spaces(self.env, agent))
                self._ids[agent] = len(self._ids)
            found[group].append(agent)
        return found

    def _rows(self, group: str, agents: list[Any], last: Array) -> Rows:
        """The rows of `agents`; those where `last`, `[n]` bool, is true will not act."""
        self._observing[group] = agents
        self._acting[group] = [agent for agent, end in zip(agents, last, strict=True) if not end]
        rows = Rows(np.array([self._ids[agent] for agent in agents], np.int32))
        view = self._views[group]
        if view.has_mask or self._has_masks:
            rows.action_mask = mask = np.ones((len(agents), int(view.action_space.n)), bool)
            for row, agent in enumerate(agents):
                holder = self._obs[agent] if view.has_mask else self._infos.get(agent, {})
                if MASK in holder:
                    mask[row] = view.check(agent, MASK, holder[MASK], mask.shape[1:])
            mask[last & ~mask.any(1)] = True  # some environments zero it in the last observation
            _check(group, agents, np.asarray(mask.any(1)), "has no legal action")
        if self._place_shape is not None:
            rows.positions = np.full((len(agents), math.prod(self._place_shape)), np.nan)
            for row, agent in enumerate(agents):
                if agent in self._places:
                    place = view.check(agent, "position", self._places[agent], self._place_shape)
                    rows.positions[row] = place.ravel()
            _check(group, agents, np.isfinite(rows.positions).all(1) | last, "has no position")
        return rows


class _View:
    """How the raw observations of one group become rows."""

    def __init__(self, agent: Any, spaces: tuple[Any, Any]) -> None:
        self.group, self._agent, self._spaces = group_of(agent), agent, spaces
        space, actions = spaces
        if not isinstance(actions, gym.spaces.Discrete):
            raise PopulationError(
                f"group {self.group!r} has the action space {actions}; it must be Discrete."
            )
        self.first_action = int(actions.start)
        self.action_space: gym.spaces.Discrete[Any] = gym.spaces.Discrete(int(actions.n))
        self.has_mask = isinstance(space, gym.spaces.Dict) and MASK in space.spaces
        self._key: str | None = None  # of the observation, where the Dict has one beside the mask
        if self.has_mask:
            rest = {key: part for key, part in space.items() if key != MASK}
            self._key = next(iter(rest)) if len(rest) == 1 else None
            space = gym.spaces.Dict(rest) if self._key is None else rest[self._key]
        self._nested = None if isinstance(space, gym.spaces.Box) and space.shape else space
        if self._nested is not None:
            with contextlib.suppress(NotImplementedError, ValueError):  # an unknown or empty space
                space = gym.spaces.flatten_space(space)
        if not isinstance(space, gym.spaces.Box):
            raise PopulationError(
                f"group {self.group!r} has the observation space {space}; it must be a Box or one "
                "that gymnasium.spaces.flatten_space makes a Box."
            )
        self.space: gym.spaces.Box = space
        if self._nested is not None or space.dtype == np.float64:
            with np.errstate(over="ignore"):  # a bound may become infinite
                low, high = space.low.astype(np.float32), space.high.astype(np.float32)
            self.space = gym.spaces.Box(low, high, dtype=np.float32)

    def compare(self, agent: Any, spaces: tuple[Any, Any]) -> None:
        """Raises unless an agent has the spaces of its group."""
        for mine, others in zip(self._spaces, spaces, strict=True):
            if mine is not others and mine != others:
                raise PopulationError(
                    f"group {self.group!r}: {self._agent!r} has the space {mine} and {agent!r} "
                    f"has {others}; within a group they must be equal."
                )

    def read(self, agent: Any, raw: Any) -> Array:
        """Turns the environment's observation of an agent into one of the group's space."""
        raw = raw if self._key is None else raw[self._key]
        if self._nested is not None:
            raw = gym.spaces.flatten(self._nested, raw)
        return self.check(agent, "observation", raw, self.space.shape)

    def check(self, agent: Any, what: str, raw: Any, shape: tuple[int, ...]) -> Array:
        """`raw` as an array, if it has the shape; NumPy would repeat a smaller one."""
        if np.shape(raw) != shape:
            raise PopulationError(
                f"group {self.group!r}: the {what} of {agent!r} has the shape {np.shape(raw)}; it "
                f"must be {shape}."
            )
        return np.asarray(raw)


class _OneAgent:
    """A Gymnasium environment as one that steps a dict of one agent."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._env, self.render, self.close = env, env.render, env.close
        self.observation_spaces = {GYM_GROUP: env.observation_space}
        self.action_spaces = {GYM_GROUP: env.action_space}

    def reset(self, *, seed: int | None) -> tuple[dict[str, Any], ...]:
        return tuple({GYM_GROUP: value} for value in self._env.reset(seed=seed))

    def step(self, actions: Mapping[str, int]) -> tuple[dict[str, Any], ...]:
        return tuple({GYM_GROUP: value} for value in self._env.step(actions[GYM_GROUP]))


def _check(group: str, agents: list[Any], good: Array, problem: str) -> None:
    """Raises for the first agent where `good`, `[n]` bool, is false."""
    if not good.all():
        agent = agents[int(np.argmin(good))]
        raise PopulationError(f"group {group!r}: agent {agent!r} {problem}.")


def _agents(env: Any) -> list[Any]:
    """All agents an environment names, or else those of one reset."""
    agents = getattr(env, "possible_agents", None)
    if agents and getattr(env, "_agent_ids", None):
        return sorted(agents, key=str)  # RLlib made the list of a set, whose order is random
    if agents:
        return list(agents)
    spaces = getattr(env, "observation_spaces", None) or getattr(env, "observation_space", None)
    return list(spaces if isinstance(spaces, Mapping) else env.reset()[0])


def _spaces(env: Any, agent: Any) -> tuple[Any, Any]:
    """Observation and action space of an agent, wherever the environment keeps them."""
    found = []
    for kind in ("observation", "action"):
        whole = getattr(env, f"{kind}_space", None)
        getter = getattr(env, f"get_{kind}_space", whole)
        try:
            if callable(getter):
                found.append(getter(agent))
                continue
            spaces = getattr(env, f"{kind}_spaces", None) or whole  # PettingZoo warns of reading it
            found.append(spaces[agent] if isinstance(spaces, Mapping) else spaces)
        except KeyError:
            raise PopulationError(f"the environment has no {kind} space for {agent!r}.") from None
    return found[0], found[1]
