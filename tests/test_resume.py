"""The ends of runs: killed, interrupted, on full disks, two at once; and --resume after them."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from small_battles import OLD
from test_cli import results_of, rllib, start, write

from rllib_cli import rows, storage, train
from rllib_mfq.algorithm.checksums import FILE as CHECKSUMS

STEP, ROWS = "training_iteration", "agent_steps_sampled_lifetime"
SMALL = {
    "run": "MFQ",
    "env": "ising_v0",
    "stop": {STEP: 3},
    "checkpoint_config": {"checkpoint_frequency": 1, "num_to_keep": 2},
    "config": {
        "env_config": {"size": 4},
        "num_envs_per_env_runner": 2,
        "rollout_fragment_length": 5,
        "train_batch_size_per_learner": 16,
        "num_steps_sampled_before_learning_starts": 50,
        "replay_capacity": 2_000,
        "min_sample_timesteps_per_iteration": 10,
    },
}


STACKS = pytest.mark.parametrize("ended", [False, True], indirect=True, ids=["new", "old"])


def run(folder, *options, **changes):
    """Trains `SMALL`, with other keys, in a folder; on the old API stack where it says so."""
    experiment = {**SMALL, **changes}
    if (folder / "old").exists():
        experiment["config"] = experiment["config"] | OLD
    path = write(folder / "x.yaml", {"x": experiment})
    return rllib("train", "file", path, "--storage-path", folder, *options)


def with_config(**changes):
    return SMALL["config"] | changes


def iterations(folder):
    (found,) = results_of(folder)
    return [row[STEP] for row in found]


def table(folder):
    (path,) = folder.rglob("progress.csv")
    return rows.read_csv(path)


def checkpoints(folder):
    return sorted(path.name for path in folder.rglob("checkpoint_*"))


@pytest.fixture(scope="module")
def ended(request, ray_session, tmp_path_factory):
    """The folder of a run that reached its stop."""
    folder = tmp_path_factory.mktemp("ended")
    if getattr(request, "param", False):
        (folder / "old").touch()
    result = run(folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copied(ended, tmp_path):
    """A copy of it: a folder that was moved is resumed as well."""
    return shutil.copytree(ended, tmp_path / "copy")


@pytest.fixture(scope="module")
def ahead(ended, tmp_path_factory):
    """As after a kill: five iterations, and a state of Tune that knows of three."""
    folder = shutil.copytree(ended, tmp_path_factory.mktemp("ahead") / "copy")
    (state,) = (folder / "x").glob("experiment_state-*")
    old = state.read_text()
    result = run(folder, "--resume", stop={STEP: 5})
    assert result.exit_code == 0, result.output
    assert checkpoints(folder) == ["checkpoint_000003", "checkpoint_000004"]
    for path in (folder / "x").glob("experiment_state-*"):
        path.write_text(old)
    return folder


@pytest.fixture
def killed(ahead, tmp_path):
    """A copy of it."""
    return shutil.copytree(ahead, tmp_path / "killed")


@STACKS
def test_checkpoints_and_rows_are_where_the_run_is(ended):
    assert iterations(ended) == [1, 2, 3]
    assert [row[STEP] for row in table(ended)] == ["1", "2", "3"]
    assert checkpoints(ended) == ["checkpoint_000001", "checkpoint_000002"]
    for name, iteration in zip(checkpoints(ended), (2, 3), strict=True):
        (path,) = ended.rglob(f"{name}/{storage.METRICS}")
        assert json.loads(path.read_text())[STEP] == iteration
    assert list(ended.rglob("params.json")) and not list(ended.rglob(f"{storage.UNFINISHED}*"))


@STACKS
def test_a_raised_stop_and_other_settings_act(copied):
    stop = {STEP: 5, "time_total_s": 1000}
    config = with_config(lr=1e-3, env_config={"size": 6})
    result = run(copied, "--resume", stop=stop, config=config)
    assert result.exit_code == 0, result.output
    (found,) = results_of(copied)
    assert [row[STEP] for row in found] == [1, 2, 3, 4, 5]
    assert [row["config"].get("lr") for row in found] == [5e-4] * 3 + [1e-3] * 2
    assert [row["config"]["env_config"]["size"] for row in found] == [4] * 3 + [6] * 2
    steps = [row["agent_steps_sampled_lifetime"] for row in found]
    assert steps == sorted(steps) and steps[3] - steps[2] > 2 * (steps[1] - steps[0])
    assert "note: x: lr is now 0.001, it was None." in result.stderr
    assert "note: x: stop is now" in result.stderr and "time_limit_s" not in result.stderr
    assert checkpoints(copied) == ["checkpoint_000003", "checkpoint_000004"]
    learned = found[-1]["learners"]["spin"]["default_optimizer_learning_rate"]
    assert learned == pytest.approx(1e-3)


def test_what_cannot_act_on_a_run_is_refused_with_its_old_and_new_value(copied):
    for changes, key, old, new in (
        ({"num_samples": 2}, "num_samples", "1", "2"),
        ({"scheduler": "asha"}, "scheduler", "'fifo'", "'asha'"),
        ({"checkpoint_config": {"checkpoint_frequency": 3}}, "checkpoint_config", "1", "3"),
        ({"max_failures": 4}, "max_failures", "0", "4"),
        ({"config": with_config(seed=4)}, "seed", "None", "4"),
        ({"config": with_config(lr={"choice": [0.1, 0.2]})}, "lr", "None", "Categorical"),
        ({"run": "PPO", "env": "CartPole-v1", "config": {}}, "run", "MFQ", "PPO"),
    ):
        result = run(copied, "--resume", **changes)
        (line,) = [each for each in result.stderr.splitlines() if "note:" not in each]
        assert result.exit_code == 2 and line.startswith(f"Error: x: {key} is "), result.output
        assert old in line and new in line and "--resume cannot change" in line
    result = run(copied, "--resume", config=with_config(lr=1e-3))
    assert result.exit_code == 2
    assert "lr is now 0.001, it was None; but all trials have ended; raise stop" in result.stderr
    assert iterations(copied) == [1, 2, 3]


def test_a_run_that_has_ended_says_so(copied):
    result = run(copied, "--resume")
    assert result.exit_code == 0 and iterations(copied) == [1, 2, 3]
    assert "note: x: all trials have ended; raise stop" in result.stderr


@STACKS
def test_a_run_goes_on_where_tunes_state_lags_behind_its_checkpoints(killed):
    """The state names checkpoints that are gone and lacks those that are there."""
    # Killed while it saved the next checkpoint, wrote a row and wrote its state.
    (newest,) = (killed / "x").rglob("checkpoint_000004")
    shutil.copytree(newest, newest.with_name(f"{storage.UNFINISHED}checkpoint_000005"))
    for name in ("result.json", "progress.csv"):
        with newest.with_name(name).open("a") as file:
            file.write('{"training_iteration": 6, "agent')
    state = next((killed / "x").glob("experiment_state-*")).read_text()
    (killed / "x" / "experiment_state-2999-01-01_00-00-00.json").write_text(state[:1000])
    result = run(killed, "--resume", stop={STEP: 7})
    assert result.exit_code == 0, result.output
    assert iterations(killed) == list(range(1, 8))
    assert [row[STEP] for row in table(killed)] == [str(number) for number in range(1, 8)]
    assert checkpoints(killed) == ["checkpoint_000005", "checkpoint_000006"]
    assert not list(killed.rglob(f"{storage.UNFINISHED}*"))
    (found,) = results_of(killed)
    steps = [row["agent_steps_sampled_lifetime"] for row in found]
    assert steps == sorted(set(steps))


@STACKS
def test_a_checkpoint_that_is_not_whole_is_not_gone_on_from(copied):
    (newest,) = (copied / "x").rglob("checkpoint_000002")
    (newest / "algorithm_state.pkl").unlink()
    result = run(copied, "--resume", stop={STEP: 4})
    assert result.exit_code == 0, result.output
    assert iterations(copied) == [1, 2, 3, 4]
    assert checkpoints(copied)[-1] == "checkpoint_000004"


@STACKS
@pytest.mark.parametrize("file", ["algorithm_state.pkl", storage.METRICS, CHECKSUMS])
def test_a_checkpoint_with_a_flipped_byte_is_not_gone_on_from(killed, file):
    (newest,) = (killed / "x").rglob(f"checkpoint_000004/{file}")
    content = bytearray(newest.read_bytes())
    content[0] ^= 1
    newest.write_bytes(content)
    result = run(killed, "--resume", stop={STEP: 6})
    assert result.exit_code == 0, result.output
    assert iterations(killed) == [1, 2, 3, 4, 5, 6]
    (found,) = results_of(killed)
    steps = [row[ROWS] for row in found]
    assert steps == sorted(set(steps))
    assert checkpoints(killed)[-1] == "checkpoint_000006"  # of the iterations 5 and 6


def test_a_name_that_is_used_again_is_noted(copied):
    result = run(copied, config=with_config(lr=1e-3))
    assert result.exit_code == 0, result.output
    (note,) = [line for line in result.stderr.splitlines() if "an earlier run" in line]
    assert str(copied / "x") in note and "--experiment-name" in note and "--resume" in note
    assert [[row[STEP] for row in found] for found in results_of(copied)] == [[1, 2, 3]] * 2


def test_two_runs_in_one_folder_are_refused(copied, monkeypatch):
    monkeypatch.setattr(train, "start_ray", lambda options: pytest.fail("Ray was started"))
    other = train.StoredExperiment("x", run="MFQ", storage_path=str(copied))
    with storage.claim("x", other):
        for options in ([], ["--resume"]):
            result = run(copied, *options, stop={STEP: 9})
            assert result.exit_code == 2, result.output
            assert f"x: process {os.getpid()} on " in result.stderr
            assert "already trains in" in result.stderr
    assert iterations(copied) == [1, 2, 3]


@pytest.mark.parametrize("path", ["/proc/nope", "{file}", "{file}/below"])
def test_a_folder_that_cannot_be_written_is_refused_before_ray_starts(
    ray_session, tmp_path, monkeypatch, path
):
    monkeypatch.setattr(train, "start_ray", lambda options: pytest.fail("Ray was started"))
    (tmp_path / "file").write_text("")
    path = path.format(file=tmp_path / "file")
    file = write(tmp_path / "x.yaml", {"x": SMALL})
    result = rllib("train", "file", file, "--storage-path", path)
    assert result.exit_code == 2 and result.stderr.startswith(f"Error: x: storage_path is '{path}'")
    assert "nothing can be written" in result.stderr and len(result.stderr.splitlines()) == 1


def small_disk(folder, size):
    """Mounts a disk of `size` in memory, where that is allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk")
    return folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
