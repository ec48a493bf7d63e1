"""A Population as a PettingZoo ParallelEnv, for libraries that step a dict of agents."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from rllib_mfq.population.population import Array, Population, Rows, close, group_of


class PopulationParallelEnv(ParallelEnv[str, Array, int]):  # type: ignore[misc]
    """Plays a population through dicts: the agent `red_12` is number 12 of the group `red`.

    Action masks stand in `infos[agent]["action_mask"]`, positions in `infos[agent]["position"]`.
    `as_population` returns the population again, so that this package plays it directly.

    Args:
        population: what is played; nobody enters it after a reset.
        name: of the environment.
    """

    def __init__(self, population: Population, name: str) -> None:
        self.population = population
        self.render_mode = getattr(population, "render_mode", None)
        self.metadata = {"name": name, "render_modes": ["rgb_array"]}
        first = population.reset()  # to know who there is; a seed of its own goes on
        self.possible_agents = [agent for g, rows in first.items() for agent in _names(g, rows)]
        self.agents: list[str] = []
        self._acting: dict[str, list[str]] = {}

    def observation_space(self, agent: str) -> gym.spaces.Box:
        """The same object for all agents of a group."""
        return self.population.groups[group_of(agent)].observation_space

    def action_space(self, agent: str) -> gym.spaces.Discrete[Any]:
        """The same object for all agents of a group."""
        return self.population.groups[group_of(agent)].action_space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """Starts an episode; there are no options."""
        rows = self.population.reset(seed=seed)
        self._acting = {group: _names(group, here) for group, here in rows.items()}
        observations, infos = self._see(rows)
        self.agents = list(observations)
        return observations, infos

    def step(self, actions: dict[str, int]) -> tuple[dict[str, Any], ...]:
        """Plays one action per living agent."""
        acted = dict(self._acting)
        played = {g: np.array([actions[a] for a in names], np.int32) for g, names in acted.items()}
        steps = self.population.step(played)
        observations, infos = self._see({group: step.rows for group, step in steps.items()})
        rewards: dict[str, float] = {}
        terminations: dict[str, bool] = {}
        truncations: dict[str, bool] = {}
        for group, step in steps.items():
            rewards |= zip(acted[group], np.asarray(step.rewards, float).tolist(), strict=True)
            terminations |= zip(acted[group], step.terminated.tolist(), strict=True)
            truncations |= zip(acted[group], step.truncated.tolist(), strict=True)
            self._acting[group] = [a for a in _names(group, step.rows) if not truncations.get(a)]
        for agent in terminations:  # PettingZoo wants something of the dead, too
            space = self.observation_space(agent)
            observations.setdefault(agent, np.zeros(space.shape, space.dtype))
            infos.setdefault(agent, {})
        self.agents = [agent for agents in self._acting.values() for agent in agents]
        return observations, rewards, terminations, truncations, infos

    def render(self) -> Array | None:
        """`[h, w, 3]` uint8, where the population can be rendered so."""
        if self.render_mode is None:
            return None
        picture: Array = self.population.render()  # type: ignore[attr-defined]
        return picture

    def close(self) -> None:
        """Closes the population."""
        close(self.population)

    def _see(
        self, rows_of: Mapping[str, Rows]
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """The observations and infos of all agents, by name."""
        observations: dict[str, Array] = {}
        infos: dict[str, dict[str, Any]] = {}
        for group, rows in rows_of.items():
            space = self.population.groups[group].observation_space
            out = np.empty((len(rows.ids), *space.shape), space.dtype)
            self.population.observe(group, out)
            columns = {"action_mask": rows.action_mask, "position": rows.positions}
            given = {name: column for name, column in columns.items() if column is not None}
            for row, agent in enumerate(_names(group, rows)):
                observations[agent] = out[row]
                infos[agent] = {name: column[row] for name, column in given.items()}
        return observations, infos


def _names(group: str, rows: Rows) -> list[str]:
    return [f"{group}_{number}" for number in rows.ids.tolist()]
