"""Fingerprints of short runs: equal before and after a change that moves no learning curve.

The hashes depend on the processor and on torch, so that only those of one machine compare.

python tests/fingerprints.py > before.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np
import ray
import torch
import yaml
from ray.tune.utils import flatten_dict

from rllib_mfq import MFQConfig

ITERATIONS = 20
STACKS = {
    "new": {},
    "old": {"enable_rl_module_and_learner": False, "enable_env_runner_and_connector_v2": False},
}
POOL = {"opponent": "pool", "size": 3, "interval": 10_000}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "battle_small": ("battle_small", {}),
    "cartpole": ("cartpole", {}),
    "gaussian_squeeze": ("gaussian_squeeze", {}),
    "self-play pool": ("battle_small", {"self_play": POOL}),
    "radius": ("battle_small", {"neighborhood": {"radius": 4}}),
}
"""What is run: a tuned example and the entries of the config that differ from its own."""


def fingerprint(example: str, changes: dict[str, Any], stack: dict[str, bool]) -> dict[str, str]:
    """Hashes of the weights, the results' keys and the mean returns of one run."""
    with open(f"tuned_examples/{example}.yaml") as file:
        (experiment,) = yaml.safe_load(file).values()
    fixed = {"env": experiment["env"], "num_env_runners": 0, "seed": 3, **stack}
    fixed |= {"evaluation_interval": 10, "evaluation_duration": 4}
    algo = MFQConfig().update_from_dict(experiment["config"] | changes | fixed).build_algo()
    results = [algo.train() for _ in range(ITERATIONS)]
    state = algo.env_runner.module.get_state()
    algo.stop()
    weights = hashlib.sha256()
    for module_id, tensors in sorted(state.items()):
        for name, tensor in sorted(tensors.items()):
            weights.update(f"{module_id}/{name}".encode() + np.asarray(tensor).tobytes())
    last = {k: v for k, v in results[-1].items() if k != "config"}
    keys = "\n".join(sorted(flatten_dict(last))).encode()
    returns = [r["env_runners"].get("episode_return_mean") for r in results]
    return {
        "weights": weights.hexdigest()[:16],
        "keys": hashlib.sha256(keys).hexdigest()[:16],
        "returns": hashlib.sha256(str(returns).encode()).hexdigest()[:16],
    }


def main() -> None:
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    found = {}
    for stack, settings in STACKS.items():
        for name, (example, changes) in RUNS.items():
            found[f"{name}, {stack} API stack"] = fingerprint(example, changes, settings)
            print(f"{name}, {stack}", file=sys.stderr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
