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


class _Exchanged:
    """Memory that a population shares with the engine, which is given its address.

    MAgent2's own methods allocate, ask for the number of agents and make a typed pointer at every
    call: in a step of 162 agents that takes as long as what the engine does.
    """

    def __init__(self, array: Array) -> None:
        self.array, self.address = array, ctypes.c_void_p(array.ctypes.data)


class MAgent2Population(Population):
    """One MAgent2 environment, from what MAgent2's `parallel_env` returns."""

    def __init__(self, parallel_env: magent_parallel_env) -> None:
        self.parallel_env = parallel_env
        self._engine = parallel_env.env
        self.groups = {}
        self.agent_ids: dict[str, list[str]] = {}
        for agent in parallel_env.possible_agents:
            spaces = parallel_env.observation_space(agent), parallel_env.action_space(agent)
            self.groups[group_of(agent)] = Group(*spaces)
            self.agent_ids.setdefault(group_of(agent), []).append(agent)
        self._handles = dict(zip(self.groups, parallel_env.handles, strict=True))
        self._living = dict.fromkeys(self.groups, 0)  # agents of each group that act now
        self._exchanged: dict[str, dict[str, _Exchanged]] = {}
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
        for group, handle in self._handles.items():
            self._living[group] = n = self._engine.get_num(handle)
            features = self._engine.feature_space[handle.value]
            self._exchanged[group] = {
                "actions": _Exchanged(np.empty(n, np.int32)),
                "rewards": _Exchanged(np.empty(n, np.float32)),
                "alive": _Exchanged(np.empty(n, bool)),
                "id": _Exchanged(np.empty(n, np.int32)),
                "pos": _Exchanged(np.empty((n, 2), np.int32)),
                "features": _Exchanged(np.empty((n, *features), np.float32)),
            }
        return {group: self._rows(group) for group in self.groups}

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        """Plays one action per living agent, in row order."""
        engine, counts = self._engine, self._living
        for group, handle in self._handles.items():
            chosen = self._exchanged[group]["actions"]
            chosen.array[: counts[group]] = actions[group]
            _LIB.env_set_action(engine.game, handle, chosen.address)
        over = engine.step()
        self.parallel_env.frames += 1
        truncated = self.parallel_env.frames >= self.parallel_env.max_cycles
        rewards, alive = {}, {}
        for group, handle in self._handles.items():
            paid = self._exchanged[group]["rewards"]
            _LIB.env_get_reward(engine.game, handle, paid.address)
            rewards[group] = paid.array[: counts[group]].copy()
            alive[group] = self._info(group, "alive")
        self._living = {group: int(np.count_nonzero(each)) for group, each in alive.items()}
        self._seen = {}
        if self._early and not over:
            self._seen = {g: self._observe(g, counts[g])[living] for g, living in alive.items()}
        engine.clear_dead()
        steps = {}
        for group, living in alive.items():
            self._dead[group] += counts[group] - self._living[group]
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
            out[:] = self._seen[group] if group in self._seen else self._observe(group, len(out))
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
        return Rows(self._info(group, "id"), self._info(group, "pos"))

    def _info(self, group: str, name: str) -> Array:
        """What the engine says of a group's agents, `[n, ...]`."""
        found = self._exchanged[group][name]
        _LIB.env_get_info(self._engine.game, self._handles[group], name.encode(), found.address)
        return found.array[: self._living[group]].copy()

    def _native_observation(self, group: str, view: Array) -> Array:
        """Fills `view`, `[n, *obs]`, and returns the features, `[n, f]` float32."""
        features = self._exchanged[group]["features"]
        arrays = (ctypes.c_void_p * 2)(view.__array_interface__["data"][0], features.address)
        _LIB.env_get_observation(self._engine.game, self._handles[group], arrays)
        return features.array[: len(view)]

    def _observe(self, group: str, n: int) -> Array:
        """`[n, *obs]`: the view with the features repeated over its cells behind it."""
        view = np.empty((n, *self._engine.view_space[self._handles[group].value]), np.float32)
        features = self._native_observation(group, view)
        if not self.parallel_env.extra_features:
            features = features[:, -2:]  # one's place on the minimap
        tiled = np.broadcast_to(features[:, None, None], (*view.shape[:3], features.shape[1]))
        return np.concatenate([view, tiled], axis=-1)
