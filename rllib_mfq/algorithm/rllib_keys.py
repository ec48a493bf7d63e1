"""Every key of RLlib's AlgorithmConfig: whether it acts on MFQ, or what to use instead."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


class Keys(NamedTuple):
    """The keys that act on one API stack, and what to use instead of the others."""

    acts: frozenset[str]
    refused: dict[str, str]  # act on neither stack
    other_stack: dict[str, str]  # act on the other stack only


def read_keys(file: Path) -> Keys:
    """Reads a table: lists of keys that act, and keys by what to use instead."""
    table = yaml.safe_load(file.read_text(encoding="utf-8"))
    instead = [
        {key: text for text, keys in table.get(part, {}).items() for key in keys}
        for part in ("refused", "other_stack")
    ]
    return Keys(frozenset(key for keys in table["acts"] for key in keys), *instead)


NEW_STACK = read_keys(Path(__file__).with_suffix(".yaml"))


def check_keys(config: Any, keys: Keys, works_on: str) -> None:
    """Raises a ValueError if a key of RLlib's is set that does not act on MFQ.

    Args:
        config: an `MFQConfig`.
        keys: of the config's API stack.
        works_on: name of the other stack.
    """
    default = AlgorithmConfig()
    for key, instead in {**keys.refused, **keys.other_stack}.items():
        value = getattr(config, key)
        if value == getattr(default, key) or (key == "batch_mode" and config.in_evaluation):
            continue  # in evaluation RLlib sets the batch mode
        if key in keys.refused:
            raise ValueError(f"{key.strip('_')} has no effect on MFQ; {instead}.")
        raise ValueError(
            f"{key.lstrip('_')} is {value!r}, which works on the {works_on} API stack only; on "
            f"this one, {instead}."
        )
