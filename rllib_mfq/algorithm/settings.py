"""MFQ's own settings, each in one place: a signature and the docstring below it.

The signature holds name, type, legal values and default; the docstring holds the text. Both are
read for validation, `--set`, the README's table and the list of what checkpoints of modules keep.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self, TypedDict, Unpack, get_type_hints

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.utils.annotations import override

from rllib_mfq.algorithm import setting_types as kinds
from rllib_mfq.algorithm.old_names import instead_of
from rllib_mfq.algorithm.self_play import self_play_settings
from rllib_mfq.mean_field.neighborhood import Array, GroupActions, Neighborhood
from rllib_mfq.mean_field.objective import TARGETS, schedule_value


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of a setting besides its name."""

    kind: kinds.Kind
    default: Any
    to_play: bool = False  # whether a module must know it to play: its checkpoint keeps it
    per_module: bool = False  # whether `algorithm_config_overrides_per_module` may set it
    text: str = ""  # the documentation


RLLIB: dict[str, Setting] = {
    "_train_batch_size_per_learner": Setting(kinds.POSITIVE, 512),
    "rollout_fragment_length": Setting(kinds.integer(1, "auto"), 10),
    "num_envs_per_env_runner": Setting(kinds.POSITIVE, 4),
    "num_env_runners": Setting(kinds.NON_NEGATIVE, 0),
    "evaluation_num_env_runners": Setting(kinds.NON_NEGATIVE, 0),
    "num_learners": Setting(kinds.NON_NEGATIVE, 0),
    "metrics_num_episodes_for_smoothing": Setting(kinds.POSITIVE, 100),
    "seed": Setting(kinds.integer(0, None), None),
    "evaluation_interval": Setting(kinds.integer(0, None), None),
    "grad_clip": Setting(kinds.NUMBER_OR_NONE, None, per_module=True),
    "gamma": Setting(kinds.DISCOUNT, 0.95, per_module=True),
    "lr": Setting(kinds.RATE, 5e-4, per_module=True),
    "observation_filter": Setting(kinds.one_of("NoFilter", "MeanStdFilter"), "NoFilter", True),
}
"""RLlib's own settings that RLlib itself does not check."""

Schedule = float | list[list[float]]


class RLlibTraining(TypedDict, total=False):
    """RLlib's own arguments of `training` that act on MFQ, for type checkers."""

    gamma: float
    lr: Schedule
    grad_clip: float | None
    grad_clip_by: str
    train_batch_size: int
    train_batch_size_per_learner: int
    learner_class: type
    learner_config_dict: Mapping[str, Any]


