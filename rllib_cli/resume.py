"""Resume: puts a run that ended, or was killed, into the state from which Tune can go on.

Tune saves the state of a run every ten seconds. It deletes old checkpoints at once, so after a kill
its state may name checkpoints that are gone, and lack those that are there.
"""

import contextlib
import copy
import json
import re
from pathlib import Path
from typing import Any

import yaml
from pyarrow.fs import LocalFileSystem
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint
from ray.tune.experiment import Experiment as TuneExperiment
from ray.tune.experiment import Trial
from ray.tune.search.sample import Domain
from ray.tune.utils import flatten_dict

from rllib_cli.experiments import BadInput, Experiment, parse
from rllib_cli.hooks import hooks
from rllib_cli.rows import STEP, go_back
from rllib_cli.storage import METRICS, UNFINISHED, is_local, names_in, read, reason, write
from rllib_cli.validation import searched
from rllib_mfq.algorithm.checkpoint import check_checkpoint, downloaded
from rllib_mfq.algorithm.checksums import FILE, check_files

STATE = "experiment_state-"
"""What the names of Tune's files with the state of a run begin with."""

RECORD = "experiment.yaml"
"""The file in a run's folder with the experiment as it was started or last resumed."""

MAY_CHANGE = {"stop"}
"""Keys of an experiment that act when it is resumed, besides those of its config."""

IRRELEVANT = {"storage_path", "restore", "log_to_file", "searched"}
"""Keys that do not matter to a run that is resumed."""

DEFAULTS = {"num_samples": 1, "max_failures": 0, "scheduler": "fifo"}


def was_run(experiment: TuneExperiment) -> bool:
    """Whether there is a run to resume."""
    return bool(names_in(experiment.storage, experiment.storage.experiment_fs_path, STATE))


def begin(name: str, experiment: TuneExperiment, checked: Experiment, resume: bool) -> list[str]:
    """Prepares the folder of a run that begins, or is resumed; see the top of this file.

    Every trial goes on from its newest whole checkpoint, and the rows after it are made anew. A
    trial that reached its `stop` goes on if the new one is further away, and so does one that
    failed.

    Args:
        name: of the experiment.
        experiment: as Tune takes it.
        checked: the experiment as it goes on; its `stop` and config take effect.
        resume: whether there is a run to go on with.

    Returns:
        Notices of what changed.

    Raises:
        BadInput: something changed that cannot act any more, or would without a trial that goes
            on; or the run's state cannot be read, or nothing be written.
    """
    notices = []
    if not resume and was_run(experiment):
        notices.append(
            f"{experiment.storage.experiment_fs_path} holds an earlier run, to which this one is "
            "added; --experiment-name gives it a folder of its own, and --resume goes on with the "
            "earlier one."
        )
    try:
        if resume:
            notices += _prepare(name, experiment, checked)
        path = f"{experiment.storage.experiment_fs_path}/{RECORD}"
        write(experiment.storage, path, yaml.safe_dump(_plain(checked), sort_keys=False))
    except OSError as error:
        folder = experiment.storage.experiment_fs_path
        problem = f"nothing can be written in {folder}: {reason(error)}"
        raise BadInput(f"{name}: {problem}.") from error
    return notices


