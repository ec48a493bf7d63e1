"""Checkpoints: the one module that knows what their folders hold.

RLlib pickles everything. Beside that, `finish` writes what is needed to play: each module's network
as safetensors, and the environment as JSON. Where only the networks are needed, nothing is
unpickled, unless there are no such files: in checkpoints of version 0.1, for modules of a class of
the user's, and where JSON has no word for the environment.
"""

import contextlib
import itertools
import json
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_mfq.algorithm.checksums import check_files, reading, write_checksums
from rllib_mfq.algorithm.network_file import read_network, write_network
from rllib_mfq.algorithm.pretrained import PREFIX, header, load_pretrained
from rllib_mfq.algorithm.roster import modules_of_groups

MODULES = Path("learner_group", "learner", "rl_module")
"""Where an algorithm's checkpoint has its modules, one folder each."""

CLASS, STATE = "class_and_ctor_args", "algorithm_state"
"""Names of its files, without their endings."""

NETWORK = "network.safetensors"
"""Name of the file of one module's network, in the module's folder."""

ENVIRONMENT = "environment.json"
"""Name of the file that says what was played, and which module plays each group."""

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

    A module that has no file of its network is unpickled. Raises a ValueError if a file is damaged.
    """
    if str(spec).startswith(PREFIX):
        return {str(spec): load_pretrained(str(spec))}
    return {name: _load_module(folder) for name, folder in find_modules(spec).items()}


def load_modules_like(path: Path, mine: Mapping[str, Any], owner: str) -> dict[str, RLModule]:
    """The modules of a checkpoint, which must have the names and shapes of `mine`.

    Raises a ValueError that says what differs from those of the `owner`, or which file is damaged.
    """
    modules = load_modules(path)
    if set(modules) != set(mine):
        text = f"has the modules {sorted(modules)}; {owner} has {sorted(mine)}"
        raise ValueError(f"checkpoint '{path}' {text}.")
    for module_id, module in sorted(modules.items()):
        try:
            mine[module_id].unwrapped().check_state(module.get_state())
        except ValueError as error:
            raise ValueError(f"checkpoint '{path}', {module_id!r}: {error}") from None
    return modules


def _load_module(folder: Path) -> RLModule:
    file = folder / NETWORK
    if file.is_file():
        check_files(file)
        return read_network(file)
    check_files(folder)
    with reading(folder):
        return RLModule.from_checkpoint(folder)


def finish(
    folder: Path, modules: Mapping[str, Any], weights: Mapping[str, Any], config: Any
) -> None:
    """Writes into a checkpoint what RLlib does not, at last the checksums of all files.

    Args:
        folder: of this machine, where RLlib has written its files.
        modules: by name; they tell spaces and `model_config`.
        weights: of the learner, arrays by module and name.
        config: the algorithm's.
    """
    for name, stale in find_modules(folder).items():  # there may have been a checkpoint before
        if name not in modules:
            shutil.rmtree(stale)
    suffices = _is_mfq(config) and not _has_callbacks(config)
    for name, module in modules.items():
        file = folder / MODULES / name / NETWORK
        file.unlink(missing_ok=True)
        try:
            write_network(file, module.unwrapped(), weights[name])
        except (TypeError, ValueError):
            suffices = False
    played = {
        "env": config.env,
        "env_config": dict(config.env_config),
        "groups": modules_of_groups(config),
        "suffices": suffices,
    }
    (folder / ENVIRONMENT).unlink(missing_ok=True)
    with contextlib.suppress(TypeError, ValueError):
        text = json.dumps(played, indent=1)
        if isinstance(config.env, str) and json.loads(text) == played:  # JSON has no tuples
            (folder / ENVIRONMENT).write_text(text + "\n", encoding="utf-8")
    write_checksums(folder)


def saved_environment(checkpoint: str | Path) -> dict[str, Any]:
    """`env` and `env_config` of a checkpoint or of `pretrained:NAME`; empty if it has none.

    What `finish` writes is read; a checkpoint without that is unpickled. Raises a ValueError if a
    file is damaged.
    """
    played = saved_play(checkpoint) or saved_settings(checkpoint)
    return {key: played[key] for key in ("env", "env_config") if key in played}


def saved_play(checkpoint: str | Path) -> dict[str, Any]:
    """What `finish` wrote of what was played; empty if there is nothing.

    Returns:
        `env`, `env_config`, `groups` (the module of each) and `suffices`: whether an `MFQ` without
        callbacks, made of this and of `load_modules`, plays as the one that was saved.
    """
    file = Path(checkpoint).expanduser() / ENVIRONMENT
    if not file.is_file():
        return {}
    check_files(file)
    with reading(file):
        played: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return played


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
    check_files(path)
    with reading(path):
        saved = pickle.loads(path.read_bytes())
        return saved["class"], saved["ctor_args_and_kwargs"][0][0]


def saved_settings(checkpoint: str | Path) -> dict[str, Any]:
    """The config dict of `saved_class_and_settings`."""
    return saved_class_and_settings(checkpoint)[1]


def check_restorable(path: Path, mine: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises a ValueError unless a checkpoint is whole, with an algorithm's modules and memories.

    Args:
        path: a folder of this machine.
        mine: the algorithm's modules.
        settings: the attributes of its config.
    """
    if not (path / MODULES).is_dir():
        raise ValueError(f"'{path}' is not the folder of an algorithm's checkpoint.")
    check_files(path)
    load_modules_like(path, mine, "this algorithm")
    saved = saved_settings(path)
    for key in ("replay_capacity", "replay_obs_dtype"):
        if saved.get("store_replay_in_checkpoints") and saved[key] != settings[key]:
            theirs = f"the memory in checkpoint '{path}' has {saved[key]!r}"
            raise ValueError(f"{key} is {settings[key]!r}, but {theirs}; use the same.")


