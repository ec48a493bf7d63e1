"""Battle: mean field and independent Q-learning by self-play, then against each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rllib_cli.reproduce.runs import Run, train_variants, write_rows
from rllib_mfq.algorithm.opponents import RANDOM, find_modules, saved_settings
from rllib_mfq.algorithm.pretrained import save_pretrained
from rllib_mfq.arena.output import replacing
from rllib_mfq.arena.provenance import environment
from rllib_mfq.arena.tournament import play_tournament, win_rates
from rllib_mfq.population.population import Array

EXAMPLE = "battle_crossplay"
METHODS: dict[str, dict[str, Any]] = {
    "mfq": {},
    "iql": {"neighborhood": "none"},
}
"""What is compared: entries of the config that differ from the example's."""

VARIATIONS: dict[str, dict[str, Any]] = {
    "own group's mean only": {"neighborhood": "group"},
    "those within 6 cells": {"neighborhood": {"radius": 6}},
    "paper's timing": {"mean_action_input": "current"},
    "double Q target": {"target": "double_q"},
    "dueling": {"dueling": True},
    "temperature to 0.05": {"temperature": [[0, 0.5], [4_000_000, 0.05]]},
    "3-step returns": {"n_step": 3},
}
"""What else was tried, as departures from `mfq`."""

CROSS_PLAY = "battle_crossplay.json"
SEEDS_OF_VARIATIONS = 2


def reproduce(
    out: Path,
    seeds: int = 5,
    matches: int = 50,
    rows: int | None = None,
    variations: bool = False,
    pretrained: Path | None = None,
    processes: int = 2,
    on_matches: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Trains both methods, plays every agent against every other and against random play.

    Args:
        out: folder of the results; the runs go into `runs` there.
        seeds: of each method.
        matches: of every pair, half on each side.
        rows: to train each seed on; the example's number by default.
        variations: train `VARIATIONS`, too, and play them against independent Q-learning.
        pretrained: folder to write the best rated agent of each method to.
        processes: how many train or play at a time.
        on_matches: see `play_tournament`.

    Returns:
        A row per seed, as they are written to `battle.csv`.
    """
    stop = None if rows is None else {"agent_steps_sampled_lifetime": float(rows)}
    variants = {
        f"{method}-{seed}": {**changes, "seed": seed}
        for method, changes in METHODS.items()
        for seed in range(seeds)
    }
    tried = {
        f"{name}-{seed}": {**changes, "seed": seed}
        for name, changes in (VARIATIONS if variations else {}).items()
        for seed in range(SEEDS_OF_VARIATIONS)
    }
    runs = train_variants(EXAMPLE, variants | tried, out / "runs" / "battle", stop, processes)
    agents = {name: str(runs[name].checkpoint) for name in variants} | {RANDOM: RANDOM}
    played = play_tournament(agents, matches=matches, processes=processes, on_matches=on_matches)
    content = played.content() | {"command": "rllib reproduce battle"}
    _write_json(out / CROSS_PLAY, content)
    found = _rows(content, list(variants), list(variants), runs)
    write_rows(out / "battle.csv", found)
    if tried:
        _play_variations(out, tried, variants, runs, matches, processes, on_matches)
    if pretrained is not None:
        for method in METHODS:
            best = max(_of(method, variants), key=lambda name: played.ratings[name])
            _save(runs[best], pretrained / f"battle-{method}.safetensors", best)
    return found


def read(out: Path) -> dict[str, Any]:
    """The tournament that `reproduce` left in a folder."""
    content: dict[str, Any] = json.loads((out / CROSS_PLAY).read_text(encoding="utf-8"))
    return content


def cross_play(content: Mapping[str, Any], rows: str, columns: str) -> Array:
    """`[R, C]`: win rates of one method's seeds against another's, of a tournament's JSON."""
    names = content["agents"]
    rates = win_rates(names, content["pairs"])
    places = [[names.index(n) for n in sorted(_of(m, names))] for m in (rows, columns)]
    return rates[np.ix_(*places)]


def over_seeds(rates: Array) -> tuple[float, float]:
    """Mean of a cross-play table and half the width of its 95 % interval over seeds.

    Both sides of the table are samples of seeds: the variances of its row means and of its
    column means, each over their number, add up (matches within a cell tell nothing about
    other seeds), with as many degrees of freedom as the shorter side has.

    Args:
        rates: `[R, C]`, R and C at least 2; one method's seeds against another's.
    """
    variance = sum(
        float(rates.mean(axis=axis).var(ddof=1)) / rates.shape[1 - axis] for axis in (0, 1)
    )
    quantile = float(stats.t.ppf(0.975, min(rates.shape) - 1))
    return float(rates.mean()), quantile * variance**0.5


def _of(method: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.rpartition("-")[0] == method]


def _rows(
    content: Mapping[str, Any],
    names: Sequence[str],
    trained: Sequence[str],
    runs: Mapping[str, Run],
) -> list[dict[str, Any]]:
    """What each agent reached; against independent Q-learning, over the seeds that are not it."""
    agents = content["agents"]
    rates = win_rates(agents, content["pairs"])
    rivals = [agents.index(name) for name in _of("iql", trained)]
    rows = []
    for name in names:
        method, _, seed = name.rpartition("-")
        mine, result = rates[agents.index(name)], runs[name].result
        rows.append(
            {
                "method": method,
                "seed": int(seed),
                "win_rate_random": round(float(mine[agents.index(RANDOM)]), 4),
                "win_rate_iql": round(float(np.nanmean(mine[rivals])), 4),
                "agent_steps": result["agent_steps_sampled_lifetime"],
                "seconds": round(result["time_total_s"]),
            }
        )
    return rows


def _play_variations(
    out: Path,
    tried: Mapping[str, Any],
    variants: Mapping[str, Any],
    runs: Mapping[str, Run],
    matches: int,
    processes: int,
    on_matches: Callable[[int, int], None],
) -> None:
    rivals = _of("iql", variants)
    agents = {name: str(runs[name].checkpoint) for name in [*rivals, *tried]} | {RANDOM: RANDOM}
    names = list(agents)
    pairs = [
        (names.index(name), names.index(rival)) for name in tried for rival in [RANDOM, *rivals]
    ]
    played = play_tournament(
        agents, matches=matches, processes=processes, pairs=pairs, on_matches=on_matches
    )
    write_rows(out / "battle_variations.csv", _rows(played.content(), list(tried), rivals, runs))


def _save(run: Run, file: Path, name: str) -> None:
    """Writes a run's network as an agent that comes with the package."""
    (module,) = find_modules(run.checkpoint).values()
    origin = {key: value for key, value in environment().items() if key in ("date", "commit")}
    origin |= {
        "example": EXAMPLE,
        "run": name,
        "agent_steps": run.result["agent_steps_sampled_lifetime"],
    }
    with replacing(file) as part:
        save_pretrained(module, part, saved_settings(run.checkpoint), origin)


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    with replacing(file) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
