"""Watch the direction of training: do successive displacements of the weights agree?

The paper finds that early updates fix the direction that distillation ends in, which is what lets a
search look ahead, and leaves watching it during training to future work. An optimizer with momentum
keeps its direction for a while even if its gradients are noise, so foresight is the agreement of
successive displacements beyond that.

Source: arXiv 2605.11739, section 3. The cosine of successive displacements, what momentum makes of
it, and the alarm are ours.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.models.policy import Policy
from effopd.precision import float32_products
from effopd.search.ray import check_fits
from effopd.training.settings import LoopSettings, MonitorSettings

COORDINATES = 2**18
"""Weights that are followed, evenly spaced over all: cosines are known to about 1/512."""
DECAY_TIMES = 20
"""Decay times of the momentum after which it has forgotten how the run began."""


class Monitor:
    """Follows trained weights from where they are now, the base.

    Call `observe(step)` after the updates of a step and before its search, and `on_extrapolation()`
    after a search that moved the weights. Displacements are those of training since the last
    observation or the search after it: a search moves along the direction by construction, so its
    own move counts for the path and the distance from the base only.

    `momentum` is the decay rate of the optimizer's first moment.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        settings: MonitorSettings,
        *,
        momentum: float = 0.0,
        updates_per_step: int = 1,
    ) -> None:
        self._live = list(parameters)
        if not self._live:
            raise ConfigError("the monitor needs at least one trained tensor")
        self._stride = math.ceil(sum(t.numel() for t in self._live) / COORDINATES)
        self._settings, self._momentum = settings, momentum
        self._updates = updates_per_step * settings.every
        self._base = self._read()
        self._last, self._displacement = self._base.clone(), torch.zeros_like(self._base)
        self._length = 0.0
        self._recent: list[float] = []

    @torch.no_grad()
    def _read(self) -> Tensor:
        """Every n-th weight as one float32 vector, on the device of the first tensor."""
        device = self._live[0].device
        parts = [t.detach().flatten()[:: self._stride] for t in self._live]
        return torch.cat([part.to(device, torch.float32) for part in parts])

    @property
    def foresight(self) -> bool | None:
        """Whether successive displacements agreed; None before there were `patience` of them."""
        if len(self._recent) < self._settings.patience:
            return None
        return self._excess() >= self._settings.bound

    def _excess(self) -> float:
        return math.fsum(self._recent) / len(self._recent)

    @float32_products()
    def observe(self, step: int) -> dict[str, Any] | None:
        """Returns a row of `monitor.jsonl` after the updates of a step; None when none is due."""
        if step % self._settings.every:
            return None
        # Where the weights are, and how training moved them since the last observation.
        now = self._read()
        moved, distance = now - self._last, float((now - self._base).norm())
        norm, before = float(moved.norm()), float(self._displacement.norm())
        if not math.isfinite(norm + distance):
            raise NonFiniteError("a weight that the monitor follows is NaN or infinite")
        cosine = _ratio(float(moved @ self._displacement), norm * before)
        self._length += norm
        self._last = now
        if norm > 0:  # a skipped update leaves the displacement before it
            self._displacement = moved
        # What agrees beyond momentum, and whether that has just fallen below the bound.
        held = self.foresight
        updates_before = max(step // self._settings.every - 1, 1) * self._updates
        expected = inertia(self._momentum, updates_before, self._updates)
        if cosine is not None:
            self._recent = [*self._recent, cosine - expected][-self._settings.patience :]
        alarms = []
        if self.foresight is False and held is not False:
            alarms.append(
                f"foresight is lost: over the last {len(self._recent)} observations the cosine of "
                f"successive displacements was {self._excess():+.3f} from what momentum alone "
                f"gives, below the bound {self._settings.bound:g}. Training has arrived, or "
                "optimizer.lr is too high"
            )
        # Norms of the weights followed stand for those of all.
        whole = math.sqrt(sum(t.numel() for t in self._live) / len(now))
        return {
            "step": step,
            "step_cosine": cosine,
            "inertia": expected,
            "displacement": whole * distance,
            "path_length": whole * self._length,
            "straightness": _ratio(distance, self._length),
            "foresight": self.foresight,
            "alarms": alarms,
        }

    def on_extrapolation(self) -> None:
        """Adds the move of a search to the path."""
        now = self._read()
        self._length += float((now - self._last).norm())
        self._last = now

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to go on bit for bit, by name; references."""
        return {
            "base": self._base,
            "last": self._last,
            "displacement": self._displacement,
            "length": torch.tensor(self._length, dtype=torch.float64),
            "recent": torch.tensor(self._recent, dtype=torch.float64),
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        recent = tensors.get("recent", torch.zeros(0))
        check_fits(tensors, self.state() | {"recent": recent})
        device = self._base.device
        self._base, self._last, self._displacement = (
            tensors[name].to(device, copy=True) for name in ("base", "last", "displacement")
        )
        self._length, self._recent = tensors["length"].item(), recent.tolist()


def _ratio(numerator: float, denominator: float) -> float | None:
    """A quotient that rounding alone takes out of [-1, 1]; None for nothing over nothing."""
    return max(-1.0, min(1.0, numerator / denominator)) if denominator > 0 else None


def inertia(momentum: float, before: int, updates: int) -> float:
    """Cosine of two successive displacements of momentum updates when all gradients are noise.

    Update j is `sum_i momentum^(j - i) g_i / (1 - momentum^j)` over the gradients so far, as
    Adam's bias-corrected first moment is; its second moment and the learning rate are taken to be
    constant. From `DECAY_TIMES` on the start of the run is forgotten.
    """
    middle = min(before, updates + math.ceil(DECAY_TIMES / (1 - momentum)))

    def weights(start: int, end: int) -> Tensor:
        """Weight of each gradient, last first, in the sum of the updates after start, up to end."""
        found, weight = [], 0.0
        for j in range(middle + updates, 0, -1):
            weight = momentum * weight + (1 / (1 - momentum**j) if start < j <= end else 0.0)
            found.append(weight)
        return torch.tensor(found, dtype=torch.float64)

    first, second = weights(middle - updates, middle), weights(middle, middle + updates)
    return float(first @ second / (first.norm() * second.norm()))


def monitor_of(student: Policy, settings: LoopSettings) -> Monitor | None:
    """The monitor of what trains of a student; None where `monitor.every` is 0."""
    if not settings.monitor.every:
        return None
    return Monitor(
        (p for p in student.model.parameters() if p.requires_grad),
        settings.monitor,
        momentum=settings.optimizer.betas[0],
        updates_per_step=settings.train.updates_per_step * settings.train.epochs,
    )
