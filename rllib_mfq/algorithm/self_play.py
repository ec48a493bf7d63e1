"""Self-play: who plays the other side of the battles that the learner learns from."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from ray.rllib.utils.annotations import override

from rllib_mfq.algorithm.old_filters import filled
from rllib_mfq.algorithm.setting_types import POSITIVE, SHARE, Kind, check_keys
from rllib_mfq.mean_field.legal import did_you_mean, is_number
from rllib_mfq.population.population import Array

LATEST = "latest"
SETTINGS: dict[str, dict[str, tuple[Any, Kind]]] = {
    LATEST: {},
    "tracked": {"tau": (0.99, SHARE)},
    "pool": {"size": (10, POSITIVE), "interval": (500_000, POSITIVE)},
}
"""The opponents that `self_play` may name, and defaults and kinds of each one's other keys."""

OTHERS = "others"  # a key that all of them may have

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
    known = ["opponent", *(key for keys in SETTINGS.values() for key in keys), OTHERS]
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
        if key == OTHERS:
            _check_others(name, value)
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
    return {key: default for key, (default, _) in kinds.items()} | {OTHERS: {}} | dict(self_play)


def _check_others(opponent: str, others: Any) -> None:
    """Raises a ValueError unless `others` gives a part of the matches away."""
    example = {"still": 0.1, "rush": 0.1}
    if not isinstance(others, Mapping) or not all(isinstance(name, str) for name in others):
        raise ValueError(
            f"self_play has others {others!r}; it must be a dict of shares such as {example}."
        )
    for name, share in others.items():
        if not is_number(share, 0, 1) or not share:
            raise ValueError(
                f"self_play has others with {name!r}: {share!r}; a share of the matches must be a "
                "number above 0 and below 1."
            )
        if name in SETTINGS and (name != LATEST or opponent == LATEST):
            raise ValueError(
                f"self_play has the opponent {opponent!r} and others with {name!r}; of what it "
                f"makes of the learner, others may name {LATEST!r} only, and not twice."
            )
    if sum(others.values()) > 1 - 1e-9:
        raise ValueError(
            f"self_play has others {others!r}, whose shares sum to {sum(others.values()):g}; it "
            f"must be below 1, for the rest is for {opponent!r}."
        )


class SelfPlay:
    """Who plays against the learner in training, and how often the learner wins.

    This class is `latest`, the learner itself; a subclass is an opponent that the learner makes
    of itself.

    Args:
        settings: what `self_play_settings` returns.
        seed: of the draws, if there are any.
        window: matches over which the win rate is a mean.
        learner: gives the learner's weights; those of now are the first opponent's.

    Attributes:
        weights: of the opponent that plays now; empty if that is the learner itself.
        number: changes whenever the opponent does, also by `set_state`: runners compare it.
        opponents: how many there are or have been; a figure to report.
    """

    KIND = LATEST

    def __init__(
        self, settings: Mapping[str, Any], seed: int | None, window: int, learner: Learner
    ) -> None:
        self._settings, self._seed, self._learner = settings, seed, learner
        self._window, self._shares = window, deque[float](maxlen=window)
        self._others: dict[str, deque[float]] = {}
        self.weights: Weights = {}
        self.number = 1
        self.opponents = 0
        self._begin()

    def _begin(self) -> None:
        """Makes the first opponent, of the learner as it is now."""

    def end_round(self, shares: Sequence[float], agent_steps: int) -> None:
        """Decides who plays next.

        Args:
            shares: for every match that ended in this round, the learner's share of the win; NaN
                where winning means nothing.
            agent_steps: rows the learner has sampled so far.
        """
        self._shares += _known(shares)

    def end_matches(self, shares: Mapping[str, Sequence[float]], agent_steps: int) -> None:
        """Ends a round; `shares` are by opponent, its own one under `KIND`, see `end_round`."""
        self._count_others({name: won for name, won in shares.items() if name != self.KIND})
        self.end_round(shares.get(self.KIND, []), agent_steps)

    def _count_others(self, shares: Mapping[str, Sequence[float]]) -> None:
        for name, more in shares.items():
            self._others.setdefault(name, deque(maxlen=self._window)).extend(_known(more))

    def for_runners(self) -> dict[str, Any]:
        """The opponent as part of a runner's state."""
        return {OPPONENT: self.weights, OPPONENT_NUMBER: self.number}

    def figures(self) -> dict[tuple[str, ...], float]:
        """What to report: of an opponent `opponents` and, once a match has ended, `win_rate`.

        Of others `win_rates/<name>`.
        """
        found: dict[tuple[str, ...], float] = {
            ("win_rates", name): float(np.mean(s)) for name, s in self._others.items() if s
        }
        if self.weights:
            found["opponents",] = self.opponents
            if self._shares:
                found["win_rate",] = float(np.mean(self._shares))
        return found

    def get_state(self) -> dict[str, Any]:
        """Everything needed to go on exactly as before."""
        others = {name: list(shares) for name, shares in self._others.items()}
        state = {"kind": self.KIND, "weights": self.weights, "shares": list(self._shares)}
        return state | {OTHERS: others}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores `get_state`; of another kind, the opponent begins as the restored learner."""
        self._shares.clear()
        self._others.clear()
        known = self._settings.get(OTHERS, {})  # of a run with other ones, these are not reported
        self._count_others({n: s for n, s in state.get(OTHERS, {}).items() if n in known})
        self.number += 1
        if state.get("kind") == self.KIND:
            self._shares += state["shares"]
            self._restore(state)
        else:
            self._begin()

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Restores the opponent."""
        now = self._learner()
        self.weights = {m: filled(x, now.get(m, {})) for m, x in _copy(state["weights"]).items()}


