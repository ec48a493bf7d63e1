import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's default waits for cores others use

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """One small Ray for all tests that need one."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
