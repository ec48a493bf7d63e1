"""Which keys the results of a run will have, before it runs.

Tune warns once of a stop key that results lack, and then runs for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

TOP = {
    "training_iteration",
    "time_total_s",
    "time_this_iter_s",
    "time_since_restore",
    "iterations_since_restore",
    "timestamp",
    "num_env_steps_sampled_lifetime",
    "num_training_step_calls_per_iteration",
}
MFQ_TOP = {
    "agent_steps_sampled_lifetime",
    "agent_steps_per_second",
    "num_updates",
    "replay_size",
    "weights_lag",
}
SELF_PLAY = {"self_play/win_rate", "self_play/opponents"}
RUNNER = {
    *(f"episode_{what}_{how}" for what in ("return", "len") for how in ("mean", "min", "max")),
    "num_episodes",
    "num_episodes_lifetime",
    "num_env_steps_sampled",
    "num_env_steps_sampled_lifetime",
    "weights_seq_no",
    "sample",
}
STOCK_RUNNER = {"episode_duration_sec_mean", "time_between_sampling"}
STEPS = ("num_agent_steps_sampled", "num_module_steps_sampled")
GOALS = {
    "episode_return_mean",
    "episode_return_min",
    "episode_return_max",
    "episode_len_mean",
    "agent_episode_return_mean",
    "module_episode_return_mean",
    "module_episode_returns_mean",
    "group_returns_mean",
    "win_rate",
    "kills",
    "survivors",
    "opponents",
}
"""What can be a goal, as opposed to a limit of time or steps."""


@dataclass
class Run:
    """What decides which keys a run reports.

    Attributes:
        groups: groups of an MFQ run; None for other algorithms.
        modules: its modules; None if not known.
        figures: what its environment says of every group, such as `kills`.
        opponents: names in `evaluation_opponents`.
        evaluates: whether `evaluation_interval` is set.
        self_play: whether its `self_play` has an opponent.
        open: whether callbacks or a foreign algorithm may report anything else.
    """

    groups: Collection[str] | None = None
    modules: Collection[str] | None = None
    figures: Collection[str] = field(default_factory=tuple)
    opponents: Collection[str] = field(default_factory=tuple)
    evaluates: bool = False
    self_play: bool = False
    open: bool = False

    def reports(self, key: str) -> bool:
        """Whether the results will have a key, which is written with slashes."""
        if key.startswith("evaluation/") and not self.evaluates:
            return False
        if key.startswith("learners/"):
            _, module, *rest = key.split("/")
            known = self.modules is None or module in {*self.modules, "__all_modules__"}
            return known and bool(rest)
        if self.open or key in self.names():
            return True
        # Agents of other algorithms are not known before they play.
        head, _, last = key.rpartition("/")
        return bool(last) and self.groups is None and head in self._by_agent()

    def names(self) -> list[str]:
        """All keys that are known by name."""
        names = [*TOP, *(f"env_runners/{name}" for name in [*self._runner(), *self._sides()])]
        if self.groups is not None:
            names += [*MFQ_TOP, *(SELF_PLAY if self.self_play else ())]
        if self.evaluates:
            # Of matches only the learner's side is told, whichever group it played.
            runner = [*self._runner(), *(() if self.opponents else self._sides())]
            names += [f"evaluation/env_runners/{name}" for name in runner]
            for opponent in self.opponents:
                prefix = f"evaluation/env_runners/opponents/{opponent}"
                names += [f"evaluation/env_runners/win_rate/{opponent}"]
                names += [f"{prefix}/group_returns_mean/{group}" for group in self.groups or ()]
                names += [
                    f"{prefix}/{side}{name}" for side in ("", "their_") for name in self.figures
                ]
                names += [f"{prefix}/eliminated"] if "survivors" in self.figures else []
        return names

    def _runner(self) -> Iterator[str]:
        yield from RUNNER
        if self.groups is None:
            yield from STOCK_RUNNER
        for steps in STEPS:
            who = self.groups if "agent" in steps else self.modules
            for each in who or ():
                yield from (f"{steps}/{each}", f"{steps}_lifetime/{each}")

    def _sides(self) -> Iterator[str]:
        for group in self.groups or ():
            yield from (f"{figure}/{group}" for figure in ("group_returns_mean", *self.figures))
            if len(self.groups or ()) == 2:
                yield f"win_rate/{group}"
        returns = "module_episode_return" if self.groups is None else "module_episode_returns"
        yield from (f"{returns}_mean/{module}" for module in self.modules or ())

    def _by_agent(self) -> list[str]:
        per_agent = ["agent_episode_return_mean", "module_episode_return_mean"]
        per_agent += [name + end for name in STEPS for end in ("", "_lifetime")]
        prefixes = ("", "evaluation/") if self.evaluates else ("",)
        return [f"{prefix}env_runners/{name}" for prefix in prefixes for name in per_agent]


def is_goal(key: str) -> bool:
    """Whether a stop key is something to reach, and no limit of time or steps."""
    return key not in TOP | MFQ_TOP and any(part in GOALS for part in key.split("/"))
