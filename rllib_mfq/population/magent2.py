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

from rllib_mfq.mean_field.legal import check_arguments, did_you_mean
from rllib_mfq.population.population import Array, Group, Population, Rows, Step, group_of

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
        hint = did_you_mean(name, ENVIRONMENTS)
        raise ValueError(f"MAgent2 environment is {name!r}{hint}; legal are {list(ENVIRONMENTS)}.")
    module = importlib.import_module(f"magent2.environments.{name}")
    source: Any = inspect.getmodule(module.parallel_env)
    terms = getattr(source, "default_reward_args", None) or source.default_env_args
    named = inspect.signature(module.parallel_env).parameters.values()
    legal = {p.name for p in named if p.kind is not p.VAR_KEYWORD} | set(terms)
    check_arguments(name, arguments, legal)
    for argument, value in arguments.items():
        if isinstance(value, str) and argument != "render_mode":
            raise ValueError(f"{name}: {argument} is the string {value!r}; it must be a number.")
    return MAgent2Population(module.parallel_env(**arguments))


class MAgent2Population(Population):
    """One MAgent2 environment, from what MAgent2's `parallel_env` returns."""

    def __init__(self, parallel_env: magent_parallel_env) -> None:
        self.parallel_env = parallel_env
        self._engine = parallel_env.env
        self.groups = {}
        for agent in parallel_env.possible_agents:
            spaces = parallel_env.observation_space(agent), parallel_env.action_space(agent)
            self.groups[group_of(agent)] = Group(*spaces)
        self._handles = dict(zip(self.groups, parallel_env.handles, strict=True))
        # Clearing the dead resets the last-reward feature and moves the minimap, and
        # PettingZoo observes before it: these two modes therefore need a copy in between.
        self._early = parallel_env.minimap_mode or parallel_env.extra_features
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
        self._seen = {}
        if self._early and not over:
            self._seen = {g: self._observe(g)[living] for g, living in alive.items()}
        engine.clear_dead()
        steps = {}
        for group, living in alive.items():
            self._dead[group] += int(np.count_nonzero(~living))
            rows = self._rows(group)
            if over:  # one side is extinct: MAgent2 ends the episode for everybody
                living, rows = np.zeros_like(living), rows.select(np.zeros(len(rows.ids), bool))
            cut = np.full(len(living), truncated)
            steps[group] = Step(rewards[group], ~living, cut, rows)
        return steps

    def observe(self, group: str, out: Array) -> None:
        """Writes the current observations into `out`, `[n, *obs]` float32, contiguous."""
        if not len(out):  # MAgent2 would write the winners of an episode that is over
            return
        if self._early:
            out[:] = self._seen[group] if group in self._seen else self._observe(group)
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
        """Fills `view`, `[n, *obs]`, and returns the features, `[n, f]` float32."""
        handle = self._handles[group]
        features = np.empty((len(view), *self._engine.feature_space[handle.value]), np.float32)
        arrays = (array.__array_interface__["data"][0] for array in (view, features))
        _LIB.env_get_observation(self._engine.game, handle, (ctypes.c_void_p * 2)(*arrays))
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
