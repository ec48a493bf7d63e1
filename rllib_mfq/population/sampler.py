"""The sampler: steps many populations at once and writes what happens as columns.

All living agents that one player plays, in all populations, are rows of one block per step: one
forward pass, one draw. Columns are written in place into memory that is kept between calls.
"""

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rllib_mfq.population.block import Arrival, Block
from rllib_mfq.population.casts import Cast, Casts
from rllib_mfq.population.fragment import Episode, Fragment, Link, are_alike
from rllib_mfq.population.guard import Guard, place
from rllib_mfq.population.population import Array, Population, Rows


class Sampler:
    """Plays populations side by side.

    Args:
        make_population: makes the population with a given index.
        num_envs: E, how many.
        players: who plays each group; the groups of one player share its columns. Where several
            casts are given, each population has one of them for an episode.
        seed: of the populations; None draws one.
        restart_failed: if the `reset` or `step` of a population raises, do not pass the error
            on, but make the population anew and drop its episode's rows of the current fragment.
            If a population fails twice within a fragment, its error is passed on all the same.
        choose: of several casts, the number of the one that plays an episode which begins.
        on_event: called as `on_event(event, episode)` with `created`, `start` (reset), `step`
            and `end`.
    """

    def __init__(
        self,
        make_population: Callable[[int], Population],
        num_envs: int,
        players: Cast | Sequence[Cast],
        seed: int | Sequence[int] | None = None,
        restart_failed: bool = False,
        choose: Callable[[Episode], int] = lambda episode: 0,
        on_event: Callable[[str, Episode], None] = lambda event, episode: None,
    ) -> None:
        self._on_event, self._choose = on_event, choose
        self._guard = Guard(make_population, num_envs, seed, restart_failed)
        self.populations, self.groups = self._guard.populations, self._guard.groups
        self.assign(players)
        self._numbers = np.arange(num_envs + 1)
        self._rows: dict[tuple[int, str], Rows] = {}
        self._name = ""  # of the latest fragment
        self._episodes_begun = 0

    def assign(self, players: Cast | Sequence[Cast]) -> None:
        """Hands the groups to (other) players; all episodes start anew."""
        casts = [players] if isinstance(players, Mapping) else players
        self.players = dict(casts[0])
        self._casts = Casts(self.groups, casts)
        self._episodes: dict[int, Episode] = {}  # that are being played, per population

    def sample(
        self,
        *,
        num_steps: int = 0,
        num_rows: int = 0,
        num_episodes: int = 0,
        fresh: bool = False,
        keep: bool = True,
    ) -> Fragment:
        """Plays on for some steps, or plays whole episodes.

        Args:
            num_steps: steps of every population, which go on where the last call stopped.
            num_rows: steps of every population until there are so many rows to learn from, instead.
            num_episodes: exactly so many episodes from a fresh start, spread evenly over the
                populations, so that short ones are not preferred; the next call starts anew.
            fresh: start all episodes anew.
            keep: whether to return the rows; if not, memory for a few steps is enough.

        Returns:
            The fragment; its columns are valid until the next call.

        Raises:
            PopulationError: NaN, infinite or misshapen values, or rows that do not add up; the
                message names the population, the group and the step.
        """
        fragment = Fragment({}, 0, {}, [])
        follows, self._name = self._name, uuid.uuid4().hex
        self._guard.begin_fragment()
        # Per group `[E]`: rows to learn from of all episodes, and of those that are being played.
        self._rows_played, self._rows_of_episode = (
            {group: np.zeros(len(self.populations), np.int64) for group in self.groups}
            for _ in range(2)
        )
        each, rest = divmod(num_episodes, len(self.populations))
        self._to_begin = [  # episodes still due, per population
            each + (index < rest) if num_episodes else math.inf
            for index in range(len(self.populations))
        ]
        try:
            if num_episodes or fresh or not self._episodes:
                self._episodes, follows = {}, ""
                for block in self._casts.blocks:
                    block.start = block.stop = block.end = 0
                    block.waiting.forget()
                everyone = range(len(self.populations))
                self._arrive([arrival for i in everyone for arrival in self._begin(i, fragment)])
            else:
                for block in self._casts.blocks:
                    block.rewind()
            steps = 0
            while (
                bool(self._episodes)
                if num_episodes
                else steps < num_steps or sum(self._num_rows().values()) < num_rows
            ):
                steps += 1
                self._step(fragment, keep)
        except BaseException:  # the step is half done: all episodes start anew
            self._episodes = {}
            raise
        fragment.agent_steps = self._num_rows()
        if keep:
            fragment.columns = {block.player.name: block.columns() for block in self._casts.blocks}
            fragment.links = {
                block.player.name: Link(self._name, follows, block.stop - block.start)
                for block in self._casts.blocks
            }
        return fragment

    def close(self) -> None:
        """Closes the populations that can be closed."""
        self._guard.close()

    def _step(self, fragment: Fragment, keep: bool) -> None:
        """Plays one step of every population that has an episode."""
        self._choose_actions(keep)
        self._play(fragment)

    def _choose_actions(self, keep: bool) -> None:
        for block in self._casts.blocks:
            if not keep and block.start > block.capacity // 2:
                block.rewind()
        self._casts.act(self._rows, self._episodes)

    def _play(self, fragment: Fragment) -> None:
        """Plays the actions that were chosen."""
        bounds: dict[tuple[str, str], Array] = {}  # [E + 1] where each population's rows begin
        for block in self._casts.blocks:
            for group in block.names:
                rows = block.slices[group]
                block.data["loss_mask"][rows] = True
                ends = np.searchsorted(block.population[group], self._numbers)
                if block.player.learns:
                    self._count(group, slice(None), np.diff(ends))
                bounds[block.player.name, group] = ends + rows.start
        arrivals: list[Arrival] = []
        for index in sorted(self._episodes):
            where = {}
            for group in self.groups:
                starts = bounds[self._block(index, group).player.name, group]
                where[group] = slice(int(starts[index]), int(starts[index + 1]))
            arrivals += self._advance(index, fragment, where)
        self._arrive(arrivals)

    def _block(self, index: int, group: str) -> Block:
        return self._casts.block(index, group)

    def _num_rows(self) -> dict[str, int]:
        """The rows to learn from so far, per group."""
        return {group: int(rows.sum()) for group, rows in self._rows_played.items()}

    def _count(self, group: str, index: int | slice, rows: Any) -> None:
        """Counts rows to learn from, `[E]` or of one population."""
        self._rows_played[group][index] += rows
        self._rows_of_episode[group][index] += rows

    def _begin(self, index: int, fragment: Fragment) -> list[Arrival]:
        """Starts the next episode of a population, if one is due."""
        self._episodes.pop(index, None)
        for block in self._casts.blocks:
            block.waiting.forget(index)
        for counts in self._rows_of_episode.values():
            counts[index] = 0
        if self._to_begin[index] == 0:
            return []
        episode = Episode(self._episodes_begun, index, dict.fromkeys(self.groups, 0.0))
        self._casts.give(index, self._choose(episode))
        self._on_event("created", episode)
        start = self._guard.reset(index)
        if start is None:
            fragment.failures += 1
            return self._begin(index, fragment)
        episode.alike = are_alike(self.groups, start)
        self._to_begin[index] -= 1
        self._episodes_begun += 1
        self._episodes[index] = episode
        self._on_event("start", episode)
        return [
            Arrival(episode, group, np.full(len(start[group].ids), -1), start[group])
            for group in self.groups
        ]

    def _advance(self, index: int, fragment: Fragment, where: dict[str, slice]) -> list[Arrival]:
        """Plays one step of one population, whose rows in the current blocks are at `where`."""
        episode = self._episodes[index]
        blocks = {group: self._block(index, group) for group in where}
        actions = {group: blocks[group].data["actions"][rows] for group, rows in where.items()}
        steps = self._guard.step(episode, actions)
        if steps is None:
            self._drop(episode, fragment)
            return self._begin(index, fragment)
        episode.length += 1
        fragment.env_steps += 1
        arrivals = []
        for group, rows in where.items():
            step, block = steps[group], blocks[group]
            block.data["rewards"][rows] = step.rewards
            block.data["terminateds"][rows] = step.terminated
            episode.pay(group, block.data["agent_index"][rows], step)
            if step.waiting is None and step.late is None:
                living = np.flatnonzero(~step.terminated)
                source, closing = living + rows.start, step.truncated[living]
                if entered := len(step.rows.ids) - len(living):
                    source = np.append(source, np.full(entered, -1))
                    closing = np.append(closing, np.zeros(entered, bool))
            else:
                acted = (index, group, step, rows)
                here = place(index, episode.length, group)
                source, closing, more = block.waiting.settle(*acted, block.data, here)
                if block.player.learns:
                    self._count(group, index, more)
            arrival = Arrival(episode, group, source, step.rows)
            arrivals.append(self._close(arrival, closing) if closing.any() else arrival)
        self._on_event("step", episode)
        if any(len(arrival.source) for arrival in arrivals) or self._guard.goes_on(episode):
            return arrivals
        episode.is_done = True
        episode.result = self._guard.result(episode)
        fragment.episodes.append(episode)
        self._on_event("end", episode)
        return self._begin(index, fragment)

    def _drop(self, episode: Episode, fragment: Fragment) -> None:
        """Forgets an episode whose population raised: nobody learns from it, another one is due."""
        fragment.failures += 1
        self._to_begin[episode.env_index] += 1
        for block in self._casts.blocks:
            block.drop(episode)
        for group, counts in self._rows_of_episode.items():
            self._rows_played[group][episode.env_index] -= counts[episode.env_index]

    def _close(self, arrival: Arrival, closing: Array) -> Arrival:
        """Writes the rows that observe for the last time, and returns those that go on."""
        episode, group, source, rows = arrival.episode, arrival.group, arrival.source, arrival.rows
        block = self._block(episode.env_index, group)
        last = Arrival(episode, group, source[closing], rows.select(closing))
        (where,) = block.write(group, [last])
        obs = block.data["obs"]
        everyone = np.empty((len(closing), *obs.shape[1:]), obs.dtype)
        self._guard.observe(episode, group, everyone)
        obs[where] = everyone[closing]
        block.check_finite(where, group)
        going_on = rows.select(~closing)
        return Arrival(episode, group, source[~closing], going_on, everyone[~closing])

    def _arrive(self, arrivals: list[Arrival]) -> None:
        """Writes the next block: the rows that act in the next step."""
        for block in self._casts.blocks:
            block.start = block.end
            for group in block.names:
                mine = [
                    arrival
                    for arrival in arrivals
                    if arrival.group == group
                    and self._block(arrival.episode.env_index, group) is block
                ]
                first, wheres = block.end, block.write(group, mine)
                for each, where in zip(mine, wheres, strict=True):
                    index, out = each.episode.env_index, block.data["obs"][where]
                    self._rows[index, group] = each.rows
                    if each.obs is None:
                        self._guard.observe(each.episode, group, out)
                    else:
                        out[:] = each.obs
                counts = [len(each.source) for each in mine]
                block.population[group] = np.repeat(
                    np.array([each.episode.env_index for each in mine], np.int64), counts
                )
                block.slices[group] = slice(first, block.end)
                block.check_finite(block.slices[group], group)
            block.stop = block.end
