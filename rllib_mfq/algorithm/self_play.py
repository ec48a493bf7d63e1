"""Self-play: who plays the other side of the battles that the learner learns from."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import ValidationError
from ray.rllib.utils.annotations import override

from rllib_mfq.algorithm.setting_types import POSITIVE, SHARE, Kind, check_keys
from rllib_mfq.mean_field.legal import did_you_mean
from rllib_mfq.population.population import Array

LATEST = "latest"
SETTINGS: dict[str, dict[str, tuple[Any, Kind]]] = {
    LATEST: {},
    "tracked": {"tau": (0.99, SHARE)},
    "pool": {"size": (10, POSITIVE), "interval": (500_000, POSITIVE)},
}
"""The opponents that `self_play` may name, and defaults and kinds of each one's other keys."""

OPPONENT = "opponent"  # keys of a runner's state
OPPONENT_NUMBER = "opponent_number"

Weights = dict[str, dict[str, Array]]
"""What `MultiRLModule.get_state` gives: per module, per tensor."""

Learner = Callable[[], Weights]
"""Gives the learner's weights."""


def self_play_settings(self_play: Any) -> dict[str, Any]:
    """The config's `self_play`, `{opponent: name, ...}`, with all defaults filled in.

    Raises a ValueError: one sentence with the key, its value and what would be legal.
    """
    if not isinstance(self_play, Mapping):
        example = {"opponent": "tracked"}
        raise ValueError(f"self_play is {self_play!r}; it must be a dict such as {example}.")
    known = ["opponent", *(key for keys in SETTINGS.values() for key in keys)]
    check_keys("self_play", self_play, known)
    legal = ", ".join(SETTINGS)
    if "opponent" not in self_play:
        raise ValueError(f"self_play is {self_play!r}; it must have an opponent, one of {legal}.")
    name = self_play["opponent"]
    if not isinstance(name, str) or name not in SETTINGS:
        hint = did_you_mean(str(name), SETTINGS)
        raise ValueError(f"self_play has the opponent {name!r}{hint}; legal are {legal}.")
    kinds = SETTINGS[name]
    for key, value in self_play.items():
        if key == "opponent":
            continue
        if key not in kinds:
            raise ValueError(
                f"self_play has {key} {value!r}, which has no effect on the opponent {name!r}; "
                f"beside it {', '.join(kinds) or 'no other key'} is legal."
            )
        try:
            kinds[key][1].read(value)
        except ValidationError:
            raise ValueError(f"self_play has {key} {value!r}; {kinds[key][1].text}.") from None
    return {key: default for key, (default, _) in kinds.items()} | dict(self_play)


class Opponent:
    """The opponent that a learner makes of itself.

    Args:
        settings: what `self_play_settings` returns.
        seed: of the draws, if there are any.
        weights: of the learner as it is now: those of the first opponent.

    Attributes:
        weights: of the opponent that plays now.
        number: changes whenever the opponent does, also by `set_state`: runners compare it.
        opponents: how many there are or have been; a figure to report.
    """

    KIND: ClassVar[str]
    opponents = 0

    def __init__(self, settings: Mapping[str, Any], seed: int | None, weights: Weights) -> None:
        self._settings = settings
        self.number = 1
        self.weights = _copy(weights)

    def end_round(self, shares: Sequence[float], agent_steps: int, learner: Learner) -> None:
        """Decides who plays next.

        Args:
            shares: for every match that ended in this round, the learner's share of the win.
            agent_steps: rows the learner has sampled so far.
            learner: called only if its weights are needed.
        """
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on exactly as before."""
        return {"kind": self.KIND, "weights": self.weights}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_state`."""
        self.weights = _copy(state["weights"])
        self.number += 1


class TrackedOpponent(Opponent):
    """Networks that move towards the learner's after every round that the learner wins.

    It wins a round by more than half of what can be won. All tensors move, the temperature among
    them; `opponents` counts the moves.
    """

    KIND = "tracked"

    @override(Opponent)
    def end_round(self, shares: Sequence[float], agent_steps: int, learner: Learner) -> None:
        if sum(shares) <= len(shares) / 2:
            return
        tau = float(self._settings["tau"])
        self.weights = {
            module_id: {
                name: np.asarray(tau * new + (1 - tau) * self.weights[module_id][name], new.dtype)
                for name, new in tensors.items()
            }
            for module_id, tensors in _copy(learner()).items()
        }
        self.opponents += 1
        self.number += 1

    @override(Opponent)
    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"moves": self.opponents}

    @override(Opponent)
    def set_state(self, state: Mapping[str, Any]) -> None:
        super().set_state(state)
        self.opponents = state["moves"]


