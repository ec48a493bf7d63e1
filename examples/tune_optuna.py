"""A sweep from Python: Optuna proposes settings, ASHA ends trials that fall behind.

pip install optuna && python -m examples.tune_optuna
"""

import argparse

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from rllib_mfq import MFQConfig

RETURN = "env_runners/episode_return_mean"


def sweep(samples: int, iterations: int, storage_path: str | None = None) -> tune.ResultGrid:
    """Trains the Gaussian squeeze with `samples` settings, each at most `iterations` long."""
    config = (
        MFQConfig()
        .environment("gaussian_squeeze_v0", env_config={"num_agents": 100})
        .training(
            lr=tune.loguniform(1e-4, 1e-2),
            temperature=tune.choice([1.0, 10.0, 100.0]),
            neighborhood=tune.choice(["group", "none"]),
        )
    )
    return tune.Tuner(
        "MFQ",
        param_space=config,
        tune_config=tune.TuneConfig(
            metric=RETURN,
            mode="max",
            num_samples=samples,
            search_alg=OptunaSearch(),
            scheduler=ASHAScheduler(max_t=iterations, grace_period=1),
        ),
        run_config=tune.RunConfig(name="squeeze-optuna", storage_path=storage_path, verbose=0),
    ).fit()


def main() -> None:
    """Prints the best settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--storage-path")
    given = parser.parse_args()
    best = sweep(given.samples, given.iterations, given.storage_path).get_best_result()
    settings = {key: best.config[key] for key in ("lr", "temperature", "neighborhood")}
    print(f"best return {best.metrics['env_runners']['episode_return_mean']:.0f} with {settings}")


if __name__ == "__main__":
    main()