class MFQSettings(AlgorithmConfig):
    """The two methods that set MFQ's own settings; `MFQConfig` is the whole config."""

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        neighborhood: Annotated[
            str | Mapping[str, float] | Callable[[GroupActions], Array],
            Setting(kinds.checked_by(Neighborhood.parse), "group", to_play=True),
        ] = NotProvided,
        mean_action_iterations: Annotated[
            int, Setting(kinds.POSITIVE, 1, to_play=True)
        ] = NotProvided,
        mean_action_input: Annotated[
            str, Setting(kinds.one_of("previous", "current"), "previous", to_play=True)
        ] = NotProvided,
        temperature: Annotated[
            Schedule, Setting(kinds.TEMPERATURE, [[0, 0.5], [2_000_000, 0.05]], True, True)
        ] = NotProvided,
        shared_exploration: Annotated[Schedule, Setting(kinds.RATE, 0.0, True, True)] = NotProvided,
        target: Annotated[
            str, Setting(kinds.one_of(*TARGETS), "mean_field", per_module=True)
        ] = NotProvided,
        n_step: Annotated[int, Setting(kinds.POSITIVE, 1)] = NotProvided,
        burn_in_len: Annotated[int, Setting(kinds.NON_NEGATIVE, 0, to_play=True)] = NotProvided,
        dueling: Annotated[bool, Setting(kinds.BOOL, False, to_play=True)] = NotProvided,
        table_levels: Annotated[
            int | None, Setting(kinds.integer(1, None), None, to_play=True)
        ] = NotProvided,
        tau: Annotated[float, Setting(kinds.SHARE, 0.01, per_module=True)] = NotProvided,
        target_network_update_freq: Annotated[
            int, Setting(kinds.POSITIVE, 1, per_module=True)
        ] = NotProvided,
        training_intensity: Annotated[float, Setting(kinds.NUMBER, 0.5)] = NotProvided,
        max_weights_lag: Annotated[
            float, Setting(kinds.number("of at least 1", ge=1), 10.0)
        ] = NotProvided,
        replay_capacity: Annotated[int, Setting(kinds.POSITIVE, 100_000)] = NotProvided,
        replay_obs_dtype: Annotated[str | None, Setting(kinds.NUMBER_TYPE, None)] = NotProvided,
        replay_device: Annotated[
            str, Setting(kinds.one_of("auto", "cpu", "cuda"), "auto")
        ] = NotProvided,
        prioritized_replay: Annotated[bool, Setting(kinds.BOOL, False)] = NotProvided,
        prioritized_replay_alpha: Annotated[float, Setting(kinds.DISCOUNT, 0.6)] = NotProvided,
        prioritized_replay_beta: Annotated[Schedule, Setting(kinds.SHARES, 0.4)] = NotProvided,
        prioritized_replay_eps: Annotated[float, Setting(kinds.NUMBER, 1e-6)] = NotProvided,
        store_replay_in_checkpoints: Annotated[bool, Setting(kinds.BOOL, False)] = NotProvided,
        self_play: Annotated[
            Mapping[str, Any],
            Setting(kinds.checked_by(self_play_settings), {"opponent": "latest"}),
        ] = NotProvided,
        num_steps_sampled_before_learning_starts: Annotated[
            int, Setting(kinds.NON_NEGATIVE, 5_000)
        ] = NotProvided,
        time_limit_s: Annotated[float | None, Setting(kinds.NUMBER_OR_NONE, None)] = NotProvided,
        **kwargs: Unpack[RLlibTraining],
    ) -> Self:
        """Sets how MFQ learns.

        Args:
            neighborhood: whom an agent's mean action averages over: `group`, `none` (which is
                independent Q-learning), `all`, `graph`, `{radius: r}`, `{nearest: k}`, or a
                function of your own or its path. Default: `"group"`.
            mean_action_iterations: M of the paper's Algorithm 1, how often actions and mean actions
                are sampled in turn before a step is played. Default: `1`.
            mean_action_input: the mean action at which Q is learned: `previous`, the one the agents
                acted on, or `current`, the one their step produced. Default: `"previous"`.
            temperature: T of the Boltzmann policy, in units of reward, above 0: a number, or
                `[[agent_steps, value], ...]`, linear in between. Default:
                `[[0, 0.5], [2_000_000, 0.05]]`.
            shared_exploration: standard deviation of a preference for each action that all agents
                of a group share, added to the logits Q / T and drawn anew at every step: a number
                or a schedule as `temperature`. Where the reward depends on what the crowd does
                together, agents that explore independently average out. Default: `0.0`.
            target: what the next state is worth: `mean_field`, `double_q` or `max`. Default:
                `"mean_field"`.
            n_step: how many of its steps' rewards an agent adds up before it values what follows.
                Default: `1`.
            burn_in_len: with `use_lstm` in the model config, how many steps before those that are
                learned from only refresh the state that was kept with a sequence. Default: `0`.
            dueling: split the Q head into state value and advantages. Default: `False`.
            table_levels: learn a table instead of a network, for observations that are one whole
                number; mean actions are rounded to multiples of 1 / table_levels, and `lr` is the
                paper's alpha. Default: `None`.
            tau: how far the target network moves towards the network. Default: `0.01`.
            target_network_update_freq: gradient updates between two such moves (updates, not
                sampled steps as in RLlib's DQN: the paper moves it after every update). Default:
                `1`.
            training_intensity: rows trained per row sampled. Default: `0.5`.
            max_weights_lag: how old the weights may be that remote env runners play with: how many
                fragments per env runner the learner may have learned from since it sent them out.
                It is 1 where all are equally fast; rows of a runner so much slower are dropped, and
                counted in `num_agent_steps_dropped_lifetime`. Default: `10.0`.
            replay_capacity: rows that are kept of each module, by all learners together. Default:
                `100_000`.
            replay_obs_dtype: type to keep observations in, such as `float16`; None keeps theirs.
                Default: `None`.
            replay_device: where rows are kept: `cpu`, the learner's node; `cuda`, its GPU; `auto`,
                its GPU if it has one and they fit. Default: `"auto"`.
            prioritized_replay: draw a row the more often the larger its error was when it was last
                learned from, and give such rows less weight in the loss, so that the expected
                gradient stays the same with a beta of 1. Default: `False`.
            prioritized_replay_alpha: how much the errors decide: 0 draws all rows alike, 1 in
                proportion to their errors. Default: `0.6`.
            prioritized_replay_beta: how far weights make up for it, 1 is in full: a number or a
                schedule as `temperature`. Default: `0.4`.
            prioritized_replay_eps: what is added to an error, so that every row may be drawn.
                Default: `1e-6`.
            store_replay_in_checkpoints: write the memories into checkpoints. Default: `False`.
            self_play: who plays the other side of battles between two groups:
                `{opponent: latest}`, the learner itself; `{opponent: tracked, tau: 0.99}`,
                networks that start as the learner's and, after each training step whose finished
                episodes it won, become tau * learner + (1 - tau) * their own;
                `{opponent: pool, size: 10, interval: 500_000}`, one of the last `size` snapshots
                of the learner, taken every `interval` rows and drawn anew after training steps
                in which an episode ended. Against an opponent the learner plays each group in
                half of the environments and learns only from its own rows. Each may have
                `others: {still: 0.1, rush: 0.1}`: shares of the matches that are played against
                whoever `evaluation_opponents` could name, or `latest`, drawn for each match
                of each environment. Default: `{"opponent": "latest"}`.
            num_steps_sampled_before_learning_starts: rows (agent steps) that a memory must have
                been given before it is learned from. Default: `5_000`.
            time_limit_s: seconds of training, as `time_total_s` counts them, after which an
                iteration ends whatever `min_sample_timesteps_per_iteration` says. `rllib train`
                sets it to the `time_total_s` of `stop`. Default: `None`.
            **kwargs: RLlib's own: `lr`, `gamma`, `grad_clip`, `train_batch_size_per_learner`
                (rows per module and update; `train_batch_size` is its old name), ...
        """
        return self._set("training", locals(), {**kwargs})

    @override(AlgorithmConfig)
    def evaluation(
        self,
        *,
        evaluation_opponents: Annotated[
            Mapping[str, str], Setting(kinds.OPPONENTS, {})
        ] = NotProvided,
        evaluation_random_steps: Annotated[int, Setting(kinds.NON_NEGATIVE, 0)] = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets how MFQ is evaluated: greedily, unless `evaluation_config` sets `explore`.

        Args:
            evaluation_opponents: `{name: opponent}`, each one `random`, `still`, `rush`, `hold`,
                `flee`, `pretrained:NAME`, the path of a checkpoint, or that of a class of one's
                own, `my_package.my_module:MyClass`. Evaluation then plays `evaluation_duration`
                matches against each, half of them on each side, and logs `win_rate/<name>`, a draw
                counting a half. Default: `{}`.
            evaluation_random_steps: how many steps both sides play uniform legal actions when such
                a match begins: greedy agents else play much the same match again and again.
                Default: `0`.
            **kwargs: RLlib's own.
        """
        if kwargs.get("evaluation_config", {}) is None:
            kwargs["evaluation_config"] = {}  # None would make RLlib explore
        opponents = {} if evaluation_opponents is None else evaluation_opponents
        given = {
            "evaluation_opponents": opponents,
            "evaluation_random_steps": evaluation_random_steps,
        }
        return self._set("evaluation", given, kwargs)

    def _set(self, method: str, given: Mapping[str, Any], kwargs: dict[str, Any]) -> Self:
        """Sets MFQ's own settings that are `given`, and hands the others to RLlib's method."""
        legal = {*given, *inspect.signature(getattr(AlgorithmConfig, method)).parameters}
        for name in kwargs:
            if name not in legal:
                raise TypeError(f"{method}() has no argument {name!r}{instead_of(name, legal)}.")
        getattr(super(), method)(**kwargs)
        for name in SETTINGS:
            if given.get(name, NotProvided) is not NotProvided:
                setattr(self, name, given[name])
        return self


def _read_settings() -> dict[str, Setting]:
    """The settings that signatures and docstrings describe."""
    found = {}
    for method in (MFQSettings.training, MFQSettings.evaluation):
        entries = re.split(r"\n    (?=\*{0,2}\w+: )", inspect.getdoc(method) or "")[1:]
        texts = dict(" ".join(entry.split()).split(": ", 1) for entry in entries)
        for name, hint in get_type_hints(method, include_extras=True).items():
            for entry in getattr(hint, "__metadata__", ()):
                text = texts[name].partition(" Default: ")[0]  # a test compares it
                found[name] = dataclasses.replace(entry, text=text)
    return found


SETTINGS: dict[str, Setting] = _read_settings()
"""MFQ's own settings by name, in the order of the signatures."""

CHECKED = SETTINGS | RLLIB

DEFAULTS: dict[str, Any] = {name: setting.default for name, setting in CHECKED.items()} | {
    "min_sample_timesteps_per_iteration": 500,
    "restart_failed_sub_environments": True,
    "delay_between_env_runner_restarts_s": 1.0,
    "evaluation_config": {"explore": False},
}
"""The defaults of all that is checked, and others than RLlib's of some of RLlib's settings."""

PER_MODULE = sorted(["grad_clip_by", *(name for name, s in CHECKED.items() if s.per_module)])
"""Settings that `algorithm_config_overrides_per_module` may set for one module."""

TO_PLAY = [name for name, setting in CHECKED.items() if setting.to_play] + ["mean_action_dim"]
"""What a module knows besides RLlib's model config, so that a checkpoint of it can play."""


def to_play(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `TO_PLAY` for a module's `model_config`.

    `mean_action_dim` is the width of mean actions where it is not the module's number of actions,
    else None; schedules are their values at the start, None for `0.0`.

    Args:
        settings: a config's attributes or a policy's config dict, with defaults for what it lacks.
    """
    known = {name: settings.get(name, s.default) for name, s in CHECKED.items() if s.to_play}
    for name in ("temperature", "shared_exploration"):
        known[name] = schedule_value(known[name], 0) if known[name] else None
    groups = settings.get("groups") or {}
    width = sum(int(spaces[1].n) for spaces in groups.values())
    return known | {"mean_action_dim": width if known["neighborhood"] == "all" else None}
