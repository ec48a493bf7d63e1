"""Checkpoints: the one module that knows what their folders hold."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_mfq.algorithm.pretrained import PREFIX, header, load_pretrained

MODULES = Path("learner_group", "learner", "rl_module")
"""Where an algorithm's checkpoint has its modules, one folder each."""

CLASS, STATE = "class_and_ctor_args", "algorithm_state"
"""Names of its files, without their endings."""

PROGRESS, REPLAY = "mfq_progress", "replay"
"""Keys of its state: counters, episodes and opponent; the memories."""


def check_checkpoint(path: str) -> str:
    """The absolute path of an algorithm's checkpoint; nothing is loaded, and a URI not checked.

    Raises:
        ValueError: the path is no checkpoint's, or of one that today's RLlib cannot load.
    """
    if "://" in path:
        return path
    if path.startswith(PREFIX):
        raise ValueError(f"{path} is a network to play with, no checkpoint to train on from.")
    folder = Path(path).expanduser().resolve()
    if not folder.exists():
        raise ValueError(f"the checkpoint {path} does not exist.")
    has_state = any(folder.glob(f"{STATE}.*"))
    if has_state and any(folder.glob(f"{CLASS}.*")):
        return str(folder)
    if inside := sorted(part.name for part in folder.glob("checkpoint_*")):
        last = Path(path) / inside[-1]
        raise ValueError(f"{path} is no checkpoint, but holds some; give {last}.")
    if has_state or (folder.is_file() and folder.name.startswith("checkpoint")):
        raise ValueError(f"{path} is a checkpoint of an older RLlib, which this one cannot load.")
    raise ValueError(f"{path} is no checkpoint of an RLlib algorithm.")


def find_modules(checkpoint: str | Path) -> dict[str, Path]:
    """The modules' folders in a checkpoint, which is an algorithm's or of one or all modules."""
    path = Path(checkpoint).expanduser().resolve()
    folder = path / MODULES if (path / MODULES).is_dir() else path
    for candidates in ([*folder.glob("*/")], [folder]):  # the folder of all has a state, too
        found = {p.name: p for p in candidates if any(p.glob("module_state.*"))}
        if found:
            return found
    return {}


def load_modules(spec: str | Path) -> dict[str, RLModule]:
    """The modules of a checkpoint by their names, if it has any, or the one of `pretrained:NAME`.

    Loading a checkpoint unpickles it.
    """
    if str(spec).startswith(PREFIX):
        return {str(spec): load_pretrained(str(spec))}
    return {name: RLModule.from_checkpoint(folder) for name, folder in find_modules(spec).items()}


def saved_class_and_settings(checkpoint: str | Path) -> tuple[type | None, dict[str, Any]]:
    """The class of the algorithm in a checkpoint and its config dict.

    `pretrained:NAME` has no class and only `env` and `env_config`; what holds no config (as on
    the old API stack) has no class and an empty dict.
    """
    if str(checkpoint).startswith(PREFIX):
        return None, {key: header(str(checkpoint))[key] for key in ("env", "env_config")}
    path = Path(checkpoint).expanduser() / f"{CLASS}.pkl"
    if not path.is_file():
        return None, {}
    saved = pickle.loads(path.read_bytes())
    return saved["class"], saved["ctor_args_and_kwargs"][0][0]


def saved_settings(checkpoint: str | Path) -> dict[str, Any]:
    """The config dict of `saved_class_and_settings`."""
    return saved_class_and_settings(checkpoint)[1]


def check_restorable(path: Path, mine: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises a ValueError unless a checkpoint has an algorithm's modules and memories.

    Args:
        path: a folder of this machine.
        mine: the algorithm's modules.
        settings: the attributes of its config.
    """
    if not (path / MODULES).is_dir():
        raise ValueError(f"'{path}' is not the folder of an algorithm's checkpoint.")
    modules = load_modules(path)
    if set(modules) != set(mine):
        text = f"has the modules {sorted(modules)}; this algorithm has {sorted(mine)}"
        raise ValueError(f"checkpoint '{path}' {text}.")
    saved = saved_settings(path)
    for key in ("replay_capacity", "replay_obs_dtype"):
        if saved.get("store_replay_in_checkpoints") and saved[key] != settings[key]:
            theirs = f"the memory in checkpoint '{path}' has {saved[key]!r}"
            raise ValueError(f"{key} is {settings[key]!r}, but {theirs}; use the same.")
    for module_id, module in sorted(modules.items()):
        try:
            mine[module_id].unwrapped().check_state(module.get_state())
        except ValueError as error:
            raise ValueError(f"checkpoint '{path}', {module_id!r}: {error}") from None
