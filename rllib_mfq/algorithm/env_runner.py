"""The EnvRunner, and what it shares with the rollout worker of the old API stack."""

import copy
import functools
import math
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils import force_list
from ray.rllib.utils import metrics as names
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable

from rllib_mfq.algorithm.casting import parts_of_runner
from rllib_mfq.algorithm.figures import episode_figures, log_counters, log_figures
from rllib_mfq.algorithm.fragment_batch import FragmentBatch
from rllib_mfq.algorithm.matches import Matches
from rllib_mfq.algorithm.opponents import load_opponent, random_actions
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.algorithm.roster import modules_of_groups, spaces_of_modules
from rllib_mfq.algorithm.runner_failures import Failure, failure_of
from rllib_mfq.algorithm.self_play import OPPONENT, OPPONENT_NUMBER
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.fragment import Episode, Fragment
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Array, Population
from rllib_mfq.population.sampler import Sampler


class PopulationRunner(EnvRunner):
    """Plays populations with the modules in `module`, on both API stacks.

    A subclass initialises one of RLlib's runners and then calls `_begin`.
    """

    def _begin(self, env_creator: Any, callbacks: list[RLlibCallback]) -> None:
        """Makes the modules and, unless only remote runners are to sample, the populations."""
        self._env_creator = env_creator
        self._callbacks = callbacks
        self._failure: Failure | None = None  # of an evaluation, until it is taken
        self._weights_seq_no = 0
        self._sampler: Sampler | None = None  # the first of `_samplers`
        self._samplers: dict[str | None, Sampler] = {}
        self._explore = bool(self.config.explore)
        self._random_actions = False
        seed = torch.Generator().seed() if self._seed is None else self._seed
        self._generator = torch.Generator().manual_seed(seed)
        self.groups = self.config.groups
        self.modules = modules_of_groups(self.config)
        self.make_module()
        # One module for each of the learner's; None if the learner plays against itself.
        self._opponent = copy.deepcopy(self.module) if self.config.has_opponent else None
        self._opponent_number = 0
        self.num_envs = 0
        local_samples = not self.config.num_env_runners or self.config.create_env_on_local_worker
        if self.worker_index > 0 or local_samples:
            self.make_env()

    @override(EnvRunner)
    def make_env(self) -> None:
        """Makes the populations and the opponents; closes earlier populations."""
        self.stop()
        self.num_envs = self.config.num_envs_per_env_runner
        self._watch_steps = self._has_callback("on_episode_step")
        events = ("created", "start", "step", "end")
        self._watch_episodes = any(self._has_callback(f"on_episode_{event}") for event in events)
        parts = parts_of_runner(self.config, self._players, self.groups, self._generator)
        each = self.num_envs // len(parts)
        self._samplers = {
            mine: Sampler(
                functools.partial(self._make_population, first=number * each),
                each,
                casts,
                [self._seed, number] if number and self._seed is not None else self._seed,
                self.config.restart_failed_sub_environments,
                choose,
                functools.partial(self._on_event, mine, number * each),
            )
            for number, (mine, casts, choose) in enumerate(parts)
        }
        self._sampler = next(iter(self._samplers.values()))
        opponents = self.config.evaluation_opponents if self.config.in_evaluation else {}
        self.matches = Matches(
            {name: load_opponent(name, spec, self.groups) for name, spec in opponents.items()},
            self.config.evaluation_random_steps,
            self.worker_index,
        )
        self.env = self._sampler.populations[0]

    @override(EnvRunner)
    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """The spaces of every module, and under `__env__` those of the groups."""
        return spaces_of_modules(self.config)

    @override(EnvRunner)
    def assert_healthy(self) -> None:
        assert self._sampler is not None

    @override(EnvRunner)
    def stop(self) -> None:
        for sampler in self._samplers.values():
            sampler.close()

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over weights, the count of steps, and (the local runner) the state of the draws."""
        if COMPONENT_RL_MODULE in state:
            number = state.get(names.WEIGHTS_SEQ_NO, 0)
            # Weights of a smaller number are taken, too: older ones may be restored.
            if number == 0 or number != self._weights_seq_no:
                weights = state[COMPONENT_RL_MODULE]
                weights = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
                self.module.set_state(weights)
                self._weights_seq_no = number
        if self._opponent is not None and OPPONENT in state:
            if state[OPPONENT_NUMBER] != self._opponent_number:
                self._opponent.set_state(state[OPPONENT])
            self._opponent_number = state[OPPONENT_NUMBER]
        if names.NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[names.NUM_ENV_STEPS_SAMPLED_LIFETIME]
        # Only the local runner restores its generator: others must not all draw the same numbers.
        if "generator" in state and self.worker_index == 0:
            self._generator.set_state(torch.from_numpy(np.array(state["generator"])))

    def _progress(self) -> dict[str, Any]:
        """The state without the weights."""
        return {
            names.NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime,
            "generator": self._generator.get_state().numpy(),
        }

    @override(EnvRunner)
    def sample(
        self,
        *,
        num_timesteps: float | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
        **kwargs: Any,
    ) -> list[FragmentBatch]:
        """Plays on, or plays whole episodes from a fresh start.

        Args:
            num_timesteps: environment steps over all populations, or rows if `count_steps_by` says
                so, rounded up to whole rounds; by default `rollout_fragment_length` times the
                number of populations.
            num_episodes: exactly so many whole episodes instead; with `evaluation_opponents`,
                so many matches against each.
            explore: draw actions from the Boltzmann policy, else greedy; default is the config's.
            random_actions: uniform actions.
            force_reset: start all episodes anew.
            **kwargs: accepted for RLlib's other callers.

        Returns:
            One `FragmentBatch`; in evaluation it holds no columns. With an opponent in
            `self_play` one for each group that the learner plays, without the opponent's rows.

        Raises:
            ValueError: this runner has no environment.
            PopulationError: the environment gave something that nothing can be learned from.
        """
        if self._sampler is None:
            raise ValueError(
                "this env runner has no environment; set evaluation_interval or "
                "create_env_on_local_worker=True to sample locally when num_env_runners > 0."
            )
        self._explore = bool(self.config.explore if explore is None else explore)
        self._random_actions = random_actions
        try:
            with self.metrics.log_time(names.SAMPLE_TIMER):
                fragments = self._play_fragments(num_timesteps, num_episodes, force_reset)
        except Exception as error:
            if not (self.config.in_evaluation and self.worker_index):
                raise
            # It would only restart the actor, so `MFQ.evaluate` takes and raises it. Until then
            # RLlib must not ask for the episodes again: they are reported as done.
            self._failure = failure_of(error)
            self.metrics.log_value(names.NUM_EPISODES, num_episodes or 0, reduce="sum")
            nothing = Fragment({}, math.ceil(num_timesteps or 0), {}, [])
            return [FragmentBatch(nothing, self._weights_seq_no)]
        for fragment in fragments.values():
            if self.config.in_evaluation and not self.matches.opponents:
                figures = (episode_figures(e, self.modules) for e in fragment.episodes)
                log_figures(self.metrics, figures)
            self.num_env_steps_sampled_lifetime += fragment.env_steps
            log_counters(self.metrics, fragment, self.modules)
            self.metrics.log_value(names.WEIGHTS_SEQ_NO, self._weights_seq_no, reduce="max")
        return [FragmentBatch(f, self._weights_seq_no, mine) for mine, f in fragments.items()]

    def take_failure(self) -> Failure | None:
        """The failure of the evaluation so far, once."""
        failure, self._failure = self._failure, None
        return failure

    def _play_fragments(
        self, num_timesteps: float | None, num_episodes: int | None, force_reset: bool
    ) -> dict[str | None, Fragment]:
        """A fragment of every sampler, by the group that the learner plays in it."""
        keep = not self.config.in_evaluation
        if self.matches.opponents:
            assert self._sampler is not None
            matches = self.num_envs if num_episodes is None else num_episodes
            asked = (self._players(), matches, self._generator)
            return {None: self.matches.play(self._sampler, *asked, self.metrics)}
        length = self.config.get_rollout_fragment_length(self.worker_index)
        asked_for = num_timesteps or length * self.num_envs
        if self.config.count_steps_by == "agent_steps":
            amount = {"num_rows": math.ceil(asked_for / len(self._samplers))}
        else:
            amount = {"num_steps": math.ceil(asked_for / self.num_envs)}
        fragments = {}
        for number, (mine, sampler) in enumerate(self._samplers.items()):
            if num_episodes is None:
                fragment = sampler.sample(**amount, fresh=force_reset, keep=keep)
            elif share := len(range(number, num_episodes, len(self._samplers))):
                fragment = sampler.sample(num_episodes=share, keep=keep)
            else:
                continue
            learned = self.modules if mine is None else {mine: self.modules[mine]}
            for name in fragment.columns.keys() - learned.values():
                del fragment.columns[name]  # nobody learns from what the opponent does
            fragment.agent_steps = {g: fragment.agent_steps[g] for g in learned}
            fragments[mine] = fragment
        return fragments

    def _context(self, index: int) -> EnvContext:
        env_config = self.config.env_config
        return EnvContext(env_config, self.worker_index, index, num_workers=self.num_workers)

    def _make_population(self, index: int, first: int) -> Population:
        return as_population(self._env_creator(self._context(first + index)))

    def _players(self, mine: str | None = None) -> dict[str, Player]:
        """Every group played by its module, or all groups but `mine` by the opponent's."""
        players = {}
        for group, module_id in self.modules.items():
            theirs = self._opponent if mine not in (None, group) else None
            module = (self.module if theirs is None else theirs)[module_id].unwrapped()
            act = functools.partial(self._act, module)
            name = module_id if theirs is None else f"{OPPONENT}/{module_id}"
            alone = module.shared_exploration is None or self.config.in_evaluation
            players[group] = module.player(name, act, None if alone else act)
        return players

    def _act(
        self,
        module: MFQTorchRLModule,
        obs: Array,
        means: Array,
        mask: Array | None,
        *crowd: Array,
        **carried: Any,
    ) -> Any:
        if not self._random_actions:
            carried |= {"explore": self._explore, "generator": self._generator}
            return module.act(obs, means, mask, *crowd, **carried)
        actions = random_actions(len(obs), int(module.action_space.n), mask, self._generator)
        if not carried:
            return actions
        return actions, module.act(obs, means, mask, explore=False, **carried)[1]

    def _on_event(self, mine: str | None, first: int, event: str, episode: Episode) -> None:
        if mine is not None:
            episode.custom_data["mine"] = mine  # as in matches of an evaluation
        if event == "created" and self._watch_episodes:
            episode.keep_agent_returns(True)
        if event != "step" or self._watch_steps:
            self._fire(
                f"on_episode_{event}",
                episode=episode,
                env=self._samplers[mine].populations[episode.env_index],
                env_index=first + episode.env_index,
                rl_module=self.module,
            )
        if event == "end":
            episode.keep_agent_returns(False)  # the driver, which gets the episode, needs none

    def _has_callback(self, name: str) -> bool:
        return getattr(self.config, f"callbacks_{name}") is not None or any(
            getattr(type(each), name) is not getattr(RLlibCallback, name)
            for each in self._callbacks
        )

    def _fire(self, name: str, **kwargs: Any) -> None:
        make_callback(
            name,
            callbacks_objects=self._callbacks,
            callbacks_functions=getattr(self.config, f"callbacks_{name}"),
            kwargs={"env_runner": self, "metrics_logger": self.metrics, **kwargs},
        )


