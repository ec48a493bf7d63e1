"""MFQ: the algorithm that RLlib and Tune run."""

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils import force_list
from ray.rllib.utils import metrics as names
from ray.rllib.utils.annotations import override

from rllib_mfq.algorithm.checkpoint import PROGRESS, REPLAY, check_restorable, finish
from rllib_mfq.algorithm.checksums import check_files
from rllib_mfq.algorithm.config import MFQConfig
from rllib_mfq.algorithm.divergence import check_weights
from rllib_mfq.algorithm.environment import env_creator, probe
from rllib_mfq.algorithm.figures import Figures, episode_figures, keep_known, log_recent
from rllib_mfq.algorithm.fragment_batch import FragmentBatch
from rllib_mfq.algorithm.opponents import load_opponent
from rllib_mfq.algorithm.roster import is_trained, modules_of_groups, try_networks
from rllib_mfq.algorithm.self_play import KINDS, Weights, self_play_settings
from rllib_mfq.population.population import PopulationError
from rllib_mfq.replay.memory import Memories, ReplayMemory

SELF_PLAY = "self_play"
SAMPLE = "sample"  # tag of the requests for fragments


def _sample(runner: Any, state: dict[str, Any] | None = None) -> Any:
    """One fragment and the metrics; or, as a value, the error that the environment caused."""
    if state is not None:
        runner.set_state(state)
    try:
        samples = runner.sample()
    except PopulationError as error:
        return error  # an error that is raised in a runner only restarts the runner
    return samples, runner.metrics.reduce()


