"""MFQConfig: mean field Q-learning as RLlib configures its algorithms."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics.metrics_logger import DEFAULT_STATS_CLS_LOOKUP
from ray.util.debug import log_once

from rllib_mfq.algorithm import old_stack, setting_types, validation
from rllib_mfq.algorithm.class_paths import check_class_paths
from rllib_mfq.algorithm.env_runner import MFQEnvRunner
from rllib_mfq.algorithm.figures import STATS, ReportingAlgorithm
from rllib_mfq.algorithm.learner import MFQTorchLearner
from rllib_mfq.algorithm.old_names import attributes, is_whole, public
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.algorithm.roster import MULTI_AGENT, check_modules_to_train, group_mapping
from rllib_mfq.algorithm.self_play import LATEST, OTHERS, self_play_settings
from rllib_mfq.algorithm.settings import DEFAULTS, MFQSettings, to_play
from rllib_mfq.population.guard import Guard
from rllib_mfq.population.population import GYM_GROUP, Group, Population


class Stack(NamedTuple):
    """What differs between RLlib's API stacks; MFQ asks for the stack nowhere else."""

    env_runner: type
    check: Callable[[Any], None]  # raises a ValueError if a config has settings without effect
    adapt: Callable[[Any], None]  # makes an algorithm fit the stack, before it is set up


