"""Views: how what an environment gives an agent becomes a row of its group, and is checked."""

import contextlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_mfq.population.population import REAL, Array, PopulationError, group_of

MASK = "action_mask"

_NOT_PLAIN = (TypeError, ValueError, KeyError, IndexError)
"""What NumPy raises where observations are not arrays of one shape and a fitting type."""


class View:
    """How the raw observations of one group become rows."""

    def __init__(self, agent: Any, spaces: tuple[Any, Any]) -> None:
        self.group, self._agent, self.spaces = group_of(agent), agent, spaces
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
        self._whole = space
        self._is_nested = not (isinstance(space, gym.spaces.Box) and space.shape)
        if self._is_nested:
            with contextlib.suppress(NotImplementedError, ValueError):  # an unknown or empty space
                space = gym.spaces.flatten_space(space)
        if not isinstance(space, gym.spaces.Box):
            raise PopulationError(
                f"group {self.group!r} has the observation space {space}; it must be a Box or one "
                "that gymnasium.spaces.flatten_space makes a Box."
            )
        self.space: gym.spaces.Box = space
        if self._is_nested or space.dtype == np.float64:
            with np.errstate(over="ignore"):  # a bound may become infinite
                low, high = space.low.astype(np.float32), space.high.astype(np.float32)
            self.space = gym.spaces.Box(low, high, dtype=np.float32)
        self._dtype = np.dtype(self.space.dtype)
        # Of observations that fit as they are: of floats the last bits, of integers nothing is cut.
        self._casting: Any = "same_kind" if self._dtype.kind == "f" else "safe"

    def compare(self, agent: Any, spaces: tuple[Any, Any]) -> None:
        """Raises unless an agent has the spaces of its group."""
        for mine, others in zip(self.spaces, spaces, strict=True):
            if mine is not others and mine != others:
                raise PopulationError(
                    f"group {self.group!r}: {self._agent!r} has the space {mine} and {agent!r} "
                    f"has {others}; within a group they must be equal."
                )

    def read(self, agents: Sequence[Any], obs: Mapping[Any, Any], out: Array) -> None:
        """Writes what an environment let agents observe into `out`, `[n, *obs]`."""
        with contextlib.suppress(*_NOT_PLAIN):  # at once, unless somebody's needs a closer look
            if agents and not self._is_nested:
                seen = [obs[agent] for agent in agents]
                if self._key is not None:
                    seen = [parts[self._key] for parts in seen]
                np.stack(seen, out=out, casting=self._casting)
                return
        for row, agent in enumerate(agents):
            out[row] = self._read(agent, obs[agent])

    def _read(self, agent: Any, raw: Any) -> Array:
        """Turns the environment's observation of an agent into one of the group's space."""
        if self._key is not None:
            if not isinstance(raw, Mapping) or self._key not in raw:
                raise wrong(agent, "observation", raw, f"it must have the key {self._key!r}")
            raw = raw[self._key]
        if self._is_nested:
            if not _is_of(self._whole, raw):
                raise wrong(agent, "observation", raw, f"its space is {self._whole}")
            return np.asarray(gym.spaces.flatten(self._whole, raw))
        array = self.check(agent, "observation", raw, self.space.shape)
        kind = self._dtype
        if kind.kind != "f" and not np.can_cast(array.dtype, kind):
            if (array.astype(kind) != array).any():  # its values would be cut
                raise wrong(agent, "observation", array.dtype, f"its space is of {kind}")
        return array

    def legal(self, agent: Any, raw: Any, info: Mapping[Any, Any]) -> Array | bool:
        """`[A]` bool: the legal actions; True if neither observation nor info has a mask."""
        for holder in (raw, info) if self.has_mask else (info,):
            if isinstance(holder, Mapping) and holder.get(MASK) is not None:
                mask = self.check(agent, MASK, holder[MASK], (int(self.action_space.n),))
                if not ((mask == 0) | (mask == 1)).all():
                    raise wrong(agent, MASK, mask.tolist(), "each must be 0 or 1")
                return mask.astype(bool)
        return True

    def check(self, agent: Any, what: str, raw: Any, shape: tuple[int, ...]) -> Array:
        """`raw` as an array, if it has the shape; NumPy would repeat a smaller one."""
        try:
            array = np.asarray(raw)
        except ValueError:  # lists of different lengths
            raise wrong(agent, what, raw, f"it must be an array of shape {shape}") from None
        if array.shape != shape:
            where = f"group {self.group!r}: the {what} of {agent!r}"
            raise PopulationError(f"{where} has the shape {array.shape}; it must be {shape}.")
        if array.dtype.kind not in REAL:
            raise wrong(agent, what, array.dtype, "it must be of real numbers")
        return array


