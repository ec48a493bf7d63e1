"""The mean of several checkpoints' networks, which can play better than each of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_mfq.algorithm.checkpoint import (
    MODULES,
    NETWORK,
    check_checkpoint,
    find_modules,
    load_modules_like,
)
from rllib_mfq.algorithm.checksums import check_files, write_checksums
from rllib_mfq.algorithm.network_file import write_network
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule


def average_checkpoints(checkpoints: Sequence[str | Path], folder: str | Path) -> None:
    """Writes a copy of the last checkpoint in which each weight is the mean over all of them.

    While a network learns, its policy swings from update to update; the mean over checkpoints of
    one run lies in the middle (Izmailov et al., UAI 2018, "Averaging Weights Leads to Wider
    Optima"). Only what is learned by gradients is averaged: the temperature, the statistics of
    `observation_filter` and all else are the last one's, target network and optimizer included, so
    that the copy plays as any checkpoint and can be trained on.

    Args:
        checkpoints: folders, of MFQ on the new API stack, at least two; oldest first.
        folder: to write, which does not exist yet.

    Raises:
        ValueError: there are fewer than two, one is damaged, its modules are others than the last
            one's, or the folder exists.
    """
    if len(checkpoints) < 2:
        raise ValueError(f"to average takes two checkpoints or more; there are {len(checkpoints)}.")
    folder = Path(folder).expanduser()
    if folder.exists():
        raise ValueError(f"{folder} exists; give the name of a new folder.")
    paths = [Path(check_checkpoint(str(each))) for each in checkpoints]
    for path, given in zip(paths, checkpoints, strict=True):
        if not find_modules(path):
            raise ValueError(f"{given} has no modules of RLlib's new API stack on this machine.")
        check_files(path)
    *others, last = paths
    whole = {name: _whole(last, name, place) for name, place in find_modules(last).items()}
    loaded = [load_modules_like(path, whole, f"'{last}'") for path in others]
    shutil.copytree(last, folder)
    for name, module in whole.items():
        networks = [modules[name].q_net for modules in loaded]
        with torch.no_grad():
            for key, weight in module.q_net.named_parameters():
                same = [weight, *(network.get_parameter(key) for network in networks)]
                weight.copy_(torch.stack(same).mean(dim=0))
        place = folder / MODULES / name
        module.save_to_path(place)
        if (place / NETWORK).is_file():
            write_network(place / NETWORK, module)
    write_checksums(folder)


def _whole(checkpoint: Path, name: str, place: Path) -> MFQTorchRLModule:
    """A module with its target network."""
    module = RLModule.from_checkpoint(place)
    if not isinstance(module, MFQTorchRLModule):
        raise ValueError(f"{checkpoint} has the module {name!r}, which is not MFQ's.")
    module.make_target_networks()
    module.restore_from_path(place)
    return module
