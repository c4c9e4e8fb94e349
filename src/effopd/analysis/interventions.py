"""What becomes of a base when a part of its update is kept, removed, scaled or exchanged.

An intervention is a frozen setting. `apply(update)` gives `Changed` weights: nothing is computed
until a tensor is read, and reading one needs that tensor's two endpoints and no other. So the same
object streams into a new checkpoint and is written over a live model (`analysis/applying.py`).
Arithmetic is in fp32 or wider and is rounded once, to the dtype of the base's tensor.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from effopd.analysis.modules import (
    BLOCKS,
    Changed,
    Norms,
    check_choice,
    check_finite,
    check_labels,
    check_norms,
    endpoints,
    layer_count,
    norm,
    part,
    point,
    tensor_modules,
    update_norm,
)
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.layout import Heads, ModuleTensor
from effopd.models.updates import Update

EMBEDDINGS = {"embeddings": {"embedding"}, "head": {"head"}, "both": {"embedding", "head"}}
"""What `EmbeddingReplacement.part` may be, and the blocks it means."""


@dataclass(frozen=True, kw_only=True)
class Intervention(ABC):
    """A pure function from an update to changed weights."""

    kind: ClassVar[str]  # name in commands and tables
    swept: ClassVar[str | None] = None  # the field that a sweep varies

    @property
    def value(self) -> float | None:
        """The number that a sweep varies."""
        return None if self.swept is None else float(getattr(self, self.swept))

    @property
    def setting(self) -> str:
        """The other settings as text, equal for all members of a sweep."""
        names = [field.name for field in dataclasses.fields(self) if field.name != self.swept]
        return " ".join(f"{name}={getattr(self, name)}" for name in names)

    @abstractmethod
    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """Gives the changed weights."""


# Longer or shorter, in the same direction ---------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WholeScaling(Intervention):
    """`base + scale * update`, every tensor alike; 0 is the base and 1 the tuned model, exactly.

    Source: arXiv 2605.11739, section 2.2 (figures 2a and 8), where scale is alpha in [0, 1].
    """

    kind: ClassVar[str] = "scale"
    swept: ClassVar[str | None] = "scale"
    scale: float

    def __post_init__(self) -> None:
        check_finite("scale", self.scale)

    @classmethod
    def to_norm(cls, update: Update, norm: float) -> "WholeScaling":
        """The scaling that gives the whole update a Frobenius norm.

        Two methods are compared at one norm by giving both the same.
        """
        found = update_norm(update)
        if found == 0:
            raise ParameterMismatchError(
                f"the update is zero and cannot be scaled to norm {norm:g}: give a tuned model "
                "that differs from the base"
            )
        return cls(scale=norm / found)

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """`base + scale * update`."""
        return Changed(
            update=update, compute=lambda name: point(*endpoints(update, name), self.scale)
        )


@dataclass(frozen=True, kw_only=True)
class NormScaling(Intervention):
    """Scales an early update towards the norm of a final one, the direction kept.

    `base + s * update`, `s = 1 + beta * (final / early - 1)`: beta 0 changes nothing, beta 1 gives
    the final norm. A module that never moved stays at the base. With the norms of another method
    as `final`, the result has this method's directions and the other's norms.

    Source: arXiv 2605.11739, equation 19 (figure 14); figure 5c is beta = 1 per module. The paper
    does not say which of the two (19) means; section 3.3 scales each module. `final` is the norm of
    each module by label (`module_norms`), or of the whole update: one factor for all modules.
    """

    kind: ClassVar[str] = "norm"
    swept: ClassVar[str | None] = "beta"
    final: Norms
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_finite("beta", self.beta)
        check_norms("final", self.final)

    @property
    def setting(self) -> str:
        """Granularity."""
        return "per=module" if isinstance(self.final, Mapping) else "per=whole"

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The scaled update on the base."""

        def factor(early: float, final: float) -> float:  # 1 where it never moved
            return 1.0 + self.beta * (final / early - 1.0) if early > 0 else 1.0

        if not isinstance(self.final, Mapping):
            scale = factor(update_norm(update), self.final)
            return WholeScaling(scale=scale).apply(update, heads)
        final, by_tensor = self.final, tensor_modules(update, heads)
        check_labels("final", final, (p for found in by_tensor.values() for p in found))

        def compute(name: str) -> Tensor:
            base, tuned = endpoints(update, name)
            out = base.clone()
            for module in by_tensor[name]:
                start, end = part(base, module), part(tuned, module)
                scale = factor(norm(end - start), final[module.label])
                part(out, module).copy_(point(start, end, scale))
            return out

        return Changed(update=update, compute=compute)