def _is_mfq(config: Any) -> bool:
    """Whether the algorithm is `MFQ` itself, which imports this module, and no subclass."""
    kind = config.algo_class
    return (kind.__module__, kind.__qualname__) == ("rllib_mfq.algorithm.mfq", "MFQ")


def _has_callbacks(config: Any) -> bool:
    default = vars(AlgorithmConfig())
    names = [name for name in default if name.startswith("callbacks_")]
    return any(getattr(config, name) not in (None, default[name]) for name in names)


def save_memories(folder: str | Path, states: Iterable[Mapping[str, Any]]) -> None:
    """Writes the state of every learner's memories into a file of its own, one after another.

    A file gets its name when it is complete.

    Args:
        folder: an algorithm's checkpoint.
        states: one for each learner.
    """
    Path(folder, REPLAY).mkdir(exist_ok=True)
    for learner, state in enumerate(states):
        file = Path(folder, REPLAY, f"learner_{learner}.pkl")
        part = file.with_name(f"{file.name}.part")
        with part.open("wb") as stream:
            pickle.dump(state, stream, protocol=5)
        part.replace(file)


def memory_files(folder: str | Path) -> list[Path]:
    """The files of `save_memories` in a checkpoint, in the order of the learners."""
    numbers = itertools.count()
    files = (Path(folder, REPLAY, f"learner_{number}.pkl") for number in numbers)
    return list(itertools.takewhile(Path.is_file, files))


def load_memories(file: Path) -> dict[str, Any]:
    """Reads one of the `memory_files`."""
    with file.open("rb") as stream:
        state: dict[str, Any] = pickle.load(stream)
    return state


def is_remote(path: str | Path | None, filesystem: Any = None) -> bool:
    """Whether a path is a URI, or of a filesystem that is not this machine's."""
    return filesystem is not None or "://" in str(path)


def upload(folder: str | Path, path: str | Path, filesystem: Any = None) -> None:
    """Copies a folder of this machine to where `is_remote`; `filesystem` is None with a URI."""
    filesystem, there = _there(path, filesystem)
    filesystem.create_dir(there, recursive=True)
    pyarrow.fs.copy_files(str(folder), there, destination_filesystem=filesystem)


@contextlib.contextmanager
def downloaded(path: str | Path, filesystem: Any = None) -> Iterator[Path]:
    """A folder of this machine with a checkpoint: itself, or a copy of what is remote."""
    if not is_remote(path, filesystem):
        yield Path(path).expanduser().resolve()
        return
    filesystem, there = _there(path, filesystem)
    with tempfile.TemporaryDirectory() as folder:
        pyarrow.fs.copy_files(there, folder, source_filesystem=filesystem)
        try:
            yield Path(folder)
        except ValueError as error:
            if folder not in str(error):
                raise
            raise ValueError(str(error).replace(folder, str(path))) from error


def _there(path: str | Path, filesystem: Any) -> tuple[Any, str]:
    """The filesystem of a path or URI, and the path in it."""
    if filesystem is None:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(str(path))
    return filesystem, str(path)
