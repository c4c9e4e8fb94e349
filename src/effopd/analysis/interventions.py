"""What becomes of a base when a part of its update is kept, removed, scaled or exchanged.

An intervention is a frozen setting. `apply(update)` gives `Changed` weights: nothing is computed
until a tensor is read, and reading one needs that tensor's two endpoints and no other. So the same
object streams into a new checkpoint and is written over a live model (`analysis/applying.py`), and
what it gives is again the second endpoint of an update.

A module is a `Place`: a tensor, one part of a fused tensor, or one expert. Arithmetic is in fp32 or
wider and is rounded once, to the dtype in which the base stores the tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from effopd.analysis.modules import Compute
from effopd.errors import NonFiniteError
from effopd.models.layout import Heads
from effopd.models.updates import Update
from effopd.models.weights import is_finite


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Weights that are computed when they are read; a `Weights`.

    Attributes:
        update: Base and tuned model.
        compute: Name to the changed tensor in fp32 or wider; called for floating-point tensors.
    """

    update: Update
    compute: Compute

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the base."""
        return self.update.shapes

    def dtype(self, name: str) -> torch.dtype:
        """That of the base."""
        return self.update.read_base(name).dtype

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The changed tensor, rounded once to the base's dtype; integers are the base's.

        The whole tensor is computed, also where only some `rows` are asked for.

        Raises:
            NonFiniteError: It holds a NaN or an infinity.
        """
        base = self.update.read_base(name)
        found = self.compute(name).to(base.dtype) if base.is_floating_point() else base
        if base.is_floating_point() and not is_finite(found):
            raise NonFiniteError(
                f"{name} is not finite after the intervention, as {base.dtype}: a checkpoint is "
                "damaged, or the update is scaled too far"
            )
        return found if rows is None else found[slice(*rows)]


class Intervention(Protocol):
    """A pure function from an update to changed weights.

    Attributes:
        kind: Its name in commands and tables.
    """

    kind: ClassVar[str]

    @property
    def value(self) -> float | None:
        """The number that a sweep varies; None without one."""
        ...

    @property
    def setting(self) -> str:
        """The other settings as text, equal for all members of a sweep."""
        ...

    def apply(self, update: Update, heads: Heads | None = None) -> Changed:
        """The changed weights.

        Args:
            update: Base and tuned model.
            heads: Make q, k and v modules of their own where a model fuses them.

        Raises:
            ParameterMismatchError: The model lacks what the intervention is about.
        """
        ...
