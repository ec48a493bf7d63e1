"""MFQConfig: the settings of mean field Q-learning, their defaults and their checks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID
from ray.rllib.utils.annotations import override
from ray.util.debug import log_once

from rllib_mfq.algorithm.validation import check_environment, check_settings
from rllib_mfq.mean_field.neighborhood import did_you_mean
from rllib_mfq.mean_field.objective import schedule_value
from rllib_mfq.population.adapters import GYM_GROUP
from rllib_mfq.population.population import Group, Population

DEFAULTS: dict[str, Any] = {
    "neighborhood": "group",
    "mean_action_iterations": 1,
    "mean_action_input": "previous",
    "temperature": [[0, 0.5], [2_000_000, 0.05]],
    "target": "mean_field",
    "dueling": False,
    "tau": 0.01,
    "target_network_update_freq": 1,
    "training_intensity": 0.5,
    "replay_capacity": 100_000,
    "replay_obs_dtype": None,
    "store_replay_in_checkpoints": False,
    "num_steps_sampled_before_learning_starts": 5_000,
    "evaluation_opponents": {},
}
"""MFQ's own settings. `MFQConfig.training` and `MFQConfig.evaluation` document them."""

OLD_NAMES = {
    "num_workers": "num_env_runners",
    "num_rollout_workers": "num_env_runners",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "num_cpus_per_worker": "num_cpus_per_env_runner",
    "num_gpus_per_worker": "num_gpus_per_env_runner",
    "train_batch_size": "train_batch_size_per_learner",
    "evaluation_num_workers": "evaluation_num_env_runners",
}
"""Keys of older RLlib releases that mean just what the new one means."""


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
        target: str = NotProvided,
        dueling: bool = NotProvided,
        tau: float = NotProvided,
        target_network_update_freq: int = NotProvided,
        training_intensity: float = NotProvided,
        replay_capacity: int = NotProvided,
        replay_obs_dtype: str | None = NotProvided,
        store_replay_in_checkpoints: bool = NotProvided,
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
            target: what the next state is worth: `mean_field`, `double_q` or `max`.
            dueling: split the Q head into state value and advantages.
            tau: how far the target network moves towards the network.
            target_network_update_freq: gradient updates between two such moves (updates, not
                sampled steps as in RLlib's DQN: the paper moves it after every update).
            training_intensity: rows trained per row sampled.
            replay_capacity: rows each module's memory holds.
            replay_obs_dtype: type to keep observations in, such as `float16`; None keeps
                theirs.
            store_replay_in_checkpoints: write the memories into checkpoints.
            num_steps_sampled_before_learning_starts: rows (agent steps) that a memory must
                hold before it is learned from.
            **kwargs: RLlib's own: `lr`, `gamma`, `grad_clip`, `train_batch_size_per_learner`
                (rows per module and update), ...
        """
        given = {k: v for k, v in locals().items() if k in DEFAULTS and v is not NotProvided}
        if "train_batch_size" in kwargs:
            kwargs["train_batch_size_per_learner"] = kwargs.pop("train_batch_size")
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
        if isinstance(kwargs.get("evaluation_config"), dict):
            kwargs["evaluation_config"] = {"explore": False, **kwargs["evaluation_config"]}
        super().evaluation(**kwargs)
        if evaluation_opponents is not NotProvided:
            self.evaluation_opponents = dict(evaluation_opponents or {})
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
            ValueError: a key that does not exist, with the nearest one that does.
        """
        legal = {*vars(self), *OLD_NAMES, "multiagent", "callbacks", "framework", "model_config"}
        legal |= {"create_env_on_driver", "input", "lambda", "num_cpus_for_driver", "class"}
        legal |= {"train_batch_size_per_learner", "_enable_new_api_stack"}
        config = {}
        for key, value in config_dict.items():
            if key.startswith("__"):  # Tune's own
                continue
            if key not in legal:
                names = [name for name in legal if not name.startswith("_")]
                raise ValueError(f"MFQ has no config key {key!r}{did_you_mean(key, names)}.")
            if key == "model_config":
                self.rl_module(model_config=value)
            else:
                config[OLD_NAMES.get(key, key)] = value
        super().update_from_dict(config)
        return self

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

    @override(AlgorithmConfig)
    def _validate_multi_agent_settings(self) -> None:
        if not self.policies_follow_groups:  # else `resolve_groups` checks
            super()._validate_multi_agent_settings()

    @property
    def policies_follow_groups(self) -> bool:
        """Whether no policies are set, so that every group gets a module of its own."""
        return set(self.policies) == {DEFAULT_POLICY_ID}

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
            self.multi_agent(policies=sorted(groups))  # a set's order differs between runs
            super()._validate_multi_agent_settings()
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
