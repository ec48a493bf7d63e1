"""Runs tuned examples over seeds and records what they reached.

The final checkpoint is evaluated once more for the record: the evaluation that ended the training
is the best of several, and so a little too good.

python -m benchmarks.tuned_examples battle_small --seeds 0 1 2
"""

import argparse
import tempfile
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.tune.utils import flatten_dict

from benchmarks.measure import RESULTS, ROOT, start_ray, train_by_command
from rllib_mfq.experiments.runs import write_rows

EVALUATION = "evaluation/env_runners"
RANDOM = f"{EVALUATION}/opponents/random"
WIN_RATE = {"win rate against random": f"{EVALUATION}/win_rate/random"}
BATTLE = {**WIN_RATE, "matches against random with all enemies killed": f"{RANDOM}/eliminated"}
MFQ_01 = {"win rate against battle-mfq-0.1": f"{EVALUATION}/win_rate/battle-mfq-0.1"}
RETURN = {"return": f"{EVALUATION}/episode_return_mean"}
FIGURES = {
    "battle_small": WIN_RATE,
    "battle_lstm": WIN_RATE,
    "battle": BATTLE | MFQ_01,
    "battle_iql": BATTLE,
    "adversarial_pursuit": {
        "return of predators against random prey": f"{RANDOM}/group_returns_mean/predator",
        "return of prey against random predators": f"{RANDOM}/group_returns_mean/prey",
    },
    **dict.fromkeys(("cartpole", "lunarlander", "simple_spread", "pong"), RETURN),
    "lunarlander_dqn": RETURN,  # RLlib's DQN, to compare with
}
"""What is recorded of each example: names of figures and where they stand in the results."""

CHANGED = {
    f"{example} with priorities": (example, "prioritized_replay=true")
    for example in ("battle_small", "cartpole")
}
"""Examples with another setting: the example, and what `--set` sets."""

FIGURES |= {name: FIGURES[example] for name, (example, _) in CHANGED.items()}

TABLE = RESULTS / "tuned_examples.csv"


def train(example: str, seed: int, storage: str) -> list[dict[str, Any]]:
    """Trains by the command that a user would type, and evaluates anew; a row per figure."""
    name, *changes = CHANGED.get(example, (example,))
    (path,) = ROOT.glob(f"*/{name}.yaml")
    options = ["--seed", str(seed), *(f"--set={change}" for change in changes)]
    (run,) = train_by_command(path, storage, *options)
    start_ray()
    algo = Algorithm.from_checkpoint(str(run.checkpoint))
    found, cost = flatten_dict({"evaluation": algo.evaluate()}), run.cost()
    algo.stop()
    ray.shutdown()  # the next one starts a Ray of its own
    return [
        {
            "example": example,
            "seed": seed,
            "figure": name,
            "value": round(float(found[path]), 4),
            "seconds": cost["seconds"],
            "agent_steps": cost["agent_steps"],
        }
        for name, path in FIGURES[example].items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", choices=FIGURES, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for example in arguments.example:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as storage:
                new = train(example, seed, storage)
            mine = example, str(seed)
            write_rows(TABLE, new, lambda row, mine=mine: (row["example"], row["seed"]) != mine)


if __name__ == "__main__":
    main()