def _prepare(name: str, experiment: TuneExperiment, checked: Experiment) -> list[str]:
    """Rewrites Tune's state of a run that is resumed, and takes back its rows; see `begin`."""
    path, state = _read_state(name, experiment)
    changes = _changes(name, experiment, checked)
    trials = [_load(experiment, *data) for data in state["trial_data"]]
    going_on = [trial for trial in trials if _goes_on(trial, checked["stop"])]
    follow = [hooks(checked["run"]).limits(stop) for stop in changes.get("stop", ())]
    said = [
        f"{key} is now {new!r}, it was {old!r}"
        for key, (old, new) in changes.items()
        if [limits.get(key) for limits in follow] != [old, new]  # it only follows `stop`
    ]
    if not going_on:
        ended = f"all trials have ended; raise stop, which is {checked['stop']}, to go on"
        if changes:
            raise BadInput(f"{name}: {'; '.join(said)}; but {ended}.")
        said = [ended]
    for trial in trials:
        _apply(trial, checked, changes, trial in going_on)
        if trial in going_on and is_local(experiment):
            go_back(Path(trial.storage.trial_fs_path), _newest(trial).get(STEP, 0))
    state["trial_data"] = [trial.get_json_state() for trial in trials]
    # What Tune had decided about trials, such as to stop one that failed, it would still do.
    state["runner_data"] |= {"_cached_trial_decisions": {}, "_queued_trial_decisions": {}}
    write(experiment.storage, path, json.dumps(state))
    return [f"{name}: {each}." for each in said]


def _read_state(name: str, experiment: TuneExperiment) -> tuple[str, dict[str, Any]]:
    """The path of Tune's newest state of a run, and the newest state that can be read."""
    folder = experiment.storage.experiment_fs_path
    names = names_in(experiment.storage, folder, STATE)
    for each in reversed(names):  # one for each time that the run was started or resumed
        try:
            state = json.loads(read(experiment.storage, f"{folder}/{each}") or "")
        except ValueError:  # killed while it was written
            continue
        if state["trial_data"]:
            return f"{folder}/{names[-1]}", state
    raise BadInput(
        f"{name}: the state of the run in {folder} cannot be read; begin a new run with --restore "
        "and its newest checkpoint."
    )


def _changes(
    name: str, experiment: TuneExperiment, checked: Experiment
) -> dict[str, tuple[Any, Any]]:
    """Old and new values of what differs from the run's record; BadInput if it cannot act."""
    folder = experiment.storage.experiment_fs_path
    text = read(experiment.storage, f"{folder}/{RECORD}")
    if text is None:
        return {}
    old: dict[str, Any] = DEFAULTS | parse(text, RECORD)
    new: dict[str, Any] = DEFAULTS | _plain(checked)
    fixed = {*old["searched"], *new["searched"], "seed"}
    keys = sorted((old | new).keys() - IRRELEVANT - {"config"})
    pairs = {key: (old.get(key), new.get(key)) for key in keys}
    inner = {*old["config"], *new["config"]}
    own = {key: (old["config"].get(key), new["config"].get(key)) for key in sorted(inner)}
    changes = {key: (was, now) for key, (was, now) in (pairs | own).items() if was != now}
    for key, (was, now) in changes.items():
        if key in fixed or key not in {*own, *MAY_CHANGE}:
            raise BadInput(
                f"{name}: {key} is {now!r}, but the run in {folder} has {was!r}, which --resume "
                "cannot change; give the old value, or another --experiment-name."
            )
    return changes


def _plain(checked: Experiment) -> dict[str, Any]:
    """An experiment as plain values, which YAML holds and which can be compared."""
    plain = {key: value for key, value in checked.items() if value is not None}
    mutated = (checked.get("scheduler_config") or {}).get("hyperparam_mutations") or {}
    spaces = {key.partition("/")[0] for key in searched(checked["config"])}
    plain["searched"] = sorted(spaces | mutated.keys())
    found: dict[str, Any] = json.loads(json.dumps(plain, default=_describe))
    return found


def _describe(value: Any) -> str:
    """Text for a value that is not plain; without addresses, so that it stays the same."""
    if isinstance(value, Domain):
        return f"{type(value.sampler).__name__} {type(value).__name__} {value.domain_str}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x\w+", "", repr(value))


