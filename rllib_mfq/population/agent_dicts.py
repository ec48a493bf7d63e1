"""Environments that step a dict of agents, as populations.

They hand over one value per agent, so only this file and `views` have Python loops over agents.
"""

import logging
import math
from collections.abc import Container, Iterable, Mapping
from itertools import compress
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv

from rllib_mfq.population.population import (
    Array,
    Group,
    Late,
    Population,
    PopulationError,
    Rows,
    Step,
    close,
    group_of,
)
from rllib_mfq.population.views import (
    MASK,
    View,
    agents_of,
    spaces_of,
    unpack,
    values_of,
    who,
    wrong,
)

logger = logging.getLogger(__name__)

ALL = "__all__"
"""The key by which a MultiAgentEnv says that the episode is over."""


class AgentDictPopulation(Population):
    """An environment that steps a dict of agents: a ParallelEnv or a MultiAgentEnv.

    Groups: see `group_of`. Agents of one group have equal spaces.

    Spaces: actions are Discrete; where they do not start at 0 they are shifted. A Box stays
    what it is, but float64 becomes float32; other observations are flattened, to float32.

    Masks: the part `action_mask` of a Dict observation, whose other parts are the observation, or
    else `infos[agent]["action_mask"]`, from whichever step on. To an agent without one every
    action is legal.

    Positions: what the environment's method `positions()` returns, `{agent: coordinates}`, or
    else `infos[agent]["position"]`, if all agents that observe first in an episode have one.

    Edges: what the environment's method `edges()` returns, `{agent: its neighbours}`, or else
    `infos[agent]["neighbors"]`, if some agent that observes first in an episode has such. An agent
    may have none; those that do not observe now, or are of another group, are nobody's.

    Lives: an agent acts after every step in which it observes. Agents may enter at any time, also
    under names that `possible_agents` lacks, and skip observations: what an agent gets until it
    observes again counts for its last action. Who has ended is nobody until the next `reset`,
    observed or not, unless the environment's `agents` has dropped it and names it again. A
    MultiAgentEnv may leave out rewards of 0. Rewards of agents that have not acted are not used.

    The end: for a MultiAgentEnv `__all__`, or that all `possible_agents` have ended. For a
    ParallelEnv, that `agents` holds only agents that have ended; who is not in it does not enter.

    Raises:
        PopulationError: the spaces are not as above.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self._is_parallel = isinstance(env, ParallelEnv)
        self._ids: dict[Any, int] = {}  # in the order of `possible_agents`, then of appearance
        self._group_of: dict[Any, str] = {}  # of everybody who has a number
        self._views: dict[str, View] = {}
        self._possible = agents_of(env)
        for agent in self._possible:
            if group_of(agent) not in self._views:
                self._views[group_of(agent)] = View(agent, spaces_of(env, agent))
        self.agent_ids = self._by_group(self._possible)
        self.groups = {g: Group(v.space, v.action_space) for g, v in self._views.items()}
        self._has_masks = False  # whether infos have had one
        self._has_warned = False
        self._observing: dict[str, list[Any]] = {}  # the agents of the current rows
        self._acting: dict[str, list[Any]] = {}  # those of them that act next

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; the seed is passed on."""
        result = unpack("reset", self.env.reset(seed=seed), ("observations", "infos"))
        self._waiting: dict[Any, float] = {}  # who acted and does not observe yet: its rewards
        self._ended: set[Any] = set()
        self._dropped: set[Any] = set()  # of those that ended, who is in `agents` no more
        self._place_shape: tuple[int, ...] | None = None
        self._has_edges = False
        self._is_begun = False  # whether somebody has observed
        self._over = False
        # Whether `agents` says who is there: RLlib does not look at the list.
        self._has_list = self._is_parallel and bool(getattr(self.env, "agents", None))
        self._take(*result)
        here = self._by_group(a for a in self._obs if a in self._listed or not self._has_list)
        return self._rows(here, {group: np.zeros(len(a), bool) for group, a in here.items()})

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Plays one action per agent that acts, in row order.

        Raises:
            PopulationError: what the environment returned is not as its API demands.
        """
        acted: dict[str, list[Any]] = self._acting
        played = self.by_agent(actions)
        names = ("observations", "rewards", "terminations", "truncations", "infos")
        obs, rewards, ends, cuts, infos = unpack("step", self.env.step(played), names)
        self._take(obs, infos)
        if self._is_parallel and not played.keys() <= rewards.keys():
            _check(list(played), _among(list(played), rewards), "acted but has no reward")
        ended, cut = who(ends, "terminated flag"), who(cuts, "truncated flag")
        waited = self._by_group(self._waiting)
        entering = self._by_group(self._newcomers(played, ended | cut))
        steps: dict[str, Step] = {}
        here, last = {}, {}
        for group, newcomers in entering.items():
            due, n = acted[group] + waited[group], len(acted[group])
            dead, over = _among(due, ended), _among(due, cut)
            if ALL in ended:
                dead |= ~over
            over = (over | (ALL in cut)) & ~dead
            waits = self._waits(due, dead, over)
            paid = self._rewards(rewards, acted[group], waited[group], waits)
            stays = ~(dead | waits)
            here[group] = [*compress(due, stays.tolist()), *newcomers]
            last[group] = np.append(over[stays], np.zeros(len(newcomers), bool))
            steps[group] = Step(paid[:n], dead[:n], over[:n], Rows(np.zeros(0)))
            if waits[:n].any():
                steps[group].waiting = waits[:n]
            if n < len(due):
                done = n + np.flatnonzero(~waits[n:])
                ids = np.array([self._ids[due[row]] for row in done], np.int32)
                steps[group].late = Late(ids, paid[done], dead[done], over[done])
        for group, rows in self._rows(here, last).items():
            steps[group].rows = rows
        self._ended |= (ended | cut) - {ALL}
        self._dropped |= self._ended - self._listed
        self._over = ALL in ended | cut or self._nobody_comes(ALL in ends or ALL in cuts)
        return steps

    def by_agent(self, actions: Mapping[str, Array]) -> dict[Any, int]:
        """The actions of those who act now, `{group: [n]}`, as the environment numbers them."""
        played: dict[Any, int] = {}
        for group, agents in self._acting.items():
            shifted = actions[group] + self._views[group].first_action
            played.update(zip(agents, shifted.tolist(), strict=True))
        return played

    def is_over(self) -> bool:
        """Whether the episode has ended; if not, agents may come though nobody is there."""
        return self._over

    def observe(self, group: str, out: Array) -> None:
        """Writes the current observations into `out`, `[n, *obs]`."""
        self._views[group].read(self._observing[group], self._obs, out)

    def render(self) -> Any:
        """What the environment renders."""
        return self.env.render()

    def close(self) -> None:
        """Closes the environment."""
        close(self.env)

    def _take(self, obs: Mapping[Any, Any], infos: Mapping[Any, Any] | None) -> None:
        """Keeps what the environment returned."""
        self._obs = obs
        self._infos: dict[Any, Mapping[Any, Any]] = {}  # those that say something
        for agent, info in (infos or {}).items():
            if not (type(info) is dict or info is None or isinstance(info, Mapping)):
                raise wrong(agent, "info", info, "it must be a dict")
            if info:
                self._infos[agent] = info
        self._listed = set(getattr(self.env, "agents", None) or ())
        method = getattr(self.env, "positions", None)
        given = {a: info["position"] for a, info in self._infos.items() if "position" in info}
        self._places: Mapping[Any, Any] = method() if callable(method) else given
        method = getattr(self.env, "edges", None)
        given = {a: info["neighbors"] for a, info in self._infos.items() if "neighbors" in info}
        self._neighbors: Mapping[Any, Any] = method() if callable(method) else given

    def _newcomers(self, played: Mapping[Any, int], gone: set[Any]) -> list[Any]:
        """Who observes, was not there and is not `gone` in this step."""
        new = []
        for agent in () if ALL in gone else self._obs:
            if agent in played or agent in self._waiting or agent in gone:
                continue
            if self._has_list and agent not in self._listed:
                continue
            if agent in self._ended:
                if not (agent in self._dropped and agent in self._listed):
                    self._warn_once(agent)
                    continue
                self._ended.remove(agent)
                self._dropped.remove(agent)
            new.append(agent)
        return new

    def _warn_once(self, agent: Any) -> None:
        if not self._has_warned:
            logger.warning("Agent %r is observed after it ended; it plays no more.", agent)
        self._has_warned = True

    def _waits(self, agents: list[Any], dead: Array, over: Array) -> Array:
        """`[n]` bool: which agents, whose step is due, neither ended nor observe."""
        seen = _among(agents, self._obs)
        _check(agents, seen | ~over, "was truncated without a last observation")
        waits: Array = ~(seen | dead)
        if self._has_list:
            there = _among(agents, self._listed) | dead | over
            _check(agents, there, "left `agents` but is neither terminated nor truncated")
        return waits

    def _rewards(
        self, rewards: Mapping[Any, Any], acted: list[Any], waited: list[Any], waits: Array
    ) -> Array:
        """`[n]` float: what agents got since they acted; kept for those that still wait."""
        if not self._is_parallel:  # RLlib allows None, too
            rewards = {agent: reward for agent, reward in rewards.items() if reward is not None}
        agents = acted + waited
        paid = values_of(rewards, agents, "reward").astype(float)
        paid[len(acted) :] += [self._waiting.pop(agent) for agent in waited]
        self._waiting |= {agents[row]: float(paid[row]) for row in np.flatnonzero(waits)}
        return paid

    def _nobody_comes(self, says_all: bool) -> bool:
        """Whether nobody is there or may come; `says_all`: the environment gave `__all__`."""
        if self._waiting or any(self._acting.values()):
            return False
        if self._has_list:
            return self._listed <= self._ended
        return self._ended.issuperset(self._possible) if says_all else True

    def _by_group(self, agents: Iterable[Any]) -> dict[str, list[Any]]:
        """The agents of every group; whoever is seen for the first time gets a number."""
        found: dict[str, list[Any]] = {group: [] for group in self._views}
        for agent in agents:
            group = self._group_of.get(agent)
            found[self._meet(agent) if group is None else group].append(agent)
        return found

    def _meet(self, agent: Any) -> str:
        """Gives a new agent a number; returns its group."""
        group = group_of(agent)
        if group not in self._views:
            raise PopulationError(
                f"agent {agent!r} is of group {group!r}, but possible_agents name only "
                f"agents of {list(self._views)}."
            )
        view = self._views[group]
        view.compare(agent, spaces_of(self.env, agent, view.spaces))
        self._ids[agent], self._group_of[agent] = len(self._ids), group
        return group

    def _rows(self, here: dict[str, list[Any]], last: dict[str, Array]) -> dict[str, Rows]:
        """The rows of all agents; those where `last`, `[n]` bool, is true will not act."""
        self._observing = here
        self._acting = {
            group: [*compress(agents, (~last[group]).tolist())] for group, agents in here.items()
        }
        everybody = [agent for agents in here.values() for agent in agents]
        if everybody and not self._is_begun:
            self._is_begun = True
            if all(agent in self._places for agent in everybody):
                self._place_shape = np.shape(self._places[everybody[0]])
            self._has_edges = any(agent in self._neighbors for agent in everybody)
        if self._infos and not self._has_masks:
            self._has_masks = any(MASK in self._infos.get(agent, {}) for agent in everybody)
        return {group: self._rows_of(group, agents, last[group]) for group, agents in here.items()}

    def _rows_of(self, group: str, agents: list[Any], last: Array) -> Rows:
        view, n = self._views[group], len(agents)
        rows = Rows(np.fromiter(map(self._ids.__getitem__, agents), np.int32, n))
        if view.has_mask or self._has_masks:
            rows.action_mask = legal = np.ones((n, int(view.action_space.n)), bool)
            for row, agent in enumerate(agents):
                legal[row] = view.legal(agent, self._obs[agent], self._infos.get(agent, {}))
            legal[last & ~legal.any(1)] = True  # some environments zero it in the last observation
            _check(agents, np.asarray(legal.any(1)), "has no legal action")
        if self._place_shape is not None:
            rows.positions = np.full((n, math.prod(self._place_shape)), np.nan)
            for row, agent in enumerate(agents):
                if agent in self._places:
                    place = view.check(agent, "position", self._places[agent], self._place_shape)
                    rows.positions[row] = place.ravel()
            _check(agents, np.isfinite(rows.positions).all(1) | last, "has no position")
        if self._has_edges:
            number = {agent: row for row, agent in enumerate(agents)}
            pairs = [
                (row, number[other])
                for agent, row in number.items()
                for other in self._neighbors.get(agent, ())
                if other in number
            ]
            rows.edges = np.array(pairs, np.int64).reshape(-1, 2)
        return rows


def _among(agents: list[Any], those: Container[Any]) -> Array:
    """`[n]` bool: which agents are among others."""
    return np.fromiter(map(those.__contains__, agents), bool, len(agents))


def _check(agents: list[Any], good: Array, problem: str) -> None:
    """Raises for the first agent where `good`, `[n]` bool, is false."""
    if not good.all():
        agent = agents[int(np.argmin(good))]
        raise PopulationError(f"group {group_of(agent)!r}: agent {agent!r} {problem}.")
