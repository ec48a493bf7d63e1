"""Hooks: all that the command knows of one algorithm and not of others.

Everything else in this package asks `hooks(algorithm)` and does not know MFQ.
"""

import fnmatch
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS

from rllib_cli.experiments import BadInput
from rllib_cli.old_names import REPLAY_BUFFERS
from rllib_cli.options import Play
from rllib_cli.reported import LIFETIME, RETURN, RUNNER, Run
from rllib_mfq.algorithm.checkpoint import check_checkpoint, saved_class_and_settings
from rllib_mfq.algorithm.environment import make_creator, probe
from rllib_mfq.algorithm.figures import episode_figures, match_figures
from rllib_mfq.algorithm.mfq import MFQ
from rllib_mfq.algorithm.opponents import RANDOM
from rllib_mfq.algorithm.pretrained import PREFIX, header, load_pretrained
from rllib_mfq.algorithm.roster import modules_of_groups
from rllib_mfq.algorithm.settings import TO_PLAY
from rllib_mfq.population.fragment import Episode

AGENT_STEPS, MODULE_STEPS = "num_agent_steps_sampled", "num_module_steps_sampled"

Record = dict[str, Any]
"""What is written about an episode; `share` is 1 for a win, a half for a draw and 0 for a loss."""

Column = tuple[str, str, str]
"""A column of progress: its short name, the key of the result, and a format or `count`."""

NAMED: dict[str, Callable[[], Any]] = {MFQ.__name__: lambda: (MFQ,), **ALGORITHMS}
"""The algorithms that an experiment can name; their classes are found as in `ALGORITHMS`."""


class Hooks:
    """How the algorithms of RLlib behave.

    Attributes:
        old_names: old config keys that only these algorithms have, and today's keys.
        own_keys: config keys that are not translated: the algorithm's config knows them.
        module_returns: what the results call the returns of modules.
    """

    old_names: ClassVar[Mapping[str, str]] = REPLAY_BUFFERS
    own_keys: Collection[str] = ()
    module_returns = "module_episode_return_mean"

    def run(self, config: Any) -> Run:
        """Which keys a run of a validated config will report."""
        modules = set(config.policies)
        runner = [*RUNNER, "episode_duration_sec_mean", "time_between_sampling"]
        runner += [*_steps(MODULE_STEPS, modules), *(f"{self.module_returns}/{m}" for m in modules)]
        by_agent = ["agent_episode_return_mean", self.module_returns]
        by_agent += [f"{name}{end}" for name in (AGENT_STEPS, MODULE_STEPS) for end in LIFETIME]
        foreign = config.algo_class.__module__.partition(".")[0] != "ray"
        return Run(
            modules=modules,
            training=runner,
            evaluation=runner if config.evaluation_interval else (),
            by_agent=[f"env_runners/{name}" for name in by_agent],
            open=foreign or _listens(config),
        )

    def columns(self, keys: Collection[str]) -> list[Column]:
        """What progress shows of a result with these keys, the most important first."""
        steps = ("steps", "num_env_steps_sampled_lifetime", "count")
        return [("return", RETURN, ".1f"), steps, ("length", "env_runners/episode_len_mean", ".1f")]

    def configure_play(self, config: Any, play: Play) -> None:
        """Sets in a config what `rllib evaluate` needs of this algorithm.

        Raises:
            BadInput: there is an opponent, but the algorithm plays no matches.
        """
        if play.opponent:
            name = config.algo_class.__name__
            raise BadInput(f"--opponent is {play.opponent!r}; {name} plays no matches.")

    def restore(self, algorithm: Algorithm, path: str) -> None:
        """Loads a checkpoint into an algorithm, which then plays."""
        algorithm.restore_from_path(path)

    def sample(self, algorithm: Algorithm) -> list[Any]:
        """Plays greedily until an episode has ended, and returns the episodes that ended."""
        samples: list[Any] = algorithm.env_runner.sample(num_episodes=1, explore=False)
        algorithm.env_runner.get_metrics()  # else they pile up
        return samples

    def record(self, episode: Any) -> Record:
        """The figures of an episode besides its number, return and steps."""
        if not hasattr(episode, "agent_episodes"):
            return {}
        each = episode.agent_episodes.items()
        return {"returns": {str(agent): float(own.get_return()) for agent, own in each}}


