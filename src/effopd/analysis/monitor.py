"""Foresight of a run while it trains: does the direction so far still tell where the weights go?

The paper finds that early updates fix the direction that distillation ends in, which is what lets a
search look ahead, and leaves watching it during training to future work. A look takes a few
milliseconds, uses no random numbers and changes nothing but its own memory.

An optimizer with momentum goes on in its direction for a while even if its gradients are noise.
Foresight is what successive stretches of training agree by beyond that.

Source: arXiv 2605.11739, sections 3 and F.1 (rank-1 directions, equation 14). The cosine of
successive stretches, what momentum makes of it, the entropy of the allocation and the alarm are
ours.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effopd.analysis.leading_pairs import LeadingPairs, LeadingStatistics
from effopd.analysis.sampled_path import PathStatistics, SampledPath
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.layout import place_of

STATIONARY = 20
"""Decay times of the momentum after which it has forgotten how the run began."""


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """What is looked at, how often, and when foresight counts as broken.

    Off by default: it keeps copies of weights, in memory and in checkpoints, that most runs do not
    ask for.

    Attributes:
        every: Steps between looks; 0 turns the monitor off.
        rows: Most rows of each attention and MLP matrix that directions are measured on.
        matrices: Most matrices whose leading singular pair is followed.
        iterations: Pairs of matrix-vector products for each of these at a look.
        bound: Foresight is lost when step cosines exceed what momentum alone gives, see `inertia`,
            by less than this, on average over the last `patience` looks.
        patience: Looks that the verdict rests on; there is none before so many.
    """

    every: int = 0
    rows: int = 16
    matrices: int = 8
    iterations: int = 2
    bound: float = 0.0
    patience: int = 3

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"monitor.every must be >= 0 (0 is off), got {self.every}")
        for name in ("rows", "matrices", "iterations", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"monitor.{name} must be at least 1, got {getattr(self, name)}")
        if not -2 <= self.bound <= 2:
            raise ConfigError(
                f"monitor.bound is a difference of cosines, in [-2, 2], got {self.bound}"
            )


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look.

    Attributes:
        path: Directions and lengths.
        leading: The leading pairs.
        inertia: Step cosine that momentum alone would give.
        foresight: Whether it holds; None when not known yet.
        alarms: One sentence when it has just been lost.
    """

    path: PathStatistics
    leading: LeadingStatistics
    inertia: float
    foresight: bool | None
    alarms: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """Fields of a row of `monitor.jsonl`."""
        rest = {name: getattr(self, name) for name in ("inertia", "foresight")}
        return asdict(self.path) | asdict(self.leading) | rest | {"alarms": list(self.alarms)}


