"""A type checker of a user's project sees what MFQ's config takes, and what comes back."""

import re
import subprocess
import sys

import pytest

GOOD = """
from rllib_mfq import MFQ, MFQConfig, load

config = (
    MFQConfig()
    .environment("battle_v4", env_config={"map_size": 16})
    .training(lr=1e-3, gamma=0.9, temperature=[[0, 0.5], [1e6, 0.1]], neighborhood={"radius": 4})
    .training(n_step=2, replay_obs_dtype=None, self_play={"opponent": "pool", "size": 3})
    .env_runners(num_env_runners=1)
    .multi_agent(policies=["shared"])
    .evaluation(evaluation_opponents={"random": "random"}, evaluation_interval=5)
    .rl_module(model_config={"fcnet_hiddens": [8]})
    .learners(num_learners=0)
    .fault_tolerance(restart_failed_env_runners=True)
    .reporting(min_time_s_per_iteration=0)
    .resources(num_gpus=0)
    .checkpointing(export_native_model_files=False)
    .debugging(seed=1)
    .framework("torch")
    .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
    .copy()
)
reveal_type(config)
algorithm = config.build_algo()
reveal_type(algorithm.train())
reveal_type(algorithm.save_to_path())
reveal_type(MFQ.from_checkpoint("folder").train())
reveal_type(load("pretrained:battle-mfq").act({}))
"""
REVEALED = ["rllib_mfq.algorithm.config.MFQConfig", "dict[str, Any]", "str", "dict[str, Any]"]
REVEALED += ["dict[Any, int]"]

WRONG = {  # calls, and what the error names
    'training(n_step="two")': "n_step",
    "training(neighborhood=3)": "neighborhood",
    'training(lr="fast")': "lr",
    "training(temprature=1.0)": "temprature",
    "training(replay_capacity=None)": "replay_capacity",
    "training(dueling=[])": "dueling",
    "evaluation(evaluation_opponents={'random': 1})": "Dict entry",
    'environment("battle_v4").debugging(seed=1).training(tau="slow")': "tau",
    'environment("battle_v4").env_runners(num_env_runners="two")': "num_env_runners",
}

# Of Ray only what the types come from: mypy then needs a quarter of the time.
PARTS = [
    "ray.rllib.algorithms.algorithm_config",
    "ray.rllib.algorithms.algorithm",
    "ray.rllib.utils.annotations",
    "ray.rllib.utils.checkpoints",
    "ray.tune.trainable.trainable",
    "ray.tune.trainable",
    "ray.util.annotations",
    "ray._common.deprecation",
]
LITTLE = f"""
[mypy-ray.*,torch.*,scipy.*,pyarrow.*,magent2.*,pettingzoo.*,pydantic.*,gymnasium.*]
follow_imports = skip
ignore_missing_imports = True
[mypy-{",".join(PARTS)}]
follow_imports = normal
"""


@pytest.fixture(
    scope="module",
    params=[LITTLE, pytest.param("", marks=pytest.mark.slow)],
    ids=["quick", "plain"],
)
def found(tmp_path_factory, request):
    """What mypy says of a user's file, by line; "plain" has mypy's own settings."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mypy.ini").write_text(f"[mypy]\n{request.param}")
    lines = [*GOOD.splitlines(), *(f"MFQConfig().{call}" for call in WRONG)]
    (folder / "user.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said = re.findall(r"^user\.py:(\d+): (error|note): (.*)", done.stdout, re.M)
    return {
        kind: {lines[int(number) - 1]: text for number, each, text in said if each == kind}
        for kind in ("error", "note")
    }


def test_a_config_stays_one_along_the_chain_and_results_have_types(found):
    shown = [text for text in found["note"].values() if "Revealed" in text]
    assert [re.search('"(.*)"', text)[1] for text in shown] == REVEALED


def test_wrong_types_and_unknown_names_are_errors_and_nothing_else_is(found):
    assert found["error"].keys() == {f"MFQConfig().{call}" for call in WRONG}
    for call, name in WRONG.items():
        assert name in found["error"][f"MFQConfig().{call}"]
