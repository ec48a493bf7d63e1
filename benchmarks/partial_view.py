"""What a memory is worth where agents see little: battle through a window of 5 x 5 cells.

Trains five seeds with and five without LSTM on as many rows, and plays each against random agents
and against all of the other kind.

python -m benchmarks.partial_view
"""

import itertools
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.measure import RESULTS, ROOT, train_by_command
from rllib_mfq import Group, Population, Rows, Step, magent2
from rllib_mfq.algorithm.opponents import RANDOM
from rllib_mfq.arena.statistics import win_rates
from rllib_mfq.arena.tournament import play_tournament
from rllib_mfq.experiments.runs import write_rows
from rllib_mfq.population.population import Array

MATCHES = 20  # of a pair
RANDOM_STEPS = 5  # with which a match begins, so that greedy play differs


class Nearsighted(Population):
    """`battle_v4` whose agents see `sight` cells in each direction instead of six."""

    def __init__(self, sight: int = 2, **arguments: Any) -> None:
        self._battle = magent2("battle_v4", **arguments)
        self.groups = {}
        for name, (space, actions) in self._battle.groups.items():
            centre, self._view = space.shape[0] // 2, space.shape
            self._seen = slice(centre - sight, centre + sight + 1)
            low, high = (bound[self._seen, self._seen] for bound in (space.low, space.high))
            self.groups[name] = Group(type(space)(low, high, dtype=np.float32), actions)

    def reset(self, *, seed: int | None = None) -> dict[str, Rows]:
        return self._battle.reset(seed=seed)

    def step(self, actions: Mapping[str, Array]) -> dict[str, Step]:
        return self._battle.step(actions)

    def observe(self, group: str, out: Array) -> None:
        view = np.empty((len(out), *self._view), np.float32)
        self._battle.observe(group, view)
        out[:] = view[:, self._seen, self._seen]

    def result(self) -> dict[str, dict[str, float]]:
        return self._battle.result()


def main() -> None:
    with tempfile.TemporaryDirectory() as storage:
        runs = {}
        path = ROOT / "benchmarks" / "partial_view.yaml"
        for run in train_by_command(path, storage, "--ray-num-cpus", "2"):
            config = run.result["config"]
            method = "LSTM" if config["model_config"].get("use_lstm") else "feed-forward"
            runs[f"{method}-{config['seed']}"] = run
        names = sorted(runs)
        agents = {name: str(runs[name].checkpoint) for name in names} | {RANDOM: RANDOM}
        pairs = [
            (one, other)
            for (one, first), (other, second) in itertools.combinations(enumerate(agents), 2)
            if first.rpartition("-")[0] != second.rpartition("-")[0]
        ]
        played = play_tournament(agents, matches=MATCHES, random_steps=RANDOM_STEPS, pairs=pairs)
    names, rows = played.agents, []
    rates = dict(zip(names, win_rates(names, played.content()["pairs"]), strict=True))
    for name, run in sorted(runs.items()):
        method, _, seed = name.rpartition("-")
        rivals = [names.index(other) for other in runs if not other.startswith(method)]
        row = {"method": method, "seed": seed, **run.cost()}
        row["win_rate_random"] = round(float(rates[name][names.index(RANDOM)]), 4)
        row["win_rate_other"] = round(float(np.mean(rates[name][rivals])), 4)
        rows.append(row)
    write_rows(RESULTS / "partial_view.csv", rows)


if __name__ == "__main__":
    main()