class Monitor:
    """Watches live matrices; where they are now is the base.

    Call `look_if_due(step)` after the update of each step and before its search, and `jump_()`
    after a search that moved the weights.

    Args:
        matrices: Name to live tensor [m, n], see `monitored_matrices`.
        settings: What to look at.
        momentum: Decay rate of the optimizer's first moment.
        updates_per_step: Optimizer updates in a step.

    Raises:
        ParameterMismatchError: There are no matrices, or one has not two dimensions.
    """

    def __init__(
        self,
        matrices: Mapping[str, Tensor],
        settings: MonitorSettings,
        *,
        momentum: float = 0.0,
        updates_per_step: int = 1,
    ) -> None:
        wrong = [name for name, tensor in matrices.items() if tensor.ndim != 2]
        if wrong or not matrices:
            raise ParameterMismatchError(
                "the monitor watches matrices, tensors of two dimensions: expected at least one "
                f"and no other tensors, got {len(matrices)} tensors, not matrices: {wrong[:3]}"
            )
        self._settings, self._momentum = settings, momentum
        self._updates = updates_per_step * settings.every
        self._path = SampledPath(matrices, settings.rows)
        chosen = {name: matrices[name] for name in sampled_names(matrices, settings.matrices)}
        self._leading = LeadingPairs(chosen, settings.iterations)
        self._recent: list[float] = []

    @property
    def foresight(self) -> bool | None:
        """Whether the last stretches pointed on; None before there were enough."""
        if len(self._recent) < self._settings.patience:
            return None
        return self._mean_excess() >= self._settings.bound

    def look_if_due(self, step: int) -> Look | None:
        """Looks after the update of a step; None when no look is due.

        Raises:
            NonFiniteError: A weight is NaN or infinite; nothing was changed.
        """
        if step % self._settings.every:
            return None
        held = self.foresight
        path, leading = self._path.look_(), self._leading.look_()
        before = max(step // self._settings.every - 1, 1) * self._updates
        expected = inertia(self._momentum, before, self._updates)
        if path.step_cosine is not None:
            excess = path.step_cosine - expected
            self._recent = [*self._recent, excess][-self._settings.patience :]
        lost = self.foresight is False and held is not False
        alarms = (self._alarm(),) if lost else ()
        return Look(
            path=path,
            leading=leading,
            inertia=expected,
            foresight=self.foresight,
            alarms=alarms,
        )

    def jump_(self) -> None:
        """Takes note that a search moved the weights."""
        self._path.jump_()

    def _mean_excess(self) -> float:
        return sum(self._recent) / len(self._recent)

    def _alarm(self) -> str:
        return (
            f"foresight is lost: over the last {len(self._recent)} looks the cosine of successive "
            f"stretches was {self._mean_excess():+.3f} from what momentum alone gives, below the "
            f"bound {self._settings.bound:g}. The direction so far no longer tells where the "
            "weights go: training has arrived, or optimizer.lr is too high"
        )

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs to go on bit for bit, by flat names; references."""
        return {
            "recent": torch.tensor(self._recent, dtype=torch.float64),
            **{f"path/{name}": tensor for name, tensor in self._path.state().items()},
            **{f"leading/{name}": tensor for name, tensor in self._leading.state().items()},
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`.

        Raises:
            ParameterMismatchError: It is the state of something else.
        """
        parts: dict[str, dict[str, Tensor]] = {"recent": {}, "path": {}, "leading": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        if len(parts) > 3 or parts["recent"].keys() != {""}:
            raise ParameterMismatchError(
                f"not the state of a monitor: {sorted(tensors)[:3]} ({len(tensors)} in all)"
            )
        self._path.load_state(parts["path"])
        self._leading.load_state(parts["leading"])
        self._recent = parts["recent"][""].tolist()


def inertia(momentum: float, before: int, updates: int) -> float:
    """Cosine of two successive stretches of momentum updates when all gradients are noise.

    Update j is `sum_i momentum^(j - i) g_i / (1 - momentum^j)` over the gradients so far, as
    Adam's bias-corrected first moment is; its second moment and the learning rate are taken to be
    constant. From `STATIONARY` decay times on the start of the run is forgotten.

    Args:
        momentum: Decay rate in [0, 1).
        before: Updates up to the end of the first stretch, at least `updates`.
        updates: Updates in each stretch.
    """
    first = min(before, updates + math.ceil(STATIONARY / (1 - momentum)))
    weights = _noise_weights(momentum, first - updates, first, first + updates)
    later = _noise_weights(momentum, first, first + updates, first + updates)
    norms = math.sqrt(_dot(weights, weights)) * math.sqrt(_dot(later, later))
    return _dot(weights, later) / norms


def _noise_weights(momentum: float, start: int, end: int, count: int) -> list[float]:
    """Weight of each of `count` gradients in the sum of the updates after `start`, up to `end`."""
    weights, weight = [], 0.0
    for j in range(count, 0, -1):
        weight = momentum * weight + (1 / (1 - momentum**j) if start < j <= end else 0.0)
        weights.append(weight)
    return weights


def _dot(first: list[float], second: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))


def monitored_matrices(model: nn.Module) -> dict[str, Tensor]:
    """The trainable attention and MLP matrices of a model, in its order.

    Experts batched in one tensor are left out: a tensor of three dimensions is no matrix.
    """
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.ndim == 2
        and place_of(name).block in {"attention", "mlp"}
    }


def sampled_names(names: Sequence[str] | Mapping[str, Tensor], most: int) -> list[str]:
    """At most `most` names that take turns in projection and are spread over depth.

    The i-th of them is of projection i modulo their number, at share `(i + 0.5) / most` of the
    depth; where that was taken already there is one name fewer.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[place_of(name).projection].append(name)
    turns, most = list(groups.values()), min(most, len(names))
    picked = [
        (group := turns[i % len(turns)])[(2 * i + 1) * len(group) // (2 * most)]
        for i in range(most)
    ]
    return list(dict.fromkeys(picked))
