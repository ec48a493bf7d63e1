"""Battle: mean field and independent Q-learning by self-play, then against each other."""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rllib_mfq.algorithm.checkpoint import find_modules, saved_environment
from rllib_mfq.algorithm.opponents import RANDOM
from rllib_mfq.algorithm.pretrained import save_pretrained
from rllib_mfq.arena.output import replacing, write_json
from rllib_mfq.arena.provenance import provenance
from rllib_mfq.arena.statistics import win_rates
from rllib_mfq.arena.tournament import play_tournament
from rllib_mfq.experiments.runs import (
    AGENT_STEPS,
    Run,
    Train,
    check_alike,
    variants_of,
    write_rows,
)
from rllib_mfq.population.battle_scripts import SCRIPTS
from rllib_mfq.population.population import Array

EXAMPLE = "battle_crossplay"
METHODS: dict[str, dict[str, Any]] = {"mfq": {}, "iql": {"neighborhood": "none"}}
"""What is compared: entries of the config that differ from the example's."""

WIDE = [[32, 3, 2, "valid"], [64, 4, 2, "valid"]]  # the example's
SOME_SCRIPTS = {"hold": 0.06, "still": 0.04, "rush": 0.06, "flee": 0.04}

VARIATIONS: dict[str, dict[str, Any]] = {
    "own group's mean only": {"neighborhood": "group"},
    "those within 6 cells": {"neighborhood": {"radius": 6}},
    "paper's timing": {"mean_action_input": "current"},
    "double Q target": {"target": "double_q"},
    "dueling": {"dueling": True},
    "temperature to 0.05": {"temperature": [[0, 0.5], [4_000_000, 0.05]]},
    "3-step returns": {"n_step": 3},
    "a row trained once": {"training_intensity": 1.0},
    "priorities": {"prioritized_replay": True},
    "memory of 300,000 rows": {"replay_capacity": 300_000},
    "LSTM": {
        "burn_in_len": 4,
        "model_config": {
            "conv_filters": WIDE,
            "use_lstm": True,
            "lstm_cell_size": 64,
            "max_seq_len": 12,
        },
    },
    "default network, half as wide": {"model_config": {}},
    "discount 0.99": {"gamma": 0.99},
    "matches of 200 steps": {"env_config": {"map_size": 40, "max_cycles": 200}},
    "matches of 1,000 steps": {"env_config": {"map_size": 40, "max_cycles": 1_000}},
    "starts and sizes drawn": {"env": "rllib_mfq.envs.varied_battle.VariedBattle"},
    "tracked opponent": {"self_play": {"opponent": "tracked"}},
    "pool of opponents": {"self_play": {"opponent": "pool"}},
    "a fifth against scripts": {"self_play": {"opponent": "latest", "others": SOME_SCRIPTS}},
    "pool, half latest, a fifth scripts": {
        "self_play": {"opponent": "pool", "others": {"latest": 0.5, **SOME_SCRIPTS}}
    },
}
"""What a sweep tries: entries of the config that differ from those of `mfq`."""

CROSS_PLAY = "battle_crossplay.json"
VARIED = "battle_variations.csv"


