"""What a network makes of observations before it reads them: floats of a suitable size."""

import torch
from torch import Tensor, nn

CLIP = 10.0  # standard deviations, as in RLlib's filter


class Observations(nn.Module):
    """Turns observations of any number type into float32.

    With `normalise` the network keeps the running mean and standard deviation of each number of an
    observation, so that they go wherever its weights go, and returns (obs - mean) / std within
    -10 and 10. They are of the rows that `update` has been given, all alike (Chan, Golub and
    LeVeque, 1979), and change in no other way.

    Args:
        shape: of one observation.
        scale: what observations are multiplied by, such as 1 / 255 for images; None leaves them
            as they are.
        normalise: whether to keep a mean and a standard deviation.
    """

    def __init__(
        self, shape: tuple[int, ...], scale: float | None = None, normalise: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.normalises = scale, normalise
        self.count: Tensor
        self.mean: Tensor
        self.squares: Tensor
        self.std: Tensor
        kept = [torch.zeros((), dtype=torch.int64), *torch.zeros(2, *shape), torch.ones(shape)]
        for name, start in zip(("count", "mean", "squares", "std"), kept, strict=True):
            self.register_buffer(name, start if normalise else None)

    def forward(self, obs: Tensor) -> Tensor:
        """`[B, *shape]` float32."""
        seen = self._scaled(obs)
        if not self.normalises:
            return seen
        return (seen - self.mean).div_(self.std).clamp_(-CLIP, CLIP)

    @property
    def as_they_are(self) -> bool:
        """Whether nothing changes but the number type."""
        return self.scale is None and not self.normalises

    @torch.no_grad()
    def update(self, obs: Tensor) -> None:
        """Takes rows `[n, *shape]` into the mean and the standard deviation.

        Where several processes learn together, the rows of all; each of them must call.
        """
        if not self.normalises:
            return
        rows = self._scaled(obs.to(self.mean.device))
        n, mean = torch.full_like(self.mean, len(rows)), rows.sum(0) / max(1, len(rows))
        parts = [torch.stack([n, mean, (rows - mean).square().sum(0)])]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            mine, size = parts[0], torch.distributed.get_world_size()
            parts = [torch.empty_like(mine) for _ in range(size)]
            torch.distributed.all_gather(parts, mine)
        for n, mean, squares in parts:
            share = n / (self.count + n).clamp(min=1)
            apart = mean - self.mean
            self.squares += squares + apart.square() * self.count * share
            self.mean += apart * share
            self.count += n.max().long()
        std = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))  # what never varied is 0 without it

    def _scaled(self, obs: Tensor) -> Tensor:
        if self.scale is None:
            return obs.float()
        # Bytes become floats and are scaled in a single pass.
        return (obs if obs.dtype == torch.uint8 else obs.float()) * self.scale
