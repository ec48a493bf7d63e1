"""Checkpoints: what is one, and whose."""

from __future__ import annotations

from pathlib import Path

from rllib_cli.experiments import BadInput

CLASS = "class_and_ctor_args"
STATE = "algorithm_state"


def check_checkpoint(path: str) -> str:
    """The absolute path of an algorithm's checkpoint, without loading it.

    Args:
        path: a folder; a URI is taken as it is.

    Raises:
        BadInput: it is none, or one that today's RLlib does not read.
    """
    if "://" in path:
        return path
    if path.startswith("pretrained:"):
        raise BadInput(f"{path} is a network to play with, no checkpoint to train on from.")
    folder = Path(path).expanduser().resolve()
    if not folder.exists():
        raise BadInput(f"the checkpoint {path} does not exist.")
    if any(folder.glob(f"{CLASS}.*")) and any(folder.glob(f"{STATE}.*")):
        return str(folder)
    inside = sorted(part.name for part in folder.glob("checkpoint_*")) if folder.is_dir() else []
    if inside:
        raise BadInput(f"{path} is no checkpoint, but holds some; give {Path(path) / inside[-1]}.")
    if any(folder.glob(f"{STATE}.*")) or (
        folder.is_file() and folder.name.startswith("checkpoint")
    ):
        raise BadInput(f"{path} is a checkpoint of an older RLlib, which this one cannot load.")
    raise BadInput(f"{path} is no checkpoint of an RLlib algorithm.")
