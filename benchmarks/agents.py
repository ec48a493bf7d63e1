"""What the agents that come with the package win and lose, for their cards in docs/opponents.md.

python -m benchmarks.agents
python -m benchmarks.agents --agents battle-mfq --map-sizes 100   # other figures stay
"""

import argparse
from collections.abc import Mapping

from benchmarks.measure import RESULTS
from rllib_mfq.algorithm.opponents import RANDOM
from rllib_mfq.algorithm.pretrained import PREFIX
from rllib_mfq.arena.tournament import play_tournament
from rllib_mfq.experiments.runs import write_rows
from rllib_mfq.population.battle_scripts import SCRIPTS

AGENTS = ["battle-mfq", "battle-iql"]
OPPONENTS = [RANDOM, *SCRIPTS, f"{PREFIX}battle-mfq-0.1", f"{PREFIX}battle-iql-0.1"]
FIELDS = {
    (40, 400, 0): 100,
    (40, 300, 0): 100,
    (45, 400, 0): 100,
    (45, 300, 0): 100,
    (40, 400, 3): 40,
    (100, 400, 3): 20,
}
"""Matches of every pair by the map's side in cells (100: 400 against 400), steps, and how many of
these both sides play at random first, so that greedy play differs from match to match."""


def place(row: Mapping[str, str]) -> tuple[int, int]:
    """Where a row stands in the table; the file has those first that were not played again."""
    field = tuple(int(row[key]) for key in ("map_size", "max_cycles", "random_steps"))
    return AGENTS.index(row["agent"]), [*FIELDS].index(field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=AGENTS)
    sizes = sorted({map_size for map_size, *_ in FIELDS})
    parser.add_argument("--map-sizes", nargs="+", type=int, choices=sizes, default=sizes)
    asked = parser.parse_args()
    names = [*(PREFIX + agent for agent in AGENTS), *OPPONENTS]
    pairs = [(0, 1), *((a, b) for a in (0, 1) for b in range(2, len(names)))]
    pairs = [(a, b) for a, b in pairs if AGENTS[a] in asked.agents]
    rows = []
    for (map_size, max_cycles, random_steps), matches in FIELDS.items():
        if map_size not in asked.map_sizes:
            continue
        played = play_tournament(
            {name: name for name in names},
            env_config={"map_size": map_size, "max_cycles": max_cycles},
            matches=matches,
            random_steps=random_steps,
            pairs=pairs,
        )
        rows += [
            {
                "agent": pair.a.removeprefix(PREFIX),
                "opponent": pair.b.removeprefix(PREFIX),
                "map_size": map_size,
                "max_cycles": max_cycles,
                "random_steps": random_steps,
                "matches": pair.matches,
                "win_rate": round(pair.win_rate, 4),
                "draws": pair.draws,
                "kills": round(pair.kills_a or 0.0, 1),
                "losses": round(pair.kills_b or 0.0, 1),
            }
            for pair in played.pairs
        ]
    fresh = {(row["agent"], str(row["map_size"])) for row in rows}
    write_rows(
        RESULTS / "agents.csv",
        rows,
        keep=lambda row: (row["agent"], row["map_size"]) not in fresh,
    )


if __name__ == "__main__":
    main()
