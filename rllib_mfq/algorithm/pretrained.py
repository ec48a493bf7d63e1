"""Pretrained agents: networks that come with the package, as safetensors with a JSON header.

Loading one reads numbers and JSON; unlike a checkpoint's pickles, these run no code.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.core.rl_module.rl_module import RLModule
from safetensors import safe_open
from safetensors.torch import save_file

from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.mean_field.legal import did_you_mean

PREFIX = "pretrained:"
FOLDER = Path(__file__).parents[1] / "pretrained"
HEADER = "rllib_mfq"


def names() -> list[str]:
    """The agents that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def header(spec: str) -> dict[str, Any]:
    """What the pretrained agent `pretrained:NAME` is.

    Returns:
        `env` and `env_config` it was trained in, `observation` (shape, low, high), `actions`,
        `model_config`, and `origin`, how it was made.

    Raises:
        ValueError: no agent has that name; the sentence has the nearest one.
    """
    with _open(spec) as file:
        return json.loads(file.metadata()[HEADER])


def load_pretrained(spec: str) -> MFQTorchRLModule:
    """The network of a pretrained agent; see `header`."""
    about = header(spec)
    seen = about["observation"]
    module = MFQTorchRLModule(
        observation_space=gym.spaces.Box(seen["low"], seen["high"], seen["shape"], np.float32),
        action_space=gym.spaces.Discrete(about["actions"]),
        model_config=about["model_config"],
        inference_only=True,
    )
    with _open(spec) as file:
        module.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    return module.eval()


def save_pretrained(
    module_folder: Path, file: Path, settings: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """Writes the network of a checkpoint's module.

    Args:
        module_folder: folder of the module in the checkpoint.
        file: to write, `NAME.safetensors`.
        settings: `env` and `env_config`.
        origin: how the network was trained and what it reached, as JSON.

    Raises:
        ValueError: the bounds of its observations are not the same everywhere.
    """
    module = RLModule.from_checkpoint(module_folder)
    assert isinstance(module, MFQTorchRLModule)
    space = module.observation_space
    if np.ptp(space.low) or np.ptp(space.high):
        raise ValueError(f"observations are {space}; their bounds must be the same everywhere.")
    low, high = float(space.low.flat[0]), float(space.high.flat[0])
    about = {
        **{key: settings[key] for key in ("env", "env_config")},
        "observation": {"shape": space.shape, "low": low, "high": high},
        "actions": int(module.action_space.n),
        "model_config": {k: v for k, v in dict(module.model_config).items() if v is not None},
        "origin": dict(origin),
    }
    state = {k: v for k, v in module.state_dict().items() if not k.startswith("_target")}
    save_file(state, file, {HEADER: json.dumps(about)})


def _open(spec: str) -> Any:
    name = spec.removeprefix(PREFIX)
    if name not in names():
        legal = ", ".join(PREFIX + other for other in names())
        hint = did_you_mean(name, names())
        raise ValueError(f"there is no agent {spec!r}{hint}; there are {legal}.")
    return safe_open(str(FOLDER / f"{name}.safetensors"), "pt")