def reproduce(
    train: Train,
    out: Path,
    seeds: int = 10,
    matches: int = 10,
    random_steps: int = 3,
    rows: int | None = None,
    pretrained: Path | None = None,
    processes: int = 2,
    on_matches: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Trains both methods, plays every agent against every other and against random play.

    Every match begins with `random_steps` of both sides, see `play_tournament`. The best rated
    agent of each method is written into the folder `pretrained`, if there is one.
    """
    variants = variants_of(METHODS, seeds)
    runs = _train(train, variants, out, rows, processes)
    played = play_tournament(
        _specs(runs),
        matches=matches,
        random_steps=random_steps,
        processes=processes,
        on_matches=on_matches,
    )
    content = played.content() | {"command": "rllib reproduce battle"}
    write_json(out / CROSS_PLAY, content)
    found = _rows(content, variants, runs, _opponents(variants))
    write_rows(out / "battle.csv", found)
    if pretrained is not None:
        for method in METHODS:
            best = max(_of(method, variants), key=lambda name: played.ratings[name])
            _save(runs[best], pretrained / f"battle-{method}.safetensors", best)
    return found


def sweep(
    train: Train,
    out: Path,
    seeds: int = 3,
    matches: int = 10,
    random_steps: int = 3,
    rows: int | None = None,
    changes: Sequence[str] = (),
    processes: int = 2,
    on_matches: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Trains `VARIATIONS`, and plays each against both `METHODS`, the scripts and random play.

    The runs of `METHODS` are those of `reproduce`, where there are such; `changes` names some of
    the variations, all by default. Figures go into `battle_variations.csv`, beside those that it
    has of other changes. Raises a ValueError, before anything is trained, if they are of other
    numbers of rows, matches or random steps.
    """
    asked = {"rows": rows or "as the example", "matches": matches, "random_steps": random_steps}
    check_alike(out / VARIED, **asked)
    tried = variants_of({name: VARIATIONS[name] for name in changes or VARIATIONS}, seeds)
    variants = variants_of(METHODS, seeds)
    runs = _train(train, variants | tried, out, rows, processes)
    opponents = _opponents(variants) | {name: [name] for name in SCRIPTS}
    agents = _specs(runs) | {name: name for name in SCRIPTS}
    places, mine = list(agents), [*_of("mfq", variants), *tried]
    couples = itertools.product(mine, itertools.chain(*opponents.values()))
    # Seeds of `mfq` meet each other, too, once.
    met = {frozenset(couple): couple for couple in couples if couple[0] != couple[1]}
    played = play_tournament(
        agents,
        matches=matches,
        random_steps=random_steps,
        processes=processes,
        pairs=[(places.index(name), places.index(other)) for name, other in met.values()],
        on_matches=on_matches,
    )
    found = _rows(played.content(), mine, runs, opponents)
    found = [row | asked for row in found]
    fresh = {row["method"] for row in found}
    write_rows(out / VARIED, found, keep=lambda row: row["method"] not in fresh)
    return found


def _opponents(variants: Iterable[str]) -> dict[str, list[str]]:
    """The agents that everybody is measured against, by the name of the figure."""
    return {"random": [RANDOM]} | {method: _of(method, variants) for method in METHODS}


def _train(
    train: Train, variants: Mapping[str, Any], out: Path, rows: int | None, processes: int
) -> dict[str, Run]:
    stop = None if rows is None else {AGENT_STEPS: float(rows)}
    return train(EXAMPLE, variants, out / "runs" / "battle", stop, processes)


def _specs(runs: Mapping[str, Run]) -> dict[str, str]:
    return {name: str(run.checkpoint) for name, run in runs.items()} | {RANDOM: RANDOM}


def read(out: Path) -> dict[str, Any]:
    """The tournament that `reproduce` left in a folder."""
    return dict(json.loads((out / CROSS_PLAY).read_text(encoding="utf-8")))


def cross_play(content: Mapping[str, Any], rows: str, columns: str) -> Array:
    """`[R, C]`: win rates of the seeds of method `rows` against those of method `columns`."""
    names = content["agents"]
    rates = win_rates(names, content["pairs"])
    places = ([names.index(name) for name in sorted(_of(m, names))] for m in (rows, columns))
    return rates[np.ix_(*places)]


def _of(method: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.rpartition("-")[0] == method]


def _rows(
    content: Mapping[str, Any],
    names: Iterable[str],
    runs: Mapping[str, Run],
    opponents: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    """What each agent reached; no seed counts against itself."""
    agents = content["agents"]
    rates = dict(zip(agents, win_rates(agents, content["pairs"]), strict=True))
    return [
        {
            "method": name.rpartition("-")[0],
            "seed": int(name.rpartition("-")[2]),
            **{
                f"win_rate_{against}": round(
                    float(np.nanmean(rates[name][[agents.index(other) for other in others]])), 4
                )
                for against, others in opponents.items()
            },
            **runs[name].cost(),
        }
        for name in names
    ]


def _save(run: Run, file: Path, name: str) -> None:
    """Writes a run's network as an agent that comes with the package."""
    (module,) = find_modules(run.checkpoint).values()
    origin = {key: provenance()[key] for key in ("date", "commit")}
    origin |= {"example": EXAMPLE, "run": name, "agent_steps": run.result[AGENT_STEPS]}
    with replacing(file) as part:
        save_pretrained(module, part, saved_environment(run.checkpoint), origin)
