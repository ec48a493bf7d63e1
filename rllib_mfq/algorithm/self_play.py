"""Self-play: who plays the other side of the battles that the learner learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rllib_mfq.mean_field.neighborhood import did_you_mean
from rllib_mfq.population.population import Array

LATEST = "latest"
SETTINGS: dict[str, dict[str, Any]] = {
    LATEST: {},
    "tracked": {"tau": 0.99},
    "pool": {"size": 10, "interval": 500_000},
}
"""The opponents that `self_play` may name, and the other keys of each with their defaults."""

OPPONENT = "opponent"  # keys of a runner's state
OPPONENT_NUMBER = "opponent_number"

Weights = dict[str, dict[str, Array]]
"""What `MultiRLModule.get_state` gives: per module, per tensor."""


def self_play_settings(self_play: Any) -> dict[str, Any]:
    """The config's `self_play` with everything that it leaves at its default.

    Args:
        self_play: `{opponent: name, ...}`.

    Raises:
        ValueError: one sentence with the key, its value and what would be legal.
    """
    if not isinstance(self_play, Mapping):
        raise ValueError(
            f"self_play is {self_play!r}; it must be a dict such as {{'opponent': 'tracked'}}."
        )
    known = ["opponent", *(key for keys in SETTINGS.values() for key in keys)]
    for key in self_play:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ValueError(f"self_play has no key {key!r}{hint}; legal are {', '.join(known)}.")
    if "opponent" not in self_play:
        raise ValueError(
            f"self_play is {dict(self_play)!r}; it must have an opponent, one of "
            f"{', '.join(SETTINGS)}."
        )
    name = self_play["opponent"]
    if not isinstance(name, str) or name not in SETTINGS:
        hint = did_you_mean(str(name), SETTINGS)
        raise ValueError(
            f"self_play has the opponent {name!r}{hint}; legal are {', '.join(SETTINGS)}."
        )
    for key, value in self_play.items():
        if key == "opponent":
            continue
        if key not in SETTINGS[name]:
            others = ", ".join(SETTINGS[name]) or "no other key"
            raise ValueError(
                f"self_play has {key} {value!r}, which has no effect on the opponent {name!r}; "
                f"beside it {others} is legal."
            )
        _check(key, value)
    return SETTINGS[name] | dict(self_play)


def _check(key: str, value: Any) -> None:
    if key == "tau":
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not 0 < value <= 1:
            raise ValueError(
                f"self_play has tau {value!r}; it must be a number above 0 and at most 1."
            )
    elif not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"self_play has {key} {value!r}; it must be an integer of at least 1.")


class PastSelf:
    """The opponent that a learner makes of itself.

    Args:
        settings: what `self_play_settings` returns.
        seed: of the draws, if there are any.
        learner: the learner's weights as they are now: those of the first opponent.

    Attributes:
        number: another one whenever the opponent is, which tells a runner whether it has it.
            It is not part of the state: after a restore, runners must take the opponent anew.
    """

    KIND: ClassVar[str]

    def __init__(self, settings: Mapping[str, Any], seed: int | None, learner: Weights) -> None:
        self.number = 1

    @property
    def weights(self) -> Weights:
        """The opponent's."""
        raise NotImplementedError

    @property
    def opponents(self) -> int:
        """How many there are, or have been; a figure to report."""
        raise NotImplementedError

    def end_round(
        self, shares: Sequence[float], agent_steps: int, learner: Callable[[], Weights]
    ) -> None:
        """Decides who plays next.

        Args:
            shares: of every match that ended in this round, what the learner won of it.
            agent_steps: rows the learner has sampled so far.
            learner: gives the learner's weights.
        """
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on exactly as before."""
        raise NotImplementedError

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_state`."""
        raise NotImplementedError


class Tracked(PastSelf):
    """Networks that move towards the learner's after every round that the learner wins.

    All of a module's tensors move, its temperature, too.
    """

    KIND = "tracked"

    def __init__(self, settings: Mapping[str, Any], seed: int | None, learner: Weights) -> None:
        super().__init__(settings, seed, learner)
        self._tau = float(settings["tau"])
        self._weights = _copy(learner)
        self._moves = 0

    @property
    def weights(self) -> Weights:
        """See `PastSelf`."""
        return self._weights

    @property
    def opponents(self) -> int:
        """How often it has moved."""
        return self._moves

    def end_round(
        self, shares: Sequence[float], agent_steps: int, learner: Callable[[], Weights]
    ) -> None:
        """See `PastSelf`; a round is won by more than half of what there was to win."""
        if sum(shares) <= len(shares) / 2:
            return
        tau = self._tau
        self._weights = {
            module_id: {
                name: np.asarray(tau * new + (1 - tau) * self._weights[module_id][name], new.dtype)
                for name, new in tensors.items()
            }
            for module_id, tensors in _copy(learner()).items()
        }
        self._moves += 1
        self.number += 1

    def get_state(self) -> dict[str, Any]:
        """See `PastSelf`."""
        return {"kind": self.KIND, "weights": self._weights, "moves": self._moves}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See `PastSelf`."""
        self._weights, self._moves = _copy(state["weights"]), state["moves"]
        self.number += 1


class Pool(PastSelf):
    """Snapshots of the learner, one of which, drawn anew after every round, is the opponent."""

    KIND = "pool"

    def __init__(self, settings: Mapping[str, Any], seed: int | None, learner: Weights) -> None:
        super().__init__(settings, seed, learner)
        self._size, self._interval = int(settings["size"]), int(settings["interval"])
        self._rng = np.random.default_rng(seed)
        self._snapshots = [_copy(learner)]
        self._weights = self._snapshots[0]
        self._intervals = 0  # how many have passed

    @property
    def weights(self) -> Weights:
        """See `PastSelf`."""
        return self._weights

    @property
    def opponents(self) -> int:
        """How many snapshots there are."""
        return len(self._snapshots)

    def end_round(
        self, shares: Sequence[float], agent_steps: int, learner: Callable[[], Weights]
    ) -> None:
        """See `PastSelf`; a round in which no match has ended changes nobody's opponent."""
        intervals = agent_steps // self._interval
        if intervals > self._intervals:
            self._intervals = intervals
            self._snapshots = [*self._snapshots, _copy(learner())][-self._size :]
        if shares:
            drawn = self._snapshots[self._rng.integers(len(self._snapshots))]
            self.number += drawn is not self._weights
            self._weights = drawn

    def get_state(self) -> dict[str, Any]:
        """See `PastSelf`."""
        return {
            "kind": self.KIND,
            "weights": self._weights,  # may be of a snapshot that is no longer kept
            "snapshots": list(self._snapshots),
            "intervals": self._intervals,
            "rng": self._rng.bit_generator.state,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """See `PastSelf`."""
        self._snapshots = [_copy(weights) for weights in state["snapshots"]][-self._size :]
        self._weights = _copy(state["weights"])
        self._intervals = state["intervals"]
        self._rng.bit_generator.state = state["rng"]
        self.number += 1


def make_past_self(
    self_play: Any, seed: int | None, learner: Callable[[], Weights]
) -> PastSelf | None:
    """The opponent that the config's `self_play` names; None if the learner plays itself."""
    settings = self_play_settings(self_play)
    for kind in (Tracked, Pool):
        if kind.KIND == settings["opponent"]:
            return kind(settings, seed, learner())
    return None


def _copy(weights: Weights) -> Weights:
    """A copy, for whoever gives weights may go on to change their memory."""
    return {m: {n: np.array(tensor) for n, tensor in x.items()} for m, x in weights.items()}
