"""Pretrained agents: networks that come with the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_mfq.algorithm.network_file import read_header, read_network, write_network
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.mean_field.legal import did_you_mean

PREFIX = "pretrained:"
FOLDER = Path(__file__).parents[1] / "pretrained"


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
    return read_header(_file(spec))


def load_pretrained(spec: str) -> MFQTorchRLModule:
    """The network of a pretrained agent; see `header`."""
    return read_network(_file(spec))


def save_pretrained(
    module_folder: Path, file: Path, settings: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """Writes the network of a checkpoint's module.

    Args:
        module_folder: folder of the module in the checkpoint.
        file: to write, `NAME.safetensors`.
        settings: `env` and `env_config`.
        origin: how the network was trained and what it reached, as JSON.
    """
    module = RLModule.from_checkpoint(module_folder)
    assert isinstance(module, MFQTorchRLModule)
    settings = {key: settings[key] for key in ("env", "env_config")}
    write_network(file, module, **settings, origin=dict(origin))


def _file(spec: str) -> Path:
    name = spec.removeprefix(PREFIX)
    if name not in names():
        legal = ", ".join(PREFIX + other for other in names())
        hint = did_you_mean(name, names())
        raise ValueError(f"there is no agent {spec!r}{hint}; there are {legal}.")
    return FOLDER / f"{name}.safetensors"
