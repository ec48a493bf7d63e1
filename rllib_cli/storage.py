"""Storage: where a run keeps its results and checkpoints, so that nothing there is half or lost."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSelector, FileType, LocalFileSystem, copy_files
from ray.train._internal.storage import StorageContext, _FilesystemSyncer
from ray.tune import Checkpoint
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.utils.util import SafeFallbackEncoder

from rllib_cli.experiments import BadInput

METRICS = "metrics.json"
"""The file of a checkpoint that holds the result of its iteration."""

UNFINISHED = "unfinished_"
"""What stands before the name of a checkpoint's folder while it is written."""


class _WholeFiles(_FilesystemSyncer):
    """Copies Tune's own files to a disk; a kill meanwhile leaves the old ones, not half a file."""

    def _sync_up_command(
        self, local_path: str, uri: str, exclude: list[str] | None = None
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        return _copy_files, {"source": local_path, "target": uri, "exclude": exclude or []}


def _copy_files(source: str, target: str, exclude: list[str]) -> None:
    without = shutil.ignore_patterns(".*", *exclude)  # Tune's own unfinished files have a dot
    shutil.copytree(source, target, ignore=without, copy_function=_copy, dirs_exist_ok=True)


def _copy(source: str, target: str) -> None:
    part = Path(target).with_name(f".{Path(target).name}")
    shutil.copyfile(source, part)
    part.replace(target)


class Storage(StorageContext):
    """Tune's storage; on a disk, its checkpoints and files appear whole or not at all."""

    _metrics: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.storage_filesystem, LocalFileSystem):
            period, timeout = self.sync_config.sync_period, self.sync_config.sync_timeout
            self.syncer = _WholeFiles(
                self.storage_filesystem, sync_period=period, sync_timeout=timeout
            )

    def _update_checkpoint_index(self, metrics: dict[str, Any]) -> None:
        super()._update_checkpoint_index(metrics)
        self._metrics = metrics

    def persist_current_checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """Copies a checkpoint from a temporary folder to where the run keeps it."""
        metrics = {key: value for key, value in (self._metrics or {}).items() if key != "config"}
        content = json.dumps(metrics, cls=SafeFallbackEncoder)
        Path(checkpoint.path, METRICS).write_text(content, encoding="utf-8")
        fs, folder = self.storage_filesystem, Path(self.checkpoint_fs_path)
        if not isinstance(fs, LocalFileSystem):
            return super().persist_current_checkpoint(checkpoint)
        self._check_validation_file()
        part = folder.with_name(UNFINISHED + folder.name)
        try:
            fs.create_dir(str(part))
            copy_files(checkpoint.path, str(part), checkpoint.filesystem, fs)
            if fs.get_file_info(str(folder)).type != FileType.NotFound:
                fs.delete_dir(str(folder))  # of a run that was killed and has gone back
            fs.move(str(part), str(folder))
        except OSError as error:
            with contextlib.suppress(OSError):
                fs.delete_dir(str(part))
            raise OSError(f"the checkpoint {folder} is not written: {reason(error)}") from error
        return Checkpoint(str(folder), fs)

    def __getstate__(self) -> dict[str, Any]:
        """Without the metrics, which Tune would save with every state of the run."""
        return {key: value for key, value in vars(self).items() if key != "_metrics"}


class StoredExperiment(TuneExperiment):
    """An experiment that keeps its checkpoints in a `Storage`."""

    _storage_context_cls = Storage


def reason(error: OSError) -> str:
    """What the system says of an error: `No space left on device`, without names and numbers."""
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())


def is_local(experiment: TuneExperiment) -> bool:
    """Whether an experiment is kept in a folder of this machine, and not at a URI."""
    return isinstance(experiment.storage.storage_filesystem, LocalFileSystem)


@contextlib.contextmanager
def claim(name: str, experiment: TuneExperiment) -> Iterator[None]:
    """Makes an experiment's folder this process's own, until it leaves the context or dies.

    Raises:
        BadInput: another process trains there, or nothing can be written there.
    """
    if not is_local(experiment):
        yield
        return
    folder = experiment.storage.experiment_fs_path
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(Path(folder, ".lock").open("ab+", buffering=0))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            file.seek(0)
            raise BadInput(
                f"{name}: {file.read().decode()} already trains in {folder}; give this run another "
                "--experiment-name or --storage-path (of `rllib reproduce`, --out)."
            ) from None
        except OSError as error:
            problem = f"nothing can be written in {folder}: {reason(error)}"
            raise BadInput(f"{name}: {problem}.") from error
        yield


def is_full(folder: str | Path) -> bool:
    """Whether no file of any use fits on the disk of a folder."""
    if not Path(folder).exists():
        return False
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize < 1_000_000 or disk.f_favail == 0


def names_in(storage: StorageContext, folder: str, start: str) -> list[str]:
    """The names that begin with `start` in a folder, sorted; none if there is no folder."""
    found = storage.storage_filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
    return sorted(each.base_name for each in found if each.base_name.startswith(start))


def read(storage: StorageContext, path: str) -> str | None:
    """The text of a file, None if there is none."""
    if storage.storage_filesystem.get_file_info(path).type == FileType.NotFound:
        return None
    with storage.storage_filesystem.open_input_stream(path) as file:
        return file.readall().decode()


def write(storage: StorageContext, path: str, text: str) -> None:
    """Writes a file, which is never half there."""
    folder, _, name = path.rpartition("/")
    part = f"{folder}/.{name}"
    with storage.storage_filesystem.open_output_stream(part) as file:
        file.write(text.encode())
    storage.storage_filesystem.move(part, path)
