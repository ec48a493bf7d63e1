"""The block: one player's rows of the current step, and the columns they are written into."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rllib_mfq.population.fragment import Episode
from rllib_mfq.population.player import Player, Scene
from rllib_mfq.population.population import Array, Group, PopulationError, Rows
from rllib_mfq.population.waiting import Waiting

CARRIED = {"mean_actions": "next_mean_actions"}
"""What every agent carries from one step to the next: the column that it reads there, and the
column of its previous step that the value comes from. An agent that enters reads zero.

A `Player` may name more of them in `carried`, such as `{"last_actions": "actions"}`.
"""


@dataclass(slots=True)
class Arrival:
    """Agents of one group of one population that observe."""

    episode: Episode  # what their population plays
    group: str
    source: Array  # [n] the row that each agent comes from, -1 for one that has just entered
    rows: Rows
    obs: Array | None = None  # [n, *obs], if they were already read


class Block:
    """The columns of one player's rows, and which of these rows act now.

    `groups` are all groups of the environment; `names` are those that the player plays.
    """

    def __init__(self, player: Player, groups: Mapping[str, Group], names: list[str]) -> None:
        self.player, self.names = player, names
        space = groups[names[0]].observation_space
        sizes = {name: int(group.action_space.n) for name, group in groups.items()}
        self.num_actions = sizes[names[0]]
        self._number = {name: index for index, name in enumerate(groups)}
        width = player.neighborhood.width(names[0], sizes)
        self.capacity, self.start, self.stop, self.end = 0, 0, 0, 0
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            "obs": (space.shape, space.dtype),
            "next_mean_actions": ((width,), np.float32),
            "actions": ((), np.int32),
            "rewards": ((), np.float32),
            "terminateds": ((), bool),
            "next_row": ((), np.int32),
            "loss_mask": ((), bool),
            "eps_id": ((), np.int64),
            "t": ((), np.int32),
            "group": ((), np.int32),
            "agent_index": ((), np.int32),
        }
        layout |= player.remembers
        self.carried = {**CARRIED, **player.carried}
        layout |= {name: layout[source] for name, source in self.carried.items()}
        self.data = {name: np.empty((0, *shape), kind) for name, (shape, kind) in layout.items()}
        self.slices: dict[str, slice] = {}  # per group, the rows that act now
        self.population: dict[str, Array] = {}  # per group, `[n]`: which population they are of
        self.waiting = Waiting()

    def take(self, rows: int) -> slice:
        """The next free rows."""
        first, self.end = self.end, self.end + rows
        if self.end > self.capacity:
            self.capacity = max(2 * self.capacity, self.end)
            for name, old in self.data.items():
                self.data[name] = np.empty((self.capacity, *old.shape[1:]), old.dtype)
                self.data[name][:first] = old[:first]
        return slice(first, self.end)

    def rewind(self) -> None:
        """Moves the rows that act now to the front, then those that wait; forgets all others."""
        start, rows, waiting = self.start, self.stop - self.start, self.waiting.rows()
        end = rows + len(waiting)
        for column in self.data.values():
            kept = column[waiting]
            column[:rows] = column[start : self.stop]
            column[rows:end] = kept
        for name, old in self.slices.items():
            self.slices[name] = slice(old.start - start, old.stop - start)
        self.waiting.move(rows)
        self.start, self.stop, self.end = 0, rows, end

    def act(self, scene: Scene | None) -> None:
        """Chooses the actions of the rows that act now; `scene` is for a player that sees one."""
        if self.stop == self.start:
            return
        now = slice(self.start, self.stop)
        mask = self.data["action_mask"][now] if "action_mask" in self.data else None
        data, player = self.data, self.player
        given = [data["obs"][now], data["mean_actions"][now], mask]
        act = player.act
        if player.act_together is not None:
            act, count = player.act_together, len(self.names)
            crowds = [self.population[g] * count + index for index, g in enumerate(self.names)]
            given.append(np.concatenate(crowds))
        more: dict[str, Any] = {} if scene is None else {"scene": scene}
        if not player.remembers:
            data["actions"][now] = act(*given, **more)
            return
        more |= {name: data[name][now] for name in player.carried}
        data["actions"][now], remembered = act(*given, **more)
        for name, values in remembered.items():
            data[name][now] = values

    def write(self, group: str, arrivals: Sequence[Arrival]) -> list[slice]:
        """Adds rows in which agents of a group observe; fills all columns but `obs`.

        All populations' rows are written at once: a column takes longer to address than to fill.

        Returns:
            The rows of each arrival.
        """
        counts = [len(arrival.source) for arrival in arrivals]
        where, data = self.take(sum(counts)), self.data
        masks = [arrival.rows.action_mask for arrival in arrivals]
        if "action_mask" not in data and any(mask is not None for mask in masks):
            data["action_mask"] = np.ones((self.capacity, self.num_actions), bool)
        ends = list(itertools.accumulate(counts, initial=where.start))
        wheres = [slice(*ends_of_one) for ends_of_one in itertools.pairwise(ends)]
        if not arrivals:
            return wheres
        source = np.concatenate([arrival.source for arrival in arrivals])
        before = source[source >= 0]
        first = {
            "next_row": -1,
            "eps_id": np.repeat([arrival.episode.id_ for arrival in arrivals], counts),
            "t": np.repeat([arrival.episode.length for arrival in arrivals], counts),
            "group": self._number[group],
            "agent_index": np.concatenate([arrival.rows.ids for arrival in arrivals]),
            "action_mask": True,
        }
        carried = self.carried if len(before) == len(source) else {}  # zero for those who enter
        for name, column in data.items():
            if name not in ("obs", *carried, *self.player.remembers):
                column[where] = first.get(name, 0)
        for rows, mask in zip(wheres, masks, strict=True):
            if mask is not None:
                data["action_mask"][rows] = mask
        after: Any = where if carried else np.flatnonzero(source >= 0) + where.start
        data["next_row"][before] = np.arange(where.start, where.stop) if carried else after
        for name, origin in self.carried.items():
            data[name][after] = data[origin].take(before, axis=0)
        return wheres

    def check_finite(self, where: slice, group: str) -> None:
        """Raises a PopulationError if an observation is NaN or infinite."""
        obs = self.data["obs"][where]
        # The sum is a cheap first test: it is NaN or infinite if an observation is. `einsum` takes
        # half the time of `sum`, which adds up more exactly.
        if obs.dtype.kind != "f" or np.isfinite(np.einsum("i->", obs.ravel())):
            return
        bad = np.flatnonzero(~np.isfinite(obs.reshape(len(obs), -1)).all(axis=1))
        if len(bad):
            episode, t = (self.data[key][where][bad[0]] for key in ("eps_id", "t"))
            wrong = f"the observation of row {bad[0]} is not finite (NaN or infinity)"
            raise PopulationError(f"episode {episode}, group {group!r}, step {t}: {wrong}.")

    def drop(self, episode: Episode) -> None:
        """Takes an episode's rows out of learning."""
        data = self.columns()
        data["loss_mask"][data["eps_id"] == episode.id_] = False

    def columns(self) -> dict[str, Array]:
        """All rows that were written, as views; what is only remembered is left out."""
        names = [name for name in self.data if name not in self.player.remembers]
        return {name: self.data[name][: self.end] for name in names}
