"""Interventions that make an update longer or shorter and keep its direction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from effopd.analysis.interventions import Changed
from effopd.analysis.modules import (
    Norms,
    by_place,
    check_finite,
    check_labels,
    check_norms,
    endpoints,
    norm,
    point,
    tensor_places,
    update_norm,
)
from effopd.errors import ParameterMismatchError
from effopd.models.layout import Heads, Place
from effopd.models.updates import Update


@dataclass(frozen=True, kw_only=True)
class WholeScaling:
    """`base + scale * update`, every tensor alike; 0 is the base and 1 the tuned model, exactly.

    Source: arXiv 2605.11739, section 2.2 (figures 2a and 8), where scale is alpha in [0, 1].

    Attributes:
        scale: Any finite number.
    """

    kind: ClassVar[str] = "scale"
    scale: float

    def __post_init__(self) -> None:
        check_finite("scale", self.scale)

    @classmethod
    def to_norm(cls, update: Update, norm: float) -> "WholeScaling":
        """The scaling that gives the whole update a Frobenius norm.

        Two methods are compared at one norm by giving both the same.

        Raises:
            ParameterMismatchError: Nothing moved, so no factor gives a norm.
        """
        found = update_norm(update)
        if found == 0:
            raise ParameterMismatchError(
                f"the update is zero and cannot be scaled to norm {norm:g}: give a tuned model "
                "that differs from the base"
            )
        return cls(scale=norm / found)

    @property
    def value(self) -> float:
        """The scale."""
        return self.scale

    @property
    def setting(self) -> str:
        """Nothing else is set."""
        return ""

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """`base + scale * update`."""

        def compute(name: str) -> Tensor:
            return point(*endpoints(update, name), self.scale)

        return Changed(update=update, compute=compute)


@dataclass(frozen=True, kw_only=True)
class NormScaling:
    """Scales an early update towards the norm of a final one, the direction kept.

    `base + s * update`, `s = 1 + beta * (final / early - 1)`: beta 0 changes nothing, beta 1 gives
    the final norm. A module that never moved stays at the base. With the norms of another method
    as `final`, the result has this method's directions and the other's norms.

    Source: arXiv 2605.11739, equation 19 (figure 14); figure 5c is beta = 1 per module. The paper
    does not say which of the two (19) means; section 3.3 scales each module.

    Attributes:
        final: Norm of each module by label (`module_norms` of the final update), or of the whole
            update, which gives all modules the same factor.
        beta: Any finite number.
    """

    kind: ClassVar[str] = "norm"
    final: Norms
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_finite("beta", self.beta)
        check_norms("final", self.final)

    @property
    def value(self) -> float:
        """The beta."""
        return self.beta

    @property
    def setting(self) -> str:
        """Granularity."""
        return "per=module" if isinstance(self.final, Mapping) else "per=whole"

    def factor(self, early: float, final: float) -> float:
        """`s(beta)` of an update of norm `early`; 1 where it never moved."""
        return 1.0 + self.beta * (final / early - 1.0) if early > 0 else 1.0

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The scaled update on the base."""
        if not isinstance(self.final, Mapping):
            scale = self.factor(update_norm(update), self.final)
            return WholeScaling(scale=scale).apply(update, heads)
        final = self.final
        by_tensor = tensor_places(update, heads)
        check_labels("final", final, (p for found in by_tensor.values() for p in found))

        def scaled(place: Place, base: Tensor, tuned: Tensor) -> Tensor:
            return point(base, tuned, self.factor(norm(tuned - base), final[place.label]))

        return Changed(update=update, compute=by_place(update, by_tensor, scaled))
