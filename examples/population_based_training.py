"""Population based training from Python: poor trials copy good ones and change their settings.

    python -m examples.population_based_training

`tuned_examples/battle_pbt.yaml` is the same as a file.
"""

import argparse

from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from rllib_mfq import MFQConfig

RETURN = "env_runners/episode_return_mean"


def train(trials: int, iterations: int, storage_path: str | None = None) -> tune.ResultGrid:
    """Trains `trials` crowds in the Gaussian squeeze for so many iterations."""
    mutations = {"lr": tune.loguniform(1e-4, 1e-2), "tau": tune.uniform(0.005, 0.1)}
    scheduler = PopulationBasedTraining(
        perturbation_interval=max(1, iterations // 4), hyperparam_mutations=mutations
    )
    config = MFQConfig().environment("gaussian_squeeze_v0", env_config={"num_agents": 100})
    return tune.Tuner(
        "MFQ",
        param_space=config,
        tune_config=tune.TuneConfig(
            metric=RETURN, mode="max", num_samples=trials, scheduler=scheduler
        ),
        run_config=tune.RunConfig(
            name="squeeze-pbt",
            storage_path=storage_path,
            stop={"training_iteration": iterations},
            verbose=0,
        ),
    ).fit()


def main() -> None:
    """Prints what every trial ended with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--storage-path")
    given = parser.parse_args()
    for result in train(given.trials, given.iterations, given.storage_path):
        value = result.metrics["env_runners"]["episode_return_mean"]
        print(f"return {value:.0f}, lr {result.config['lr']:.2g}, tau {result.config['tau']:.2g}")


if __name__ == "__main__":
    main()
