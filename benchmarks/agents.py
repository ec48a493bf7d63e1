"""What the agents that come with the package win and lose, for their cards in docs/opponents.md.

python -m benchmarks.agents
"""

from benchmarks.measure import RESULTS
from rllib_mfq.algorithm.opponents import RANDOM
from rllib_mfq.algorithm.pretrained import PREFIX
from rllib_mfq.arena.tournament import play_tournament
from rllib_mfq.experiments.runs import write_rows
from rllib_mfq.population.battle_scripts import SCRIPTS

AGENTS = [f"{PREFIX}battle-mfq", f"{PREFIX}battle-iql"]
OPPONENTS = [RANDOM, *SCRIPTS, f"{PREFIX}battle-mfq-0.1", f"{PREFIX}battle-iql-0.1"]
FIELDS = {(40, 400): 40, (40, 300): 20, (45, 400): 20, (45, 300): 20, (100, 400): 4}
"""Matches of every pair by cells of the map's side and steps; the last is 400 against 400."""

RANDOM_STEPS = 3  # with which a match begins, so that greedy play differs


def main() -> None:
    names = [*AGENTS, *OPPONENTS]
    pairs = [(0, 1), *((a, b) for a in (0, 1) for b in range(2, len(names)))]
    rows = []
    for (map_size, max_cycles), matches in FIELDS.items():
        played = play_tournament(
            {name: name for name in names},
            env_config={"map_size": map_size, "max_cycles": max_cycles},
            matches=matches,
            random_steps=RANDOM_STEPS,
            pairs=pairs,
        )
        rows += [
            {
                "agent": pair.a.removeprefix(PREFIX),
                "opponent": pair.b.removeprefix(PREFIX),
                "map_size": map_size,
                "max_cycles": max_cycles,
                "matches": pair.matches,
                "win_rate": round(pair.win_rate, 4),
                "draws": pair.draws,
                "kills": round(pair.kills_a or 0.0, 1),
                "losses": round(pair.kills_b or 0.0, 1),
            }
            for pair in played.pairs
        ]
    write_rows(RESULTS / "agents.csv", rows)


if __name__ == "__main__":
    main()
