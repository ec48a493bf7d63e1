"""A learner's memories: making them, and the device that has room for them."""

from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray._private.utils import estimate_available_memory

from rllib_mfq.algorithm.networks import lstm_cells
from rllib_mfq.algorithm.roster import is_trained, modules_of_groups, spaces_of_modules
from rllib_mfq.algorithm.settings import to_play
from rllib_mfq.replay.memories import Memories
from rllib_mfq.replay.memory import ReplayMemory, bytes_per_row
from rllib_mfq.replay.priorities import Priorities

FREE = 0.9  # how much of the memory that is free now may be used for rows


def trained_modules(config: Any) -> list[str]:
    """The modules that learn, sorted."""
    modules = sorted(set(modules_of_groups(config).values()))
    return [module_id for module_id in modules if is_trained(config, module_id)]


def make_memories(
    config: Any,
    batch_device: Any = "cpu",
    learner: int = 0,
    modules: Mapping[str, Any] | None = None,
) -> Memories:
    """Makes the memories of one learner: its share of `replay_capacity` for each module.

    Args:
        config: an `MFQConfig` that knows its groups.
        batch_device: where the learner learns.
        learner: its number; each draws other rows.
        modules: of the learner, `MFQTorchRLModule`s; those with a memory learn from sequences.
    """
    memories = Memories()
    device = replay_device(config, torch.device(batch_device))
    every = sorted(set(modules_of_groups(config).values()))
    for module_id in trained_modules(config):
        seed = None if config.seed is None else config.seed + every.index(module_id)
        capacity, priorities = share(config, config.replay_capacity), None
        if config.prioritized_replay:
            how = config.prioritized_replay_alpha, config.prioritized_replay_eps
            priorities = Priorities(capacity, *how)
        module = None if modules is None else modules[module_id].unwrapped()
        memories[module_id] = ReplayMemory(
            capacity,
            config.replay_obs_dtype,
            [seed, learner] if learner and seed is not None else seed,
            config.n_step,
            device,
            batch_device,
            priorities,
            0 if module is None else module.max_seq_len,
            0 if module is None else module.burn_in_len,
        )
    return memories


def share(config: Any, rows: int) -> int:
    """One learner's share of the rows of all."""
    return rows // max(1, int(config.num_learners))


def replay_device(config: Any, batch_device: torch.device) -> torch.device:
    """Where a learner that learns on `batch_device` keeps its rows, as `replay_device` says."""
    host = torch.device("cpu")
    if batch_device.type != "cuda" or config.replay_device == "cpu":
        return host
    if config.replay_device == "auto" and _largest_capacity(config, batch_device) is not None:
        return host
    return batch_device


def check_fits(config: Any, device: torch.device, learners: int = 1) -> None:
    """Raises a ValueError if the memories of so many learners are too large for a device."""
    largest = _largest_capacity(config, device, learners)
    if largest is not None:
        where = "this node" if device.type == "cpu" else "the learner's GPU"
        raise ValueError(
            f"replay_capacity is {config.replay_capacity:,}, more rows than fit into the memory "
            f"that {where} has free; at most {largest:,} fit (replay_obs_dtype makes rows smaller)."
        )


def check_fits_this_node(config: Any) -> None:
    """Raises a ValueError if the memories that will be on this node are too large for it.

    Learners on other nodes check for themselves when they are built.
    """
    alone = not ray.is_initialized() or sum(node["Alive"] for node in ray.nodes()) == 1
    on_host = config.replay_device == "cpu" or not config.num_gpus_per_learner
    if on_host and (alone or not config.num_learners):
        check_fits(config, torch.device("cpu"), max(1, config.num_learners))


def _largest_capacity(config: Any, device: torch.device, learners: int = 1) -> int | None:
    """The largest `replay_capacity` that fits where so many learners are; None if the config's."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
    else:
        free = estimate_available_memory()
    modules = trained_modules(config)
    spaces: dict[str, Any] = spaces_of_modules(config)
    width = to_play(vars(config))["mean_action_dim"]
    row, cells = 0, lstm_cells(config._model_config)
    for module_id in modules:
        obs, actions = spaces[module_id]
        kind, n = config.replay_obs_dtype or obs.dtype, int(actions.n)
        row += bytes_per_row(obs.shape, kind, width or n, n, cells)  # as if there were masks
    if row * share(config, config.replay_capacity) * learners <= FREE * free:
        return None
    return int(FREE * free / (row * learners)) * max(1, config.num_learners)
