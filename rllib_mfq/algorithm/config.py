"""MFQConfig: the settings of mean field Q-learning, their defaults and their checks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from ray._common.deprecation import DEPRECATED_VALUE
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID
from ray.rllib.utils.annotations import override
from ray.util.debug import log_once

from rllib_mfq.algorithm.self_play import LATEST, self_play_settings
from rllib_mfq.algorithm.validation import (
    check_environment,
    check_modules_to_train,
    check_settings,
)
from rllib_mfq.mean_field.neighborhood import did_you_mean
from rllib_mfq.mean_field.objective import schedule_value
from rllib_mfq.population.adapters import GYM_GROUP
from rllib_mfq.population.population import Group, Population

DEFAULTS: dict[str, Any] = {
    "neighborhood": "group",
    "mean_action_iterations": 1,
    "mean_action_input": "previous",
    "temperature": [[0, 0.5], [2_000_000, 0.05]],
    "shared_exploration": 0.0,
    "target": "mean_field",
    "n_step": 1,
    "dueling": False,
    "table_levels": None,
    "tau": 0.01,
    "target_network_update_freq": 1,
    "training_intensity": 0.5,
    "replay_capacity": 100_000,
    "replay_obs_dtype": None,
    "store_replay_in_checkpoints": False,
    "self_play": {"opponent": "latest"},
    "num_steps_sampled_before_learning_starts": 5_000,
    "evaluation_opponents": {},
}
"""MFQ's own settings. `MFQConfig.training` and `MFQConfig.evaluation` document them."""

OLD_NAMES = {
    "callbacks": "callbacks_class",
    "create_env_on_driver": "create_env_on_local_worker",
    "custom_eval_function": "custom_evaluation_function",
    "framework": "framework_str",
    "input": "input_",
    "metrics_smoothing_episodes": "metrics_num_episodes_for_smoothing",
    "min_iter_time_s": "min_time_s_per_iteration",
    "model_config": "_model_config",
    "num_cpus_for_driver": "num_cpus_for_main_process",
    "num_workers": "num_env_runners",
    "num_rollout_workers": "num_env_runners",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "num_cpus_per_worker": "num_cpus_per_env_runner",
    "num_gpus_per_worker": "num_gpus_per_env_runner",
    "timesteps_per_iteration": "min_sample_timesteps_per_iteration",
    "train_batch_size": "_train_batch_size_per_learner",
    "train_batch_size_per_learner": "_train_batch_size_per_learner",
    "evaluation_num_workers": "evaluation_num_env_runners",
}
"""Keys of config dicts, most of older RLlib releases, and the attribute each means."""

MULTI_AGENT = ("policies", "policy_mapping_fn", "policies_to_train", "count_steps_by")


def group_mapping(agent_id: Any, *args: Any, **kwargs: Any) -> str:
    """The default `policy_mapping_fn`: `red_12` to `red`."""
    return str(agent_id).rsplit("_", 1)[0]