def test_a_full_disk_is_named_and_leaves_no_half_checkpoint(ray_session, tmp_path):
    disk = small_disk(tmp_path / "disk", "20m")
    try:
        filler = disk / "filler"
        result = run(disk, stop={STEP: 2})
        assert result.exit_code == 0, result.output
        free = shutil.disk_usage(disk).free
        filler.write_bytes(b"0" * (free - 500_000))  # a checkpoint needs more
        result = run(disk, "--resume", stop={STEP: 4})
        assert result.exit_code == 1, result.output
        assert "No space left on device" in result.output and str(disk) in result.output
        assert checkpoints(disk) == ["checkpoint_000000", "checkpoint_000001"]
        assert not list(disk.rglob(f"{storage.UNFINISHED}*"))
        filler.unlink()
        result = run(disk, "--resume", stop={STEP: 4})
        assert result.exit_code == 0, result.output
        assert iterations(disk) == [1, 2, 3, 4], (result.output, checkpoints(disk))
        filler.write_bytes(b"0" * shutil.disk_usage(disk).free)
        result = run(disk, "-n", "other")
        assert result.exit_code == 2, result.output
        assert "No space left on device" in result.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    new = train.StoredExperiment("x", run="MFQ", storage_path=str(tmp_path)).storage
    new.trial_dir_name = "trial"
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_text("1")
    checkpoint = storage.Checkpoint(str(source))
    new._update_checkpoint_index({STEP: 4, "config": {"lr": 1}})
    kept = new.persist_current_checkpoint(checkpoint)
    assert Path(kept.path).name == "checkpoint_000000"
    assert json.loads(Path(kept.path, storage.METRICS).read_text()) == {STEP: 4}
    assert "_metrics" not in new.__getstate__()

    def half(source, destination, *filesystems):
        Path(destination, "weights").write_text("")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "copy_files", half)
    new._update_checkpoint_index({STEP: 5})
    with pytest.raises(OSError, match=r"checkpoint_000001 is not written: No space left on device"):
        new.persist_current_checkpoint(checkpoint)
    assert [path.name for path in (tmp_path / "x" / "trial").iterdir()] == ["checkpoint_000000"]


