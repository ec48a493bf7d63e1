"""The sampler: steps many populations at once and writes what happens as columns.

All living agents that one player plays, in all populations, are rows of one block per step: one
forward pass, one draw. Columns are written in place into memory that is kept between calls.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rllib_mfq.mean_field.neighborhood import GroupActions
from rllib_mfq.population.fragment import Block, Episode, Fragment
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Array, Population, PopulationError, Rows, Step

logger = logging.getLogger(__name__)


@dataclass
class _Arrival:
    """Rows of one group of one population that act in the next block."""

    env_index: int
    group: str
    source: Array  # [n] the row each agent comes from, -1 for one that enters
    rows: Rows
    obs: Array | None = None  # [n, *obs] where the population has moved on since


class Sampler:
    """Plays populations side by side.

    Args:
        make_population: makes the population with a given index.
        num_envs: E, how many.
        players: who plays each group; the groups of one player share its columns.
        seed: of the populations; None draws one.
        restart_failed: make a population whose `reset` or `step` raises anew, and drop its
            episode's rows of the current fragment, instead of passing the error on. One that
            fails twice within a fragment is broken, and its error is passed on all the same.
        on_event: called as `on_event(event, episode)` with `created`, `start` (reset), `step`
            and `end`.
    """

    def __init__(
        self,
        make_population: Callable[[int], Population],
        num_envs: int,
        players: Mapping[str, Player],
        seed: int | Sequence[int] | None = None,
        restart_failed: bool = False,
        on_event: Callable[[str, Episode], None] = lambda event, episode: None,
    ) -> None:
        self._make = make_population
        self._restart_failed = restart_failed
        self._on_event = on_event
        self._seeds = np.random.SeedSequence(seed)
        self.populations = [make_population(index) for index in range(num_envs)]
        self._unseeded = set(range(num_envs))
        self.groups = dict(self.populations[0].groups)
        self._group_index = {name: index for index, name in enumerate(self.groups)}
        self.assign(players)
        self._rows: dict[tuple[int, str], Rows] = {}
        self._episodes_begun = 0

    def assign(self, players: Mapping[str, Player]) -> None:
        """Hands the groups to (other) players; all episodes start anew."""
        self.players = dict(players)
        mine: dict[str, list[str]] = {}
        for group in self.groups:
            mine.setdefault(self.players[group].name, []).append(group)
        blocks = {
            name: Block(self.players[groups[0]], self.groups, groups)
            for name, groups in mine.items()
        }
        self._blocks = list(blocks.values())
        self._block_of = {group: blocks[self.players[group].name] for group in self.groups}
        self._episodes: list[Episode | None] = [None] * len(self.populations)

    def sample(
        self,
        *,
        num_steps: int = 0,
        num_episodes: int = 0,
        fresh: bool = False,
        keep: bool = True,
    ) -> Fragment:
        """Plays on for some steps, or plays whole episodes.

        Args:
            num_steps: steps of every population, which go on where the last call stopped.
            num_episodes: exactly so many episodes from a fresh start, spread evenly over the
                populations, so that short ones are not preferred; the next call starts anew.
            fresh: start all episodes anew.
            keep: whether to return the rows; without, memory for a few steps is enough.

        Returns:
            The fragment; its columns are valid until the next call.

        Raises:
            PopulationError: NaN, infinite or misshapen values, or rows that do not add up,
                with the population, the group and the step.
        """
        fragment = Fragment({}, 0, dict.fromkeys(self.groups, 0), [])
        self._failed: set[int] = set()
        each, rest = divmod(num_episodes, len(self.populations))
        self._to_begin = [  # episodes still due, per population
            each + (index < rest) if num_episodes else math.inf
            for index in range(len(self.populations))
        ]
        try:
            if num_episodes or fresh or not any(self._episodes):
                self._start(fragment)
            else:
                for block in self._blocks:
                    block.rewind()
            while any(self._episodes) if num_episodes else num_steps > 0:
                num_steps -= 1
                self._step(fragment, keep)
        except BaseException:  # from half a step nobody can go on
            self._episodes = [None] * len(self.populations)
            raise
        if keep:
            fragment.columns = {
                block.player.name: {n: column[: block.end] for n, column in block.data.items()}
                for block in self._blocks
            }
        return fragment

    def close(self) -> None:
        """Closes the populations that can be closed."""
        for population in self.populations:
            _close_population(population)

    def _start(self, fragment: Fragment) -> None:
        """Begins all episodes anew."""
        self._episodes = [None] * len(self.populations)
        for block in self._blocks:
            block.start = block.stop = block.end = 0
        arrivals: list[_Arrival] = []
        for index in range(len(self.populations)):
            arrivals += self._begin(index, fragment)
        self._arrive(arrivals)

    def _step(self, fragment: Fragment, keep: bool) -> None:
        for block in self._blocks:
            if not keep and block.start > block.capacity // 2:
                block.rewind()
        self._choose_actions()
        bounds: dict[str, Array] = {}  # [E + 1] where each population's rows begin
        for group, block in self._block_of.items():
            rows = block.slices[group]
            block.data["loss_mask"][rows] = True
            fragment.agent_steps[group] += rows.stop - rows.start
            ends = np.searchsorted(block.population[group], np.arange(len(self.populations) + 1))
            bounds[group] = ends + rows.start
        arrivals: list[_Arrival] = []
        for index, episode in enumerate(self._episodes):
            if episode is not None:
                where = {g: slice(int(b[index]), int(b[index + 1])) for g, b in bounds.items()}
                arrivals += self._advance(index, fragment, where)
        self._arrive(arrivals)

    def _choose_actions(self) -> None:
        """Algorithm 1's inner loop, and the mean actions the step produces."""
        for iteration in range(max(p.mean_action_iterations for p in self.players.values())):
            for block in self._blocks:
                if iteration < block.player.mean_action_iterations:
                    if iteration:
                        now = slice(block.start, block.stop)
                        block.data["mean_actions"][now] = block.data["next_mean_actions"][now]
                    block.act()
            self._average_actions()

    def _average_actions(self) -> None:
        played = {group: self._played(group) for group in self.groups}
        for group, block in self._block_of.items():
            others = [played[other] for other in self.groups if other != group]
            means = block.player.neighborhood.mean_actions(played[group], others)
            block.data["next_mean_actions"][block.slices[group]] = means

    def _played(self, group: str) -> GroupActions:
        block = self._block_of[group]
        positions = edges = None
        if block.player.neighborhood.needs:
            here = [self._rows[i, group] for i, e in enumerate(self._episodes) if e is not None]
            starts = np.cumsum([0, *(len(rows.ids) for rows in here)])
            if block.player.neighborhood.needs == "edges":
                pairs = [
                    rows.edges + start
                    for rows, start in zip(here, starts, strict=False)
                    if rows.edges is not None
                ]
                edges = np.concatenate(pairs) if len(pairs) == len(here) else None
            else:
                places = [rows.positions for rows in here if rows.positions is not None]
                positions = np.concatenate(places) if len(places) == len(here) else None
        return GroupActions(
            block.data["actions"][block.slices[group]],
            int(self.groups[group].action_space.n),
            block.population[group],
            positions,
            edges,
        )

    def _begin(self, index: int, fragment: Fragment) -> list[_Arrival]:
        """Starts the next episode of a population, if one is due."""
        self._episodes[index] = None
        if self._to_begin[index] == 0:
            return []
        start: dict[str, Rows] | None = None
        while start is None:
            seed = None
            if index in self._unseeded:  # later episodes let the random numbers run on
                seed = int(self._seeds.spawn(1)[0].generate_state(1)[0] >> 1)
                self._unseeded.remove(index)
            episode = Episode(self._episodes_begun, index, dict.fromkeys(self.groups, 0.0))
            self._on_event("created", episode)
            start = self._try(index, fragment, "reset", seed=seed)
        self._to_begin[index] -= 1
        self._episodes_begun += 1
        self._episodes[index] = episode
        self._on_event("start", episode)
        arrivals = []
        for group, space in self.groups.items():
            start[group].check(_place(episode, group), int(space.action_space.n))
            source = np.full(len(start[group].ids), -1)
            arrivals.append(_Arrival(index, group, source, start[group]))
        return arrivals

    def _advance(
        self, index: int, fragment: Fragment, where: Mapping[str, slice]
    ) -> list[_Arrival]:
        """Plays one step of one population; its rows in the current block are at `where`."""
        episode = self._episodes[index]
        assert episode is not None
        actions = {group: self._block_of[group].data["actions"][r] for group, r in where.items()}
        steps: dict[str, Step] | None = self._try(index, fragment, "step", actions)
        if steps is None:
            return self._begin(index, fragment)
        episode.length += 1
        fragment.env_steps += 1
        arrivals = []
        for group, rows in where.items():
            step, block = steps[group], self._block_of[group]
            step.check(_place(episode, group), rows.stop - rows.start, block.num_actions)
            block.data["rewards"][rows] = step.rewards
            block.data["terminateds"][rows] = step.terminated
            episode.returns[group] += float(np.sum(step.rewards))
            living = np.flatnonzero(~step.terminated)
            entered = len(step.rows.ids) - len(living)
            source = np.append(living + rows.start, np.full(entered, -1))
            closing = np.append(step.truncated[living], np.zeros(entered, bool))
            if closing.any():
                arrivals.append(self._close(index, group, source, closing, step.rows))
            else:
                arrivals.append(_Arrival(index, group, source, step.rows))
        self._on_event("step", episode)
        if any(len(arrival.source) for arrival in arrivals):
            return arrivals
        episode.is_done = True
        episode.result = getattr(self.populations[index], "result", dict)()
        fragment.episodes.append(episode)
        self._on_event("end", episode)
        return self._begin(index, fragment)

    def _try(self, index: int, fragment: Fragment, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a population; if it raises, it is made anew and its episode forgotten."""
        try:
            return getattr(self.populations[index], method)(*args, **kwargs)
        except PopulationError:
            raise
        except Exception:
            if not self._restart_failed or index in self._failed:
                raise
            logger.exception("Population %d raised; it is made anew.", index)
        self._failed.add(index)
        fragment.failures += 1
        if self._episodes[index] is not None:
            self._drop_episode(index, fragment)
        with contextlib.suppress(Exception):  # it may be past closing, too
            _close_population(self.populations[index])
        self.populations[index] = self._make(index)
        self._unseeded.add(index)
        return None

    def _drop_episode(self, index: int, fragment: Fragment) -> None:
        """Nobody learns from what the fragment holds of it, and another is due in its place."""
        episode = self._episodes[index]
        assert episode is not None
        self._to_begin[index] += 1
        for block in self._blocks:
            data = {name: column[: block.end] for name, column in block.data.items()}
            dropped = data["loss_mask"] & (data["eps_id"] == episode.id_)
            data["loss_mask"][dropped] = False
            for group in block.names:
                mine = data["group"][dropped] == self._group_index[group]
                fragment.agent_steps[group] -= int(np.count_nonzero(mine))

    def _close(self, index: int, group: str, source: Array, closing: Array, rows: Rows) -> _Arrival:
        """Writes the rows that observe for the last time, and returns those that go on."""
        block, population = self._block_of[group], self.populations[index]
        where = block.take(int(np.count_nonzero(closing)))
        block.write(where, source[closing], rows.select(closing))
        self._mark(block, where, index, group)
        if closing.all():
            population.observe(group, block.data["obs"][where])
            going_on = None
        else:
            obs = block.data["obs"]
            everyone = np.empty((len(closing), *obs.shape[1:]), obs.dtype)
            population.observe(group, everyone)
            obs[where] = everyone[closing]
            going_on = everyone[~closing]
        self._check_finite_obs(block, where, group)
        return _Arrival(index, group, source[~closing], rows.select(~closing), going_on)

    def _arrive(self, arrivals: list[_Arrival]) -> None:
        """Writes the next block: the rows that act in the next step."""
        for block in self._blocks:
            arrived = {g: [a for a in arrivals if a.group == g] for g in block.names}
            block.reserve(sum(len(a.source) for pieces in arrived.values() for a in pieces))
            block.start = block.end
            for group, pieces in arrived.items():
                first = block.end
                for piece in pieces:
                    where = block.take(len(piece.source))
                    block.write(where, piece.source, piece.rows)
                    self._mark(block, where, piece.env_index, group)
                    self._rows[piece.env_index, group] = piece.rows
                    out = block.data["obs"][where]
                    if piece.obs is None:
                        self.populations[piece.env_index].observe(group, out)
                    else:
                        out[:] = piece.obs
                block.slices[group] = slice(first, block.end)
                block.population[group] = np.repeat(
                    [piece.env_index for piece in pieces], [len(piece.source) for piece in pieces]
                ).astype(np.int64)
                self._check_finite_obs(block, block.slices[group], group)
            block.stop = block.end

    def _mark(self, block: Block, where: slice, index: int, group: str) -> None:
        episode = self._episodes[index]
        assert episode is not None
        block.data["eps_id"][where] = episode.id_
        block.data["t"][where] = episode.length
        block.data["group"][where] = self._group_index[group]

    def _check_finite_obs(self, block: Block, where: slice, group: str) -> None:
        obs = block.data["obs"][where]
        # The sum is a cheap first look: NaN and infinity survive it.
        if obs.dtype.kind != "f" or np.isfinite(obs.sum(dtype=np.float32)):
            return
        bad = np.flatnonzero(~np.isfinite(obs.reshape(len(obs), -1)).all(axis=1))
        if len(bad):
            episode_id, t = (block.data[key][where][bad[0]] for key in ("eps_id", "t"))
            raise PopulationError(
                f"episode {episode_id}, group {group!r}, step {t}: the observation of row "
                f"{bad[0]} is not finite (NaN or infinity)."
            )


def _place(episode: Episode, group: str) -> str:
    return f"population {episode.env_index}, group {group!r}, step {episode.length}"


def _close_population(population: Population) -> None:
    getattr(population, "close", lambda: None)()
