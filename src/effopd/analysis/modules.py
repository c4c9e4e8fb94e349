"""The modules of an update: their tensors, their norms, and how a change of each makes a tensor.

A module is a `ModuleTensor`: a tensor, one part of a fused tensor, or one expert. Arithmetic is in
fp32, or in float64 where a tensor is stored so.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import get_args

import torch
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.layout import Block, Heads, ModuleTensor, module_tensors
from effopd.models.updates import AdapterUpdate, Update, wide_dtype
from effopd.models.weights import Weights, is_finite
from effopd.search.ray import interpolate_

Norms = float | Mapping[str, float]
"""Frobenius norm of the whole update, or of each module by `ModuleTensor.label`."""
BLOCKS: tuple[str, ...] = get_args(Block)
"""What `ModuleTensor.block` may be."""


def endpoints(update: Update, name: str) -> tuple[Tensor, Tensor]:
    """Base and tuned tensor in one dtype, fp32 or wider."""
    base, tuned = update.read_base(name), update.read_tuned(name)
    wide = wide_dtype(base.dtype, tuned.dtype)
    return base.to(wide), tuned.to(wide)


def point(base: Tensor, tuned: Tensor, scale: float) -> Tensor:
    """`base + scale * (tuned - base)` as the search computes it; exact at scales 0 and 1."""
    out = torch.empty_like(base)
    interpolate_(out, base, tuned, scale)
    return out


def part(tensor: Tensor, module: ModuleTensor) -> Tensor:
    """The view of a whole tensor that is the module."""
    found = tensor[module.expert] if module.batched else tensor
    return found if module.rows is None else found[slice(*module.rows)]


def module_factors(update: Update, module: ModuleTensor) -> tuple[Tensor, Tensor] | None:
    """Factors `[m, r]` and `[r, n]` of the update of a module; None where it is none of low rank.

    Their product rounded to fp32 would have another rank.
    """
    if module.batched or not isinstance(update, AdapterUpdate):
        return None
    factors = update.factors(module.name)
    if factors is None or module.rows is None:
        return factors
    return factors[0][slice(*module.rows)], factors[1]


def tensor_modules(update: Update, heads: Heads | None = None) -> dict[str, list[ModuleTensor]]:
    """The modules of every floating-point tensor by its name."""
    found: dict[str, list[ModuleTensor]] = {}
    for module in module_tensors(update.shapes, heads):
        found.setdefault(module.name, []).append(module)
    return {n: each for n, each in found.items() if update.base_dtype(n).is_floating_point}


def layer_count(update: Update) -> int:
    """Layers of the model."""
    return 1 + max(
        (p.layer for p in module_tensors(update.shapes) if p.layer is not None), default=-1
    )


def norm(tensor: Tensor) -> float:
    """Frobenius norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def module_norms(update: Update, heads: Heads | None = None) -> dict[str, float]:
    """Frobenius norm of the update of every module by its label; one tensor at a time."""
    found: dict[str, float] = {}
    for name, in_tensor in tensor_modules(update, heads).items():
        tensor = update.read(name)
        found |= {module.label: norm(part(tensor, module)) for module in in_tensor}
    return found


def update_norm(update: Update) -> float:
    """Frobenius norm of the whole update; one tensor at a time."""
    return math.hypot(*module_norms(update).values())


class Changed(Weights):
    """Weights that are computed when they are read, in the dtypes of the base.

    `compute` gives the changed tensor in fp32 or wider; it is called for floating-point tensors.
    """

    def __init__(self, *, update: Update, compute: Callable[[str], Tensor]) -> None:
        super().__init__(update.shapes, "the update")
        self.update, self.compute = update, compute

    def _dtype(self, name: str) -> torch.dtype:
        return self.update.base_dtype(name)

    def _read(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        base = self.update.read_base(name)
        found = self.compute(name).to(base.dtype) if base.is_floating_point() else base
        if base.is_floating_point() and not is_finite(found):
            raise NonFiniteError(
                f"{name} is not finite after the intervention, as {base.dtype}: a checkpoint is "
                "damaged, or the update is scaled too far"
            )
        return found if rows is None else found[slice(*rows)]


def check_norms(name: str, norms: Norms) -> None:
    """Norms are finite and not negative."""
    found = norms.items() if isinstance(norms, Mapping) else [("the whole update", norms)]
    for label, value in found:
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name}: the norm of {label} must be at least 0, got {value}")


def check_labels(name: str, norms: Mapping[str, float], found: Iterable[ModuleTensor]) -> None:
    """There is a norm for every module."""
    missing = [module.label for module in found if module.label not in norms]
    if missing:
        raise ParameterMismatchError(
            f"{name} has no norm of {missing[0]} ({len(missing)} such modules in all): take the "
            "norms of a model of the same architecture, with the same heads (module_norms)"
        )


def check_finite(name: str, value: float) -> None:
    """A setting is a finite number."""
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """A setting is one of several."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
