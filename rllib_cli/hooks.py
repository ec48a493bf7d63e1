"""Hooks: all that the command knows of one algorithm and not of others.

Everything else in this package asks `hooks(algorithm)` and does not know MFQ.
"""

import contextlib
import fnmatch
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_cli.experiments import BadInput, parse_mapping
from rllib_cli.options import Play
from rllib_cli.results import (
    AGENT_STEPS,
    EVALUATED,
    LIFETIME,
    MODULE_STEPS,
    RETURN,
    RUNNER,
    Run,
    keys_of,
    listens,
    steps_of,
)
from rllib_mfq.algorithm.checkpoint import (
    check_checkpoint,
    find_modules,
    load_modules,
    saved_class_and_settings,
    saved_play,
)
from rllib_mfq.algorithm.environment import make_creator, probe
from rllib_mfq.algorithm.figures import (
    BASELINE,
    GROUP_RETURNS_MEAN,
    OPPONENTS,
    episode_figures,
    match_figures,
)
from rllib_mfq.algorithm.mfq import MFQ
from rllib_mfq.algorithm.old_names import instead_of
from rllib_mfq.algorithm.opponents import is_named
from rllib_mfq.algorithm.pretrained import PREFIX, header
from rllib_mfq.algorithm.roster import modules_of_groups
from rllib_mfq.algorithm.self_play import LATEST
from rllib_mfq.algorithm.settings import TO_PLAY
from rllib_mfq.mean_field.legal import did_you_mean, find
from rllib_mfq.population.fragment import Episode, are_alike
from rllib_mfq.population.population import group_of

Record = dict[str, Any]
"""What is written about an episode; `share` is 1 for a win, a half for a draw and 0 for a loss."""

Column = tuple[str, str, str]
"""A column of progress: its short name, the key of the result, and a format or `count`."""

NAMED: dict[str, Callable[[], Any]] = {MFQ.__name__: lambda: (MFQ,), **ALGORITHMS}
"""The algorithms that an experiment can name; their classes are found as in `ALGORITHMS`."""


