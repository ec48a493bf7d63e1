"""The old API stack's rollout worker."""

from typing import Any

from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.env.env_context import EnvContext
from ray.rllib.evaluation.metrics import RolloutMetrics
from ray.rllib.evaluation.rollout_worker import RolloutWorker
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from rllib_mfq.algorithm.old_stack.policy import MFQTorchPolicy
from rllib_mfq.algorithm.population_runner import FragmentBatch, PopulationRunner
from rllib_mfq.algorithm.roster import spaces_of_modules
from rllib_mfq.population.adapters import as_population
from rllib_mfq.population.fragment import Episode


class MFQRolloutWorker(PopulationRunner, RolloutWorker):
    """Samples as `MFQEnvRunner` does, with the modules of the policies in `policy_map`."""

    def __init__(self, *, config: Any, env_creator: Any, **kwargs: Any) -> None:
        config = config.copy(copy_frozen=False)
        index = kwargs.get("worker_index") or 0
        context = EnvContext(config.env_config, worker_index=index)
        config.resolve_groups(lambda: as_population(env_creator(context)))
        policy_class = kwargs.pop("default_policy_class", None) or MFQTorchPolicy
        # The modules see what the populations give.
        config.experimental(_disable_preprocessor_api=True)
        kwargs |= {"spaces": spaces_of_modules(config), "default_policy_class": policy_class}
        # Without an environment RLlib makes neither its sampler nor copies of the environment.
        RolloutWorker.__init__(self, config=config, env_creator=lambda context: None, **kwargs)
        if self._seed is not None:
            self._seed += index  # RLlib tells its base class no index on this stack
        self._finished: list[RolloutMetrics] = []
        self._begin(env_creator, [self.callbacks])

    @override(RolloutWorker)
    def make_module(self) -> None:
        self.module = MultiRLModule()
        for policy_id, policy in self.policy_map.items():
            self.module.add_module(policy_id, policy.model)

    @override(RolloutWorker)
    def make_env(self) -> None:
        super().make_env()
        self.input_reader = self._sampler  # RLlib evaluates only workers that have one
        populations = [p for sampler in self._samplers.values() for p in sampler.populations]
        for index, population in enumerate(populations):
            self.callbacks.on_sub_environment_created(
                worker=self, sub_environment=population, env_context=self._context(index)
            )

    @override(RolloutWorker)
    def assert_healthy(self) -> None:
        assert self.policy_map and self._sampler is not None

    @override(RolloutWorker)
    def sample(
        self,
        *,
        num_timesteps: float | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        random_actions: bool = False,
        force_reset: bool = False,
        **kwargs: Any,
    ) -> FragmentBatch | list[FragmentBatch]:
        """As `MFQEnvRunner.sample`, but one batch, unless there is an opponent in `self_play`.

        In evaluation one episode if not told.
        """
        if num_timesteps is None and num_episodes is None and self.config.in_evaluation:
            num_episodes = 1 if self.config.batch_mode == "complete_episodes" else None
        batches = self._play(num_timesteps, num_episodes, explore, random_actions, force_reset)
        for batch in batches:
            for episode in batch.episodes:
                rewards = {(group, self.modules[group]): r for group, r in episode.returns.items()}
                total = episode.get_return()
                custom = vars(episode)["custom_metrics"]
                self._finished.append(RolloutMetrics(episode.length, total, rewards, custom))
            self._fire("on_sample_end", samples=batch)
        return batches if self.config.has_opponent else batches[0]

    @override(RolloutWorker)
    def get_metrics(self) -> list[RolloutMetrics]:
        finished, self._finished = self._finished, []
        return finished

    @override(RolloutWorker)
    def get_state(self) -> dict[str, Any]:
        state = RolloutWorker.get_state(self) | self._progress()
        return state | {WEIGHTS_SEQ_NO: self._weights_seq_no}

    @override(RolloutWorker)
    def set_state(self, state: dict[str, Any]) -> None:
        if "policy_states" in state:  # RLlib's own, policies and all; else new weights
            RolloutWorker.set_state(self, state)
            self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, 0)
        super().set_state(state)

    @override(PopulationRunner)
    def _on_event(self, mine: str | None, first: int, event: str, episode: Episode) -> None:
        if event == "created":  # callbacks of this stack add to the results there
            vars(episode)["custom_metrics"] = {}
        super()._on_event(mine, first, event, episode)

    @override(PopulationRunner)
    def _fire(self, name: str, **kwargs: Any) -> None:
        old = {"worker": self, "base_env": None, "policies": self.policy_map}
        super()._fire(name, **old, **kwargs)