def acting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a module must know to play, as entries of its `model_config`.

    Args:
        settings: a config's attributes, or the config dict of a policy.
    """
    groups, neighborhood = settings["groups"] or {}, settings["neighborhood"]
    width = sum(int(spaces[1].n) for spaces in groups.values())
    return {
        "neighborhood": neighborhood,
        "mean_action_iterations": settings["mean_action_iterations"],
        "mean_action_input": settings["mean_action_input"],
        "mean_action_dim": width if neighborhood == "all" else None,
        "dueling": settings["dueling"],
        "table_levels": settings["table_levels"],
        "shared_exploration": (
            schedule_value(settings["shared_exploration"], 0)
            if settings["shared_exploration"]
            else None
        ),
        "temperature": schedule_value(settings["temperature"], 0),
    }


class MFQConfig(AlgorithmConfig):
    """Configures mean field Q-learning.

    As in any RLlib config, plus `training()`'s and `evaluation()`'s own settings:

        MFQConfig().environment("battle_v4").training(neighborhood="group", tau=0.01)

    Without `multi_agent(policies=...)` every group of agents has a module of its own; with one
    policy, such as `multi_agent(policies=["shared"])`, that one plays all groups.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        from rllib_mfq import register
        from rllib_mfq.algorithm.env_runner import MFQEnvRunner
        from rllib_mfq.algorithm.mfq import MFQ

        register()
        self.groups: dict[str, Group] | None = None
        super().__init__(algo_class=algo_class or MFQ)
        for name, value in DEFAULTS.items():
            setattr(self, name, copy.deepcopy(value))
        self.env_runner_cls = MFQEnvRunner
        self.policy_mapping_fn = group_mapping
        self.lr = 5e-4
        self.gamma = 0.95
        self.train_batch_size_per_learner = 512
        self.rollout_fragment_length = 10
        self.num_envs_per_env_runner = 4
        self.min_sample_timesteps_per_iteration = 500
        self.restart_failed_sub_environments = True
        self.delay_between_env_runner_restarts_s = 1.0
        self.evaluation_config = {"explore": False}

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        neighborhood: str | Mapping[str, float] = NotProvided,
        mean_action_iterations: int = NotProvided,
        mean_action_input: str = NotProvided,
        temperature: float | list[list[float]] = NotProvided,
        shared_exploration: float | list[list[float]] = NotProvided,
        target: str = NotProvided,
        n_step: int = NotProvided,
        dueling: bool = NotProvided,
        table_levels: int | None = NotProvided,
        tau: float = NotProvided,
        target_network_update_freq: int = NotProvided,
        training_intensity: float = NotProvided,
        replay_capacity: int = NotProvided,
        replay_obs_dtype: str | None = NotProvided,
        store_replay_in_checkpoints: bool = NotProvided,
        self_play: Mapping[str, Any] = NotProvided,
        num_steps_sampled_before_learning_starts: int = NotProvided,
        **kwargs: Any,
    ) -> MFQConfig:
        """Sets how MFQ learns.

        Args:
            neighborhood: whom an agent's mean action averages over: `group`, `none` (which is
                independent Q-learning), `all`, `graph`, `{radius: r}` or `{nearest: k}`.
            mean_action_iterations: M of the paper's Algorithm 1, how often actions and mean
                actions are sampled in turn before a step is played.
            mean_action_input: the mean action at which Q is learned: `previous`, the one the
                agents acted on, or `current`, the one their step produced.
            temperature: T of the Boltzmann policy, in units of reward, above 0: a number, or
                `[[agent_steps, value], ...]`, linear in between.
            shared_exploration: standard deviation of a preference for each action that all agents
                of a group share, added to the logits Q / T and drawn anew at every step: a
                number or a schedule as `temperature`. Where the reward depends on what the
                crowd does together, agents that explore independently average out.
            target: what the next state is worth: `mean_field`, `double_q` or `max`.
            n_step: how many of its steps' rewards an agent adds up before it values what follows.
            dueling: split the Q head into state value and advantages.
            table_levels: learn a table instead of a network, for observations that are one whole
                number; mean actions are rounded to multiples of 1 / table_levels, and `lr` is
                the paper's alpha.
            tau: how far the target network moves towards the network.
            target_network_update_freq: gradient updates between two such moves (updates, not
                sampled steps as in RLlib's DQN: the paper moves it after every update).
            training_intensity: rows trained per row sampled.
            replay_capacity: rows each module's memory holds.
            replay_obs_dtype: type to keep observations in, such as `float16`; None keeps
                theirs.
            store_replay_in_checkpoints: write the memories into checkpoints.
            self_play: who plays the other side of battles between two groups:
                `{opponent: latest}`, the learner itself; `{opponent: tracked, tau: 0.99}`,
                networks that start as the learner's and, after each training step whose finished
                episodes it won, become tau * learner + (1 - tau) * their own;
                `{opponent: pool, size: 10, interval: 500_000}`, one of the last `size` snapshots
                of the learner, taken every `interval` rows and drawn anew after training steps
                in which an episode ended. Against an opponent the learner plays each group in
                half of the environments and learns only from its own rows.
            num_steps_sampled_before_learning_starts: rows (agent steps) that a memory must have
                been given before it is learned from.
            **kwargs: RLlib's own: `lr`, `gamma`, `grad_clip`, `train_batch_size_per_learner`
                (rows per module and update; `train_batch_size` is its old name), ...
        """
        given = {k: v for k, v in locals().items() if k in DEFAULTS and v is not NotProvided}
        _check_keywords("training", kwargs)
        super().training(**kwargs)
        for name, value in given.items():
            setattr(self, name, value)
        return self

    @override(AlgorithmConfig)
    def evaluation(
        self, *, evaluation_opponents: Mapping[str, str] = NotProvided, **kwargs: Any
    ) -> MFQConfig:
        """Sets how MFQ is evaluated: greedily, unless `evaluation_config` sets `explore`.

        Args:
            evaluation_opponents: `{name: "random" or the path of a checkpoint}`. Evaluation
                then plays `evaluation_duration` matches against each, half of them on each
                side, and logs `win_rate/<name>`, a draw counting a half.
            **kwargs: RLlib's own.
        """
        _check_keywords("evaluation", kwargs)
        if kwargs.get("evaluation_config", {}) is None:
            kwargs["evaluation_config"] = {}  # to RLlib None is not to be greedy
        super().evaluation(**kwargs)
        if evaluation_opponents is not NotProvided:
            self.evaluation_opponents = evaluation_opponents or {}
        return self

    @override(AlgorithmConfig)
    def multi_agent(self, *, policies: Any = NotProvided, **kwargs: Any) -> MFQConfig:
        """As RLlib's; `policies` may be left out, see the class.

        A set is sorted: its order changes from process to process, and the networks are drawn
        in that order.
        """
        super().multi_agent(
            policies=sorted(policies) if isinstance(policies, set) else policies, **kwargs
        )
        return self

    @override(AlgorithmConfig)
    def api_stack(self, *args: Any, **kwargs: Any) -> MFQConfig:
        """Chooses RLlib's API stack: the new one (default), or with both arguments False the old.

        Args:
            *args: RLlib's own.
            **kwargs: RLlib's own: `enable_rl_module_and_learner` and
                `enable_env_runner_and_connector_v2`, which go together.
        """
        from rllib_mfq.algorithm.env_runner import MFQEnvRunner
        from rllib_mfq.algorithm.rollout_worker import MFQRolloutWorker

        # RLlib would warn that the old stack has no exploration: the temperature explores.
        self._prior_exploration_config: dict[str, Any] | None = {}
        super().api_stack(*args, **kwargs)
        if self.env_runner_cls in (MFQEnvRunner, MFQRolloutWorker):
            new = self.enable_rl_module_and_learner
            self.env_runner_cls = MFQEnvRunner if new else MFQRolloutWorker
        return self

    @override(AlgorithmConfig)
    def update_from_dict(self, config_dict: dict[str, Any]) -> MFQConfig:
        """Takes a config dict, as from Tune or YAML; old RLlib names are understood.

        Raises:
            ValueError: a key that does not exist, with the nearest one that does; or one given
                twice, under its old and its new name.
        """
        deprecated = {k for k, v in vars(self).items() if type(v) is int and v == DEPRECATED_VALUE}
        deprecated -= {"simple_optimizer"}  # RLlib itself sets it
        legal = {"multiagent", *OLD_NAMES, *vars(self)} - (deprecated - set(OLD_NAMES))
        config: dict[str, Any] = {}
        given: dict[str, str] = {}
        for name, value in config_dict.items():
            text = str(name)
            if text.startswith("__") and text.endswith("__"):  # Tune's own
                continue
            if text == "class" and value is type(self):  # a state's, which RLlib reads so
                continue
            if name in deprecated and value == DEPRECATED_VALUE:  # so `to_dict` says unset
                continue
            if name not in legal:
                names = [key for key in legal if not key.startswith("_")]
                raise ValueError(f"MFQ has no config key {name!r}{did_you_mean(text, names)}.")
            key = OLD_NAMES.get(text, text)
            if key in config and config[key] != value:
                raise ValueError(
                    f"{given[key]} is {config[key]!r} and {text} is {value!r}, but they mean the "
                    "same; give one of them."
                )
            config[key], given[key] = value, text
        for key in ("env_config", "multiagent"):
            if not isinstance(config.get(key, {}), Mapping):
                raise ValueError(f"{key} is {config[key]!r}; it must be a dict.")
        groups = config.pop("multiagent", {})
        for key in groups:
            if key not in MULTI_AGENT:
                raise ValueError(
                    f"multiagent has no key {key!r}{did_you_mean(str(key), MULTI_AGENT)}; legal "
                    f"are {', '.join(MULTI_AGENT)}."
                )
        self.multi_agent(**groups, **{k: config.pop(k) for k in MULTI_AGENT if k in config})
        super().update_from_dict(config)
        return self

    @override(AlgorithmConfig)
    def to_dict(self) -> dict[str, Any]:
        """All settings, such that `update_from_dict` and `MFQ(config=...)` understand them."""
        config: dict[str, Any] = super().to_dict()
        config.pop("class", None)  # of an algorithm's config; makes RLlib read it as another kind
        return config

    @property
    def train_batch_size(self) -> int:
        """The old name of `train_batch_size_per_learner`."""
        size: int = self._train_batch_size_per_learner
        return size

    @train_batch_size.setter
    def train_batch_size(self, value: int) -> None:
        self._train_batch_size_per_learner = value

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from rllib_mfq.algorithm.rl_module import MFQTorchRLModule

        return RLModuleSpec(module_class=MFQTorchRLModule)

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        from rllib_mfq.algorithm.learner import MFQTorchLearner

        return MFQTorchLearner

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return super()._model_config_auto_includes | acting(vars(self))

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Checks everything that can be checked without an environment.

        Raises:
            ValueError: one sentence with the key, its value and what would be legal.
        """
        check_settings(self, DEFAULTS)
        log_once(f"{self.algo_class.__name__}_on_new_api_stack")  # nothing to warn about
        super().validate()
        evaluation = self.get_evaluation_config_object()
        if evaluation is not None:
            check_settings(evaluation, DEFAULTS)

    @override(AlgorithmConfig)
    def _validate_multi_agent_settings(self) -> None:
        if not self.policies_follow_groups:  # else `resolve_groups` checks
            check_modules_to_train(self)

    @override(AlgorithmConfig)
    def _value_error(self, errmsg: str) -> None:
        raise ValueError(" ".join(errmsg.split()))  # RLlib adds how to switch its checks off

    @property
    def policies_follow_groups(self) -> bool:
        """Whether no policies are set, so that every group gets a module of its own."""
        return set(self.policies) == {DEFAULT_POLICY_ID}

    @property
    def has_opponent(self) -> bool:
        """Whether runners play somebody else than the learner on the other side."""
        return self_play_settings(self.self_play)["opponent"] != LATEST and not self.in_evaluation

    def resolve_groups(self, make_population: Callable[[], Population]) -> None:
        """Learns the groups from an environment and checks the settings against them.

        Sets `groups`, and `policies` if there are none. Does nothing the second time.

        Args:
            make_population: makes a population, which is reset once and closed.

        Raises:
            ValueError: one sentence on what does not fit.
        """
        if self.groups is not None:
            return
        population = make_population()
        try:
            groups = dict(population.groups)
            first = population.reset(seed=0)
        finally:
            getattr(population, "close", lambda: None)()
        if self.policies_follow_groups and set(groups) != {GYM_GROUP}:
            self.multi_agent(policies=sorted(groups))  # as RLlib's old stack orders them
        self.groups = groups
        check_environment(self, first)

    def modules_of_groups(self) -> dict[str, str]:
        """The module that plays each group."""
        groups = list(self.groups or {})
        if len(self.policies) == 1 and self.policy_mapping_fn is group_mapping:
            return dict.fromkeys(groups, next(iter(self.policies)))
        return {group: self.policy_mapping_fn(f"{group}_0", None) for group in groups}

    def spaces_of_modules(self) -> dict[str, tuple[gym.Space[Any], gym.Space[Any]]]:
        """What RLlib calls the spaces of an env runner, by module."""
        groups = self.groups or {}
        whole = tuple(
            gym.spaces.Dict({name: spaces[index] for name, spaces in groups.items()})
            for index in range(2)
        )
        spaces: dict[str, Any] = {INPUT_ENV_SPACES: whole}
        return spaces | {m: tuple(groups[g]) for g, m in self.modules_of_groups().items()}


def _check_keywords(method: str, keywords: Mapping[str, Any]) -> None:
    """Raises Python's error for an unknown keyword, with the nearest one that exists."""
    legal = [
        name
        for cls in (MFQConfig, AlgorithmConfig)
        for name in inspect.signature(getattr(cls, method)).parameters
    ]
    for name in keywords:
        if name not in legal:
            raise TypeError(f"{method}() has no argument {name!r}{did_you_mean(name, legal)}.")
