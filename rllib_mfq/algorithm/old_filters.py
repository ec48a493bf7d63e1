"""Networks of version 0.1, whose default filters did not see the edge of some small images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn


def filled(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by name, with kernels of the default filters of version 0.1 filled up with zeros.

    Those had 3 cells everywhere, and did not see the last rows and columns of some small images.
    With zeros for these cells a network is the same function of its inputs.

    Args:
        state: of a network, or of the moments of its optimizer.
        like: tensors of the same names, whose shapes are those of now.
    """
    found = dict(state)
    for name in state.keys() & like.keys():
        array, wanted = np.asarray(state[name]), np.shape(like[name])
        if array.ndim == len(wanted) == 4 and array.shape[2:] == (3, 3):
            more = np.subtract(wanted, array.shape)
            if more.any() and not more[:2].any() and {*more[2:]} <= {0, 1}:
                found[name] = np.pad(array, [(0, n) for n in more])
    return found


def filled_moments(moments: Mapping[int, Any], network: nn.Module) -> dict[int, Any]:
    """The state of a network's optimizer, by parameter, with kernels as `filled` makes them."""
    like = dict(enumerate(network.parameters()))
    return {i: filled(each, dict.fromkeys(each, like[i])) for i, each in moments.items()}
