"""Runs tuned examples over seeds and records what they reached.

What is recorded is one more evaluation of the final checkpoint: the one that ended the training
is the best of several, and so a little too good.

python -m benchmarks.tuned_examples battle_small --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from benchmarks.measure import RESULTS, ROOT
from rllib_mfq import MFQ
from rllib_mfq.arena.provenance import environment

EVALUATION = "evaluation/env_runners"
RANDOM = f"{EVALUATION}/opponents/random"
WIN_RATE = {"win rate against random": f"{EVALUATION}/win_rate/random"}
BATTLE = {
    **WIN_RATE,
    "matches against random with all enemies killed": f"{RANDOM}/eliminated",
}
FIGURES = {
    "battle_small": WIN_RATE,
    "battle": BATTLE,
    "battle_iql": BATTLE,
    "adversarial_pursuit": {
        "return of predators against random prey": f"{RANDOM}/group_returns_mean/predator",
        "return of prey against random predators": f"{RANDOM}/group_returns_mean/prey",
    },
    "cartpole": {"return": f"{EVALUATION}/episode_return_mean"},
}
"""What is recorded of each example: the name of a figure and where it stands in the results."""

TABLE = RESULTS / "tuned_examples.csv"


def run(example: str, seed: int, storage: str) -> dict[str, Any]:
    """Trains one seed by the command a user would type; returns the last result, evaluated anew."""
    rllib = Path(sys.executable).with_name("rllib")
    command = [rllib, "train", "file", f"tuned_examples/{example}.yaml", "--seed", str(seed)]
    subprocess.run([*command, "--storage-path", storage], cwd=ROOT, check=True)
    (log,) = Path(storage).rglob("result.json")
    result: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    algo = MFQ.from_checkpoint(str(next(log.parent.glob("checkpoint_*"))))
    result["evaluation"] = algo.evaluate()
    algo.stop()
    return result


def rows(example: str, seed: int, result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per figure."""
    found = []
    for name, path in FIGURES[example].items():
        value: Any = result
        for part in path.split("/"):
            value = value[part]
        found.append(
            {
                "example": example,
                "seed": seed,
                "figure": name,
                "value": round(float(value), 4),
                "seconds": round(result["time_total_s"]),
                "agent_steps": result["agent_steps_sampled_lifetime"],
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", choices=FIGURES, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for example in arguments.example:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as storage:
                new = rows(example, seed, run(example, seed, storage))
            ray.shutdown()  # the next one starts a Ray of its own
            origin = environment()
            versions = origin.pop("versions")
            old = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
            kept = [r for r in old if (r["example"], r["seed"]) != (example, str(seed))]
            with TABLE.open("w", newline="") as file:
                writer = csv.DictWriter(file, [*new[0], *origin, *versions], lineterminator="\n")
                writer.writeheader()
                writer.writerows(kept + [row | origin | versions for row in new])


if __name__ == "__main__":
    main()
