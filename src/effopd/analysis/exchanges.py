"""Interventions that take some tensors from one model and some from another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from effopd.analysis.interventions import Changed
from effopd.analysis.modules import (
    BLOCKS,
    check_choice,
    check_present,
    endpoints,
    layer_count,
    pieces,
    tensor_places,
)
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.layout import Heads, Place
from effopd.models.updates import Update

EMBEDDINGS = {"embeddings": {"embedding"}, "head": {"head"}, "both": {"embedding", "head"}}
"""What `EmbeddingReplacement.part` may be, and the blocks it means."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingReplacement:
    """Embeddings, output head or both of one model in the other.

    Where the head is tied to the embeddings, replacing the embeddings replaces both.

    Source: arXiv 2605.11739, figure 3a (the base's embeddings in the tuned model).

    Attributes:
        part: What is replaced: "embeddings", "head" or "both".
        into: "tuned" puts the base's into the tuned model, "base" the tuned one's into the base.
    """

    kind: ClassVar[str] = "embeddings"
    value: ClassVar[None] = None
    part: Literal["embeddings", "head", "both"] = "both"
    into: Literal["tuned", "base"] = "tuned"

    def __post_init__(self) -> None:
        check_choice("part", self.part, EMBEDDINGS)
        check_choice("into", self.into, ("tuned", "base"))

    @property
    def setting(self) -> str:
        """Part and target."""
        return f"part={self.part} into={self.into}"

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The model of `into` with the other's part."""
        replaced = EMBEDDINGS[self.part]
        return _mixture(update, replaced, lambda p: (p.block in replaced) == (self.into == "base"))


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """The update of one block in the layers around a centre; everything else is the base.

    `W_l = {max(1, l - h) .. min(L, l + h)}`. The other block is the base's in all layers; so are
    norms, embeddings and head, which the paper does not mention.

    Source: arXiv 2605.11739, equations 10 to 12 (figures 3b and 10b), where h = 8.

    Attributes:
        centre: Layer l, counted from 1.
        block: "mlp" (equation 11) or "attention" (equation 12).
        half_width: Layers on either side, h.
    """

    kind: ClassVar[str] = "window"
    centre: int
    block: Literal["mlp", "attention"] = "mlp"
    half_width: int = 8

    def __post_init__(self) -> None:
        check_choice("block", self.block, ("mlp", "attention"))
        if self.centre < 1:
            raise ConfigError(f"centre must be a layer counted from 1, got {self.centre}")
        if self.half_width < 0:
            raise ConfigError(f"half_width must be at least 0, got {self.half_width}")

    @property
    def value(self) -> float:
        """The centre."""
        return float(self.centre)

    @property
    def setting(self) -> str:
        """Block and width."""
        return f"block={self.block} half_width={self.half_width}"

    def layers(self, count: int) -> range:
        """Layers of the window, counted from 1, in a model of `count` layers."""
        low, high = self.centre - self.half_width, self.centre + self.half_width
        return range(max(1, low), min(count, high) + 1)

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The base with the update inside the window.

        Raises:
            ParameterMismatchError: The model has fewer layers than `centre`.
        """
        count = layer_count(update)
        if self.centre > count:
            raise ParameterMismatchError(
                f"centre {self.centre} is no layer of this model: it has layers 1 to {count}"
            )
        window = self.layers(count)

        def takes(place: Place) -> bool:
            return (
                place.block == self.block
                and place.layer is not None
                and (place.layer + 1 in window)
            )

        return _mixture(update, {self.block}, takes)


def sliding_windows(
    layers: int,
    *,
    block: Literal["mlp", "attention"] = "mlp",
    half_width: int = 8,
    only_whole: bool = False,
) -> list[SlidingWindow]:
    """A window around every layer.

    The paper's text cuts windows at the edges; a sentence of its source leaves them out.

    Args:
        layers: Layers L of the model.
        block: See `SlidingWindow`.
        half_width: See `SlidingWindow`.
        only_whole: Leaves out windows that an edge cuts.

    Returns:
        The windows, by ascending centre.

    Raises:
        ConfigError: No whole window fits.
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
class BlockSwap:
    """The tuned model with some of its blocks from another model of the same base.

    Attributes:
        donor: The other update; of the same tensors.
        blocks: Blocks that come from the donor, for example `("mlp",)`.
    """

    kind: ClassVar[str] = "swap"
    value: ClassVar[None] = None
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
        """The tuned model with the donor's blocks.

        Raises:
            ParameterMismatchError: The donor has other tensors.
        """
        if dict(self.donor.shapes) != dict(update.shapes):
            differ = sorted(set(self.donor.shapes.items()) ^ set(update.shapes.items()))
            raise ParameterMismatchError(
                f"the donor has other tensors than the tuned model, for example {differ[0][0]}: "
                "both must come from one base"
            )
        by_tensor = tensor_places(update)
        check_present(by_tensor, set(self.blocks))

        def compute(name: str) -> Tensor:
            (_, own), (_, other) = endpoints(update, name), endpoints(self.donor, name)
            return pieces(own, other, by_tensor[name], lambda p: p.block in self.blocks)

        return Changed(update=update, compute=compute)


def _mixture(update: Update, blocks: set[str], takes: Callable[[Place], bool]) -> Changed:
    """Places that `takes` names are the tuned model's, all others the base's."""
    by_tensor = tensor_places(update)
    check_present(by_tensor, blocks)

    def compute(name: str) -> Tensor:
        return pieces(*endpoints(update, name), by_tensor[name], takes)

    return Changed(update=update, compute=compute)
