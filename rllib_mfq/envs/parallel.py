"""A Population as a PettingZoo ParallelEnv, for libraries that step a dict of agents."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from rllib_mfq.population.population import Array, Population, Rows, Step


class PopulationParallelEnv(ParallelEnv[str, Array, int]):
    """Plays a population through dicts: the agent `red_12` is number 12 of the group `red`.

    Action masks stand in `infos[agent]["action_mask"]`, positions in `infos[agent]["position"]`.
    This package takes such an environment apart again and plays the population itself.

    Args:
        population: whose agents at a reset are all there will be.
        name: of the environment.
    """

    def __init__(self, population: Population, name: str) -> None:
        self.population = population
        self.render_mode = getattr(population, "render_mode", None)
        self.metadata = {"name": name, "render_modes": ["rgb_array"]}
        first = population.reset(seed=0)
        self.possible_agents = [agent for g, rows in first.items() for agent in _names(g, rows)]
        self.agents: list[str] = []
        self._acting: dict[str, list[str]] = {}

    def observation_space(self, agent: str) -> gym.spaces.Box:
        """The same object for all agents of a group."""
        return self.population.groups[agent.rpartition("_")[0]].observation_space

    def action_space(self, agent: str) -> gym.spaces.Discrete[Any]:
        """The same object for all agents of a group."""
        return self.population.groups[agent.rpartition("_")[0]].action_space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        """Starts an episode; there are no options."""
        rows = self.population.reset(seed=seed)
        observations: dict[str, Array] = {}
        infos: dict[str, dict[str, Any]] = {}
        for group, here in rows.items():
            self._acting[group] = _names(group, here)
            self._see(group, here, observations, infos)
        self.agents = list(observations)
        return observations, infos

    def step(self, actions: dict[str, int]) -> tuple[dict[str, Any], ...]:
        """Plays one action per living agent."""
        played = {
            group: np.array([actions[agent] for agent in agents], np.int32)
            for group, agents in self._acting.items()
        }
        observations: dict[str, Array] = {}
        rewards: dict[str, float] = {}
        terminations: dict[str, bool] = {}
        truncations: dict[str, bool] = {}
        infos: dict[str, dict[str, Any]] = {}
        for group, step in self.population.step(played).items():
            agents = self._acting[group]
            rewards.update(zip(agents, np.asarray(step.rewards, float).tolist(), strict=True))
            terminations.update(zip(agents, step.terminated.tolist(), strict=True))
            truncations.update(zip(agents, step.truncated.tolist(), strict=True))
            self._see(group, step.rows, observations, infos)
            self._acting[group] = _going_on(group, step)
        for agent in terminations:  # PettingZoo wants something of the dead, too
            space = self.observation_space(agent)
            observations.setdefault(agent, np.zeros(space.shape, space.dtype))
            infos.setdefault(agent, {})
        self.agents = [agent for agents in self._acting.values() for agent in agents]
        return observations, rewards, terminations, truncations, infos

    def render(self) -> Array | None:
        """`[h, w, 3]` uint8, where the population can be rendered so."""
        picture: Array | None = None
        if self.render_mode is not None:
            picture = self.population.render()  # type: ignore[attr-defined]
        return picture

    def close(self) -> None:
        """Closes the population."""
        getattr(self.population, "close", lambda: None)()

    def _see(
        self,
        group: str,
        rows: Rows,
        observations: dict[str, Array],
        infos: dict[str, dict[str, Any]],
    ) -> None:
        space = self.population.groups[group].observation_space
        out = np.empty((len(rows.ids), *space.shape), space.dtype)
        self.population.observe(group, out)
        columns = {"action_mask": rows.action_mask, "position": rows.positions}
        given = {name: column for name, column in columns.items() if column is not None}
        for row, agent in enumerate(_names(group, rows)):
            observations[agent] = out[row]
            infos[agent] = {name: column[row] for name, column in given.items()}


def _names(group: str, rows: Rows) -> list[str]:
    return [f"{group}_{number}" for number in rows.ids.tolist()]


def _going_on(group: str, step: Step) -> list[str]:
    """The agents that act next: those that observe and were not cut off."""
    goes_on = np.ones(len(step.rows.ids), bool)
    survivors = step.truncated[~step.terminated]
    goes_on[: len(survivors)] = ~survivors
    return _names(group, step.rows.select(goes_on))