class Hooks:
    """How the algorithms of RLlib behave."""

    # Old config keys of the algorithm, and today's; if it has none, those of RLlib's buffers.
    old_names: ClassVar[Mapping[str, str]] = {}
    own_keys: Collection[str] = ()  # config keys that the algorithm knows: they are not translated
    hint = staticmethod(did_you_mean)  # what to say of a key that it does not know
    module_returns = "module_episode_return_mean"  # what the results call the returns of modules

    def run(self, config: Any) -> Run:
        """Which keys a run of a validated config will report."""
        modules = set(config.policies)
        runner = [*RUNNER, "episode_duration_sec_mean", "time_between_sampling"]
        runner += [
            *steps_of(MODULE_STEPS, modules),
            *(f"{self.module_returns}/{m}" for m in modules),
        ]
        by_agent = ["agent_episode_return_mean", self.module_returns]
        by_agent += [f"{name}{end}" for name in (AGENT_STEPS, MODULE_STEPS) for end in LIFETIME]
        below = [f"env_runners/{name}" for name in by_agent]
        foreign = config.algo_class.__module__.partition(".")[0] != "ray"
        evaluated = bool(config.evaluation_interval)
        keys = keys_of(runner, runner if evaluated else ())
        return Run(keys, modules, evaluated, below, open=foreign or listens(config))

    def limits(self, stop: Mapping[str, float]) -> dict[str, Any]:
        """The config keys that keep an iteration within the limits of `stop`."""
        return {}

    def columns(self, keys: Collection[str]) -> list[Column]:
        """What progress shows of a result with these keys, the most important first."""
        steps = ("steps", "num_env_steps_sampled_lifetime", "count")
        return [("return", RETURN, ".1f"), steps, ("length", "env_runners/episode_len_mean", ".1f")]

    def configure_play(self, config: Any, play: Play) -> None:
        """Sets what `rllib evaluate` needs in a config; BadInput if it cannot have an opponent."""
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

    def baseline(self, algorithm: Algorithm) -> dict[str, float]:
        """What the opponent earns as each group against itself, where that is worth knowing."""
        return {}

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
        "replay_buffer_config/prioritized_replay": "prioritized_replay",
        "replay_buffer_config/alpha": "prioritized_replay_alpha",
        "replay_buffer_config/beta": "prioritized_replay_beta",
        "replay_buffer_config/prioritized_replay_alpha": "prioritized_replay_alpha",
        "replay_buffer_config/prioritized_replay_beta": "prioritized_replay_beta",
        "replay_buffer_config/prioritized_replay_eps": "prioritized_replay_eps",
        "replay_buffer_config/replay_burn_in": "burn_in_len",
        "replay_buffer_config/learning_starts": "num_steps_sampled_before_learning_starts",
        "train_batch_size": "train_batch_size_per_learner",
    }
    own_keys = ("observation_filter", "exploration_config", "model_config", "prioritized_replay")
    module_returns = "module_episode_returns_mean"
    hint = staticmethod(instead_of)

    def run(self, config: Any) -> Run:
        """See `Hooks`; makes the environment once, and takes the keys from an episode in it."""
        episode, later = Episode(0, 0, {}), []  # whether figures are known only at the end

        def make() -> Any:
            population = probe(make_creator(config.env), config.env_config)
            episode.alike = are_alike(population.groups, population.reset(seed=0))
            with contextlib.suppress(Exception):  # it need not be there before the end
                episode.result.update(getattr(population, "result", dict)())
            later.append(hasattr(population, "result") and not episode.result)
            return population

        config.resolve_groups(make)
        modules, opponents = modules_of_groups(config), config.evaluation_opponents
        episode.returns.update(dict.fromkeys(modules, 0.0))
        counts = [
            *RUNNER,
            *steps_of(AGENT_STEPS, modules),
            *steps_of(MODULE_STEPS, modules.values()),
        ]
        training = [*counts, *map("/".join, episode_figures(episode, modules))]
        evaluation = list(counts if opponents else training)
        for opponent, group in itertools.product(opponents, modules):
            evaluation += map("/".join, match_figures(episode, group, opponent))
        evaluated = bool(config.evaluation_interval)
        keys = keys_of(training, evaluation if evaluated else ())
        keys |= {"agent_steps_sampled_lifetime", "agent_steps_per_second", "num_updates"}
        keys |= {"replay_size", "weights_lag", "episode_reward_mean"}
        keys |= {"self_play/win_rate", "self_play/opponents"} if config.has_opponent else set()
        keys |= {f"self_play/win_rates/{name}" for name in config.others if name != LATEST}
        win_rates = [f"{EVALUATED}/win_rate/{name}" for name in sorted(opponents)]
        beside: list[str] = []
        if not episode.has_winner:
            pairs = itertools.product(sorted(opponents), modules, (GROUP_RETURNS_MEAN, BASELINE))
            beside = [f"{EVALUATED}/{OPPONENTS}/{name}/{kind}/{g}" for name, g, kind in pairs]
            win_rates, keys = [], {*keys, *beside}
        open_ = listens(config) or any(later)
        return Run(keys, set(modules.values()), evaluated, (), win_rates, beside, open_)

    def limits(self, stop: Mapping[str, float]) -> dict[str, Any]:
        """See `Hooks`."""
        return {"time_limit_s": stop["time_total_s"]} if "time_total_s" in stop else {}

    def columns(self, keys: Collection[str]) -> list[Column]:
        """See `Hooks`."""
        returns = fnmatch.filter(keys, "env_runners/group_returns_mean/*")
        groups = [(f"return {key.split('/', 2)[2]}", key, ".1f") for key in sorted(returns)]
        total = ("return", RETURN, ".1f")
        columns = [
            ("rows", "agent_steps_sampled_lifetime", "count"),
            ("rows/s", "agent_steps_per_second", ",.0f"),
            ("temperature", next(iter(fnmatch.filter(keys, "learners/*/temperature")), ""), ".3g"),
        ]
        if len(groups) < 4:
            return [*(groups if groups[1:] else [total]), *columns]
        return [total, *columns, *groups]  # many groups do not push out the others

    def configure_play(self, config: Any, play: Play) -> None:
        """See `Hooks`; the algorithm plays itself unless an opponent is named."""
        given = parse_mapping(play.config or "{}", "--config")
        for key in sorted({"evaluation_opponents", "self_play"} & given.keys()):
            raise BadInput(f"--config has {key}; `rllib evaluate` plays against --opponent alone.")
        config.evaluation_opponents = {}
        if "evaluation_random_steps" not in given:
            config.evaluation_random_steps = 0  # the usual start, whatever the run evaluated
        config.self_play = {"opponent": "latest"}
        if play.env or play.config:
            config.groups = None  # the environment may be another one
        if play.render:
            config.callbacks(on_episode_step=render_step)
        if play.opponent:
            known = is_named(play.opponent) or find_modules(play.opponent)
            opponent = play.opponent if known else check_checkpoint(play.opponent)
            config.evaluation(evaluation_interval=1, evaluation_duration=1)
            config.evaluation_opponents = {"opponent": opponent}

    def restore(self, algorithm: Algorithm, path: str) -> None:
        """See `Hooks`; `pretrained:NAME` has one module, which plays all groups."""
        for name, module in load_modules(path).items():
            mine = "shared" if path.startswith(PREFIX) else name
            algorithm.env_runner.module[mine].set_state(module.get_state(inference_only=True))
        # RLlib restores the runner that trains; the one that evaluates is synced only on demand.
        weights = algorithm.env_runner.module.get_state(inference_only=True)
        _player(algorithm).module.set_state(weights)

    def sample(self, algorithm: Algorithm) -> list[Any]:
        """See `Hooks`."""
        runner = _player(algorithm)
        (fragment,) = runner.sample(num_episodes=1, explore=False)
        runner.get_metrics()  # else they pile up
        return list(fragment.episodes)

    def baseline(self, algorithm: Algorithm) -> dict[str, float]:
        """See `Hooks`."""
        return dict(_player(algorithm).matches.baselines.get("opponent", {}))

    def record(self, episode: Any) -> Record:
        """See `Hooks`; in a match the return is that of the side which the algorithm played."""
        record: Record = {"returns": dict(episode.returns), "result": episode.result}
        mine = episode.custom_data.get("mine")
        if mine:
            record |= {"side": mine, "return": float(episode.returns[mine])}
            if episode.has_winner:
                record["share"] = float(episode.shares()[mine])
        return record


