"""A network in a file: safetensors, with all that makes its module as JSON in the header.

Reading such a file reads numbers and JSON. Unlike a pickle it runs no code; only where the network
is a class of the user's, that class is imported, as a config that names it would do.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rllib_mfq.algorithm.rl_module import MFQTorchRLModule

HEADER = "rllib_mfq"


def write_network(
    file: Path,
    module: MFQTorchRLModule,
    weights: Mapping[str, Any] | None = None,
    **about: Any,
) -> None:
    """Writes the network that a module plays with.

    Args:
        file: `NAME.safetensors`.
        module: tells spaces and `model_config`.
        weights: arrays or tensors by name; the module's own by default.
        **about: entries to add to the header.

    Raises:
        TypeError: JSON has no word for something in the `model_config`, such as a class.
        ValueError: the module's class or its spaces are others than `read_network` makes.
    """
    seen, actions = module.observation_space, module.action_space
    if type(module) is not MFQTorchRLModule or module.catalog is not None:
        raise ValueError(f"{type(module).__name__} has parts that no file describes.")
    if not isinstance(seen, gym.spaces.Box) or actions != gym.spaces.Discrete(int(actions.n)):
        raise ValueError(f"spaces are {seen} and {actions}; a file describes Box and Discrete(n).")
    bounds = {"low": _number(seen.low), "high": _number(seen.high)}
    text = json.dumps(
        {
            "observation": {"shape": seen.shape, "dtype": str(seen.dtype), **bounds},
            "actions": int(actions.n),
            "model_config": dict(module.model_config),
            **about,
        }
    )
    weights = module.state_dict() if weights is None else weights
    tensors = {  # clones: a tensor that two layers share would be refused
        name: torch.as_tensor(value).detach().cpu().contiguous().clone()
        for name, value in weights.items()
        if not name.startswith("_target")
    }
    file.write_bytes(save(tensors, {HEADER: text}))  # `save_file` lets the owner alone read it


def read_header(file: Path) -> dict[str, Any]:
    """What `write_network` wrote besides the weights.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(str(file), "pt") as opened:
            header: dict[str, Any] = json.loads(opened.metadata()[HEADER])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from error
    return header


def read_network(file: Path) -> MFQTorchRLModule:
    """The module in a file, which can play; it has no target network.

    Raises:
        ValueError: the file is damaged.
    """
    about = read_header(file)
    seen = about["observation"]
    dtype = np.dtype(seen.get("dtype", "float32"))
    low, high = (np.broadcast_to(np.asarray(seen[b], dtype), seen["shape"]) for b in _BOUNDS)
    module = MFQTorchRLModule(
        observation_space=gym.spaces.Box(low, high, dtype=dtype.type),
        action_space=gym.spaces.Discrete(about["actions"]),
        model_config=about["model_config"],
        inference_only=True,
    )
    try:
        with safe_open(str(file), "pt") as opened:
            module.set_state({name: opened.get_tensor(name) for name in opened.keys()})
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    return module.eval()


_BOUNDS = ("low", "high")


def _number(bound: Any) -> Any:
    """A bound of a Box: one number if it is the same everywhere, else a list."""
    return bound.flat[0].item() if bound.size and not np.ptp(bound) else bound.tolist()


def _damaged(file: Path, error: Exception) -> ValueError:
    return ValueError(f"{file} is damaged: {' '.join(str(error).split())}.")
