"""Neighbours that an environment of dicts names, and environments whose agents take turns."""

import gymnasium as gym
import numpy as np
import pytest
from pettingzoo import ParallelEnv
from pettingzoo.utils.conversions import parallel_to_aec

from rllib_mfq.mean_field.neighborhood import GroupActions, Neighborhood
from rllib_mfq.population.adapters import as_population


class Ring(ParallelEnv):
    """Everybody's neighbour is the next one; one agent leaves at the second step."""

    metadata = {"name": "ring", "is_parallelizable": True}  # noqa: RUF012

    def __init__(self, size=5):
        self.possible_agents = [f"agent_{number}" for number in range(size)]
        self.render_mode = None

    def observation_space(self, agent):
        return gym.spaces.Box(0, 1, (1,), np.float32)

    def action_space(self, agent):
        return gym.spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.agents, self.t = list(self.possible_agents), 0
        return self.see(self.agents), self.infos(self.agents)

    def step(self, actions):
        self.t += 1
        here = self.agents
        gone = {agent: self.t == 2 and agent == "agent_1" for agent in here}
        late = {agent: self.t == 4 for agent in here}
        self.agents = [a for a in here if not gone[a] and not late[a]]
        return self.see(here), dict.fromkeys(here, 1.0), gone, late, self.infos(here)

    def see(self, agents):
        return {agent: np.zeros(1, np.float32) for agent in agents}

    def next_of(self, agent):
        at = self.possible_agents.index(agent)
        return [self.possible_agents[(at + 1) % len(self.possible_agents)]]

    def infos(self, agents):
        return {agent: {"neighbors": self.next_of(agent)} for agent in agents}


class RingByMethod(Ring):
    def infos(self, agents):
        return {agent: {} for agent in agents}

    def edges(self):
        return {agent: self.next_of(agent) for agent in self.agents}


@pytest.mark.parametrize("kind", [Ring, RingByMethod])
def test_edges_come_from_the_infos_or_a_method_and_the_dead_are_nobodys(kind):
    population = as_population(kind())
    rows = population.reset(seed=0)["agent"]
    assert rows.edges.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 0]]
    actions = np.array([0, 1, 2, 0, 1], np.int32)
    means = Neighborhood("graph").mean_actions(
        GroupActions(actions, 3, np.zeros(5, int), edges=rows.edges)
    )
    assert means.argmax(1).tolist() == [1, 2, 0, 1, 0]
    population.step({"agent": actions})
    rows = population.step({"agent": actions})["agent"].rows  # without agent_1
    assert rows.ids.tolist() == [0, 2, 3, 4]
    assert rows.edges.tolist() == [[1, 2], [2, 3], [3, 0]]


def test_agents_that_take_turns_act_at_once_where_pettingzoo_can_let_them():
    alone, turned = as_population(Ring()), as_population(parallel_to_aec(Ring()))
    assert turned.groups == alone.groups
    for population in (alone, turned):
        population.reset(seed=0)
    for _ in range(4):
        n = len(alone._acting["agent"])
        actions = {"agent": np.zeros(n, np.int32)}
        one, other = (p.step(actions)["agent"] for p in (alone, turned))
        for column in ("rewards", "terminated", "truncated"):
            assert (getattr(one, column) == getattr(other, column)).all()
        assert (one.rows.ids == other.rows.ids).all()
