"""Old names: the words of RLlib 1.x and 2.x in experiments, and today's, from `old_names.yaml`."""

from pathlib import Path

import yaml

from rllib_cli.options import CHECKPOINTS
from rllib_mfq.algorithm.old_names import OLD_NAMES

_TABLES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))

SPECIAL: set[str] = set(_TABLES["special"])
REPLAY_BUFFERS: dict[str, str] = _TABLES["replay_buffers"]
BUFFERS: dict[str, str] = _TABLES["buffers"]
METRICS: dict[str, str] = _TABLES["metrics"]
WITHOUT_MEANING: dict[str, str] = _TABLES["without_meaning"]
REFUSED: dict[str, str] = _TABLES["refused"]

EXPERIMENT = {"local_dir": "storage_path", "upload_dir": "storage_path"}
EXPERIMENT |= {old: f"checkpoint_config/{new}" for old, new in CHECKPOINTS.items()}
"""Keys of an experiment."""

CONFIG = {old: new for old, new in OLD_NAMES.items() if old not in SPECIAL}
CONFIG["vf_share_layers"] = "model/vf_share_layers"
"""Keys of a config, of all algorithms."""
