"""Old names: keys of config dicts of earlier RLlib releases, and today's."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ray._common.deprecation import DEPRECATED_VALUE

from rllib_mfq.mean_field.legal import did_you_mean

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

OLD_NAMES: dict[str, str] = _TABLES["renamed"]
ATTRIBUTES: dict[str, str] = _TABLES["attributes"]
INSTEAD: dict[str, str] = _TABLES["instead"]

_PUBLIC = {attribute: name for name, attribute in ATTRIBUTES.items() if attribute == f"_{name}"}


def public(config_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The same config dict by the names that RLlib's methods take."""
    return {_PUBLIC.get(key, key): value for key, value in config_dict.items()}


def instead_of(word: str, legal: Iterable[str]) -> str:
    """What to say of a key that MFQ has not: what replaces it, or a similar one that is legal."""
    return f"; {INSTEAD[word]}" if word in INSTEAD else did_you_mean(word, legal)


def is_whole(config_dict: Mapping[str, Any], config: Any) -> bool:
    """Whether a config dict sets all that `config` has, as only `to_dict` does."""
    needed = vars(config).keys() - _deprecated(config) - {"algo_class", "_is_frozen"}
    return needed <= {_attribute(str(name)) for name, _ in config_dict.items()}


def attributes(config_dict: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The attributes of `config` that a config dict sets; old names are understood.

    Of a whole config, such as `to_dict` gives, a later name changes an earlier one that means the
    same: so `{**config.to_dict(), "num_workers": 2}` and Tune's PBT, which adds keys, set it.

    Raises a ValueError if a key does not exist, with the nearest one that does; or, unless the
    config is whole, if it is given twice with different values, under its old and its new name.
    """
    known, deprecated = vars(config), _deprecated(config)
    whole = is_whole(config_dict, config)
    legal = ({"multiagent", *known} - deprecated) | {*OLD_NAMES, *ATTRIBUTES}
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in config_dict.items():
        text = str(name)
        tunes = text.startswith("__") and text.endswith("__")
        states = text == "class" and value is type(config)  # of a config's state
        unset = name in deprecated and value == DEPRECATED_VALUE  # `to_dict` writes it
        if tunes or states or unset:
            continue
        if name not in legal:
            names = [key for key in legal if not key.startswith("_")]
            raise ValueError(f"MFQ has no config key {name!r}{instead_of(text, names)}.")
        key = _attribute(text)
        if not whole and key in found and found[key] != value:
            raise ValueError(
                f"{given[key]} is {found[key]!r} and {text} is {value!r}, but they mean the "
                "same; give one of them."
            )
        found[key], given[key] = value, text
    return found


def _attribute(name: str) -> str:
    key = OLD_NAMES.get(name, name)
    return ATTRIBUTES.get(key, key)


def _deprecated(config: Any) -> set[str]:
    unset = {k for k, v in vars(config).items() if type(v) is int and v == DEPRECATED_VALUE}
    return unset - {"simple_optimizer"}  # RLlib itself sets it