class TrackedOpponent(SelfPlay):
    """Networks that move towards the learner's after every round that the learner wins.

    It wins a round by more than half of what can be won. All tensors move, the temperature among
    them; `opponents` counts the moves.
    """

    KIND = "tracked"

    def _begin(self) -> None:
        self.weights = _copy(self._learner())
        self.opponents = 0

    @override(SelfPlay)
    def end_round(self, shares: Sequence[float], agent_steps: int) -> None:
        super().end_round(shares, agent_steps)
        if len(_known(shares)) < len(shares):
            raise ValueError(
                f"self_play has the opponent {self.KIND!r}, which follows a learner that wins; "
                "nobody wins here: groups are not alike and there is no score; legal are "
                f"{', '.join(name for name in KINDS if name != self.KIND)}."
            )
        if sum(shares) <= len(shares) / 2:
            return
        tau = float(self._settings["tau"])
        self.weights = {
            module_id: {
                name: np.asarray(tau * new + (1 - tau) * self.weights[module_id][name], new.dtype)
                for name, new in tensors.items()
            }
            for module_id, tensors in _copy(self._learner()).items()
        }
        self.opponents += 1
        self.number += 1

    @override(SelfPlay)
    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"moves": self.opponents}

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self.opponents = state["moves"]


class PoolOpponent(SelfPlay):
    """Snapshots of the learner, one of which plays; `opponents` counts those that there are.

    That one is drawn anew after every round in which a match ended, and plays until the next draw
    even if the pool no longer keeps it.
    """

    KIND = "pool"

    def _begin(self) -> None:
        self._rng = np.random.default_rng(self._seed)
        self._keep([_copy(self._learner())], 0)
        self.weights = self._snapshots[0]

    def _keep(self, snapshots: list[Weights], agent_steps: int) -> None:
        """Keeps the last snapshots, of which the newest was taken after so many rows."""
        self._snapshots, self._taken = snapshots[-int(self._settings["size"]) :], agent_steps
        self.opponents = len(self._snapshots)

    @override(SelfPlay)
    def end_round(self, shares: Sequence[float], agent_steps: int) -> None:
        super().end_round(shares, agent_steps)
        interval = int(self._settings["interval"])
        if agent_steps // interval > self._taken // interval:
            self._keep([*self._snapshots, _copy(self._learner())], agent_steps)
        if shares:
            drawn = self._snapshots[self._rng.integers(len(self._snapshots))]
            self.number += drawn is not self.weights
            self.weights = drawn

    @override(SelfPlay)
    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {
            "snapshots": list(self._snapshots),
            "taken": self._taken,
            "rng": self._rng.bit_generator.state,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        # Before 0.2 the state had the number of intervals.
        taken = state.get("taken", state.get("intervals", 0) * int(self._settings["interval"]))
        self._keep([_copy(weights) for weights in state["snapshots"]], taken)
        self._rng.bit_generator.state = state["rng"]


KINDS = {kind.KIND: kind for kind in (SelfPlay, TrackedOpponent, PoolOpponent)}
"""What each opponent that `self_play` may name is made by."""


def _known(shares: Sequence[float]) -> list[float]:
    """Those of matches that somebody could win."""
    return [share for share in shares if not math.isnan(share)]


def _copy(weights: Weights) -> Weights:
    """A copy, because the owner of the weights may change them in place."""
    return {m: {n: np.array(tensor) for n, tensor in x.items()} for m, x in weights.items()}
