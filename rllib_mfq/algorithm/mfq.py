"""MFQ: the algorithm that RLlib and Tune run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.env_context import EnvContext
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.rllib.utils.error import EnvError
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    TIMERS,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.typing import StateDict

from rllib_mfq.algorithm.config import MFQConfig
from rllib_mfq.algorithm.episodes import WIN_RATE, Figures, episode_figures
from rllib_mfq.algorithm.opponents import (
    MODULES_IN_CHECKPOINT,
    find_modules,
    load_opponent,
    saved_settings,
)
from rllib_mfq.algorithm.population_runner import FragmentBatch
from rllib_mfq.algorithm.rollout_worker import OldStackAlgorithm
from rllib_mfq.algorithm.self_play import OPPONENT, OPPONENT_NUMBER, Weights, make_past_self
from rllib_mfq.algorithm.validation import check_env
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.population import PopulationError
from rllib_mfq.population.replay import ReplayMemory

SAMPLE = "sample"  # tag of the requests in flight
REPLAY = "replay"
PROGRESS = "mfq_progress"
SELF_PLAY = "self_play"


class MFQ(OldStackAlgorithm):
    """Mean field Q-learning (Yang et al., ICML 2018, "Algorithm 1").

    A training step takes one fragment from every env runner, adds it to the memory of each
    module, and makes as many updates as `training_intensity` asks for. With remote env
    runners, the next fragment is under way while the learner learns from the last one.
    """

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> MFQConfig:
        return MFQConfig()

    @override(Algorithm)
    def setup(self, config: MFQConfig) -> None:
        open_config: MFQConfig = config.copy(copy_frozen=False)
        open_config.groups = None  # it may have been used before, with another environment
        open_config.resolve_groups(self._probe)
        _try_networks(open_config)
        for name, spec in open_config.evaluation_opponents.items():
            load_opponent(name, spec, open_config.groups or {})
        open_config.freeze()
        self.config = open_config
        self._modules = open_config.modules_of_groups()
        self._memories: dict[str, ReplayMemory] = {}
        self._agent_steps = 0
        self._rounds = 0  # calls of the learner, which number the weights
        self._owed = 0.0  # updates that the rows sampled so far ask for, not yet made
        self._episodes: deque[Figures] = deque(
            maxlen=open_config.metrics_num_episodes_for_smoothing
        )
        self._latest: dict[str, Any] = {}
        self._fresh: set[str] = set()
        # As Ray does for actors. Torch's default, all cores, waits for the cores that others
        # use: beside one busy process on two cores it is 17 times slower than one thread.
        torch.set_num_threads(max(1, int(open_config.num_cpus_for_main_process)))
        super().setup(open_config)
        for index, module_id in enumerate(sorted(set(self._modules.values()))):
            if self._is_trained(module_id):
                seed = None if open_config.seed is None else open_config.seed + index
                self._memories[module_id] = ReplayMemory(
                    open_config.replay_capacity,
                    open_config.replay_obs_dtype,
                    seed,
                    open_config.n_step,
                )
        self._begin_self_play()

    @override(Algorithm)
    def step(self) -> dict[str, Any]:
        """One iteration; evaluation and learner results stay until there are newer ones."""
        self._fresh = set()
        results: dict[str, Any] = super().step()
        for key in (EVALUATION_RESULTS, LEARNER_RESULTS):
            if key in self._fresh:
                self._latest[key] = _with_known(results[key], self._latest.get(key, {}))
            if key in self._latest:
                results[key] = self._latest[key]
        return results

    @override(Algorithm)
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        results: dict[str, Any] = super().evaluate(*args, **kwargs)
        group = self.eval_env_runner_group
        if group is not None and group.num_remote_env_runners():
            for error in group.foreach_env_runner(lambda r: r.error, local_env_runner=False):
                if error is not None:
                    raise error
        self._fresh.add(EVALUATION_RESULTS)
        return results

    @override(Algorithm)
    def training_step(self) -> dict[str, Any] | None:
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            started = time.perf_counter()
            batches = self._collect()
        rows = sum(batch.agent_steps() for batch in batches)
        shares = [e.shares()[b.mine] for b in batches if b.mine is not None for e in b.episodes]
        self._remember(batches)
        if self.env_runner_group.num_remote_env_runners():
            self._request_fragments()  # they sample while we learn
        updates = self._updates_owed(batches)
        if updates:
            with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
                self._learn(updates)
            self.env_runner_group.local_env_runner.set_state(self._weights())
        if self._past_self is not None:
            self._shares += shares
            self._past_self.end_round(shares, self._agent_steps, self._learner_weights)
            self.env_runner_group.local_env_runner.set_state(self._opponent())
        self._log(rows, updates, time.perf_counter() - started)
        # RLlib wants results from its old stack, and none from the new one.
        return self._count(batches, updates, len(self._memories)) if self.on_old_stack else None

    @staticmethod
    @override(Algorithm)
    def _get_env_id_and_creator(env_specifier: Any, config: Any) -> Any:
        check_env(env_specifier)
        return Algorithm._get_env_id_and_creator(env_specifier, config)

    def _probe(self) -> Any:
        """One population, to learn the groups from."""
        try:
            env = self.env_creator(EnvContext(self.config.env_config, worker_index=0))
        except EnvError:
            raise ValueError(
                f"env is {self.config.env!r}, which Tune has not registered and which is not the "
                "path of a class."
            ) from None
        return as_population(env)

    def _is_trained(self, module_id: str) -> bool:
        to_train = self.config.policies_to_train
        if to_train is None:
            return True
        return bool(to_train(module_id, None)) if callable(to_train) else module_id in to_train

    def _collect(self) -> list[FragmentBatch]:
        """One fragment from every env runner that has one to give."""
        group = self.env_runner_group
        if not group.num_remote_env_runners():
            runner = group.local_env_runner
            results = [_sample(runner)]
        else:
            self._request_fragments()
            fetched = group.fetch_ready_async_reqs(
                tags=SAMPLE, timeout_seconds=self.config.sample_timeout_s
            )
            results = [result for _, result in sorted(fetched, key=lambda pair: pair[0])]
        for result in results:
            if isinstance(result, PopulationError):
                raise result
        self.metrics.aggregate([metrics for _, metrics in results], key=ENV_RUNNER_RESULTS)
        batches = [batch for samples, _ in results for batch in force_list(samples)]
        # A fragment is requested before the update that the last one pays for, so its weights
        # are at most one round of updates old.
        for batch in batches:
            lag = self._rounds - batch.weights_seq_no
            self.metrics.log_value("weights_lag", lag, reduce="max")
        return batches

    def _request_fragments(self) -> None:
        """Asks every idle remote runner for a fragment, played with the current weights."""
        group = self.env_runner_group
        if group.num_in_flight_async_reqs(SAMPLE) < group.num_healthy_remote_env_runners():
            state = self._weights() | self._opponent()  # all of it: a runner may have restarted
            group.foreach_env_runner_async(_sample, tag=SAMPLE, kwargs={"state": state})

    def _weights(self) -> dict[str, Any]:
        state = self.learner_group.get_state(
            components=f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True
        )[COMPONENT_LEARNER]
        return {key: state[key] for key in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)}

    def _begin_self_play(self) -> None:
        """Makes the opponent, if there is one, of the learner as it is."""
        config = self.config
        self._past_self = make_past_self(config.self_play, config.seed, self._learner_weights)
        self._shares: deque[float] = deque(maxlen=config.metrics_num_episodes_for_smoothing)
        self.env_runner_group.local_env_runner.set_state(self._opponent())

    def _learner_weights(self) -> Weights:
        weights: Weights = self._weights()[COMPONENT_RL_MODULE]
        return weights

    def _opponent(self) -> dict[str, Any]:
        """The opponent as part of a runner's state; nothing if the learner plays itself."""
        opponent = self._past_self
        if opponent is None:
            return {}
        return {OPPONENT: opponent.weights, OPPONENT_NUMBER: opponent.number}

    def _remember(self, batches: list[FragmentBatch]) -> None:
        for batch in batches:
            self._agent_steps += batch.agent_steps()
            self._episodes += [episode_figures(e, self._modules) for e in batch.episodes]
            for module_id, memory in self._memories.items():
                if module_id in batch.policy_batches:  # else it did not play
                    memory.add(batch.policy_batches[module_id])

    def _updates_owed(self, batches: list[FragmentBatch]) -> int:
        """How many updates are due; each trains a batch of every module that is trained."""
        config = self.config
        # Rows written, not held: of short fragments a full memory holds more closing rows than
        # others, and might never hold so many.
        least = max(1, config.num_steps_sampled_before_learning_starts)
        memories = self._memories.values()
        if not memories or any(not m or m.num_steps_added < least for m in memories):
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
        config = self.config
        size, learners = config.total_train_batch_size, max(1, config.num_learners)
        # One call for all updates: RLlib's overhead per call is that of an update.
        batch = MultiAgentBatch(
            {
                module_id: SampleBatch(memory.sample(size * updates))
                for module_id, memory in self._memories.items()
            },
            env_steps=size * updates,
        )
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        results = self.learner_group.update(
            batch=batch,
            minibatch_size=size // learners,
            timesteps={
                NUM_ENV_STEPS_SAMPLED_LIFETIME: steps,
                NUM_AGENT_STEPS_SAMPLED_LIFETIME: self._agent_steps,
            },
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        self._rounds += 1
        self._fresh.add(LEARNER_RESULTS)

    def _log(self, rows: int, updates: int, seconds: float) -> None:
        log = self.metrics.log_value
        for key in self._episodes[-1] if self._episodes else ():
            values = [figures[key] for figures in self._episodes]
            reduce = min if key[0].endswith("_min") else max if key[0].endswith("_max") else np.mean
            log((ENV_RUNNER_RESULTS, *key), float(reduce(values)), reduce="item")
        if self._past_self is not None:
            log((SELF_PLAY, "opponents"), self._past_self.opponents, reduce="item")
            if self._shares:
                log((SELF_PLAY, WIN_RATE), float(np.mean(self._shares)), reduce="item")
        log("agent_steps_sampled_lifetime", self._agent_steps, reduce="item")
        log("agent_steps_per_second", rows / seconds, window=100)
        log("num_updates", updates, reduce="sum")
        log("replay_size", sum(len(m) for m in self._memories.values()), reduce="item")

    @override(Algorithm)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> StateDict:
        state: StateDict = super().get_state(components, not_components=not_components, **kwargs)
        return state | (self._progress() if components is None else {})

    @override(Algorithm)
    def set_state(self, state: StateDict) -> None:
        self._set_memories(state)  # first, for it may raise
        super().set_state(state)
        self._set_progress(state)

    def _progress(self) -> StateDict:
        """What MFQ adds to the state, on both API stacks."""
        progress = {
            "agent_steps": self._agent_steps,
            "owed": self._owed,
            "rounds": self._rounds,
            "episodes": list(self._episodes),
        }
        if self._past_self is not None:
            state = self._past_self.get_state()
            progress[SELF_PLAY] = {**state, "shares": list(self._shares)}
        if not self.config.store_replay_in_checkpoints:
            return {PROGRESS: progress}
        memories = {m: memory.get_state() for m, memory in self._memories.items()}
        return {PROGRESS: progress, REPLAY: memories}

    def _set_memories(self, state: StateDict) -> None:
        for module_id, memory in state.get(REPLAY, {}).items():
            if module_id in self._memories:  # not if it has been frozen since
                self._memories[module_id].set_state(memory)

    def _set_progress(self, state: StateDict) -> None:
        if PROGRESS in state:
            progress: Mapping[str, Any] = state[PROGRESS]
            self._agent_steps, self._owed = progress["agent_steps"], progress["owed"]
            self._rounds = progress["rounds"]
            self._episodes = deque(progress["episodes"], maxlen=self._episodes.maxlen)
            self._set_self_play(progress.get(SELF_PLAY, {}))

    def _set_self_play(self, state: Mapping[str, Any]) -> None:
        """Restores the opponent; one of another kind begins anew, from the restored learner."""
        if self._past_self is None:
            return
        if state.get("kind") != self._past_self.KIND:
            number = self._past_self.number
            self._begin_self_play()
            self._past_self.number = number + 1
        else:
            self._past_self.set_state(state)
            self._shares = deque(state["shares"], maxlen=self._shares.maxlen)
        self.env_runner_group.local_env_runner.set_state(self._opponent())

    @override(Algorithm)
    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        if not kwargs and "://" not in str(path):  # a whole one in a folder of this machine
            self._check_checkpoint(path)  # before anything is changed
        self._drop_requests()
        super().restore_from_path(path, *args, **kwargs)

    def _drop_requests(self) -> None:
        """Waits for the fragments under way: they belong to the run before it is restored."""
        self.env_runner_group.fetch_ready_async_reqs(
            tags=SAMPLE, timeout_seconds=self.config.sample_timeout_s
        )

    def _check_checkpoint(self, path: str | Path) -> None:
        """Raises a ValueError unless a checkpoint's modules and memories are this algorithm's."""
        if not (Path(path) / MODULES_IN_CHECKPOINT).is_dir():
            raise ValueError(f"{str(path)!r} is not the folder of an algorithm's checkpoint.")
        found, mine = find_modules(path), self.env_runner.module
        if set(found) != set(mine.keys()):
            raise ValueError(
                f"checkpoint {str(path)!r} has the modules {sorted(found)}; this algorithm has "
                f"{sorted(mine.keys())}."
            )
        saved = saved_settings(path)
        for key in ("replay_capacity", "replay_obs_dtype"):
            if saved.get("store_replay_in_checkpoints") and saved[key] != getattr(self.config, key):
                raise ValueError(
                    f"{key} is {getattr(self.config, key)!r}, but the memory in checkpoint "
                    f"{str(path)!r} has {saved[key]!r}; use the same."
                )
        for module_id, folder in sorted(found.items()):
            state = RLModule.from_checkpoint(folder).get_state()
            try:
                mine[module_id].unwrapped().check_state(state)
            except ValueError as error:
                raise ValueError(f"checkpoint {str(path)!r}, {module_id!r}: {error}") from None


def _try_networks(config: MFQConfig) -> None:
    """Makes and uses every network once; an error in an env runner would only restart it."""
    spaces = config.spaces_of_modules()
    try:
        with torch.random.fork_rng(devices=[]):  # the run's own networks are drawn as ever
            modules = config.get_multi_rl_module_spec(spaces=spaces, inference_only=True).build()
        for module_id, module in modules.items():
            module.q({Columns.OBS: torch.zeros(1, *(spaces[module_id][0].shape or ()))})
    except Exception as error:
        raise ValueError(
            f"model_config is {config._model_config!r}, of which no network can be made: {error}"
        ) from error


def _with_known(results: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Fills in the parameter counts, which RLlib reports once and then as NaN."""
    return {
        key: known.get(key, value)
        if key.endswith("trainable_parameters")
        else _with_known(value, known.get(key, {}))
        if isinstance(value, dict)
        else value
        for key, value in results.items()
    }


def _sample(runner: Any, state: dict[str, Any] | None = None) -> Any:
    """One fragment and the metrics; an error in the environment's values as a value."""
    if state is not None:
        runner.set_state(state)
    try:
        samples = runner.sample()
    except PopulationError as error:
        return error  # raised here, it would only restart the runner
    return samples, runner.metrics.reduce()
