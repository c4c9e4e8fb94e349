"""A learning rate that follows the slope of the loss at both ends of each update.

Training computes a gradient at the tip of every update anyway: that of the next one, on other
answers. Its slope along the update tells, for no pass at all, whether the update ended short of the
minimum along its own direction or beyond it.

Sources: hypergradient descent, arXiv 1703.04782, which has the slope at the tip alone and so needs
a rate of its own; the parabola through two slopes is the secant step of a line search.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from effopd.errors import ConfigError, NonFiniteError

_FACTOR, *_REST = ("slope_factor", "slope_rate", "slope_last", "slope_start", "slope_tip")
_CHUNK_CPU, _CHUNK = 1 << 17, 1 << 24
"""Numbers read at a time: what fits a cache, or what keeps a GPU busy."""


@dataclass(frozen=True, kw_only=True)
class SlopeSettings:
    """How a rate follows the slopes; the defaults are those that were measured (docs/search.md).

    Attributes:
        memory: Share of the running means of the slopes that stays at each update, in [0, 1).
        power: The rate is multiplied by a power of the estimate, in (0, 1].
        least: Smallest estimate that is believed, in (0, 1]: of an update that went too far.
        most: Largest one, at least 1; also taken where no curvature is seen.
    """

    memory: float = 0.5
    power: float = 0.5
    least: float = 0.5
    most: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise ConfigError(f"slope.memory must be in [0, 1), got {self.memory}")
        if not 0 < self.power <= 1:
            raise ConfigError(f"slope.power must be in (0, 1], got {self.power}")
        if not 0 < self.least <= 1 <= self.most < math.inf:
            raise ConfigError(
                f"slope needs 0 < least <= 1 <= most, got {self.least} and {self.most}"
            )


class SlopeRate:
    """Multiplies the learning rate of AdamW by what the slopes say; for any training loop.

    ```python
    rate = SlopeRate(optimizer)
    for batch in batches:  # best: several small updates of each batch of answers
        loss(batch).backward()
        rate.before_step_()
        optimizer.step()
        rate.after_step_()
        optimizer.zero_grad()
    ```

    With `a` the slope of an update at its start (its own gradient) and `b` that at its tip (the
    next gradient), both times the update's rate, and A, B their running means, the minimum of the
    parabola along an update is at `s = A / (A - B)` of its length. The rate becomes
    `rate * clip(s, least, most) ** power`.

    What it remembers is five numbers in the optimizer's first group, so that whoever saves and
    restores the optimizer has them.

    Args:
        optimizer: `torch.optim.AdamW` or Adam; its rates are what a schedule wants, before the
            factor.
        settings: How fast to follow.

    Raises:
        ConfigError: An optimizer of another kind, or a variant whose step is another.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, settings: SlopeSettings | None = None
    ) -> None:
        # The optimizers of others that keep Adam's names may well take other steps.
        if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
            raise ConfigError(
                f"the slope rate knows the steps of AdamW, got {type(optimizer).__name__}: use "
                "optimizer.type = 'adamw', or leave optimizer.slope out"
            )
        if any(group["amsgrad"] or group["maximize"] for group in optimizer.param_groups):
            raise ConfigError("the slope rate knows AdamW without amsgrad and maximize")
        self._optimizer, self.settings = optimizer, settings or SlopeSettings()
        self._scheduled: list[float] = []

    @property
    def factor(self) -> float:
        """What the scheduled rate is multiplied by."""
        return float(self._optimizer.param_groups[0].get(_FACTOR, 1.0))

    def is_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it sets the rates of this very optimizer."""
        return self._optimizer is optimizer

    @torch.no_grad()
    def before_step_(self, clipped: float = 1.0) -> float:
        """Reads the slopes off the gradients and sets the rates of the coming step.

        Args:
            clipped: What the gradients have been multiplied by since the backward pass, in (0, 1].

        Returns:
            The rate of the first group.

        Raises:
            NonFiniteError: A slope is not finite; nothing has changed.
        """
        group, own = self._optimizer.param_groups[0], self.settings
        tip, start = (slope / clipped for slope in slopes(self._optimizer))
        if not (math.isfinite(tip) and math.isfinite(start)):
            raise NonFiniteError(f"slopes {tip} and {start} must be finite")
        factor = self.factor
        last_rate, last_start, before, after = (group.get(name, 0.0) for name in _REST)
        if last_rate:  # the gradient at hand was taken at the tip of the last update
            before = own.memory * before + (1 - own.memory) * last_rate * last_start
            after = own.memory * after + (1 - own.memory) * last_rate * tip
            factor *= min(max(minimum(before, after), own.least), own.most) ** own.power
        self._scheduled = [each["lr"] for each in self._optimizer.param_groups]
        for each in self._optimizer.param_groups:
            each["lr"] *= factor
        rate = float(group["lr"])
        numbers = (factor, rate, start, before, after)
        group.update(zip((_FACTOR, *_REST), numbers, strict=True))
        return rate

    def after_step_(self) -> None:
        """Puts the scheduled rates back."""
        for group, lr in zip(self._optimizer.param_groups, self._scheduled, strict=True):
            group["lr"] = lr


def minimum(start: float, tip: float) -> float:
    """Where the parabola with these slopes at 0 and 1 has its minimum; inf, or 0, without one."""
    if start >= 0:  # uphill from the start
        return 0.0
    return start / (start - tip) if tip > start else math.inf


def slopes(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Slopes of the loss along AdamW's last and coming steps, each at a rate of 1.

    From the gradients as they are and the moments before the coming step, in one reading of them.
    Before the first step the former is 0. Of sharded tensors the sum over all shards; every rank
    calls it.
    """
    whole: list[Tensor] = []
    shards: list[Tensor] = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                is_sharded = isinstance(parameter, DTensor) and any(
                    isinstance(placement, Shard) for placement in parameter.placements
                )
                (shards if is_sharded else whole).extend(_slopes_of(optimizer, group, parameter))
    sums = torch.stack(whole).sum(0) if whole else torch.zeros(2, dtype=torch.float64)
    if shards:
        shared = torch.stack(shards).sum(0)
        torch.distributed.all_reduce(shared)
        sums = sums.to(shared.device) + shared
    tip, start = sums.tolist()
    return tip, start


def _slopes_of(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> Iterator[Tensor]:
    """(last step's slope, coming step's) of one tensor, float64 [2], piece by piece."""
    state, (b1, b2), eps = optimizer.state.get(parameter, {}), group["betas"], group["eps"]
    steps = float(state["step"]) if state else 0.0
    assert parameter.grad is not None
    flat = [_local(parameter.grad)]
    flat += [_local(state[name]) for name in ("exp_avg", "exp_avg_sq")] if state else []
    size = _CHUNK_CPU if flat[0].device.type == "cpu" else _CHUNK
    for g, *moments in zip(*(torch.split(each, size) for each in flat), strict=True):
        g = g.float()
        mean, square = moments or (torch.zeros_like(g), torch.zeros_like(g))
        found = []
        for t in (steps, steps + 1):
            if t > steps:  # the moments that the coming step will have
                mean = mean.lerp(g, 1 - b1)
                square = (square * b2).addcmul_(g, g, value=1 - b2)
            if t == 0:
                found.append(torch.zeros((), dtype=torch.float64, device=g.device))
                continue
            step = mean / square.sqrt().div_(math.sqrt(1 - b2**t)).add_(eps)
            found.append(torch.dot(step, g).double() / -(1 - b1**t))
        yield torch.stack(found)


def _local(tensor: Tensor) -> Tensor:
    """A tensor, or this rank's part of one, as a vector."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).reshape(-1)
