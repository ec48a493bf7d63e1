"""Runs: what training leaves in a folder, and the table of what many runs reached."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ray.tune.utils import flatten_dict

from rllib_mfq.algorithm.match import play_episodes
from rllib_mfq.arena.output import replacing
from rllib_mfq.arena.provenance import provenance
from rllib_mfq.population.player import Player
from rllib_mfq.population.population import Population

AGENT_STEPS = "agent_steps_sampled_lifetime"
ENV_STEPS = "num_env_steps_sampled_lifetime"
TRAINED = "provenance.json"
"""Name of the file in a run's folder that says by which state of the package it was trained."""


@dataclass
class Run:
    """A finished training run."""

    result: dict[str, Any]  # the last results that it reported
    checkpoint: Path  # folder of its last checkpoint
    before: dict[str, Any]  # the results before the last
    config: dict[str, Any] = field(default_factory=dict)  # of its trial, as Tune wrote it
    trained_at: str = ""  # the commit that trained it, if the run's folder says so

    def differs(
        self, stop: Mapping[str, float], config: Mapping[str, Any], default: Mapping[str, Any]
    ) -> str:
        """In what the run differs from one that would be trained now; empty if in nothing.

        `default` has what a key of `config` is that the run, or this one, does not name.
        """
        if not self.ended_at(stop):
            return f"did not end at stop {dict(stop)}, but after {self.result[AGENT_STEPS]:,} rows"
        for key in sorted({*self.config, *config}):
            was, now = (_plain(each.get(key, default.get(key))) for each in (self.config, config))
            if was != now and not key.startswith("__"):
                return f"was trained with {key} {was}, which is {now} now"
        return ""

    def ended_at(self, stop: Mapping[str, float]) -> bool:
        """Whether the run ended where `stop` ends one: at the last results, and not before."""
        last, before = flatten_dict(self.result), flatten_dict(self.before)
        reached = [key for key, limit in stop.items() if last.get(key, -math.inf) >= limit]
        return bool(reached) and all(before.get(k, -math.inf) < stop[k] for k in stop)

    def cost(self) -> dict[str, Any]:
        """What the run took, and what trained it, as columns of a table."""
        seconds = round(self.result["time_total_s"])
        # RLlib's own algorithms count steps of the environment alone.
        key = AGENT_STEPS if AGENT_STEPS in self.result else ENV_STEPS
        steps = int(self.result[key])
        return {"agent_steps": steps, "seconds": seconds, "trained_at": self.trained_at}


class Train(Protocol):
    """Trains a tuned example, whose trials are one process each, in several variants."""

    def __call__(
        self,
        example: str,
        variants: Mapping[str, Mapping[str, Any]],  # entries of `config` that differ in each
        storage: Path,  # of the runs, a folder for each variant
        stop: Mapping[str, float] | None = None,  # entries of `stop` that differ
        processes: int = 2,  # that train at a time
    ) -> dict[str, Run]:
        """Trains every variant that has no finished run yet; returns the run of each variant."""


def variants_of(methods: Mapping[str, Mapping[str, Any]], seeds: int) -> dict[str, dict[str, Any]]:
    """A variant for each method, by its changes of the config, and seed: `METHOD-SEED`."""
    return {
        f"{method}-{seed}": {**changes, "seed": seed}
        for method, changes in methods.items()
        for seed in range(seeds)
    }


def finished(folder: Path) -> Run | None:
    """The run in a folder, if it ended with a checkpoint."""
    log, checkpoints = folder / "result.json", sorted(folder.glob("checkpoint_*"))
    if not log.is_file() or not checkpoints:
        return None
    results = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[-2:]]
    before = results[0] if len(results) > 1 else {}
    config, trained = _read(folder / "params.json"), _read(folder / TRAINED)
    return Run(results[-1], checkpoints[-1], before, config, trained.get("commit") or "")


def _read(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if there is none."""
    content: dict[str, Any] = {}
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else content


def _plain(value: Any) -> Any:
    """A value as it is after it has been written as JSON."""
    return json.loads(json.dumps(value, default=str))


def play(
    make: Callable[[], Population], players: Mapping[str, Player], num_episodes: int, seed: int
) -> dict[str, Any]:
    """Means over episodes of the figures of a population with one group."""
    episodes = play_episodes(lambda _: make(), players, num_episodes, seed=seed, side_by_side=8)
    names, (group,) = episodes[0].result, players
    return {name: float(np.mean([e.result[name][group] for e in episodes])) for name in names}


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows that `write_rows` left in a file; none, if there is no such file."""
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def check_alike(file: Path, **asked: object) -> None:
    """Raises a ValueError if a file has figures that say nothing beside those asked for.

    `asked` has columns and the value that all rows must have there.
    """
    for row in read_rows(file):
        for column, value in asked.items():
            if row.get(column) != str(value):
                raise ValueError(
                    f"{file} has figures of {column} {row.get(column) or 'unknown'}, which say "
                    f"nothing beside those of {column} {value}; write into another folder."
                )


def write_rows(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    keep: Callable[[Mapping[str, str]], bool] = lambda row: False,
) -> None:
    """Writes figures as CSV, with the provenance in every row; all rows have the same keys.

    Of the rows that the file has already, those that `keep` names stay, before the new ones.
    """
    before = [row for row in read_rows(file) if keep(row)]
    origin = provenance()
    origin |= origin.pop("versions")
    columns = dict.fromkeys([*rows[0], *origin, *(name for row in before for name in row)])
    with replacing(file) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*before, *({**row, **origin} for row in rows)])