# Some tensors from one model, some from another ---------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EmbeddingReplacement(Intervention):
    """Embeddings, output head or both of one model in the other.

    Where the head is tied to the embeddings, replacing the embeddings replaces both. `into` is the
    model that gets them from the other.

    Source: arXiv 2605.11739, figure 3a (the base's embeddings in the tuned model).
    """

    kind: ClassVar[str] = "embeddings"
    part: Literal["embeddings", "head", "both"] = "both"
    into: Literal["tuned", "base"] = "tuned"

    def __post_init__(self) -> None:
        check_choice("part", self.part, EMBEDDINGS)
        check_choice("into", self.into, ("tuned", "base"))

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The model of `into` with the other's part."""
        replaced = EMBEDDINGS[self.part]
        return _mixture(update, replaced, lambda p: (p.block in replaced) == (self.into == "base"))


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Intervention):
    """The update of one block in the layers around a centre; everything else is the base.

    `W_l = {max(1, l - h) .. min(L, l + h)}`, layers from 1 on. The other block is the base's in
    all layers; so are norms, embeddings and head, which the paper does not mention.

    Source: arXiv 2605.11739, equations 10 to 12 (figures 3b and 10b), where h = 8.
    """

    kind: ClassVar[str] = "window"
    swept: ClassVar[str | None] = "centre"
    centre: int
    block: Literal["mlp", "attention"] = "mlp"
    half_width: int = 8

    def __post_init__(self) -> None:
        check_choice("block", self.block, ("mlp", "attention"))
        if self.centre < 1:
            raise ConfigError(f"centre must be a layer counted from 1, got {self.centre}")
        if self.half_width < 0:
            raise ConfigError(f"half_width must be at least 0, got {self.half_width}")

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The base with the update inside the window."""
        count = layer_count(update)
        if self.centre > count:
            raise ParameterMismatchError(
                f"centre {self.centre} is no layer of this model: it has layers 1 to {count}"
            )
        # Layers of modules count from 0.
        window = range(self.centre - 1 - self.half_width, self.centre + self.half_width)
        return _mixture(update, {self.block}, lambda p: p.block == self.block and p.layer in window)


def sliding_windows(
    layers: int,
    *,
    block: Literal["mlp", "attention"] = "mlp",
    half_width: int = 8,
    only_whole: bool = False,
) -> list[SlidingWindow]:
    """A window around every layer of a model, by ascending centre.

    The paper's text cuts windows at the edges; a sentence of its source leaves those out, as
    `only_whole` does.
    """
    margin = half_width if only_whole else 0
    centres = range(1 + margin, layers - margin + 1)
    if not centres:
        raise ConfigError(
            f"no whole window of {2 * half_width + 1} layers fits into {layers} layers: make "
            "half_width smaller or allow windows that an edge cuts"
        )
    return [SlidingWindow(centre=c, block=block, half_width=half_width) for c in centres]


@dataclass(frozen=True, kw_only=True)
class BlockSwap(Intervention):
    """The tuned model with some of its blocks from another model of the same base."""

    kind: ClassVar[str] = "swap"
    donor: Update
    blocks: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ConfigError(f"blocks must name at least one of {', '.join(BLOCKS)}")
        for block in self.blocks:
            check_choice("blocks", block, BLOCKS)

    @property
    def setting(self) -> str:
        """Blocks."""
        return f"blocks={'+'.join(self.blocks)}"

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The tuned model with the donor's blocks."""
        if differ := sorted(set(self.donor.shapes.items()) ^ set(update.shapes.items())):
            raise ParameterMismatchError(
                f"the donor has other tensors than the tuned model, for example {differ[0][0]}: "
                "both must come from one base"
            )

        return _mixture(
            update,
            set(self.blocks),
            lambda module: module.block in self.blocks,
            lambda name: (endpoints(update, name)[1], self.donor.read_tuned(name)),
        )


def _mixture(
    update: Update,
    blocks: set[str],
    takes: Callable[[ModuleTensor], bool],
    ends: Callable[[str], tuple[Tensor, Tensor]] | None = None,
) -> Changed:
    """Places that `takes` names are the second end's, all others the first's: base and tuned."""
    by_tensor = tensor_modules(update)
    present = {module.block for found in by_tensor.values() for module in found}
    if present.isdisjoint(blocks):
        tied = "; its head is tied to the embeddings" if blocks == {"head"} else ""
        raise ParameterMismatchError(
            f"the model has no tensor of block {' or '.join(sorted(blocks))}{tied}. It has "
            f"{', '.join(sorted(present))}."
        )

    def compute(name: str) -> Tensor:
        below, above = endpoints(update, name) if ends is None else ends(name)
        taken = [module for module in by_tensor[name] if takes(module)]
        if len(taken) == len(by_tensor[name]):
            return above
        out = below.clone()
        for module in taken:
            part(out, module).copy_(part(above, module))
        return out

    return Changed(update=update, compute=compute)