class MFQHooks(Hooks):
    """Where MFQ behaves in a way of its own."""

    old_names: ClassVar = {
        "buffer_size": "replay_capacity",
        "replay_buffer_config/capacity": "replay_capacity",
        "train_batch_size": "train_batch_size_per_learner",
    }
    own_keys = ("observation_filter", "exploration_config", "model_config")
    module_returns = "module_episode_returns_mean"

    def run(self, config: Any) -> Run:
        """See `Hooks`; makes the environment once, and takes the keys from an episode in it."""
        result: dict[str, Any] = {}

        def make() -> Any:
            nonlocal result
            population = probe(config.env, make_creator(config.env), config.env_config)
            population.reset(seed=0)
            result = getattr(population, "result", dict)()
            return population

        config.resolve_groups(make)
        modules, opponents = modules_of_groups(config), config.evaluation_opponents
        episode = Episode(0, 0, dict.fromkeys(modules, 0.0), result=result)
        counts = [*RUNNER, *_steps(AGENT_STEPS, modules), *_steps(MODULE_STEPS, modules.values())]
        training = [*counts, *map("/".join, episode_figures(episode, modules))]
        evaluation = list(counts if opponents else training)
        for opponent, group in itertools.product(opponents, modules):
            evaluation += map("/".join, match_figures(episode, group, opponent))
        top = ["agent_steps_sampled_lifetime", "agent_steps_per_second", "num_updates"]
        top += ["replay_size", "weights_lag"]
        top += ["self_play/win_rate", "self_play/opponents"] if config.has_opponent else []
        return Run(
            modules=set(modules.values()),
            training=training,
            evaluation=evaluation if config.evaluation_interval else (),
            top=top,
            win_rates=[f"evaluation/env_runners/win_rate/{name}" for name in sorted(opponents)],
            open=_listens(config),
        )

    def columns(self, keys: Collection[str]) -> list[Column]:
        """See `Hooks`."""
        returns = fnmatch.filter(keys, "env_runners/group_returns_mean/*")
        groups = {f"return {key.split('/', 2)[2]}": key for key in sorted(returns)}
        shown = groups if 1 < len(groups) < 4 else {"return": RETURN}
        return [
            *((name, key, ".1f") for name, key in shown.items()),
            ("rows", "agent_steps_sampled_lifetime", "count"),
            ("rows/s", "agent_steps_per_second", ",.0f"),
            ("temperature", next(iter(fnmatch.filter(keys, "learners/*/temperature")), ""), ".3g"),
        ]

    def configure_play(self, config: Any, play: Play) -> None:
        """See `Hooks`; the algorithm plays itself unless an opponent is named."""
        config.evaluation_opponents = {}
        config.self_play = {"opponent": "latest"}
        if play.env or play.config:
            config.groups = None  # the environment may be another one
        if play.render:
            config.callbacks(on_episode_step=render_step)
        if play.opponent:
            spec = play.opponent
            if spec != RANDOM and not spec.startswith(PREFIX):
                spec = check_checkpoint(spec)
            config.evaluation(evaluation_interval=1, evaluation_duration=1)
            config.evaluation_opponents = {"opponent": spec}

    def restore(self, algorithm: Algorithm, path: str) -> None:
        """See `Hooks`; `pretrained:NAME` has one module, which plays all groups."""
        if path.startswith(PREFIX):
            algorithm.env_runner.module["shared"].set_state(load_pretrained(path).get_state())
        else:
            super().restore(algorithm, path)
        # RLlib restores the runner that trains; the one that evaluates is synced only on demand.
        weights = algorithm.env_runner.module.get_state(inference_only=True)
        _player(algorithm).module.set_state(weights)

    def sample(self, algorithm: Algorithm) -> list[Any]:
        """See `Hooks`."""
        runner = _player(algorithm)
        (fragment,) = runner.sample(num_episodes=1, explore=False)
        runner.get_metrics()  # else they pile up
        return list(fragment.episodes)

    def record(self, episode: Any) -> Record:
        """See `Hooks`; in a match the return is that of the side which the algorithm played."""
        record: Record = {"returns": dict(episode.returns), "result": episode.result}
        mine = episode.custom_data.get("mine")
        if mine:
            record |= {"side": mine, "return": float(episode.returns[mine])}
            record["share"] = float(episode.shares()[mine])
        return record


def hooks(algorithm: Any) -> Hooks:
    """The hooks of an algorithm, which is a class or a name; a name need not exist."""
    is_class = isinstance(algorithm, type)
    mfq = issubclass(algorithm, MFQ) if is_class else algorithm == MFQ.__name__
    return MFQHooks() if mfq else Hooks()


def load_config(spec: str) -> tuple[str, type[Algorithm], AlgorithmConfig]:
    """Reads the config of an algorithm that can play.

    Args:
        spec: the folder of a checkpoint, which is unpickled, or `pretrained:NAME`.

    Returns:
        The absolute path (of a pretrained agent `spec`), the algorithm and its config.

    Raises:
        ValueError: there is none, or today's RLlib does not read it.
    """
    if not spec.startswith(PREFIX):
        path = check_checkpoint(spec)
        algorithm, settings = saved_class_and_settings(path)
        if algorithm is None:
            raise ValueError(f"{path} holds no config of an algorithm.")
        return path, algorithm, AlgorithmConfig.from_state(settings)
    about = header(spec)
    config = MFQ.get_default_config().environment(about["env"], env_config=about["env_config"])
    config.multi_agent(policies=["shared"])
    network = dict(about["model_config"])
    to_play = {key: network.pop(key) for key in TO_PLAY if key in network}
    to_play.pop("mean_action_dim", None)
    return spec, MFQ, config.training(**to_play).rl_module(model_config=network)


def render_step(*, env: Any, **kwargs: Any) -> None:
    """Shows a step of an episode in a window."""
    env.render()


def _player(algorithm: Any) -> Any:
    """The env runner that plays: against an opponent, the one that evaluates."""
    matches = algorithm.config.evaluation_opponents
    return algorithm.eval_env_runner if matches else algorithm.env_runner


def _steps(name: str, who: Iterable[str]) -> list[str]:
    """The keys that count the steps of every agent, group or module."""
    return [f"{name}{end}/{each}" for each in who for end in LIFETIME]


def _listens(config: AlgorithmConfig) -> bool:
    """Whether a run may report more: by callbacks, or on the old API stack."""
    silent = AlgorithmConfig().callbacks_class
    own = (config.callbacks_class or silent) != silent
    own |= any(value for key, value in vars(config).items() if key.startswith("callbacks_on_"))
    return own or not config.enable_rl_module_and_learner
