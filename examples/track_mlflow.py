"""Tracks a run with MLflow, offline: settings and results go into a file of this machine.

    pip install "rllib_mfq[mlflow]" && python -m examples.track_mlflow --uri sqlite:///mlflow.db

`mlflow ui --backend-store-uri sqlite:///mlflow.db` of the whole package `mlflow` shows them; a
tracking server's address works in the file's place. Weights & Biases has a callback beside this
one, `ray.air.integrations.wandb.WandbLoggerCallback`, and `WANDB_MODE=offline`.
"""

import argparse

from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback

from rllib_mfq import MFQConfig


def train(uri: str, iterations: int, storage_path: str | None = None) -> tune.ResultGrid:
    """Trains the Gaussian squeeze, whose results MLflow's experiment `squeeze` gets."""
    config = MFQConfig().environment("gaussian_squeeze_v0", env_config={"num_agents": 100})
    callback = MLflowLoggerCallback(uri, experiment_name="squeeze")
    return tune.Tuner(
        "MFQ",
        param_space=config,
        run_config=tune.RunConfig(
            name="squeeze-mlflow",
            storage_path=storage_path,
            stop={"training_iteration": iterations},
            callbacks=[callback],
            verbose=0,
        ),
    ).fit()


def main() -> None:
    """Trains, and says where the results are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uri", default="sqlite:///mlflow.db")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--storage-path")
    given = parser.parse_args()
    train(given.uri, given.iterations, given.storage_path)
    print(f"results are in {given.uri}, experiment squeeze")


if __name__ == "__main__":
    main()
