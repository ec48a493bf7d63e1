"""Callbacks and metrics of one's own: how long a battle goes on until the first agent dies.

    python -m examples.callbacks

The hooks are RLlib's. An episode has `len(episode)`, `get_return()`, `returns` of each group,
`is_done`, `result` (the environment's figures, once it is done) and `custom_data`, which is yours.
"""

import argparse
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_mfq import MFQConfig


class FirstBlood(RLlibCallback):
    """Reports the step in which a battle's first agent died."""

    def on_episode_start(self, *, episode: Any, env: Any, **kwargs: Any) -> None:
        """Remembers how many there are; `env` is the population that plays the episode."""
        episode.custom_data["alive"] = env.result()["survivors"]

    def on_episode_step(self, *, episode: Any, env: Any, **kwargs: Any) -> None:
        """Remembers the step in which there are fewer."""
        if env.result()["survivors"] != episode.custom_data["alive"]:
            episode.custom_data.setdefault("first_blood", len(episode))

    def on_episode_end(self, *, episode: Any, metrics_logger: Any, **kwargs: Any) -> None:
        """Logs the mean over episodes, under `env_runners/first_blood`."""
        step = episode.custom_data.get("first_blood", len(episode))
        metrics_logger.log_value("first_blood", step, reduce="mean", window=100)


def config() -> MFQConfig:
    """A battle of 25 against 25 with the callbacks above."""
    return (
        MFQConfig()
        .environment("battle_v4", env_config={"map_size": 20, "max_cycles": 200})
        .multi_agent(policies=["shared"])
        .callbacks(FirstBlood)
    )


def main() -> None:
    """Trains for some iterations and prints the metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=5)
    algo = config().build_algo()
    for number in range(1, parser.parse_args().iterations + 1):
        found = algo.train()["env_runners"].get("first_blood")
        print(f"iteration {number}: first blood after {found} steps")
    algo.stop()


if __name__ == "__main__":
    main()