def hooks(algorithm: Any) -> Hooks:
    """The hooks of an algorithm: a class, its path or its name, which need not exist."""
    if isinstance(algorithm, str):
        with contextlib.suppress(Exception):  # `check` says what is wrong with it
            algorithm = find(algorithm) or algorithm
    mfq = issubclass(algorithm, MFQ) if isinstance(algorithm, type) else algorithm == MFQ.__name__
    return MFQHooks() if mfq else Hooks()


def load_config(spec: str) -> tuple[str, type[Algorithm], AlgorithmConfig]:
    """The path, algorithm and config of a checkpoint or of `pretrained:NAME`, to play it.

    A checkpoint is unpickled if what it says beside its pickles does not suffice.

    Raises:
        ValueError: there is none, or today's RLlib does not read it.
    """
    if spec.startswith(PREFIX):
        about = header(spec)
        return spec, MFQ, _to_play(about, {}, {"shared": about["model_config"]})
    path = check_checkpoint(spec)
    played = saved_play(path)
    if played.get("suffices"):
        networks = {name: module.model_config for name, module in load_modules(path).items()}
        return path, MFQ, _to_play(played, played["groups"], networks)
    algorithm, settings = saved_class_and_settings(path)
    if algorithm is None:
        raise ValueError(f"{path} holds no config of an algorithm.")
    return path, algorithm, AlgorithmConfig.from_state(settings)


def _to_play(
    about: Mapping[str, Any], modules: Mapping[str, str], networks: Mapping[str, Any]
) -> AlgorithmConfig:
    """The config of an algorithm that only plays.

    Args:
        about: has `env` and `env_config`.
        modules: the module of each group; empty if one module plays all of them.
        networks: the `model_config` of each module.
    """
    config = MFQ.get_default_config().environment(about["env"], env_config=about["env_config"])
    config.multi_agent(policies=sorted(networks))
    if len({*modules.values()}) > 1:
        config.multi_agent(policy_mapping_fn=lambda agent, *_, **__: modules[group_of(agent)])
    specs = {}
    for name, network in networks.items():
        known = {key: network[key] for key in TO_PLAY if network.get(key) is not None}
        known.pop("mean_action_dim", None)
        config.update_from_dict(known)
        rest = {key: value for key, value in network.items() if key not in TO_PLAY}
        specs[name] = RLModuleSpec(model_config=rest)
    return config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))


def render_step(*, env: Any, **kwargs: Any) -> None:
    """Shows a step of an episode in a window."""
    env.render()


def _player(algorithm: Any) -> Any:
    """The env runner that plays: against an opponent, the one that evaluates."""
    matches = algorithm.config.evaluation_opponents
    return algorithm.eval_env_runner if matches else algorithm.env_runner