def _load(experiment: TuneExperiment, trial_state: str, metadata: str) -> Trial:
    """A trial of Tune's state with the checkpoints that exist, in the experiment's storage."""
    trial = Trial.from_json_state(trial_state)
    trial.restore_run_metadata(metadata)
    storage = copy.copy(experiment.storage)
    storage.trial_dir_name = trial.storage.trial_dir_name
    trial.set_storage(storage)
    fs, folder = storage.storage_filesystem, storage.trial_fs_path
    old = trial.run_metadata.checkpoint_manager
    recorded = {
        Path(result.checkpoint.path).name: result
        for result in (*old.best_checkpoint_results, old.latest_checkpoint_result)
        if result
    }
    for half in names_in(storage, folder, UNFINISHED):
        fs.delete_dir(f"{folder}/{half}")
    new = _CheckpointManager(old.checkpoint_config)
    names = names_in(storage, folder, "checkpoint_")
    saved = [
        result
        for each in names
        if (result := recorded.get(each) or _saved(storage, f"{folder}/{each}"))
        and _is_whole(result.checkpoint.path, fs)
    ]
    while saved and not _is_sound(saved[-1].checkpoint.path, fs):
        saved.pop()
    for result in saved:
        new.register_checkpoint(result)
    trial.run_metadata.checkpoint_manager = new
    storage.current_checkpoint_index = max((int(n.rpartition("_")[2]) for n in names), default=-1)
    return trial


def _saved(storage: StorageContext, path: str) -> _TrainingResult | None:
    """A checkpoint with the result that is saved beside it; None if that is missing or damaged."""
    try:
        metrics = json.loads(read(storage, f"{path}/{METRICS}") or "")
    except ValueError:
        return None
    return _TrainingResult(Checkpoint(path, storage.storage_filesystem), metrics)


def _is_whole(path: str, filesystem: Any) -> bool:
    """Whether a folder has the files of a checkpoint; what is remote is not looked at."""
    if _is_here(filesystem) and Path(path, FILE).is_file():
        return True  # `_is_sound` looks at every file; the old API stack has others than the new
    with contextlib.suppress(ValueError):
        return bool(check_checkpoint(path if _is_here(filesystem) else f"://{path}"))
    return False


def _is_sound(path: str, filesystem: Any) -> bool:
    """Whether no file of a checkpoint is missing or damaged; one that is remote is fetched."""
    with contextlib.suppress(ValueError):
        with downloaded(path, None if _is_here(filesystem) else filesystem) as folder:
            check_files(folder)
        return True
    return False


def _is_here(filesystem: Any) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def _newest(trial: Trial) -> dict[str, Any]:
    """The result with which the newest checkpoint of a trial was saved; empty without one."""
    latest = trial.run_metadata.checkpoint_manager.latest_checkpoint_result
    return latest.metrics if latest else {}


def _goes_on(trial: Trial, stop: dict[str, float]) -> bool:
    """Whether a trial has something left to do."""
    newest = _newest(trial)
    if trial.status == Trial.TERMINATED:  # else a scheduler ended it, or it cannot go on
        if not newest or not _reached(trial.last_result, trial.stopping_criterion):
            return False
    return not _reached(newest, stop)


def _reached(result: dict[str, Any], stop: dict[str, float]) -> bool:
    flat = flatten_dict(result or {})
    return any(key in flat and flat[key] >= limit for key, limit in stop.items())


def _apply(
    trial: Trial, checked: Experiment, changes: dict[str, tuple[Any, Any]], goes_on: bool
) -> None:
    """Puts a trial into the state in which it goes on, or stays ended."""
    trial.stopping_criterion = checked["stop"]
    for key in changes.keys() - MAY_CHANGE:
        trial.config.pop(key, None)
        if key in checked["config"]:
            trial.config[key] = checked["config"][key]
    if goes_on:
        trial.set_status(Trial.PENDING)
        about = trial.run_metadata
        about.error_filename = about.pickled_error_filename = None
        about.num_failures = 0
        about.last_result = _newest(trial)
    elif trial.status != Trial.ERROR:
        trial.set_status(Trial.TERMINATED)
    trial.invalidate_json_state()
    trial.run_metadata.invalidate_cache()
