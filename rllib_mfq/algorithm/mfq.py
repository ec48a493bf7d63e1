"""MFQ: the algorithm that RLlib and Tune run."""

import copy
import logging
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.utils import force_list
from ray.rllib.utils import metrics as names
from ray.rllib.utils.annotations import override

from rllib_mfq.algorithm import checkpoint, figures
from rllib_mfq.algorithm.casting import shares_won
from rllib_mfq.algorithm.checksums import check_files
from rllib_mfq.algorithm.config import MFQConfig
from rllib_mfq.algorithm.divergence import check_weights
from rllib_mfq.algorithm.environment import env_creator, probe
from rllib_mfq.algorithm.evaluation import EvaluatingAlgorithm
from rllib_mfq.algorithm.fragment_batch import FragmentBatch
from rllib_mfq.algorithm.learner_memories import LearnerMemories, update
from rllib_mfq.algorithm.opponents import check_opponents
from rllib_mfq.algorithm.replay import check_fits_this_node, trained_modules
from rllib_mfq.algorithm.roster import modules_of_groups, try_networks
from rllib_mfq.algorithm.sampling import Runners
from rllib_mfq.algorithm.self_play import KINDS, Weights, self_play_settings
from rllib_mfq.population.population import close

logger = logging.getLogger(__name__)

SELF_PLAY = "self_play"