def test_a_csv_gets_every_column_and_no_nan(tmp_path):
    path = tmp_path / "progress.csv"
    results = [
        {STEP: 1, "config": {"lr": 1}, "env_runners": {"episode_return_mean": float("nan")}},
        {STEP: 2, "env_runners": {"episode_return_mean": 1.5, "new": 3}},
        {STEP: 3, "evaluation": {"env_runners": {"win_rate": {"random": 0.5}}}},
    ]
    for result in results:
        rows.add_row(path, rows.flat(result))
    found = rows.read_csv(path)
    assert list(found[0]) == [
        STEP, "env_runners/episode_return_mean", "env_runners/new",
        "evaluation/env_runners/win_rate/random",
    ]  # fmt: skip
    assert [row[STEP] for row in found] == ["1", "2", "3"]
    assert [row["env_runners/episode_return_mean"] for row in found] == ["", "1.5", ""]
    assert found[2]["evaluation/env_runners/win_rate/random"] == "0.5"


def test_progress_csv_has_what_later_rows_report(ray_session, tmp_path):
    config = with_config(evaluation_interval=2, evaluation_duration=1)
    config["env_config"] = {"size": 4, "max_cycles": 12}
    result = run(tmp_path, config=config, stop={STEP: 4})
    assert result.exit_code == 0, result.output
    found = table(tmp_path)
    for key in ("env_runners/episode_return_mean", "evaluation/env_runners/episode_return_mean"):
        values = [row[key] for row in found]
        assert values[0] == "" and float(values[-1]) >= 0, (key, values)
    (results,) = results_of(tmp_path)
    for row, result in zip(found, results, strict=True):
        assert {k for k, v in row.items() if v} >= {
            k for k, v in rows.flat(result).items() if v not in ("", None)
        }
        assert "nan" not in {value.lower() for value in row.values()}


