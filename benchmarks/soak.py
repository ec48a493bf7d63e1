"""Soak: a long run whose env runner is killed again and again, and one that nothing disturbs.

Both train `battle_small` by the command that a user would type, with evaluation and checkpoints,
at once on two cores, so that both have as much of them. What is recorded of each is seen from
outside: how much memory each process holds after one, two and three thirds of the time, whether a
counter goes back, and how often the run wins.

python -m benchmarks.soak --minutes 30 --kill-every 2
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from ray.tune.utils import flatten_dict

from benchmarks.measure import ROOT, record
from rllib_mfq.experiments.runs import AGENT_STEPS

OPPONENTS = {"random": "random", "pretrained": "pretrained:battle-mfq"}
WINS = "evaluation/env_runners/win_rate/"
RESTARTS = "fault_tolerance/num_remote_worker_restarts"
COUNTERS = {"training_iteration", "time_total_s", RESTARTS}
"""Keys that never go back, beside those that end with `_lifetime`."""

RUNNER, LEARNER = "ray::MFQEnvRunner", "ray::MFQ"
INTERVAL = 10  # iterations between evaluations; in between, results repeat the last one
GROWTH = 1.05  # what a process may hold at the end, of what it held after a third of the time


class Soaked(NamedTuple):
    """What was seen of a run."""

    rows: list[dict[str, Any]]  # its results, nested keys with slashes
    memory: list[dict[str, float]]  # MB of each process after one, two and three thirds
    kills: int


def processes(root: int) -> dict[int, str]:
    """The processes below one, by their numbers: the first word of their command lines."""
    parents, words = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        parents[int(folder.name)] = int(stat[1])
        shown = [part for part in line if part.endswith(".py") or part.startswith("ray::")]
        words[int(folder.name)] = Path((shown or line)[0]).name.partition(".")[0]
    below, new = set(), {root}
    while new:
        below |= new
        new = {child for child, parent in parents.items() if parent in new}
    return {number: words[number] for number in sorted(below & words.keys()) if words[number]}


def resident(root: int) -> dict[str, float]:
    """MB of memory that each process below one holds; those of one name are added up."""
    held: Counter[str] = Counter()
    for number, name in processes(root).items():
        try:
            lines = Path(f"/proc/{number}/status").read_text().splitlines()
        except OSError:
            continue
        sizes = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
        held["the command" if number == root else name] += sum(sizes) / 1024
    return {name: round(size, 1) for name, size in sorted(held.items())}


def results(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run that are complete."""
    lines = [line for file in folder.rglob("result.json") for line in file.open()]
    return [flatten_dict(json.loads(line)) for line in lines if line.endswith("\n")]


def went_back(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The counters that were lower in a row than in the one before, or left out."""
    for before, row in itertools.pairwise(rows):
        for key, value in before.items():
            if key in COUNTERS or key.endswith("_lifetime") or "_lifetime/" in key:
                if "throughput" not in key and row.get(key, -1) < value:
                    yield f"{key} in iteration {row['training_iteration']}"


def soak(seconds: float, kill_every: float, folder: Path) -> Soaked:
    """Trains for a time and kills the env runner again and again; never if `kill_every` is 0."""
    options = {
        "--stop": json.dumps({"time_total_s": seconds + 15}),
        "--checkpoint-freq": "25",
        "--keep-checkpoints-num": "2",
        "--ray-num-cpus": "2",
        "--seed": "0",
        "--storage-path": str(folder),
    }
    words = [word for pair in options.items() for word in pair]
    sets = ["--set", f"evaluation_opponents={json.dumps(OPPONENTS)}"]
    sets += ["--set", f"evaluation_interval={INTERVAL}"]
    rllib = [sys.executable, "-m", "rllib_cli", "train", "file", "tuned_examples/battle_small.yaml"]
    run = subprocess.Popen([*rllib, *words, *sets], cwd=ROOT, start_new_session=True)
    try:
        while not any(folder.rglob("result.json")):
            time.sleep(0.2)
            if run.poll() is not None:
                raise SystemExit("the run ended before its first iteration")
        started, memory, kills = time.monotonic(), [], 0
        while len(memory) < 3:
            time.sleep(1)
            if run.poll() is not None:
                raise SystemExit(f"the run ended early, with exit code {run.returncode}")
            passed = time.monotonic() - started
            if passed >= seconds * (len(memory) + 1) / 3:
                memory.append(resident(run.pid))
            elif kill_every and passed >= kill_every * (kills + 1):
                for number, name in processes(run.pid).items():
                    if name == RUNNER:
                        os.kill(number, signal.SIGKILL)
                        kills += 1
        if run.wait():
            raise SystemExit(f"the run ended with exit code {run.returncode}")
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGTERM)
            run.wait()
    return Soaked(results(folder), memory, kills)


def win_rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The share of matches won against each opponent, in all evaluations of the last third."""
    end = rows[-1]["time_total_s"]
    new = [row for row in rows if row["training_iteration"] % INTERVAL == 0]
    last = [row for row in new if row["time_total_s"] >= end * 2 / 3] or new[-1:]
    return {name: mean(row[WINS + name] for row in last) for name in OPPONENTS}


def figures(minutes: float, runs: Mapping[str, Soaked]) -> dict[str, dict[str, Any]]:
    """What is recorded of both runs."""
    found: dict[str, dict[str, Any]] = {}
    for how, (rows, memory, kills) in runs.items():
        back = list(went_back(rows))
        print(*back[:20], sep="\n")
        found |= {
            f"{how}: env runners killed": {"value": kills, "unit": ""},
            f"{how}: env runners restarted": {
                "value": rows[-1][RESTARTS],
                "unit": "",
                "must": kills,
                "aim": kills,
            },
            f"{how}: counters that went back": {
                "value": len(back),
                "unit": "",
                "must": 0,
                "aim": 0,
            },
            f"{how}: rows sampled": {"value": rows[-1][AGENT_STEPS], "unit": "rows"},
        }
        for name, rate in win_rates(rows).items():
            found[f"{how}: win rate against {name}, last third"] = {"value": rate, "unit": ""}
        for third, held in enumerate(memory, start=1):
            for name, size in held.items():
                what = f"{how}: {name}, resident at minute {minutes * third / 3:g}"
                found[what] = {"value": size, "unit": "MB"}
        for name in ("the command", LEARNER):
            growth = memory[-1][name] / memory[0][name]
            what = f"{how}: {name}, at the end against after a third"
            found[what] = {"value": growth, "unit": "x", "must": GROWTH, "aim": 1.0}
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="of each of the two runs")
    parser.add_argument("--kill-every", type=float, default=2, help="minutes")
    given = parser.parse_args(arguments)
    kill_every = {"disturbed": given.kill_every * 60, "undisturbed": 0}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        begun = {
            how: pool.submit(soak, given.minutes * 60, seconds, Path(folder, how))
            for how, seconds in kill_every.items()
        }
        runs = {how: run.result() for how, run in begun.items()}
    record("soak", figures(given.minutes, runs))


if __name__ == "__main__":
    main()