class MFQEnvRunner(PopulationRunner, Checkpointable):
    """Steps populations; `config` is an `MFQConfig`, `env_creator` takes an `EnvContext`."""

    def __init__(self, *, config: Any, env_creator: Any, **kwargs: Any) -> None:
        EnvRunner.__init__(self, config=config, **kwargs)
        self.worker_index: int = kwargs.get("worker_index") or 0
        self.config.resolve_groups(lambda: as_population(env_creator(self._context(0))))
        self._begin(env_creator, [make() for make in force_list(self.config.callbacks_class)])

    @override(EnvRunner)
    def make_module(self) -> None:
        spec = self.config.get_multi_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build()

    @override(EnvRunner)
    def make_env(self) -> None:
        super().make_env()
        self._fire("on_environment_created", env=self.env, env_context=self._context(0))

    @override(PopulationRunner)
    def sample(self, **kwargs: Any) -> list[FragmentBatch]:
        """See `PopulationRunner.sample`."""
        samples = super().sample(**kwargs)
        self._fire("on_sample_end", samples=samples)
        return samples

    @override(EnvRunner)
    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    @override(Checkpointable)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        state = self._progress()
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            parts = {"components": components, "not_components": not_components}
            parts = {k: self._get_subcomponents(COMPONENT_RL_MODULE, v) for k, v in parts.items()}
            state[COMPONENT_RL_MODULE] = self.module.get_state(**parts, **kwargs)
            state[names.WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"config": self.config, "env_creator": self._env_creator}

    @override(Checkpointable)
    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        return [(COMPONENT_RL_MODULE, self.module)]
