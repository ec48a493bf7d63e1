"""MAgent2's six environments as populations, through their native batched calls.

The arrays equal those of MAgent2's own PettingZoo interface for the same seed and actions,
without a dict or an object per agent.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from magent2.c_lib import _LIB
from magent2.environments.magent_env import magent_parallel_env

from rllib_mfq.mean_field.neighborhood import did_you_mean
from rllib_mfq.population.population import Array, Group, Population, Rows, Step

ENVIRONMENTS = (
    "battle_v4",
    "battlefield_v5",
    "adversarial_pursuit_v4",
    "tiger_deer_v4",
    "combined_arms_v6",
    "gather_v5",
)


def magent2(name: str, **arguments: Any) -> MAgent2Population:
    """Makes one of MAgent2's environments.

    Args:
        name: one of `ENVIRONMENTS`.
        **arguments: those of MAgent2's `parallel_env`: `map_size`, `max_cycles`,
            `minimap_mode`, `extra_features`, `render_mode`, `seed` and the reward terms.

    Raises:
        ValueError: an unknown environment or argument, or text where a number belongs.
    """
    if name not in ENVIRONMENTS:
        raise ValueError(
            f"MAgent2 environment is {name!r}{did_you_mean(name, ENVIRONMENTS)}; legal are "
            f"{list(ENVIRONMENTS)}."
        )
    module = importlib.import_module(f"magent2.environments.{name}")
    legal = _legal_arguments(module)
    for argument, value in arguments.items():
        if argument not in legal:
            raise ValueError(
                f"{name} has no argument {argument!r}"
                f"{did_you_mean(argument, legal)}; legal are {sorted(legal)}."
            )
        if isinstance(value, str) and argument != "render_mode":
            raise ValueError(f"{name}: {argument} is the string {value!r}; it must be a number.")
    return MAgent2Population(module.parallel_env(**arguments))


class MAgent2Population(Population):
    """One MAgent2 environment.

    Args:
        parallel_env: what MAgent2's `parallel_env` returns.
    """

    def __init__(self, parallel_env: magent_parallel_env) -> None:
        self.parallel_env = parallel_env
        self._engine = self.parallel_env.env
        names = [agent.rsplit("_", 1)[0] for agent in self.parallel_env.possible_agents]
        agents = dict(zip(names, self.parallel_env.possible_agents, strict=True))
        self.groups = {
            group: Group(
                self.parallel_env.observation_space(agent), self.parallel_env.action_space(agent)
            )
            for group, agent in agents.items()
        }
        self._handles = dict(zip(self.groups, self.parallel_env.handles, strict=True))
        self._features = {
            group: np.empty((0, self._engine.feature_space[handle.value][0]), np.float32)
            for group, handle in self._handles.items()
        }
        # Clearing the dead resets the last-reward feature and moves the minimap, and
        # PettingZoo observes before it: these two modes therefore need a copy in between.
        self._early = self.parallel_env.minimap_mode or self.parallel_env.extra_features
        self._seen: dict[str, Array] = {}
        self._dead = dict.fromkeys(self.groups, 0)

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        """Starts an episode; a seed restarts MAgent2's random numbers."""
        env = self.parallel_env
        if seed is not None:
            env.seed(seed)
        self._engine.reset()
        env.frames = 0
        env.generate_map()
        self._seen = {}
        self._dead = dict.fromkeys(self.groups, 0)
        return {group: self._rows(group) for group in self.groups}

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Plays one action per living agent, in row order."""
        engine = self._engine
        for group, handle in self._handles.items():
            engine.set_action(handle, np.ascontiguousarray(actions[group], np.int32))
        over = engine.step()
        self.parallel_env.frames += 1
        truncated = self.parallel_env.frames >= self.parallel_env.max_cycles
        alive = {g: engine.get_alive(h) for g, h in self._handles.items()}
        rewards = {g: engine.get_reward(h) for g, h in self._handles.items()}
        for group, living in alive.items():
            self._dead[group] += int(np.count_nonzero(~living))
        if self._early:
            self._seen = {g: self._observe(g)[living] for g, living in alive.items()}
        engine.clear_dead()
        if over:  # one side is extinct: MAgent2 ends the episode for everybody
            alive = {g: np.zeros_like(living) for g, living in alive.items()}
            self._seen = {}
        rows = {
            g: Rows(np.empty(0, np.int32), np.empty((0, 2))) if over else self._rows(g)
            for g in alive
        }
        return {
            g: Step(rewards[g], ~a, np.full(len(a), truncated), rows[g]) for g, a in alive.items()
        }

    def observe(self, group: str, out: Array) -> None:
        """Writes the current observations into `out`, `[n, *obs]` float32, contiguous."""
        if not len(out):  # MAgent2 would write the winners of an episode that is over
            return
        if group in self._seen:
            out[:] = self._seen[group]
        elif self._early:
            out[:] = self._observe(group)
        else:
            self._native_observation(group, out)

    def result(self) -> dict[str, dict[str, float]]:
        """Survivors of every group; kills of each where two groups fight."""
        alive = {g: float(self._engine.get_num(h)) for g, h in self._handles.items()}
        figures = {"survivors": alive}
        if self.parallel_env.metadata["name"].startswith("battle"):
            red, blue = self.groups
            figures["kills"] = {red: float(self._dead[blue]), blue: float(self._dead[red])}
        return figures

    def render(self) -> Array | None:
        """`[h, w, 3]` uint8, with `render_mode="rgb_array"`."""
        picture: Array | None = self.parallel_env.render()
        return picture

    def close(self) -> None:
        """Frees the renderer."""
        self.parallel_env.close()

    def _rows(self, group: str) -> Rows:
        handle = self._handles[group]
        return Rows(self._engine.get_agent_id(handle), self._engine.get_pos(handle))

    def _native_observation(self, group: str, view: Array) -> Array:
        """Fills `view` and returns the features, `[n, f]` float32, valid until the next call."""
        if len(self._features[group]) < len(view):
            width = self._features[group].shape[1]
            self._features[group] = np.empty((len(view), width), np.float32)
        features = self._features[group][: len(view)]
        pointers = (ctypes.c_void_p * 2)(
            view.__array_interface__["data"][0], features.__array_interface__["data"][0]
        )
        _LIB.env_get_observation(self._engine.game, self._handles[group], pointers)
        return features

    def _observe(self, group: str) -> Array:
        """`[n, *obs]`: the view with the features repeated over its cells behind it."""
        handle = self._handles[group]
        shape = self._engine.view_space[handle.value]
        view = np.empty((self._engine.get_num(handle), *shape), np.float32)
        features = self._native_observation(group, view)
        if not self.parallel_env.extra_features:
            features = features[:, -2:]  # one's place on the minimap
        tiled = np.broadcast_to(features[:, None, None], (*view.shape[:3], features.shape[1]))
        return np.concatenate([view, tiled], axis=-1)


def _legal_arguments(module: Any) -> set[str]:
    """The named arguments of `parallel_env` and the terms its `**` passes on."""
    source: Any = inspect.getmodule(module.parallel_env)
    terms = getattr(source, "default_reward_args", None) or source.default_env_args
    named = inspect.signature(module.parallel_env).parameters.values()
    return {p.name for p in named if p.kind is not p.VAR_KEYWORD} | set(terms)
