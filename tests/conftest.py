import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's default waits for cores others use

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """One small Ray for all tests that need one."""
    import ray

    # A Ray of its own, even where another one is running.
    ray.init(
        "local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    yield
    ray.shutdown()


@pytest.fixture
def build(ray_session):
    """Makes algorithms of configs, and stops them after the test."""
    built = []

    def build_algo(config):
        built.append(config.build_algo())
        return built[-1]

    yield build_algo
    for algo in built:
        algo.stop()
