"""Matches: how an env runner evaluates against named opponents."""

from collections.abc import Mapping

import numpy as np
import torch
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_mfq.algorithm.figures import BASELINE, OPPONENTS, log_figures, match_figures
from rllib_mfq.algorithm.match import play_both_sides
from rllib_mfq.algorithm.opponents import Opponent, begin_at_random
from rllib_mfq.population.fragment import Fragment
from rllib_mfq.population.player import Player
from rllib_mfq.population.sampler import Sampler

BASELINE_EPISODES = 20
"""Episodes in which an opponent plays itself, once, where groups are not alike."""


class Matches:
    """Plays matches against opponents, half of them on each side.

    Args:
        opponents: by their names in the results.
        random_steps: in which both sides play uniform legal actions when a match begins.
        number: of the runner. Of an odd number of matches, runners that follow on each other give
            one more to sides in turn, so that all together play both sides equally often.

    Attributes:
        opponents: see there.
        baselines: what each opponent earns as each group against itself, where winning means
            nothing, see `Episode.has_winner`: there a return says something only beside it.
    """

    def __init__(
        self, opponents: Mapping[str, Opponent], random_steps: int = 0, number: int = 0
    ) -> None:
        self.opponents, self._random_steps = opponents, random_steps
        self.baselines: dict[str, dict[str, float]] = {}
        self._played = number

    def play(
        self,
        sampler: Sampler,
        mine: Mapping[str, Player],
        num_matches: int,
        generator: torch.Generator,
        metrics: MetricsLogger,
    ) -> Fragment:
        """Plays `num_matches` against every opponent, and logs their figures.

        Args:
            sampler: has populations of two groups.
            mine: one's own player of every group, who has the groups again afterwards.
            num_matches: see `play_both_sides`.
            generator: the source of the opponents' draws, and of the random steps'.
            metrics: where the figures are logged.

        Returns:
            What was played, without columns.
        """
        played = Fragment({}, 0, dict.fromkeys(sampler.groups, 0), [])
        ours = begin_at_random(mine, sampler.groups, self._random_steps, generator)
        for name, opponent in self.opponents.items():
            theirs = opponent.players(generator, self._random_steps)
            before = len(played.episodes)
            for group, part in play_both_sides(sampler, ours, theirs, num_matches, self._played):
                for episode in part.episodes:
                    episode.custom_data["mine"] = group
                log_figures(metrics, (match_figures(e, group, name) for e in part.episodes))
                played.env_steps += part.env_steps
                played.episodes += part.episodes
                played.failures += part.failures
                for each, steps in part.agent_steps.items():
                    played.agent_steps[each] += steps
            if not all(episode.has_winner for episode in played.episodes[before:]):
                if name not in self.baselines:
                    self.baselines[name] = _mean_returns(sampler, theirs)
                for group, value in self.baselines[name].items():
                    log_figures(metrics, [{(OPPONENTS, name, BASELINE, group): value}])
        self._played += num_matches
        sampler.assign(mine)
        return played


def _mean_returns(sampler: Sampler, players: Mapping[str, Player]) -> dict[str, float]:
    """The mean return of every group."""
    sampler.assign(players)
    episodes = sampler.sample(num_episodes=BASELINE_EPISODES, keep=False).episodes
    return {g: float(np.mean([each.returns[g] for each in episodes])) for g in sampler.groups}
