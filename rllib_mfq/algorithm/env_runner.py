"""The EnvRunner: RLlib's new-stack interface around the sampler."""

from typing import Any

from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from ray.rllib.utils.typing import StateDict

from rllib_mfq.algorithm.population_runner import FragmentBatch, PopulationRunner


class MFQEnvRunner(PopulationRunner, EnvRunner, Checkpointable):
    """Steps `num_envs_per_env_runner` populations and returns what happens as columns."""

    def __init__(self, *, config: Any, env_creator: Any, **kwargs: Any) -> None:
        EnvRunner.__init__(self, config=config, **kwargs)
        self.worker_index: int = kwargs.get("worker_index") or 0
        self._env_creator = env_creator
        self.config.resolve_groups(lambda: self._make_population(0))
        self._begin(env_creator, [make() for make in force_list(self.config.callbacks_class)])

    @override(EnvRunner)
    def make_module(self) -> None:
        spec = self.config.get_multi_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build()

    @override(EnvRunner)
    def make_env(self) -> None:
        super().make_env()
        self._fire("on_environment_created", env=self.env, env_context=self._context(0))

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
            num_timesteps: environment steps over all populations, rounded up to whole rounds;
                by default `rollout_fragment_length` in each population.
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
        samples = self._play(num_timesteps, num_episodes, explore, random_actions, force_reset)
        self._fire("on_sample_end", samples=samples)
        return samples

    @override(EnvRunner)
    def get_metrics(self) -> Any:
        return self.metrics.reduce()

    @override(Checkpointable)
    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> StateDict:
        state = self._progress()
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            parts = {"components": components, "not_components": not_components}
            parts = {k: self._get_subcomponents(COMPONENT_RL_MODULE, v) for k, v in parts.items()}
            state[COMPONENT_RL_MODULE] = self.module.get_state(**parts, **kwargs)
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    @override(Checkpointable)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"config": self.config, "env_creator": self._env_creator}

    @override(Checkpointable)
    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        return [(COMPONENT_RL_MODULE, self.module)]