class MFQ(Algorithm):
    """Mean field Q-learning (Yang et al., ICML 2018, "Algorithm 1").

    A training step takes one fragment from every env runner, adds it to the memory of each
    module, and makes as many updates as `training_intensity` asks for. With remote env
    runners, the next fragment is under way while the learner learns from the last one.
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
        for name, spec in config.evaluation_opponents.items():
            load_opponent(name, spec, config.groups or {})
        config.freeze()
        self.config = config
        self._modules = modules_of_groups(config)
        self._agent_steps = 0
        self._rounds = 0  # calls of the learner, which number the weights
        self._owed = 0.0  # updates that the rows sampled so far ask for, not yet made
        self._episodes: deque[Figures] = deque(maxlen=config.metrics_num_episodes_for_smoothing)
        self._latest: dict[str, Any] = {}  # results that are not made in every iteration
        self._fresh: set[str] = set()  # which of them this iteration makes
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
        self._memories = Memories()
        for index, module_id in enumerate(sorted(set(self._modules.values()))):
            if is_trained(config, module_id):
                seed = None if config.seed is None else config.seed + index
                self._memories[module_id] = ReplayMemory(
                    config.replay_capacity, config.replay_obs_dtype, seed, config.n_step
                )
        window = config.metrics_num_episodes_for_smoothing
        settings = self_play_settings(config.self_play)
        kind = KINDS[settings["opponent"]]
        self._self_play = kind(settings, config.seed, window, self._learner_weights)
        self.env_runner_group.local_env_runner.set_state(self._self_play.for_runners())

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        """One iteration; evaluation and learner results stay until there are newer ones."""
        self._fresh.clear()
        results: dict[str, Any] = super().step()
        for key in self._fresh:
            self._keep(key, results[key])
        return results | self._latest

    @override(Algorithm)
    def add_module(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as are `remove_module`, `add_policy` and `remove_policy`."""
        raise NotImplementedError(
            "MFQ adds and removes no modules during a run, for each plays whole groups from the "
            "start to the end; for a league set self_play to {'opponent': 'pool'}."
        )

    remove_module = add_policy = remove_policy = add_module

    @override(Algorithm)
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As RLlib's; without `evaluation_interval`, too, it plays as `evaluation_config` says."""
        if self.eval_env_runner_group is None:  # type: ignore[has-type]
            # RLlib would let the runner that trains play, which explores and reports no returns.
            self.eval_env_runner_group = EnvRunnerGroup(
                env_creator=self.env_creator,
                default_policy_class=self.get_default_policy_class(self.config),
                config=self.evaluation_config,
                logdir=self.logdir,
            )
        results: dict[str, Any] = super().evaluate(*args, **kwargs)
        group = self.eval_env_runner_group
        if group is not None and group.num_remote_env_runners():
            for error in group.foreach_env_runner(lambda r: r.error, local_env_runner=False):
                if error is not None:
                    raise error
        self._keep(names.EVALUATION_RESULTS, results)
        self._fresh.add(names.EVALUATION_RESULTS)
        return results

    def _keep(self, key: str, results: dict[str, Any]) -> None:
        """Keeps results, to report them until there are newer ones."""
        self._latest[key] = keep_known(results, self._latest.get(key, {}))

    @override(Algorithm)
    def training_step(self) -> Any:
        self._train_once()

    def _train_once(self) -> tuple[list[FragmentBatch], int]:
        """Samples and learns; returns the fragments and how many updates were made."""
        local = self.env_runner_group.local_env_runner
        with self.metrics.log_time((names.TIMERS, names.ENV_RUNNER_SAMPLING_TIMER)):
            started = time.perf_counter()
            batches = self._collect()
        for batch in batches:
            self._agent_steps += batch.agent_steps()
            self._episodes += [episode_figures(each, self._modules) for each in batch.episodes]
            self._memories.add(batch.policy_batches, batch.links)
        if self.env_runner_group.num_remote_env_runners():
            self._request_fragments()  # they sample while we learn
        updates = self._updates_owed(batches)
        if updates:
            with self.metrics.log_time((names.TIMERS, names.LEARNER_UPDATE_TIMER)):
                self._learn(updates)
            local.set_state(self._weights())
        shares = [e.shares()[b.mine] for b in batches if b.mine is not None for e in b.episodes]
        self._self_play.end_round(shares, self._agent_steps)
        local.set_state(self._self_play.for_runners())
        rows = sum(batch.agent_steps() for batch in batches)
        self._log(rows, updates, time.perf_counter() - started)
        return batches, updates

    def _request_fragments(self) -> None:
        """Asks every idle remote runner for a fragment, played with the current weights."""
        group = self.env_runner_group
        if group.num_in_flight_async_reqs(SAMPLE) < group.num_healthy_remote_env_runners():
            # Everything that a runner, which may have been restarted, needs to play.
            state = self._weights() | self._self_play.for_runners()
            group.foreach_env_runner_async(_sample, tag=SAMPLE, kwargs={"state": state})

    def _fetch_fragments(self) -> list[tuple[int, Any]]:
        """Waits for the fragments under way, which no later call returns."""
        return self.env_runner_group.fetch_ready_async_reqs(
            tags=SAMPLE, timeout_seconds=self.config.sample_timeout_s
        )

    def _collect(self) -> list[FragmentBatch]:
        """One fragment from every env runner that has one to give.

        Raises the PopulationError of a runner.
        """
        if self.env_runner_group.num_remote_env_runners():
            self._request_fragments()
            fetched = sorted(self._fetch_fragments(), key=lambda pair: pair[0])
            results = [result for _, result in fetched]
        else:
            results = [_sample(self.env_runner_group.local_env_runner)]
        for result in results:
            if isinstance(result, PopulationError):
                raise result
        batches = [batch for samples, _ in results for batch in force_list(samples)]
        self.metrics.aggregate([metrics for _, metrics in results], key=names.ENV_RUNNER_RESULTS)
        for batch in batches:
            # A fragment is requested before the last fragment's updates are made, so its weights
            # are at most one round of updates old.
            self.metrics.log_value("weights_lag", self._rounds - batch.weights_seq_no, reduce="max")
        return batches

    def _weights(self) -> dict[str, Any]:
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        return {key: state[key] for key in (COMPONENT_RL_MODULE, names.WEIGHTS_SEQ_NO)}

    def _learner_weights(self) -> Weights:
        return self._weights()[COMPONENT_RL_MODULE]

    def _updates_owed(self, batches: list[FragmentBatch]) -> int:
        """How many updates are due; each trains a batch of every module that is trained."""
        config = self.config
        if not self._memories.have_been_given(config.num_steps_sampled_before_learning_starts):
            return 0
        rows = sum(
            steps
            for batch in batches
            for group, steps in batch.steps_of_groups.items()
            if self._modules[group] in self._memories
        )
        per_update = config.total_train_batch_size * len(self._memories)
        self._owed += config.training_intensity * rows / per_update
        updates = int(self._owed)
        self._owed -= updates
        return updates

    def _learn(self, updates: int) -> None:
        size, learners = self.config.total_train_batch_size, max(1, self.config.num_learners)
        # One call for all updates: RLlib's overhead per call is that of an update.
        batches = self._memories.sample(size * updates)
        env_steps = (names.ENV_RUNNER_RESULTS, names.NUM_ENV_STEPS_SAMPLED_LIFETIME)
        timesteps = {
            names.NUM_ENV_STEPS_SAMPLED_LIFETIME: self.metrics.peek(env_steps, default=0),
            names.NUM_AGENT_STEPS_SAMPLED_LIFETIME: self._agent_steps,
        }
        batch = MultiAgentBatch({m: SampleBatch(b) for m, b in batches.items()}, size * updates)
        results = self.learner_group.update(
            batch=batch, minibatch_size=size // learners, timesteps=timesteps
        )
        self.metrics.aggregate(results, key=names.LEARNER_RESULTS)
        self._rounds += 1
        self._fresh.add(names.LEARNER_RESULTS)

    def _log(self, rows: int, updates: int, seconds: float) -> None:
        log = self.metrics.log_value
        log_recent(self.metrics, self._episodes)
        for name, value in self._self_play.figures().items():
            log((SELF_PLAY, name), value, reduce="item")
        log("agent_steps_sampled_lifetime", self._agent_steps, reduce="item")
        log("agent_steps_per_second", rows / seconds, window=100)
        log("num_updates", updates, reduce="sum")
        log("replay_size", sum(len(m) for m in self._memories.values()), reduce="item")

    @override(Algorithm)
    def get_state(self, components: Any = None, **kwargs: Any) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state(components, **kwargs)
        return state | (self._progress() if components is None else {})

    @override(Algorithm)
    def set_state(self, state: dict[str, Any]) -> None:
        self._memories.set_state(state.get(REPLAY, {}))  # first, for it may raise
        super().set_state(state)
        self._set_progress(state)

    def _progress(self) -> dict[str, Any]:
        """What MFQ adds to RLlib's state."""
        counters = {"agent_steps": self._agent_steps, "owed": self._owed, "rounds": self._rounds}
        kept = {"episodes": list(self._episodes), SELF_PLAY: self._self_play.get_state()}
        keep = self.config.store_replay_in_checkpoints
        return {PROGRESS: counters | kept} | ({REPLAY: self._memories.get_state()} if keep else {})

    def _set_progress(self, state: dict[str, Any]) -> None:
        if PROGRESS in state:
            progress = state[PROGRESS]
            self._agent_steps, self._owed = progress["agent_steps"], progress["owed"]
            self._rounds = progress["rounds"]
            self._episodes.clear()
            self._episodes += progress["episodes"]
            self._self_play.set_state(progress.get(SELF_PLAY, {}))
            self.env_runner_group.local_env_runner.set_state(self._self_play.for_runners())

    @override(Algorithm)
    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:
        """As RLlib's; in a folder of this machine with what `checkpoint.finish` adds.

        Raises Diverged, and writes nothing, if the networks are not finite.
        """
        check_weights(self._learner_weights())
        folder = str(super().save_to_path(path, **kwargs))
        if "://" not in str(path) and not kwargs.get("filesystem"):
            self._finish(folder)
        return folder

    def _finish(self, folder: str) -> None:
        modules = dict(self.env_runner.module.items())
        finish(Path(folder), modules, self._learner_weights(), self.config)

    @classmethod
    @override(Algorithm)
    def from_checkpoint(cls, path: str | Path, *args: Any, **kwargs: Any) -> "MFQ":
        """As RLlib's; raises a ValueError if a file of the checkpoint is damaged."""
        if "://" not in str(path):
            check_files(Path(path).expanduser().resolve())
        return super().from_checkpoint(path, *args, **kwargs)

    @override(Algorithm)
    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        self._before_restore(path, kwargs)
        super().restore_from_path(path, *args, **kwargs)

    def _before_restore(self, path: str | Path, kwargs: Mapping[str, Any]) -> None:
        if not kwargs and "://" not in str(path):  # a whole one in a folder of this machine
            modules = dict(self.env_runner.module.items())
            check_restorable(Path(path), modules, vars(self.config))
        self._fetch_fragments()  # the fragments under way belong to the run before it is restored


MFQConfig.algorithm = MFQ
