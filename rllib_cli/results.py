"""Results: which keys the results of a run have, before it runs."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_cli.experiments import BadInput
from rllib_mfq.mean_field.legal import did_you_mean

RETURN = "env_runners/episode_return_mean"
EVALUATED = "evaluation/env_runners"
AGENT_STEPS, MODULE_STEPS = "num_agent_steps_sampled", "num_module_steps_sampled"
LIFETIME = ("", "_lifetime")  # how the names of a count end

TOP = {"training_iteration", "iterations_since_restore", "num_env_steps_sampled_lifetime"}
TOP |= {"time_total_s", "time_this_iter_s", "time_since_restore", "timestamp"}
TOP |= {"num_training_step_calls_per_iteration"}  # keys at the top of all results

RUNNER = {f"episode_{what}_{how}" for what in ("return", "len") for how in ("mean", "min", "max")}
RUNNER |= {f"num_{what}{end}" for what in ("episodes", "env_steps_sampled") for end in LIFETIME}
RUNNER |= {"weights_seq_no", "sample"}  # keys below `env_runners` of all results

GOALS = {"episode_return_mean", "episode_return_min", "episode_return_max", "episode_len_mean"}
GOALS |= {"agent_episode_return_mean", "module_episode_return_mean", "module_episode_returns_mean"}
GOALS |= {"group_returns_mean", "win_rate", "kills", "survivors", "opponents"}
"""Parts of keys that can be a goal, as opposed to a limit of time or steps."""


class Run(NamedTuple):
    """Which keys the results of a run will have, before it runs.

    Tune warns only once of a stop key that the results lack, and then the run never stops.
    """

    keys: set[str]  # all that are known by name
    modules: set[str]
    evaluated: bool  # whether there is evaluation
    by_agent: Collection[str] = ()  # keys below which every agent, unknown yet, has a key
    win_rates: Collection[str] = ()  # keys that say how often the run wins in evaluation
    beside: Collection[str] = ()  # keys of returns to be shown, where winning means nothing
    open: bool = False  # whether callbacks or a foreign algorithm may report any other key

    def reports(self, key: str) -> bool:
        """Whether the results will have a key, which is written with slashes."""
        if key.startswith("evaluation/") and not self.evaluated:
            return False
        if key.startswith("learners/"):
            _, module, *rest = key.split("/")
            return module in {*self.modules, "__all_modules__"} and bool(rest)
        head, _, last = key.removeprefix("evaluation/").rpartition("/")
        return self.open or key in self.keys or (bool(last) and head in self.by_agent)

    def check(self, key: str, what: str) -> None:
        """Raises BadInput, which begins with `what`, unless the results will have a key."""
        if not self.reports(key):
            hint = did_you_mean(key, self.keys)
            if key.startswith("evaluation/") and not self.evaluated:
                hint = "; set evaluation_interval, so that the run is evaluated"
            raise BadInput(f"{what} {key!r}, which this run never reports{hint}.")


def is_goal(key: str) -> bool:
    """Whether a stop key is something to reach, and no limit of time or steps."""
    return not GOALS.isdisjoint(key.split("/"))


def keys_of(training: Iterable[str], evaluation: Iterable[str]) -> set[str]:
    """The keys of results that hold these below the env runners of training and evaluation."""
    keys = TOP | {f"env_runners/{name}" for name in training}
    return keys | {f"evaluation/env_runners/{name}" for name in evaluation}


def steps_of(name: str, who: Iterable[str]) -> list[str]:
    """The keys that count the steps of every agent, group or module."""
    return [f"{name}{end}/{each}" for each in who for end in LIFETIME]


def listens(config: AlgorithmConfig) -> bool:
    """Whether a run may report more: by callbacks, or on the old API stack."""
    silent = AlgorithmConfig().callbacks_class
    own = (config.callbacks_class or silent) != silent
    own |= any(value for key, value in vars(config).items() if key.startswith("callbacks_on_"))
    return own or not config.enable_rl_module_and_learner