class MFQ(EvaluatingAlgorithm):
    """Mean field Q-learning (Yang et al., ICML 2018, "Algorithm 1").

    A training step takes the fragments that are ready, gives each to the memories of one learner,
    and makes as many updates as `training_intensity` asks for. With remote env runners, the next
    fragments are under way while the learners learn. The rows stay in the object stores of runners
    and learners: of remote ones this process sees only counts, episodes and weights.
    """

    _get_env_id_and_creator = staticmethod(env_creator)

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> MFQConfig:
        return MFQConfig()

    @override(Algorithm)
    def setup(self, config: MFQConfig) -> None:
        config.stack.adapt(self)
        config = config.copy(copy_frozen=False)
        config.groups = None  # it may have been used before, with another environment
        config.resolve_groups(lambda: probe(self.env_creator, config.env_config))
        try_networks(config)
        check_fits_this_node(config)
        if config.opponents:
            population = probe(self.env_creator, config.env_config)
            try:
                check_opponents(config.opponents, population, str(config.env))
            finally:
                close(population)
        config.freeze()
        self.config = config
        self._modules = modules_of_groups(config)
        self._agent_steps = 0
        self._rounds = 0  # calls of the learner, which number the weights
        self._put: tuple[Any, ray.ObjectRef] | None = None  # the state of runners, and its numbers
        self._owed = 0.0  # updates that the rows sampled so far ask for, not yet made
        self._episodes: deque[figures.Figures] = deque(
            maxlen=config.metrics_num_episodes_for_smoothing
        )
        self._step_began = time.time()
        self._latest, self._fresh = {}, set()
        # As Ray does for actors. With torch's default, all cores, a thread waits for cores that
        # others use: beside one busy process on two cores it is 17 times slower than one thread.
        torch.set_num_threads(max(1, int(config.num_cpus_for_main_process)))
        try:
            super().setup(config)
        except IndexError:  # no remote runner could be made, and RLlib only logs why
            if config.num_env_runners:
                probe(self.env_creator, config.env_config, worker_index=1)  # raises the same
            raise
        self._begin()

    @override(Algorithm)
    def __repr__(self) -> str:
        # RLlib's own fails before the config is set, and hides the error that Ray wants to report.
        return type(self).__name__ if self.config is None else super().__repr__()

    def _begin(self) -> None:
        """Makes what needs RLlib's part of the algorithm: memories and self-play."""
        config = self.config
        self._runners = Runners(self.env_runner_group, config, self.metrics)
        self._memories = LearnerMemories(self.learner_group, trained_modules(config))
        self._ready: list[str] = []  # the modules that learn by now
        self._late: set[str] = set()  # those that others did not wait for
        window = config.metrics_num_episodes_for_smoothing
        settings = self_play_settings(config.self_play)
        kind = KINDS[settings["opponent"]]
        self._self_play = kind(settings, config.seed, window, self._learner_weights)
        self.env_runner_group.local_env_runner.set_state(self._self_play.for_runners())

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        """One iteration; evaluation and learner results stay until there are newer ones."""
        self._fresh.clear()
        self._step_began, config = time.time(), self.config
        self._runners.failures.begin()
        results: dict[str, Any] = super().step()
        self.config = config  # see `_train_once`
        for key in self._fresh:
            self._latest[key] = figures.keep_known(results[key], self._latest.get(key, {}))
        return figures.shown_first(results | self._latest)

    @override(Algorithm)
    def add_module(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as are `remove_module`, `add_policy` and `remove_policy`."""
        raise NotImplementedError(
            "MFQ adds and removes no modules during a run, for each plays whole groups from the "
            "start to the end; for a league set self_play to {'opponent': 'pool'}."
        )

    remove_module = add_policy = remove_policy = add_module

    @override(Algorithm)
    def training_step(self) -> Any:
        self._train_once()

    def _train_once(self) -> tuple[list[FragmentBatch], int]:
        """Samples and learns; returns the fragments and how many updates were made."""
        local = self.env_runner_group.local_env_runner
        with self.metrics.log_time((names.TIMERS, names.ENV_RUNNER_SAMPLING_TIMER)):
            started = time.perf_counter()
            played = self._runners.collect(self._state_for_runners)
        self._runners.request(self._state_for_runners)  # they sample while we learn
        arrived = self._memories.give(played)
        batches = [batch for fragments in arrived for batch in fragments]
        for batch in batches:
            self._agent_steps += batch.agent_steps()
            self._episodes += [
                figures.episode_figures(each, self._modules) for each in batch.episodes
            ]
        updates = self._updates_owed(batches)
        if updates:
            with self.metrics.log_time((names.TIMERS, names.LEARNER_UPDATE_TIMER)):
                self._learn(updates)
            self._runners.learned += len(arrived)
            local.set_state(self._weights())
        self._self_play.end_matches(shares_won(batches, self._self_play.KIND), self._agent_steps)
        local.set_state(self._self_play.for_runners())
        rows = sum(batch.agent_steps() for batch in batches)
        self._log(rows, updates, time.perf_counter() - started, len(played) - len(arrived))
        limit, seconds = self.config.time_limit_s, time.time() - self._step_began
        if limit is not None and self._time_total + seconds >= limit:  # RLlib asks the config
            self.config = self.config.without_minima()
        return batches, updates

    def _state_for_runners(self) -> ray.ObjectRef:
        """Everything that a runner, which may have been restarted, needs to play."""
        numbers = (self._rounds, self._self_play.number)
        if self._put is None or self._put[0] != numbers:
            self._put = numbers, ray.put(self._weights() | self._self_play.for_runners())
        return self._put[1]

    def _weights(self) -> dict[str, Any]:
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        return {key: state[key] for key in (COMPONENT_RL_MODULE, names.WEIGHTS_SEQ_NO)}

    def _learner_weights(self) -> Weights:
        return self._weights()[COMPONENT_RL_MODULE]

    def _updates_owed(self, batches: list[FragmentBatch]) -> int:
        """How many updates are due; each trains a batch of every module that has enough rows."""
        config = self.config
        self._ready = self._memories.ready(config.num_steps_sampled_before_learning_starts)
        if not self._ready:
            return 0
        late = self._memories.modules - {*self._ready}
        if late - self._late:  # said once of each
            self._late |= late
            logger.warning("Modules with too few rows to learn from yet: %s.", sorted(late))
        rows = sum(
            steps
            for batch in batches
            for group, steps in batch.steps_of_groups.items()
            if self._modules[group] in self._ready
        )
        per_update = config.total_train_batch_size * len(self._ready)
        self._owed += config.training_intensity * rows / per_update
        updates = int(self._owed)
        self._owed -= updates
        return updates

    def _learn(self, updates: int) -> None:
        """Makes every learner learn from so many batches of its memories, in one call."""
        env_steps = (names.ENV_RUNNER_RESULTS, names.NUM_ENV_STEPS_SAMPLED_LIFETIME)
        timesteps = {
            names.NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(env_steps, default=0),
            names.NUM_AGENT_STEPS_SAMPLED_LIFETIME: self._agent_steps,
        }
        ready = self._memories.ready(self.config.num_steps_sampled_before_learning_starts)
        results = update(self.learner_group, timesteps=timesteps, updates=updates, modules=ready)
        self.metrics.aggregate(results, key=names.LEARNER_RESULTS)
        if self.config.count_steps_by == "agent_steps":  # RLlib counts them here, but logs none
            key = (names.LEARNER_RESULTS, names.NUM_AGENT_STEPS_TRAINED_LIFETIME)
            for module_id in self._ready:
                rows = updates * self.config.total_train_batch_size
                self.metrics.log_value((*key, module_id), rows, reduce="lifetime_sum")
        self._rounds += 1
        self._fresh.add(names.LEARNER_RESULTS)

    def _log(self, rows: int, updates: int, seconds: float, fragments_lost: int) -> None:
        log = self.metrics.log_value
        figures.log_recent(self.metrics, self._episodes)
        for name, value in self._self_play.figures().items():
            log((SELF_PLAY, *name), value, reduce="item")
        log("agent_steps_sampled_lifetime", self._agent_steps, reduce="item")
        log("agent_steps_per_second", rows / seconds, window=100)
        log("num_updates", updates, reduce="sum")
        log("replay_size", len(self._memories), reduce="item")
        log("num_fragments_lost_lifetime", fragments_lost, reduce="lifetime_sum")

    @override(Algorithm)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(
            components, not_components=not_components, **kwargs
        )
        # RLlib leaves components out when it saves them in folders; the memories have theirs.
        return state | (self._progress(not_components is None) if components is None else {})

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        self._set_memories(state)  # first, for it may raise
        super().set_state(state)
        self._set_progress(state)

    def _progress(self, with_memories: bool) -> dict[str, Any]:
        """What MFQ adds to RLlib's state."""
        counters = {"agent_steps": self._agent_steps, "owed": self._owed, "rounds": self._rounds}
        kept = {"episodes": list(self._episodes), SELF_PLAY: self._self_play.get_state()}
        kept["latest"] = self._latest
        keep = with_memories and self.config.store_replay_in_checkpoints
        return {checkpoint.PROGRESS: counters | kept} | (
            {checkpoint.REPLAY: [*self._memories.states()]} if keep else {}
        )

    def _set_memories(self, state: Mapping[str, Any]) -> None:
        """Restores memories that are in the state; one alone, as version 0.1 had it, or several."""
        states = force_list(state.get(checkpoint.REPLAY, []))
        if states:
            self._memories.set_states(states, len(states))

    def _set_progress(self, state: dict[str, Any]) -> None:
        self._put = None
        if checkpoint.PROGRESS in state:
            progress = state[checkpoint.PROGRESS]
            self._agent_steps, self._owed = progress["agent_steps"], progress["owed"]
            self._rounds = progress["rounds"]
            self._episodes.clear()
            self._episodes += progress["episodes"]
            if self.config.evaluation_interval:
                self._latest = copy.deepcopy(progress.get("latest", {}))
            self._self_play.set_state(progress.get(SELF_PLAY, {}))
            self.env_runner_group.local_env_runner.set_state(self._self_play.for_runners())

    @override(Algorithm)
    def save_to_path(
        self, path: str | Path | None = None, *, filesystem: Any = None, **kwargs: Any
    ) -> str:
        """As RLlib's, with a file of each learner's memory if they are stored.

        It gets what `checkpoint.finish` adds, too. Raises Diverged, and writes nothing, if the
        networks are not finite.
        """
        if path is not None and checkpoint.is_remote(path, filesystem):
            with tempfile.TemporaryDirectory() as folder:
                checkpoint.upload(self.save_to_path(folder, **kwargs), path, filesystem)
            return str(path)
        check_weights(self._learner_weights())
        folder = str(super().save_to_path(path, **kwargs))
        if self.config.store_replay_in_checkpoints and kwargs.get("state") is None:
            checkpoint.save_memories(folder, self._memories.states())
        self._finish(folder)
        return folder

    def _finish(self, folder: str) -> None:
        modules = dict(self.env_runner.module.items())
        checkpoint.finish(Path(folder), modules, self._learner_weights(), self.config)

    @classmethod
    @override(Algorithm)
    def from_checkpoint(cls, path: str | Path, filesystem: Any = None, **kwargs: Any) -> "MFQ":
        """As RLlib's; raises a ValueError if a file of the checkpoint is damaged."""
        with checkpoint.downloaded(path, filesystem) as folder:
            check_files(folder)
            return super().from_checkpoint(folder, **kwargs)

    @override(Algorithm)
    def restore_from_path(self, path: str | Path, *, filesystem: Any = None, **kwargs: Any) -> None:
        with checkpoint.downloaded(path, filesystem) as folder:
            self._before_restore(folder, kwargs)
            super().restore_from_path(folder, **kwargs)
            files = [] if kwargs.get("component") else checkpoint.memory_files(folder)
            if files:
                self._memories.set_states(map(checkpoint.load_memories, files), len(files))

    def _before_restore(self, folder: Path, kwargs: Mapping[str, Any]) -> None:
        if not kwargs:  # a whole one
            checkpoint.check_restorable(
                folder, dict(self.env_runner.module.items()), vars(self.config)
            )
        # The fragments under way belong to the run before it is restored.
        self._runners.drain()


MFQConfig.algorithm = MFQ