def wait(process, folder, condition, seconds=120):
    """Waits until the rows of a run fulfil a condition."""
    deadline = time.time() + seconds
    while not condition(next(map(rows.read_results, folder.glob("*/*/")), [])):
        assert time.time() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_sigterm_saves_a_checkpoint_and_a_second_one_ends_at_once(tmp_path):
    path = write(tmp_path / "x.yaml", {"x": SMALL})
    words = ("train", "file", path, "--storage-path", tmp_path, "--ray-num-cpus", 1)
    long = ("--stop", "{time_total_s: 100000}", "--checkpoint-freq", 0)
    process = start(*words, *long)
    try:
        wait(process, tmp_path, lambda found: len(found) > 1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143, err
        assert "Saving a checkpoint" in err and "Traceback" not in err and "Fatal" not in err
        assert out.splitlines()[-1].startswith("Go on with: rllib train file")
        (checkpoint,) = (tmp_path / "x").rglob("checkpoint_*")
        assert f"checkpoint {checkpoint}" in out
        reached = iterations(tmp_path)[-1]
        assert json.loads((checkpoint / storage.METRICS).read_text())[STEP] == reached
        # A long iteration, so that the second signal comes before its end.
        slow = ("--set", "min_time_s_per_iteration=1000")
        process = start(*words, *long, *slow, "--resume")
        (directory,) = (tmp_path / "x").glob("MFQ*")
        time.sleep(1)
        deadline = time.time() + 120
        before = (directory / "params.json").stat().st_mtime
        while (directory / "params.json").stat().st_mtime == before:
            assert time.time() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 143 and "Ended without a checkpoint" in err, err
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert iterations(tmp_path)[-1] == reached


HANGS = """
import os, pathlib, time
import gymnasium as gym
import numpy as np

class Hangs(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 30:
            pathlib.Path("hangs").write_text(str(os.getpid()))
            while True:
                time.sleep(1000)
        return np.zeros(2, np.float32), 0.0, False, False, {}
"""


def test_ctrl_c_ends_a_run_whose_environment_hangs_in_the_trials_process(tmp_path):
    (tmp_path / "stuck.py").write_text(HANGS)
    config = {key: value for key, value in SMALL["config"].items() if key != "env_config"}
    endless = {**SMALL, "env": "stuck.Hangs", "config": config, "stop": {STEP: 100_000}}
    path = write(tmp_path / "x.yaml", {"x": endless})
    words = ("train", "file", path, "--storage-path", tmp_path, "--ray-num-cpus", 1)
    process = start(*words, cwd=tmp_path)
    try:
        deadline = time.time() + 120
        while not (tmp_path / "hangs").exists():
            assert time.time() < deadline and process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None  # the iteration, at whose end it would save, has no end
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "press Ctrl-C again to end now" in err and "Traceback" not in err
        assert err.splitlines()[-1] == "Ended without a checkpoint."
        number = int((tmp_path / "hangs").read_text())
        while Path(f"/proc/{number}").exists():  # and nothing goes on without the command
            assert time.time() < deadline
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def check_killed(folder):
    """Checks what a killed run left: nothing is lost but what its newest checkpoint lacks.

    Returns:
        The iteration of the newest checkpoint.
    """
    (path,) = folder.glob("x/*/result.json")
    found = rows.read_results(path.parent)  # the last one may be cut off
    assert [row[STEP] for row in found] == list(range(1, len(found) + 1))
    assert len(path.read_text().splitlines()) <= len(found) + 1
    flat = [rows.flat(row) for row in found]
    counters = [key for key in flat[0] if "_lifetime" in key and "throughput" not in key]
    assert len(counters) > 5
    for before, row in itertools.pairwise(flat):
        assert all(row[key] >= before[key] for key in counters)
        assert row[ROWS] > before[ROWS]
    in_table = [row[STEP] for row in rows.read_csv(path.with_name("progress.csv"))]
    assert in_table[: len(found) - 1] == [str(number) for number in range(1, len(found))]
    assert all(state.stat().st_size for state in (folder / "x").glob("*state-*.json"))
    saved = [
        json.loads(p.read_text())[STEP] for p in folder.rglob(f"checkpoint_*/{storage.METRICS}")
    ]
    newest = max(saved, default=0)
    assert newest <= len(found)
    return newest


def kill_and_resume(folder, kills, seed):
    """Kills a run at random moments, also while it starts, and resumes it."""
    draw = random.Random(seed)
    path = write(folder / "x.yaml", {"x": {**SMALL, "stop": {STEP: 100_000}}})
    words = ("train", "file", path, "--storage-path", folder, "--ray-num-cpus", 1)
    saved = 0
    for number in range(kills):
        process = start(*words, *(["--resume"] if number else []))
        try:
            if number % 3 == 2:
                time.sleep(draw.uniform(2, 12))
            else:
                wait(process, folder, lambda found, n=saved: found and found[-1][STEP] > n + 1)
                time.sleep(draw.uniform(0, 5))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            _, err = process.communicate()
        assert "Error" not in err, err
        before, saved = saved, check_killed(folder)
        assert saved >= before and (saved > before or number % 3 == 2)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tmp_path):
    kill_and_resume(tmp_path, 3, seed=1)


@pytest.mark.slow
def test_a_run_goes_on_after_ten_kills_at_random_moments(tmp_path):
    kill_and_resume(tmp_path, 10, seed=2)


def test_a_run_without_a_stop_says_how_to_end_it(tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr(train, "_run", lambda *arguments: 0)
    result = run(tmp_path, stop={})
    (note,) = [line for line in result.stderr.splitlines() if "there is no stop" in line]
    assert "Ctrl-C or SIGTERM" in note and "--stop '{time_total_s: 600}'" in note
    assert yaml.safe_load((tmp_path / "x" / "experiment.yaml").read_text())["stop"] == {}
