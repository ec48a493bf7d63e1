"""What the runners of both API stacks share: populations, players, figures and state."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import NUM_ENV_STEP_FAILURES_LIFETIME
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
    SAMPLE_TIMER,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.typing import StateDict

from rllib_mfq.algorithm.episodes import episode_figures, match_figures
from rllib_mfq.algorithm.opponents import Opponent, load_opponent, random_actions
from rllib_mfq.algorithm.self_play import OPPONENT, OPPONENT_NUMBER
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.fragment import Episode, Fragment
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Array, Population, PopulationError
from rllib_mfq.population.sampler import Sampler


class FragmentBatch(MultiAgentBatch):
    """What `sample()` returns: the columns of every module, and the episodes that ended.

    The columns are views of memory that the runner's next `sample()` overwrites.

    Attributes:
        mine: the group that the learner played, where `self_play` has an opponent; the rows of
            the other group are left out. None if the learner played all groups.
    """

    def __init__(self, fragment: Fragment, weights_seq_no: int, mine: str | None = None) -> None:
        batches = {name: SampleBatch(columns) for name, columns in fragment.columns.items()}
        super().__init__(batches, fragment.env_steps)
        self.steps_of_groups = fragment.agent_steps
        self.episodes = fragment.episodes
        self.weights_seq_no = weights_seq_no
        self.mine = mine

    @override(MultiAgentBatch)
    def agent_steps(self) -> int:
        """The rows with `loss_mask`."""
        return sum(self.steps_of_groups.values())


class PopulationRunner:
    """Plays populations with the modules in `module`.

    The part of a runner that is the same on both API stacks. A subclass is also one of RLlib's
    runners, which gives it `config`, `metrics` and the other attributes below; it calls `_begin`
    when it has them.
    """

    config: Any
    metrics: MetricsLogger
    worker_index: int
    num_workers: int
    module: MultiRLModule
    _seed: int | None

    def _begin(self, env_creator: Any, callbacks: list[RLlibCallback]) -> None:
        """Makes the modules and, unless this runner only stands for remote ones, the envs."""
        self._env_creator = env_creator
        self._callbacks = callbacks
        self.error: PopulationError | None = None
        self._weights_seq_no = 0
        self._sampler: Sampler | None = None  # the first of `_samplers`
        self._samplers: dict[str | None, Sampler] = {}
        self._matches_played = 0
        self._explore = bool(self.config.explore)
        self._random_actions = False
        self._generator = torch.Generator()
        if self._seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self._seed)
        self.groups = self.config.groups
        self.modules = self.config.modules_of_groups()
        self.make_module()
        # Who plays against the learner, one module for each of its own; None if it does itself.
        self._rival = copy.deepcopy(self.module) if self.config.has_opponent else None
        self._rival_number = 0
        self.num_envs = 0
        remote = self.worker_index > 0
        if remote or self.config.num_env_runners == 0 or self.config.create_env_on_local_worker:
            self.make_env()

    def make_module(self) -> None:
        """Makes `module`."""
        raise NotImplementedError

    def make_env(self) -> None:
        """Makes the populations and the opponents, closing those of before."""
        self.stop()
        self.num_envs = self.config.num_envs_per_env_runner
        watched = any(
            type(callback).on_episode_step is not RLlibCallback.on_episode_step
            for callback in self._callbacks
        )
        self._watch_steps = watched or self.config.callbacks_on_episode_step is not None
        # By the group that the learner plays: with an opponent it plays each in half of the
        # populations, so that it learns both and no episode is cut to change sides.
        sides: list[str | None] = [None] if self._rival is None else list(self.groups)
        each = self.num_envs // len(sides)
        self._samplers = {
            mine: Sampler(
                functools.partial(self._make_population, first=number * each),
                each,
                self._players(mine),
                [self._seed, number] if number and self._seed is not None else self._seed,
                self.config.restart_failed_sub_environments,
                functools.partial(self._on_event, mine, number * each),
            )
            for number, mine in enumerate(sides)
        }
        self._sampler = self._samplers[sides[0]]
        self._opponents: dict[str, Opponent] = {
            name: load_opponent(name, spec, self.groups)
            for name, spec in self.config.evaluation_opponents.items()
            if self.config.in_evaluation
        }
        self.env = self._sampler.populations[0]

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """The spaces of every module, and under `__env__` those of the groups."""
        return self.config.spaces_of_modules()

    def assert_healthy(self) -> None:
        """Raises an AssertionError if there is nothing to sample from."""
        assert self._sampler is not None

    def stop(self) -> None:
        """Closes the populations."""
        for sampler in self._samplers.values():
            sampler.close()

    def set_state(self, state: StateDict) -> None:
        """Takes over weights, the count of steps, and (the local runner) the draws to come."""
        if COMPONENT_RL_MODULE in state:
            weights = state[COMPONENT_RL_MODULE]
            number = state.get(WEIGHTS_SEQ_NO, 0)
            # Another number, not only a greater one: older weights may be restored.
            if number == 0 or number != self._weights_seq_no:
                self.module.set_state(
                    ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
                )
                self._weights_seq_no = number
        if self._rival is not None and OPPONENT in state:
            if state[OPPONENT_NUMBER] != self._rival_number:
                self._rival.set_state(state[OPPONENT])
            self._rival_number = state[OPPONENT_NUMBER]
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]
        # The draws of one runner, not of all: a state that goes to several has no generator.
        if "generator" in state and self.worker_index == 0:
            self._generator.set_state(torch.from_numpy(np.array(state["generator"])))

    def _progress(self) -> StateDict:
        """The state without the weights."""
        return {
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime,
            "generator": self._generator.get_state().numpy(),
        }

    def _play(
        self,
        num_timesteps: float | None,
        num_episodes: int | None,
        explore: bool | None,
        random_actions: bool,
        force_reset: bool,
    ) -> list[FragmentBatch]:
        """`sample()` of both stacks; see `MFQEnvRunner.sample` for the arguments."""
        if self._sampler is None:
            raise ValueError(
                "this env runner has no environment; set evaluation_interval or "
                "create_env_on_local_worker=True to sample locally when num_env_runners > 0."
            )
        self._explore = bool(self.config.explore if explore is None else explore)
        self._random_actions = random_actions
        evaluating = self.config.in_evaluation
        try:
            with self.metrics.log_time(SAMPLE_TIMER):
                fragments = self._play_fragments(num_timesteps, num_episodes, force_reset)
        except PopulationError as error:
            if not (evaluating and self.worker_index):
                raise
            # Raised here it would only restart this actor: `MFQ.evaluate` asks for it and raises
            # it. Until then, all that was wanted counts as done, or RLlib would want it again.
            self.error = error
            self.metrics.log_value(NUM_EPISODES, num_episodes or 0, reduce="sum")
            nothing = Fragment({}, math.ceil(num_timesteps or 0), {}, [])
            return [FragmentBatch(nothing, self._weights_seq_no)]
        for fragment in fragments.values():
            if evaluating and not self._opponents:
                self._log_figures(episode_figures(e, self.modules) for e in fragment.episodes)
            self._log_counters(fragment)
        return [FragmentBatch(f, self._weights_seq_no, mine) for mine, f in fragments.items()]

    def _play_fragments(
        self, num_timesteps: float | None, num_episodes: int | None, force_reset: bool
    ) -> dict[str | None, Fragment]:
        """A fragment of every sampler, by the group that the learner plays in it."""
        keep = not self.config.in_evaluation
        if self._opponents:
            return {None: self._play_matches(num_episodes or self.num_envs)}
        length = self.config.get_rollout_fragment_length(self.worker_index)
        steps = math.ceil((num_timesteps or length * self.num_envs) / self.num_envs)
        fragments = {}
        for number, (mine, sampler) in enumerate(self._samplers.items()):
            if num_episodes is None:
                fragment = sampler.sample(num_steps=steps, fresh=force_reset, keep=keep)
            else:
                share = len(range(number, num_episodes, len(self._samplers)))
                if not share:
                    continue
                fragment = sampler.sample(num_episodes=share, keep=keep)
            if mine is not None:  # nobody learns from what the opponent does
                module_id = self.modules[mine]
                fragment.columns = {module_id: fragment.columns[module_id]}
                fragment.agent_steps = {mine: fragment.agent_steps[mine]}
            fragments[mine] = fragment
        return fragments

    def _context(self, index: int) -> EnvContext:
        return EnvContext(
            self.config.env_config,
            worker_index=self.worker_index,
            vector_index=index,
            num_workers=self.num_workers,
        )

    def _make_population(self, index: int, first: int = 0) -> Population:
        return as_population(self._env_creator(self._context(first + index)))

    def _players(self, mine: str | None = None) -> dict[str, Player]:
        """Every group played by its module, or all but `mine` by the opponent's."""
        players = {}
        for group, module_id in self.modules.items():
            theirs = mine is not None and group != mine
            modules = self._rival if theirs and self._rival is not None else self.module
            act = functools.partial(self._act, modules, module_id)
            module = modules[module_id].unwrapped()
            players[group] = Player(
                f"{OPPONENT}/{module_id}" if theirs else module_id,
                act,
                module.neighborhood,
                module.mean_action_iterations,
                None if module.shared_exploration is None else act,
            )
        return players

    def _act(
        self,
        modules: MultiRLModule,
        module_id: str,
        obs: Array,
        mean_actions: Array,
        action_mask: Array | None,
        crowd: Array | None = None,
    ) -> Array:
        module = modules[module_id].unwrapped()
        if self._random_actions:
            mask = (
                np.ones((len(obs), module.action_space.n), bool)
                if action_mask is None
                else action_mask
            )
            return random_actions(mask, self._generator)
        chosen: Array = module.act(
            obs,
            mean_actions,
            action_mask,
            explore=self._explore,
            generator=self._generator,
            crowd=None if self.config.in_evaluation else crowd,
        )
        return chosen

    def _play_matches(self, num_matches: int) -> Fragment:
        """Plays every opponent on both sides; equally often if `num_matches` is even."""
        assert self._sampler is not None
        played = Fragment({}, 0, dict.fromkeys(self.groups, 0), [])
        for name, opponent in self._opponents.items():
            for side, mine in enumerate(self.groups):
                # An odd number favours one side; the next evaluation favours the other.
                share = (num_matches + (side + self._matches_played) % 2) // 2
                if not share:
                    continue
                rivals = opponent.players(self._generator)
                self._sampler.assign(rivals | {mine: self._players()[mine]})
                part = self._sampler.sample(num_episodes=share, keep=False)
                for episode in part.episodes:
                    episode.custom_data["mine"] = mine
                self._log_figures(match_figures(e, mine, name) for e in part.episodes)
                played.env_steps += part.env_steps
                played.episodes += part.episodes
                played.failures += part.failures
                for group, steps in part.agent_steps.items():
                    played.agent_steps[group] += steps
        self._matches_played += num_matches
        self._sampler.assign(self._players())
        return played

    def _log_figures(self, figures: Iterable[Mapping[tuple[str, ...], float]]) -> None:
        for episode in figures:
            for key, value in episode.items():
                self.metrics.log_value(key, value, reduce=_reduction(key[0]), window=10_000)

    def _log_counters(self, fragment: Fragment) -> None:
        log = self.metrics.log_value
        steps = fragment.env_steps
        self.num_env_steps_sampled_lifetime += steps
        log(NUM_ENV_STEPS_SAMPLED, steps, reduce="sum")
        log(NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True)
        per_module = dict.fromkeys(self.modules.values(), 0)
        for group, rows in fragment.agent_steps.items():
            per_module[self.modules[group]] += rows
            log((NUM_AGENT_STEPS_SAMPLED, group), rows, reduce="sum")
            log((NUM_AGENT_STEPS_SAMPLED_LIFETIME, group), rows, reduce="lifetime_sum")
        for module_id, rows in per_module.items():
            log((NUM_MODULE_STEPS_SAMPLED, module_id), rows, reduce="sum")
            log((NUM_MODULE_STEPS_SAMPLED_LIFETIME, module_id), rows, reduce="lifetime_sum")
        log(NUM_EPISODES, len(fragment.episodes), reduce="sum")
        log(NUM_EPISODES_LIFETIME, len(fragment.episodes), reduce="lifetime_sum")
        log(NUM_ENV_STEP_FAILURES_LIFETIME, fragment.failures, reduce="lifetime_sum")
        log(WEIGHTS_SEQ_NO, self._weights_seq_no, reduce="max")

    def _on_event(self, mine: str | None, first: int, event: str, episode: Episode) -> None:
        if mine is not None:
            episode.custom_data["mine"] = mine  # as in matches of an evaluation
        if event != "step" or self._watch_steps:
            self._fire(
                f"on_episode_{event}",
                episode=episode,
                env=self._samplers[mine].populations[episode.env_index],
                env_index=first + episode.env_index,
                rl_module=self.module,
            )

    def _fire(self, name: str, **kwargs: Any) -> None:
        make_callback(
            name,
            callbacks_objects=self._callbacks,
            callbacks_functions=getattr(self.config, f"callbacks_{name}"),
            kwargs={"env_runner": self, "metrics_logger": self.metrics, **kwargs},
        )


def _reduction(name: str) -> str:
    return "min" if name.endswith("_min") else "max" if name.endswith("_max") else "mean"