class PoolOpponent(Opponent):
    """Snapshots of the learner, one of which plays.

    That one is drawn anew after every round in which a match ended, and plays until the next draw
    even if the pool no longer keeps it.
    """

    KIND = "pool"

    def __init__(self, settings: Mapping[str, Any], seed: int | None, weights: Weights) -> None:
        super().__init__(settings, seed, weights)
        self._size = int(settings["size"])
        self._rng = np.random.default_rng(seed)
        self._snapshots = [self.weights]
        self._intervals = 0  # how many have passed

    @property
    def opponents(self) -> int:  # type: ignore[override]
        """How many snapshots there are."""
        return len(self._snapshots)

    @override(Opponent)
    def end_round(self, shares: Sequence[float], agent_steps: int, learner: Learner) -> None:
        intervals = agent_steps // int(self._settings["interval"])
        if intervals > self._intervals:
            self._intervals = intervals
            self._snapshots = [*self._snapshots, _copy(learner())][-self._size :]
        if shares:
            drawn = self._snapshots[self._rng.integers(len(self._snapshots))]
            self.number += drawn is not self.weights
            self.weights = drawn

    @override(Opponent)
    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {
            "snapshots": list(self._snapshots),
            "intervals": self._intervals,
            "rng": self._rng.bit_generator.state,
        }

    @override(Opponent)
    def set_state(self, state: Mapping[str, Any]) -> None:
        super().set_state(state)
        self._snapshots = [_copy(weights) for weights in state["snapshots"]][-self._size :]
        self._intervals = state["intervals"]
        self._rng.bit_generator.state = state["rng"]


KINDS: dict[str, type[Opponent]] = {kind.KIND: kind for kind in (TrackedOpponent, PoolOpponent)}


class SelfPlay:
    """Who plays against the learner in training, and how often the learner wins.

    Args:
        self_play: the config's setting.
        seed: of the opponent's draws.
        window: matches over which the win rate is a mean.
        learner: gives the learner's weights.

    Attributes:
        opponent: None if the learner plays itself.
    """

    def __init__(self, self_play: Any, seed: int | None, window: int, learner: Learner) -> None:
        self._settings, self._seed, self._learner = self_play_settings(self_play), seed, learner
        self._shares: deque[float] = deque(maxlen=window)
        kind = KINDS.get(self._settings["opponent"])
        self.opponent = None if kind is None else kind(self._settings, seed, learner())

    def for_runners(self) -> dict[str, Any]:
        """The opponent as part of a runner's state; empty if the learner plays itself."""
        if self.opponent is None:
            return {}
        return {OPPONENT: self.opponent.weights, OPPONENT_NUMBER: self.opponent.number}

    def end_round(self, shares: Sequence[float], agent_steps: int) -> None:
        """See `Opponent.end_round`."""
        if self.opponent is not None:
            self._shares += shares
            self.opponent.end_round(shares, agent_steps, self._learner)

    def figures(self) -> dict[str, float]:
        """What to report: `opponents`, and `win_rate` once a match has ended."""
        if self.opponent is None:
            return {}
        rate = {"win_rate": float(np.mean(self._shares))} if self._shares else {}
        return {"opponents": self.opponent.opponents, **rate}

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on exactly as before; empty without an opponent."""
        if self.opponent is None:
            return {}
        return self.opponent.get_state() | {"shares": list(self._shares)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_state`; of another kind, the opponent begins as the restored learner."""
        if self.opponent is None:
            return
        if state.get("kind") == self.opponent.KIND:
            self.opponent.set_state(state)
            self._shares = deque(state["shares"], maxlen=self._shares.maxlen)
        else:
            self._shares.clear()
            weights, number = self._learner(), self.opponent.number + 1
            self.opponent = type(self.opponent)(self._settings, self._seed, weights)
            self.opponent.number = number


def _copy(weights: Weights) -> Weights:
    """A copy, because the owner of the weights may change them in place."""
    return {m: {n: np.array(tensor) for n, tensor in x.items()} for m, x in weights.items()}
