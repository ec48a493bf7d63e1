"""RLlib's old API stack: `MFQTorchPolicy`, its rollout worker, and what the algorithm does there.

`config.OLD_STACK` is the one place from which this folder is used.
"""

import sys
from pathlib import Path
from typing import Any

from ray.rllib.utils.schedules.scheduler import Scheduler

from rllib_mfq.algorithm.old_stack import algorithm, policy
from rllib_mfq.algorithm.old_stack.algorithm import MFQRolloutWorker, adapt
from rllib_mfq.algorithm.old_stack.policy import MFQTorchPolicy, check_feed_forward
from rllib_mfq.algorithm.roster import policy_specs
from rllib_mfq.algorithm.settings import PER_MODULE, SETTINGS
from rllib_mfq.algorithm.validation import (
    NEW_STACK,
    Keys,
    check_overrides,
    check_rllib_keys,
    read_keys,
)

__all__ = ["MFQRolloutWorker", "MFQTorchPolicy", "adapt", "check"]

# Checkpoints of version 0.1 name these modules by the places where they were then.
sys.modules["rllib_mfq.algorithm.torch_policy"] = policy
sys.modules["rllib_mfq.algorithm.rollout_worker"] = algorithm

_DIFFERENT = read_keys(Path(__file__).with_name("rllib_keys.yaml"))
KEYS = Keys(
    NEW_STACK.acts - _DIFFERENT.other_stack.keys() | _DIFFERENT.acts,
    {key: why for key, why in NEW_STACK.refused.items() if key not in _DIFFERENT.acts},
    _DIFFERENT.other_stack,
)

PER_POLICY = [*PER_MODULE, *(name for name, setting in SETTINGS.items() if setting.to_play)]
PER_POLICY = sorted({*PER_POLICY, "model_config"} - {"burn_in_len"})
"""Keys that act in the `config` of a PolicySpec."""


def check(config: Any) -> None:
    """Raises a ValueError if a config has settings that are impossible on this stack."""
    check_rllib_keys(config, KEYS, works_on="new")
    check_feed_forward(config._model_config)
    for name, spec in policy_specs(config).items():
        # RLlib writes whole configs, in checkpoints.
        if isinstance(spec.config, dict) and "__policy_id" not in spec.config:
            check_overrides(config, f"the config of policy {name!r}", spec.config, PER_POLICY)
            check_feed_forward(spec.config.get("model_config", {}))
    # On the new stack RLlib checks it.
    Scheduler.validate(
        fixed_value_or_schedule=config.lr, setting_name="lr", description="learning rate"
    )
    if config.num_gpus > 1:
        raise ValueError(
            f"num_gpus is {config.num_gpus}; a policy learns on at most 1. The new API stack "
            "learns on more: set num_learners there."
        )
