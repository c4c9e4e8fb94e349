"""A learning rate that follows the slope of the loss at both ends of each update.

Training computes a gradient at the tip of every update anyway: that of the next one, on other
answers. Its slope along the update tells, for no pass at all, whether the update ended short of the
minimum along its own direction or beyond it.

Sources: hypergradient descent, arXiv 1703.04782, which has the slope at the tip alone and so needs
a rate of its own; the parabola through two slopes is the secant step of a line search.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from effopd.errors import ConfigError, NonFiniteError

_FACTOR, *_REST = ("slope_factor", "slope_rate", "slope_last", "slope_start", "slope_tip")
_READ, _PIECE = 1 << 21, 512
"""About how many weights the slopes are read from, in how long pieces."""
_BLOCK = 1 << 15
"""How many numbers stay in a CPU's cache."""
_SHORTEST, _LONGEST = 1 / 16, 4.0
"""How much a trial changes the rate at most; slopes far from the minimum are not those nearby."""


@dataclass(frozen=True, kw_only=True)
class SlopeSettings:
    """How a rate follows the slopes; the defaults are those that were measured (docs/search.md).

    Attributes:
        memory: Share of the running means of the slopes that stays at each update, in [0, 1).
        power: At most this power of 2 multiplies or divides the rate at an update, above 0.
        rest: What is left at an update's tip of the slope at its start where the rate stays as it
            is, in [0, 1): 0 at the minimum, 1/20 somewhat before it.
        trials: How often the first update is tried anew at another rate, at most, at least 0.
    """

    memory: float = 0.5
    power: float = 0.5
    rest: float = 0.05
    trials: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.memory < 1:
            raise ConfigError(f"slope.memory must be in [0, 1), got {self.memory}")
        if not 0 < self.power < math.inf:
            raise ConfigError(f"slope.power must be positive, got {self.power}")
        if not 0 <= self.rest < 1:
            raise ConfigError(f"slope.rest must be in [0, 1), got {self.rest}")
        if self.trials < 0:
            raise ConfigError(f"slope.trials must be at least 0, got {self.trials}")


