"""Which keys the results of a run will have, before it runs.

Tune warns only once of a stop key that the results lack, and then the run never stops.
"""

from collections.abc import Collection
from dataclasses import dataclass

from rllib_cli.experiments import BadInput
from rllib_mfq.mean_field.legal import did_you_mean

RETURN = "env_runners/episode_return_mean"
LIFETIME = ("", "_lifetime")  # how the names of a count end
TOP = {"training_iteration", "iterations_since_restore", "num_env_steps_sampled_lifetime"}
TOP |= {"time_total_s", "time_this_iter_s", "time_since_restore", "timestamp"}
TOP |= {"num_training_step_calls_per_iteration"}

RUNNER = {f"episode_{what}_{how}" for what in ("return", "len") for how in ("mean", "min", "max")}
RUNNER |= {f"num_{what}{end}" for what in ("episodes", "env_steps_sampled") for end in LIFETIME}
RUNNER |= {"weights_seq_no", "sample"}

GOALS = {"episode_return_mean", "episode_return_min", "episode_return_max", "episode_len_mean"}
GOALS |= {"agent_episode_return_mean", "module_episode_return_mean", "module_episode_returns_mean"}
GOALS |= {"group_returns_mean", "win_rate", "kills", "survivors", "opponents"}
"""Parts of keys that can be a goal, as opposed to a limit of time or steps."""


@dataclass
class Run:
    """The keys that a run reports.

    Attributes:
        modules: the modules of the run.
        training: what it reports below `env_runners`.
        evaluation: what it reports below `evaluation/env_runners`; empty without evaluation.
        by_agent: keys below which every agent has a key; agents are not known before they play.
        top: further keys at the top.
        win_rates: the keys, if any, that say how often the run wins in evaluation.
        open: whether callbacks or a foreign algorithm may report any other key.
    """

    modules: Collection[str]
    training: Collection[str]
    evaluation: Collection[str]
    by_agent: Collection[str] = ()
    top: Collection[str] = ()
    win_rates: Collection[str] = ()
    open: bool = False

    def names(self) -> list[str]:
        """All keys that are known by name."""
        names = [*TOP, *self.top, *(f"env_runners/{name}" for name in self.training)]
        return names + [f"evaluation/env_runners/{name}" for name in self.evaluation]

    def reports(self, key: str) -> bool:
        """Whether the results will have a key, which is written with slashes."""
        if key.startswith("evaluation/") and not self.evaluation:
            return False
        if key.startswith("learners/"):
            _, module, *rest = key.split("/")
            return module in {*self.modules, "__all_modules__"} and bool(rest)
        head, _, last = key.removeprefix("evaluation/").rpartition("/")
        return self.open or key in self.names() or (bool(last) and head in self.by_agent)

    def check(self, key: str, what: str) -> None:
        """Raises BadInput, which begins with `what`, unless the results will have a key."""
        if not self.reports(key):
            hint = did_you_mean(key, self.names())
            if key.startswith("evaluation/") and not self.evaluation:
                hint = "; set evaluation_interval, so that the run is evaluated"
            raise BadInput(f"{what} {key!r}, which this run never reports{hint}.")


def is_goal(key: str) -> bool:
    """Whether a stop key is something to reach, and no limit of time or steps."""
    return not GOALS.isdisjoint(key.split("/"))
