"""Running mean and standard deviation against numpy's, whatever the pieces they come in."""

import numpy as np
import pytest
import torch

from rllib_mfq.mean_field.network import soft_update
from rllib_mfq.mean_field.observations import Observations


@pytest.mark.parametrize("sizes", [[100], [1, 99], [1] * 20, [7, 0, 40, 1]])
@pytest.mark.parametrize("shape", [(3,), (4, 4, 2)])
def test_mean_and_deviation_are_those_of_all_rows_in_whatever_pieces_they_come(sizes, shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(50, 3, (sum(sizes), *shape)).astype(np.float32)
    seen = Observations(shape, normalise=True)
    for piece in np.split(rows, np.cumsum(sizes)[:-1]):
        seen.update(torch.from_numpy(piece))
    expected = (rows - rows.mean(0)) / rows.std(0, ddof=1)
    np.testing.assert_allclose(seen(torch.from_numpy(rows)), expected.clip(-10, 10), atol=1e-3)
    assert seen.count == len(rows)


def test_before_any_row_nothing_changes_and_what_never_varies_becomes_zero():
    seen, rows = Observations((2,), normalise=True), torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    torch.testing.assert_close(seen(rows), rows)
    seen.update(rows)
    torch.testing.assert_close(seen(rows)[:, 1], torch.zeros(2))
    assert seen(torch.tensor([[1e9, 5.0]]))[0, 0] == 10


def test_bytes_are_scaled_before_they_are_normalised():
    rows = torch.randint(256, (50, 3), dtype=torch.uint8)
    of_bytes = Observations((3,), 1 / 255, normalise=True)
    of_floats = Observations((3,), normalise=True)
    of_bytes.update(rows)
    of_floats.update(rows / 255)
    torch.testing.assert_close(of_bytes(rows), of_floats(rows / 255))


def test_a_target_network_takes_the_statistics_over():
    online, target = (Observations((3,), normalise=True) for _ in range(2))
    online.update(torch.randn(10, 3))
    soft_update(target, online, 0.01)
    for name, value in online.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value)


def test_without_statistics_there_is_no_state():
    assert not Observations((3,), 0.5).state_dict()