class MFQConfig(MFQSettings):
    """Configures mean field Q-learning.

    As in any RLlib config, plus `training()`'s and `evaluation()`'s own settings:

        MFQConfig().environment("battle_v4").training(neighborhood="group", tau=0.01)

    Without `multi_agent(policies=...)` every group of agents has a module of its own; with one
    policy, such as `multi_agent(policies=["shared"])`, that one plays all groups.

    Args:
        algo_class: of which class the algorithm is to be; `MFQ` by default.
    """

    algorithm: ClassVar[type]
    """`MFQ`, which sets this attribute, since its file imports this one."""

    def __init__(self, algo_class: type | None = None) -> None:
        self.groups: dict[str, Group] | None = None
        self.agent_ids: dict[str, list[Any]] = {}  # for policy_mapping_fn
        super().__init__(algo_class=algo_class or self.algorithm)
        for name, value in DEFAULTS.items():
            setattr(self, name, copy.deepcopy(value))
        self.env_runner_cls: type = MFQEnvRunner
        self.policy_mapping_fn = group_mapping
        self.stats_cls_lookup: dict[str, type] = DEFAULT_STATS_CLS_LOOKUP | STATS

    @override(AlgorithmConfig)
    def api_stack(self, *args: Any, **kwargs: Any) -> Self:
        """As RLlib's: the new stack (default), or with both arguments False the old."""
        # The temperature explores on either stack; RLlib would warn that nothing does.
        self._prior_exploration_config: dict[str, Any] | None = {}
        own = self.env_runner_cls is self.stack.env_runner
        super().api_stack(*args, **kwargs)
        if own:
            self.env_runner_cls = self.stack.env_runner
        return self

    @override(AlgorithmConfig)
    def multi_agent(self, *, policies: Any = NotProvided, **kwargs: Any) -> Self:
        """As RLlib's; `policies` may be left out, see the class."""
        if isinstance(policies, set):  # networks are drawn in an order that no process may change
            policies = sorted(policies)
        super().multi_agent(policies=policies, **kwargs)
        return self

    @override(AlgorithmConfig)
    def update_from_dict(self, config_dict: dict[str, Any]) -> Self:
        """Takes a config dict, as from Tune or YAML; old RLlib names are understood.

        Raises a ValueError as `old_names.attributes`, or if a part that must be a dict is none.
        """
        check_class_paths(config_dict)
        config = attributes(config_dict, self)
        for key in ("env_config", "multiagent"):
            if not isinstance(config.get(key, {}), Mapping):
                raise ValueError(f"{key} is {config[key]!r}; it must be a dict.")
        inner = config.pop("multiagent", {})
        setting_types.check_keys("multiagent", inner, MULTI_AGENT)
        outer = {key: config.pop(key) for key in MULTI_AGENT if key in config}
        for key in inner.keys() & outer.keys():
            if inner[key] != outer[key] and not is_whole(config_dict, self):
                raise ValueError(
                    f"{key} is {outer[key]!r} and multiagent has {key} {inner[key]!r}, but they "
                    "mean the same; give one of them."
                )
        self.multi_agent(**{**outer, **inner})
        super().update_from_dict(config)
        return self

    @override(AlgorithmConfig)
    def to_dict(self) -> dict[str, Any]:
        """All settings, as `update_from_dict` and `MFQ(config=...)` take them."""
        config = super().to_dict()
        config.pop("class", None)  # RLlib adds it to an algorithm's config and then misreads it
        return public(config)

    @property
    def train_batch_size(self) -> int:
        """The old name of `train_batch_size_per_learner`."""
        return self._train_batch_size_per_learner

    @train_batch_size.setter
    def train_batch_size(self, value: int) -> None:
        self._train_batch_size_per_learner = value

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=MFQTorchRLModule)

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type:
        return MFQTorchLearner

    @override(AlgorithmConfig)
    def build_algo(self, env: Any = None, use_copy: bool = True) -> ReportingAlgorithm:
        """Makes the algorithm, an `MFQ`, as RLlib's does; its `train()` has typed results.

        Args:
            env: the environment, if `environment()` was not called.
            use_copy: whether the algorithm gets a copy of this config, so that it can be used anew.

        Raises:
            ValueError: a setting is impossible, or does not fit the environment.
        """
        algorithm: ReportingAlgorithm = super().build_algo(env, use_copy)
        return algorithm

    def without_minima(self) -> "MFQConfig":
        """A frozen copy with which an iteration may end after any training step."""
        config = self.copy(copy_frozen=False)
        config.min_time_s_per_iteration = None
        config.min_sample_timesteps_per_iteration = config.min_train_timesteps_per_iteration = 0
        config.freeze()
        return config

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return super()._model_config_auto_includes | to_play(vars(self))

    @override(AlgorithmConfig)
    def get_multi_rl_module_spec(self, *args: Any, **kwargs: Any) -> MultiRLModuleSpec:
        """As RLlib's; a module plays with what the overrides for it say."""
        found = super().get_multi_rl_module_spec(*args, **kwargs)
        for module_id in self.algorithm_config_overrides_per_module:
            if spec := found.rl_module_specs.get(module_id):
                own = to_play(vars(self.get_config_for_module(module_id)))
                spec.model_config = {**spec.model_config, **own}
        return found

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Checks everything that can be checked without an environment.

        Raises a ValueError: one sentence with the key, its value and what would be legal.
        """
        self.stats_cls_lookup = {**self.stats_cls_lookup, **STATS}  # the user's may lack them
        self._check()
        log_once(f"{self.algo_class.__name__}_on_new_api_stack")  # else RLlib would warn
        super().validate()
        evaluation = self.get_evaluation_config_object()
        if evaluation is not None:
            evaluation._check()

    def _check(self) -> None:
        validation.check_settings(self)
        self.stack.check(self)

    @override(AlgorithmConfig)
    def _validate_multi_agent_settings(self) -> None:
        if not self.policies_follow_groups:  # else `resolve_groups` checks
            check_modules_to_train(self)

    @override(AlgorithmConfig)
    def _value_error(self, errmsg: str) -> None:
        raise ValueError(" ".join(errmsg.split()))  # RLlib adds how to switch its checks off

    @property
    def stack(self) -> Stack:
        """What differs on the API stack that this config chooses."""
        return NEW_STACK if self.enable_rl_module_and_learner else OLD_STACK

    @property
    def policies_follow_groups(self) -> bool:
        """Whether no policies are set, so that every group gets a module of its own."""
        return set(self.policies) == {DEFAULT_POLICY_ID}

    @property
    def has_opponent(self) -> bool:
        """Whether the other side of training battles is not played by the learner itself."""
        return self_play_settings(self.self_play)["opponent"] != LATEST and not self.in_evaluation

    @property
    def others(self) -> dict[str, float]:
        """Who else plays against the learner in training, and the shares of the matches."""
        return {} if self.in_evaluation else dict(self_play_settings(self.self_play)[OTHERS])

    @property
    def opponents(self) -> dict[str, str]:
        """All that are named, for training or evaluation: their names and what they are."""
        others = {name: name for name in self.others if name != LATEST}
        return others | dict(self.evaluation_opponents)

    def resolve_groups(self, make_population: Callable[[], Population]) -> None:
        """Takes the groups from an environment, and checks the settings against them.

        Sets `groups` and `agent_ids`, and `policies` if none are set; does nothing if `groups` are
        known. The population is reset once and closed. Raises a ValueError: one sentence on what
        does not fit.
        """
        if self.groups is not None:
            return
        guard = Guard(lambda index: make_population(), 1, seed=0, restart_failed=False)
        (population,), groups = guard.populations, guard.groups
        try:
            first = guard.reset(0) or {}
        finally:
            guard.close()
        self.agent_ids = {}
        if self.policy_mapping_fn is not group_mapping or self.evaluation_config:
            names = {g: [f"{g}_{i}" for i in rows.ids.tolist()] for g, rows in first.items()}
            self.agent_ids = dict(getattr(population, "agent_ids", names))
        if self.policies_follow_groups and set(groups) != {GYM_GROUP}:
            self.multi_agent(policies=sorted(groups))  # sorted, so that both API stacks agree
        self.groups = groups
        validation.check_environment(self, first)


NEW_STACK = Stack(
    MFQEnvRunner,
    validation.check_new_stack,
    lambda algorithm: None,
)
OLD_STACK = Stack(old_stack.MFQRolloutWorker, old_stack.check, old_stack.adapt)
