"""The way that weights have come, followed on a sample of rows while training goes on.

Keeping whole copies of the weights would triple their memory. At most `rows` evenly spaced rows of
each matrix stand for the matrix: a sum of products over them, times rows of the matrix per sampled
row, is that of the whole matrix as far as rows are alike, and exactly so when all rows are taken.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from effopd.errors import CheckpointError, NonFiniteError
from effopd.precision import float32_products
from effopd.search.ray import bit_sum, check_fits, wide


@dataclass(frozen=True, kw_only=True)
class PathStatistics:
    """Where the weights are at a look. None where a length is 0 or nothing came before.

    Attributes:
        step_cosine: Of the last stretch of training with the stretch before it.
        direction_cosine: Of the displacement since the base with that at the stretch's start.
        displacement: Frobenius norm of the displacement since the base.
        path_length: Sum of the lengths of all legs, jumps of the search included.
        straightness: `displacement / path_length`, in [0, 1].
        allocation_entropy: `-sum p log p / log M` with p the share of each of the M matrices in the
            squared displacement: 1 is an even spread, 0 is all in one matrix.
    """

    step_cosine: float | None
    direction_cosine: float | None
    displacement: float
    path_length: float
    straightness: float | None
    allocation_entropy: float | None


class SampledPath:
    """Follows live matrices from where they are now, the base.

    A stretch is what training did since the last look, or since the jump that came after it. Jumps
    are part of the path and the displacement, but no stretch: a search moves along the direction by
    construction, so they would tell nothing about it.

    Memory: base, last place and last stretch of the sampled rows in fp32 or wider. The base is not
    part of the state, only its checksum: a run begins with the same weights again.

    Args:
        matrices: Name to live tensor [m, n].
        rows: Most rows sampled of each.
    """

    def __init__(self, matrices: Mapping[str, Tensor], rows: int) -> None:
        self._live = list(matrices.values())
        self._rows = [_spread(each.shape[0], rows).to(each.device) for each in self._live]
        self._sizes = [
            len(r) * each.shape[1] for r, each in zip(self._rows, self._live, strict=True)
        ]
        weights = [each.shape[0] / len(r) for r, each in zip(self._rows, self._live, strict=True)]
        self._base = self._read()
        self._weights = torch.tensor(weights, dtype=torch.float64, device=self._base.device)
        self._last = self._base.clone()
        self._stretch = torch.zeros_like(self._base)
        self._length = 0.0

    @torch.no_grad()
    def look_(self) -> PathStatistics:
        """Ends the stretch and starts the next; a stretch of length 0 is passed over.

        Raises:
            NonFiniteError: A weight is NaN or infinite; nothing was changed.
        """
        now = self._read()
        stretch, update, old = now - self._last, now - self._base, self._last - self._base
        pairs = (
            (stretch, stretch), (stretch, self._stretch), (self._stretch, self._stretch),
            (update, update), (update, old), (old, old),
        )  # fmt: skip
        products = torch.stack([self._products(*pair) for pair in pairs])
        moved, along, before, far, turned, was_far = products.sum(dim=1).tolist()
        if not math.isfinite(moved + far):
            raise NonFiniteError("a weight that the monitor looks at is NaN or infinite")
        self._length += math.sqrt(moved)
        self._last = now
        if moved > 0:
            self._stretch = stretch
        displacement = math.sqrt(far)
        return PathStatistics(
            step_cosine=_ratio(along, math.sqrt(moved) * math.sqrt(before)),
            direction_cosine=_ratio(turned, displacement * math.sqrt(was_far)),
            displacement=displacement,
            path_length=self._length,
            straightness=_ratio(displacement, self._length),
            allocation_entropy=_normalised_entropy(products[3].tolist()),
        )

    @torch.no_grad()
    def jump_(self) -> None:
        """Takes note that something other than training moved the weights."""
        now = self._read()
        leg = now - self._last
        self._length += math.sqrt(self._products(leg, leg).sum().item())
        self._last = now

    def _read(self) -> Tensor:
        """The sampled rows as one vector, in fp32 or wider."""
        parts = [
            each.detach()[rows].to(self._live[0].device, wide(each)).reshape(-1)
            for each, rows in zip(self._live, self._rows, strict=True)
        ]
        return torch.cat(parts)

    @float32_products()
    def _products(self, first: Tensor, second: Tensor) -> Tensor:
        """Inner product of each matrix with its counterpart as float64 [M], rows weighted."""
        pairs = zip(first.split(self._sizes), second.split(self._sizes), strict=True)
        return torch.stack([torch.dot(a, b) for a, b in pairs]).double() * self._weights

    def state(self) -> dict[str, Tensor]:
        """Last place, last stretch, path length, and a checksum of the base; references."""
        return {
            "last": self._last,
            "stretch": self._stretch,
            "length": torch.tensor(self._length, dtype=torch.float64),
            "base": bit_sum(self._base).cpu(),
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`.

        Raises:
            CheckpointError: The run began with other weights than this one.
        """
        own = self.state()
        check_fits(tensors, own)
        if tensors["base"] != own["base"]:
            raise CheckpointError(
                "the monitor measures from the untrained student, and the one loaded now has other "
                "weights than the one the run began with: restore it (student.path), or go on "
                "without the monitor (monitor.every=0)"
            )
        device = self._base.device
        self._last = tensors["last"].to(device, copy=True)
        self._stretch = tensors["stretch"].to(device, copy=True)
        self._length = tensors["length"].item()


def _spread(count: int, most: int) -> Tensor:
    """At most `most` of `count` places, evenly spaced."""
    taken = min(count, most)
    return torch.tensor([(2 * i + 1) * count // (2 * taken) for i in range(taken)])


def _ratio(numerator: float, denominator: float) -> float | None:
    """A quotient that rounding alone takes out of [-1, 1]; None for nothing over nothing."""
    return max(-1.0, min(1.0, numerator / denominator)) if denominator > 0 else None


def _normalised_entropy(amounts: list[float]) -> float | None:
    """Entropy of the shares over its largest value; None for one amount or nothing to share."""
    total = sum(amounts)
    if len(amounts) < 2 or total == 0:
        return None
    shares = [amount / total for amount in amounts if amount > 0]
    entropy = sum(share * math.log(1 / share) for share in shares)
    return entropy / math.log(len(amounts))
