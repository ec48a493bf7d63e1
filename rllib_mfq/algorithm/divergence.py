"""Divergence: a network whose values are no numbers any more stops the run, before it is saved."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

REMEDY = "lower lr or grad_clip"


class Diverged(RuntimeError):
    """A network has NaN or infinite values. It cannot learn or play any more."""


def check_network(module_id: str, network: nn.Module, updates: int) -> None:
    """Raises Diverged if a network has weights that are not finite, after so many updates."""
    norm = nn.utils.get_total_norm(list(network.parameters()))
    if not norm.isfinite():
        raise diverged(module_id, updates, float(norm), "norm of its weights")


def check_weights(weights: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises Diverged if weights, arrays by module and name, are not finite: nobody saves them."""
    for module_id, arrays in weights.items():
        bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if bad:
            raise Diverged(
                f"the network of {module_id!r} has diverged: {bad[0]} is not finite; no checkpoint "
                f"is written. Go on from the last one, and {REMEDY}."
            )


def check_values(q: Tensor, obs: Any) -> None:
    """Raises Diverged unless action values are finite.

    Args:
        q: `[n, A]`.
        obs: `[n, *obs]`, what they are the values of.
    """
    if not q.sum().isfinite():
        seen = np.asarray(obs, float)
        raise Diverged(
            f"Q is not finite on observations from {seen.min():g} to {seen.max():g}: scale what "
            f"the environment gives, or, if the network has diverged, {REMEDY}."
        )


def diverged(module_id: str, update: int, value: float, what: str = "loss") -> Diverged:
    """The error of a network that has diverged."""
    where = f"the network of {module_id!r} has diverged at update {update}"
    return Diverged(f"{where} ({what} {value:g}); {REMEDY}.")
