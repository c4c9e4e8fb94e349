"""The modules of an update: their tensors, their norms, and how a change of each makes a tensor.

A module is a `Place`: a tensor, one part of a fused tensor, or one expert. Arithmetic is in fp32,
or in float64 where a tensor is stored so.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import get_args

import torch
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.layout import Block, Heads, Place, places
from effopd.models.updates import AdapterUpdate, Update, wide_dtype
from effopd.search.ray import interpolate_

Norms = float | Mapping[str, float]
"""Frobenius norm of the whole update, or of each module by `Place.label`."""
Compute = Callable[[str], Tensor]
"""Name to a changed tensor in fp32 or wider."""
BLOCKS: tuple[str, ...] = get_args(Block)
"""What `Place.block` may be."""


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


def part(tensor: Tensor, place: Place) -> Tensor:
    """The view of a place's tensor that is the place."""
    found = tensor[place.expert] if place.batched else tensor
    return found if place.rows is None else found[slice(*place.rows)]


def place_factors(update: Update, place: Place) -> tuple[Tensor, Tensor] | None:
    """Factors `[m, r]` and `[r, n]` of the update at a place; None where it is none of low rank.

    Their product rounded to fp32 would have another rank.
    """
    if place.batched or not isinstance(update, AdapterUpdate):
        return None
    factors = update.factors(place.name)
    if factors is None or place.rows is None:
        return factors
    return factors[0][slice(*place.rows)], factors[1]


def tensor_places(update: Update, heads: Heads | None = None) -> dict[str, list[Place]]:
    """The places of every floating-point tensor by its name.

    Args:
        update: Base and tuned model.
        heads: Splits a fused q/k/v projection; without them it is one module.
    """
    found: dict[str, list[Place]] = {}
    for place in places(update.shapes, heads):
        found.setdefault(place.name, []).append(place)
    return {n: each for n, each in found.items() if update.read_base(n).is_floating_point()}


def layer_count(update: Update) -> int:
    """Layers of the model."""
    return 1 + max((p.layer for p in places(update.shapes) if p.layer is not None), default=-1)


def norm(tensor: Tensor) -> float:
    """Frobenius norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def module_norms(update: Update, heads: Heads | None = None) -> dict[str, float]:
    """Frobenius norm of the update of every module by its label; one tensor at a time.

    Integer tensors are no modules.
    """
    found: dict[str, float] = {}
    for name, in_tensor in tensor_places(update, heads).items():
        tensor = update.read(name)
        found |= {place.label: norm(part(tensor, place)) for place in in_tensor}
    return found


def update_norm(update: Update) -> float:
    """Frobenius norm of the whole update; one tensor at a time."""
    return math.hypot(*module_norms(update).values())


def by_place(
    update: Update,
    by_tensor: Mapping[str, list[Place]],
    change: Callable[[Place, Tensor, Tensor], Tensor],
) -> Compute:
    """Computes each tensor from what `change` makes of its places' base and tuned values."""

    def compute(name: str) -> Tensor:
        base, tuned = endpoints(update, name)
        out = base.clone()
        for place in by_tensor[name]:
            part(out, place).copy_(change(place, part(base, place), part(tuned, place)))
        return out

    return compute


def pieces(
    below: Tensor, above: Tensor, found: Collection[Place], takes: Callable[[Place], bool]
) -> Tensor:
    """`below`, with the places that `takes` names from `above`."""
    taken = [place for place in found if takes(place)]
    if len(taken) == len(found):
        return above
    out = below.clone()
    for place in taken:
        part(out, place).copy_(part(above, place))
    return out


# Checks -------------------------------------------------------------------------------------------


def check_norms(name: str, norms: Norms) -> None:
    """Norms are finite and not negative.

    Raises:
        ConfigError: One is not.
    """
    found = norms.items() if isinstance(norms, Mapping) else [("the whole update", norms)]
    for label, value in found:
        if not 0 <= value < math.inf:
            raise ConfigError(f"{name}: the norm of {label} must be at least 0, got {value}")


def check_labels(name: str, norms: Mapping[str, float], found: Iterable[Place]) -> None:
    """There is a norm for every place.

    Raises:
        ParameterMismatchError: One is missing.
    """
    missing = [place.label for place in found if place.label not in norms]
    if missing:
        raise ParameterMismatchError(
            f"{name} has no norm of {missing[0]} ({len(missing)} such modules in all): take the "
            "norms of a model of the same architecture, with the same heads (module_norms)"
        )


def check_present(by_tensor: Mapping[str, list[Place]], blocks: Collection[str]) -> None:
    """At least one of the blocks is there.

    Raises:
        ParameterMismatchError: None is.
    """
    present = {place.block for found in by_tensor.values() for place in found}
    if present.isdisjoint(blocks):
        tied = "; its head is tied to the embeddings" if set(blocks) == {"head"} else ""
        raise ParameterMismatchError(
            f"the model has no tensor of block {' or '.join(sorted(blocks))}{tied}. It has "
            f"{', '.join(sorted(present))}."
        )


def check_finite(name: str, value: float) -> None:
    """A setting is a finite number.

    Raises:
        ConfigError: It is not.
    """
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """A setting is one of several.

    Raises:
        ConfigError: It is not.
    """
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