class SlopeRate:
    """Multiplies the learning rate of AdamW by what the slopes say; for any training loop.

    ```python
    rate = SlopeRate(optimizer)
    for batch in batches:  # best: several small updates of each batch of answers
        value = loss(batch)
        value.backward()
        rate.before_step_(value.item())
        optimizer.step()
        rate.after_step_()
        optimizer.zero_grad()
        while rate.tries:  # at the first update alone
            value = loss(batch)  # of the same answers
            value.backward()
            rate.try_again_(value.item())
            optimizer.zero_grad()
    ```

    With `a` the slope of an update at its start (its own gradient) and `b` that at its tip (the
    next gradient), both times the update's rate, and A, B their running means, the rate becomes
    `rate * 2 ** (power * clip(B / A - rest, -1, 1))`: it rests where updates end shortly before
    the minimum along their own direction. At the minimum itself, `rest = 0`, each update does what
    is best for the next loss, and together they keep up several times as much noise as is best: a
    is mostly noise of its own gradient then, so little of it is a large part of the true slope.

    At the first update nothing is known, and from far too large a rate it would do harm. So it is
    tried: as long as half the way to its own minimum, by the slopes of the same answers at both
    ends, is not between half and twice its length, the update is made as long as that says.

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
        self._trials = 0  # left
        self._first_loss = 0.0

    @property
    def factor(self) -> float:
        """What the scheduled rate is multiplied by."""
        return float(self._optimizer.param_groups[0].get(_FACTOR, 1.0))

    def is_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it sets the rates of this very optimizer."""
        return self._optimizer is optimizer

    @torch.no_grad()
    def before_step_(self, loss: float | None = None, clipped: float = 1.0) -> float:
        """Reads the slopes off the gradients and sets the rates of the coming step.

        Args:
            loss: Of the answers at hand, where it is what is minimised; a surrogate whose gradient
                alone counts has none, and the first update is not tried.
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
        self._trials = 0 if last_rate or loss is None else own.trials
        self._first_loss = loss or 0.0
        if last_rate:  # the gradient at hand was taken at the tip of the last update
            before = own.memory * before + (1 - own.memory) * last_rate * last_start
            after = own.memory * after + (1 - own.memory) * last_rate * tip
            share = after / before - own.rest if before < 0 else -1.0
            factor *= 2 ** (own.power * min(max(share, -1.0), 1.0))
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

    @property
    def tries(self) -> bool:
        """Whether the first update is to be tried: gradients of its own answers are wanted."""
        return self._trials > 0

    @torch.no_grad()
    def try_again_(self, loss: float, clipped: float = 1.0) -> None:
        """Makes the first update longer or shorter, by the gradients of its answers at its tip.

        Args:
            loss: Of the same answers now; where it has risen, the update is shortened.
            clipped: As in `before_step_`.

        Raises:
            NonFiniteError: The slope is not finite; nothing has changed.
        """
        group = self._optimizer.param_groups[0]
        tip = slopes(self._optimizer)[0] / clipped
        if not math.isfinite(tip):
            raise NonFiniteError(f"slope {tip} must be finite")
        share = minimum(group["slope_last"], tip) / 2  # a few answers see too little of the noise
        if not loss <= self._first_loss:
            share = min(share, 1 / _LONGEST)
        self._trials = 0 if 0.5 <= share <= 2 else self._trials - 1
        share = min(max(share, _SHORTEST), _LONGEST)
        for each, lr in zip(self._optimizer.param_groups, self._scheduled, strict=True):
            old, new = lr * self.factor, lr * self.factor * share
            decay = each["weight_decay"] if each["decoupled_weight_decay"] else 0.0
            for parameter in each["params"]:
                if state := self._optimizer.state.get(parameter):
                    weights = _local(parameter)
                    mean, square = (
                        _local(state[name]).float() for name in ("exp_avg", "exp_avg_sq")
                    )
                    step = _direction(each, mean, square, float(state["step"]))
                    weights.add_(step, alpha=old).mul_((1 - decay * new) / (1 - decay * old))
                    weights.sub_(step, alpha=new)
        group["slope_factor"] *= share
        group["slope_rate"] *= share


def minimum(start: float, tip: float) -> float:
    """Where the parabola with these slopes at 0 and 1 has its minimum; inf, or 0, without one."""
    if start >= 0:  # uphill from the start
        return 0.0
    return start / (start - tip) if tip > start else math.inf


def slopes(optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Slopes of the loss along AdamW's last and coming steps, each at a rate of 1.

    From the gradients as they are and the moments before the coming step, in one reading of them.
    Before the first step the former is 0. A large model is sampled, evenly in every tensor. Of
    sharded tensors the sum over all shards; every rank calls it.
    """
    groups = optimizer.param_groups
    there = [
        (i, p) for i, group in enumerate(groups) for p in group["params"] if p.grad is not None
    ]
    every = max(1, sum(parameter.numel() for _, parameter in there) // _READ)
    # Gradients and moments of tensors that count alike, laid end to end: few operations for many.
    alike: dict[tuple[Any, ...], list[list[Tensor]]] = {}
    for i, parameter in there:
        is_sharded = isinstance(parameter, DTensor) and any(
            isinstance(placement, Shard) for placement in parameter.placements
        )
        state = optimizer.state.get(parameter, {})
        moments = [state["exp_avg"], state["exp_avg_sq"]] if state else []
        read = [_sampled(each, every).float() for each in (parameter.grad, *moments)]
        share = _local(parameter).numel() / max(1, read[0].numel())
        steps = float(state["step"]) if state else 0.0
        alike.setdefault((is_sharded, i, steps, share, read[0].device), []).append(read)
    kinds = {False, *(kind for kind, *_ in alike)}  # no gradient at all has no slope
    sums = {kind: torch.zeros(2, dtype=torch.float64) for kind in sorted(kinds)}
    for (kind, i, steps, share, _), members in alike.items():
        whole = [torch.cat(parts) for parts in zip(*members, strict=True)]
        size = _BLOCK if whole[0].device.type == "cpu" else max(1, whole[0].numel())
        for g, *moments in zip(*(torch.split(tensor, size) for tensor in whole), strict=True):
            found = share * _slopes_of(g, moments, steps, groups[i])
            sums[kind] = sums[kind].to(found.device) + found
    if True in sums:
        torch.distributed.all_reduce(sums[True])
    tip, start = (
        sum(parts) for parts in zip(*(kind.tolist() for kind in sums.values()), strict=True)
    )
    return tip, start


def _slopes_of(g: Tensor, moments: list[Tensor], steps: float, group: dict[str, Any]) -> Tensor:
    """(last step's slope, coming step's), float64 [2]; `moments` are those after `steps` steps."""
    b1, b2 = group["betas"]
    mean, square = moments or (torch.zeros_like(g), torch.zeros_like(g))
    last = _direction(group, mean, square, steps) if moments else torch.zeros_like(g)
    # The moments that the coming step will have.
    mean, square = mean.lerp(g, 1 - b1), (square * b2).addcmul_(g, g, value=1 - b2)
    coming = _direction(group, mean, square, steps + 1)
    return -torch.stack([torch.dot(step, g) for step in (last, coming)]).double()


def _direction(group: dict[str, Any], mean: Tensor, square: Tensor, steps: float) -> Tensor:
    """Minus AdamW's step at a rate of 1, from its moments after `steps` steps."""
    b1, b2 = group["betas"]
    divisor = square.sqrt().div_(math.sqrt(1 - b2**steps)).add_(group["eps"]).mul_(1 - b1**steps)
    return mean / divisor


def _sampled(tensor: Tensor, every: int) -> Tensor:
    """One in `every` pieces of a tensor, or of this rank's part of one."""
    flat = _local(tensor).reshape(-1)
    rows = flat.numel() // (every * _PIECE)
    if every == 1 or rows == 0:
        return flat
    return flat[: rows * every * _PIECE].view(rows, every * _PIECE)[:, :_PIECE].reshape(-1)


def _local(tensor: Tensor) -> Tensor:
    """A tensor, or this rank's part of one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
