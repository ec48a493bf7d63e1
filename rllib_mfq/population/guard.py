"""The guard: every call to a population, and a check of what comes back."""

import contextlib
import logging
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.population import (
    Array,
    Population,
    PopulationError,
    Rows,
    Step,
    close,
)

logger = logging.getLogger(__name__)

NOBODY = 10_000
"""An episode that goes on after so many steps in a row without anybody is an error."""


class Guard:
    """Populations that are checked, and made anew if they raise; see `Sampler` for the arguments.

    Every method that calls a population raises a PopulationError, which names the population, the
    step and the group, for what nothing can be learned from.
    """

    def __init__(
        self,
        make_population: Callable[[int], Population],
        num_envs: int,
        seed: int | Sequence[int] | None,
        restart_failed: bool,
    ) -> None:
        self._make, self._restart_failed = make_population, restart_failed
        self.populations = [make_population(index) for index in range(num_envs)]
        self.groups = dict(self.populations[0].groups)
        self._num_actions = {g: int(spaces.action_space.n) for g, spaces in self.groups.items()}
        self._seeds = np.random.SeedSequence(seed)
        self._unseeded = set(range(num_envs))
        self._failed: set[int] = set()  # since `begin_fragment`
        self._nobody = dict.fromkeys(range(num_envs), 0)  # steps in a row without anybody

    def begin_fragment(self) -> None:
        """Lets every population fail once more."""
        self._failed.clear()

    def reset(self, index: int) -> dict[str, Rows] | None:
        """Starts an episode; None if the population raised and was made anew."""
        seed = None
        if index in self._unseeded:  # later episodes let the random numbers run on
            seed = int(self._seeds.spawn(1)[0].generate_state(1)[0] >> 1)
            self._unseeded.remove(index)
        self._nobody[index] = 0
        raised, rows = self._try(index, 0, "reset", seed=seed)
        if raised:
            return None
        self._check_groups(f"{place(index, 0)}: reset", rows, Rows)
        for group, each in rows.items():
            try:
                each.check(self._num_actions[group])
            except PopulationError as error:
                raise PopulationError(f"{place(index, 0, group)}: {error}") from None
        return dict(rows)

    def step(self, episode: Episode, actions: Mapping[str, Array]) -> dict[str, Step] | None:
        """Plays one step, one action per row; None if the population raised and was made anew."""
        now = (episode.env_index, episode.length + 1)
        raised, steps = self._try(*now, "step", actions)
        if raised:
            return None
        self._check_groups(f"{place(*now)}: step", steps, Step)
        for group, step in steps.items():
            try:
                step.check(len(actions[group]), self._num_actions[group])
            except PopulationError as error:
                raise PopulationError(f"{place(*now, group)}: {error}") from None
        return dict(steps)

    def observe(self, episode: Episode, group: str, out: Array) -> None:
        """Writes the current observations of a group into `out`."""
        try:
            self.populations[episode.env_index].observe(group, out)
        except Exception as error:
            where = place(episode.env_index, episode.length, group)
            if isinstance(error, PopulationError):
                raise PopulationError(f"{where}: {error}") from error
            raise PopulationError(f"{where}: observe raised {error!r}.") from error

    def goes_on(self, episode: Episode) -> bool:
        """Whether an episode goes on though nobody acts."""
        index = episode.env_index
        ask = getattr(self.populations[index], "is_over", None)
        if ask is None or ask():
            return False
        self._nobody[index] += 1
        if self._nobody[index] >= NOBODY:
            raise PopulationError(
                f"{place(index, episode.length)}: in {NOBODY} steps nobody has acted, and the "
                "environment does not say that the episode is over."
            )
        return True

    def result(self, episode: Episode) -> dict[str, dict[str, float]]:
        """The population's own figures of an episode that is over."""
        ask = getattr(self.populations[episode.env_index], "result", dict)
        figures: Any = ask()
        given = figures.values() if isinstance(figures, Mapping) else [figures]
        for figure in given:
            good = isinstance(figure, Mapping) and figure.keys() == self.groups.keys()
            if not good or not all(isinstance(value, numbers.Real) for value in figure.values()):
                raise PopulationError(
                    f"{place(episode.env_index, episode.length)}: result must return a number for "
                    f"each of {list(self.groups)} under every name, but returned {figures!r}."
                )
        return dict(figures)

    def close(self) -> None:
        """Closes the populations that can be closed."""
        for population in self.populations:
            close(population)

    def _try(
        self, index: int, step: int, method: str, *args: Any, **kwargs: Any
    ) -> tuple[bool, Any]:
        """Calls a population; whether it raised and was made anew, and what it returned."""
        try:
            return False, getattr(self.populations[index], method)(*args, **kwargs)
        except PopulationError as error:
            raise PopulationError(f"{place(index, step)}: {error}") from error
        except Exception:
            if index in self._failed or not self._restart_failed:
                raise
            logger.exception("Population %d raised; it is made anew.", index)
        self._failed.add(index)
        with contextlib.suppress(Exception):  # a broken population may be unable to close
            close(self.populations[index])
        self.populations[index] = self._make(index)
        self._unseeded.add(index)
        return True, None

    def _check_groups(self, what: str, value: Any, kind: type) -> None:
        """Raises unless a population returned one `Rows` or `Step` for every group."""
        expected = f"{what} must return a {kind.__name__} for each of {list(self.groups)}"
        if not isinstance(value, Mapping):
            raise PopulationError(f"{expected}, but returned a {type(value).__name__}.")
        if value.keys() != self.groups.keys():
            raise PopulationError(f"{expected}, but returned {list(value)}.")
        for group, each in value.items():
            if not isinstance(each, kind):
                raise PopulationError(f"{expected}, but {group!r} is a {type(each).__name__}.")


def place(index: int, step: int, group: str | None = None) -> str:
    """How an error begins that is about a step of a population, and about one of its groups."""
    return f"population {index}, {'' if group is None else f'group {group!r}, '}step {step}"
