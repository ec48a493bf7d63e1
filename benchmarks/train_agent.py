"""Trains `pretrained:battle-mfq`: half an hour of one core.

Goes on with a run that was interrupted. The agent is the mean of the last checkpoints, whose single
networks are weaker: each leans to what the last matches were against.

python -m benchmarks.train_agent
"""

import tempfile
from pathlib import Path

from ray.rllib.env.env_context import EnvContext

from benchmarks.measure import RESULTS, ROOT, train_by_command
from rllib_mfq import Population, magent2
from rllib_mfq.algorithm.averaging import average_checkpoints
from rllib_mfq.algorithm.checkpoint import find_modules
from rllib_mfq.algorithm.pretrained import FOLDER, save_pretrained
from rllib_mfq.arena.output import replacing
from rllib_mfq.arena.provenance import provenance
from rllib_mfq.experiments.runs import AGENT_STEPS

RUN = "battle_agent"
PLAYED = {"env": "battle_v4", "env_config": {"map_size": 40, "max_cycles": 400}}


def several_maps(config: EnvContext) -> Population:
    """`battle_v4` on maps of several sizes, one for each environment of a runner."""
    sizes, max_cycles = config["map_sizes"], config["max_cycles"]
    size = sizes[config.vector_index % len(sizes)]
    return magent2("battle_v4", map_size=size, max_cycles=max_cycles)


def main() -> None:
    storage = RESULTS / "runs" / RUN
    again = ["--resume"] if storage.is_dir() else []
    path = ROOT / "benchmarks" / f"{RUN}.yaml"
    (run,) = train_by_command(path, str(storage), *again)
    checkpoints = sorted(run.checkpoint.parent.glob("checkpoint_*"))
    origin = {key: provenance()[key] for key in ("date", "commit")}
    origin |= {"example": f"benchmarks/{RUN}.yaml", "agent_steps": run.result[AGENT_STEPS]}
    origin |= {"mean_of_checkpoints": len(checkpoints), "seed": run.result["config"]["seed"]}
    with tempfile.TemporaryDirectory() as folder:
        mean = Path(folder, "mean")
        average_checkpoints(checkpoints, mean)
        (module,) = find_modules(mean).values()
        with replacing(FOLDER / "battle-mfq.safetensors") as part:
            save_pretrained(module, part, PLAYED, origin)


if __name__ == "__main__":
    main()