def _is_of(space: Any, raw: Any) -> bool:
    """Whether a value is of a space; the bounds of a Box are not looked at."""
    if isinstance(space, gym.spaces.Dict):
        whole = isinstance(raw, Mapping) and space.keys() <= raw.keys()
        return whole and all(_is_of(part, raw[key]) for key, part in space.items())
    if isinstance(space, gym.spaces.Tuple):
        whole = isinstance(raw, tuple | list) and len(raw) == len(space)
        return whole and all(_is_of(*pair) for pair in zip(space, raw, strict=True))
    if isinstance(space, gym.spaces.Box):
        with contextlib.suppress(ValueError):  # of lists of different lengths
            return np.shape(raw) == space.shape and np.asarray(raw).dtype.kind in REAL
        return False
    return bool(space.contains(raw))


def unpack(method: str, result: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The dicts that an environment's method returned; the last one, the infos, may be None.

    Raises:
        PopulationError: it returned something else.
    """
    kind = type(result).__name__
    if isinstance(result, tuple | list):
        kinds = [type(part).__name__ for part in result]
        dicts = [isinstance(part, Mapping) for part in result]
        if len(result) == len(names) and all(dicts[:-1]) and (dicts[-1] or result[-1] is None):
            return tuple(result)
        kind = f"({', '.join(kinds)})"
    legal = f"it must be {len(names)} dicts, of {', '.join(names)}"
    raise PopulationError(f"what {method} returned is of type {kind}; {legal}.")


def values_of(
    given: Mapping[Any, Any], agents: Sequence[Any], what: str, legal: str = "a number"
) -> Array:
    """`[n]`: the number that an environment gave each agent; 0 where it gave none.

    Raises:
        PopulationError: it gave one something else than a real number.
    """
    values = [given.get(agent, 0.0) for agent in agents]
    whole = _numbers(values)
    if whole is not None:
        return whole
    bad = next((row for row, value in enumerate(values) if _numbers([value]) is None), 0)
    raise wrong(agents[bad], what, values[bad], f"it must be {legal}")


_FLAGS = {bool, np.bool_}


def who(flags: Mapping[Any, Any], what: str) -> set[Any]:
    """The agents that an environment flags; raises a PopulationError unless flags are bool."""
    legal = "True or False"
    if _FLAGS.issuperset(map(type, flags.values())):
        return {agent for agent, flag in flags.items() if flag} if any(flags.values()) else set()
    values = values_of(flags, list(flags), what, legal)
    bad = np.flatnonzero((values != 0) & (values != 1))
    if len(bad):
        agent = list(flags)[bad[0]]
        raise wrong(agent, what, flags[agent], f"it must be {legal}")
    return {agent for agent, flag in zip(flags, values, strict=True) if flag}


def _numbers(values: list[Any]) -> Array | None:
    """`[n]`: values as an array, or None if one of them is no real number."""
    with contextlib.suppress(ValueError):  # of lists of different lengths
        column = np.asarray(values)
        if column.shape == (len(values),) and column.dtype.kind in REAL:
            return column
    return None


def wrong(agent: Any, what: str, found: Any, legal: str) -> PopulationError:
    """The error that what an environment gave an agent is not `legal`."""
    seen, group = " ".join(reprlib.repr(found).split()), group_of(agent)
    return PopulationError(f"group {group!r}: the {what} of {agent!r} is {seen}; {legal}.")


def agents_of(env: Any) -> list[Any]:
    """All agents an environment names, or else those of one reset."""
    agents = getattr(env, "possible_agents", None)
    if agents and getattr(env, "_agent_ids", None):
        return sorted(agents, key=str)  # RLlib made the list of a set, whose order is random
    if agents:
        return list(agents)
    spaces = getattr(env, "observation_spaces", None) or getattr(env, "observation_space", None)
    if isinstance(spaces, Mapping):
        return list(spaces)
    return list(unpack("reset", env.reset(), ("observations", "infos"))[0])


def spaces_of(env: Any, agent: Any, named: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """Observation and action space of an agent, wherever the environment keeps them.

    `named`, if given, are those of an agent whose name the environment knows: they are taken for
    one that it does not know.
    """
    found: list[Any] = []
    for kind in ("observation", "action"):
        whole = getattr(env, f"{kind}_space", None)
        getter = getattr(env, f"get_{kind}_space", whole)
        try:
            if callable(getter):
                space = getter(agent)
            else:
                spaces = getattr(env, f"{kind}_spaces", None) or whole  # PettingZoo warns of it
                space = spaces[agent] if isinstance(spaces, Mapping) else spaces
            if named and space is whole and space != named[len(found)]:
                raise KeyError(agent)  # RLlib gives the space of all agents for unknown ones
        except KeyError:
            if named is None:
                text = f"the environment has no {kind} space for {agent!r}."
                raise PopulationError(text) from None
            space = named[len(found)]
        found.append(space)
    return found[0], found[1]
