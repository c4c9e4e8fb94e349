"""What training changed: tuned minus base, one tensor at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from effopd.errors import NonFiniteError, ParameterMismatchError
from effopd.models.layout import Place
from effopd.models.weights import Weights, open_weights


class Update(Protocol):
    """Tuned minus base of every tensor, read one at a time.

    `rows` are the first and past-the-last index of the first axis; None reads all of it.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        ...

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Tuned minus base: float32, or float64 where one of the two is stored so."""
        ...

    def read_base(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The base's tensor in its stored dtype; not to be changed in place."""
        ...

    def read_tuned(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tuned tensor; not to be changed in place."""
        ...


class PairUpdate:
    """Update between two checkpoints of one architecture.

    Args:
        base: Before training.
        tuned: After it.

    Raises:
        ParameterMismatchError: They differ in the name or shape of a tensor.
    """

    def __init__(self, base: Weights, tuned: Weights) -> None:
        _check_same(base.shapes, tuned.shapes)
        self._base, self._tuned = base, tuned

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, in the order of the base."""
        return self._base.shapes

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Tuned minus base, subtracted in float32 (float64 where one is stored so).

        Raises:
            NonFiniteError: It holds a NaN or an infinity.
        """
        base, tuned = self._base.read(name, rows), self._tuned.read(name, rows)
        update = tuned.to(wide_dtype(base.dtype, tuned.dtype), copy=True).sub_(base)
        if not is_finite(update):
            raise NonFiniteError(
                f"the update of {name} holds a NaN or an infinity: one of the two checkpoints is "
                "damaged or has diverged"
            )
        return update

    def read_base(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The base's tensor in its stored dtype."""
        return self._base.read(name, rows)

    def read_tuned(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tuned tensor in its stored dtype."""
        return self._tuned.read(name, rows)


def open_update(base_dir: Path, tuned_dir: Path) -> Update:
    """Update from one model directory to another, or of a LoRA adapter of the first."""
    return PairUpdate(open_weights(base_dir), open_weights(tuned_dir))


def read_place(update: Update, place: Place) -> Tensor:
    """The update at a place, `[m, n]` for a matrix; of a fused or batched tensor only that part."""
    if place.batched and place.expert is not None:
        whole = update.read(place.name, (place.expert, place.expert + 1))[0]
        return whole if place.rows is None else whole[place.rows[0] : place.rows[1]]
    return update.read(place.name, place.rows)


def wide_dtype(*stored: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float32, or float64 when one of `stored` is."""
    return torch.float64 if torch.float64 in stored else torch.float32


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; makes no copy."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # both are NaN when one element is
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _check_same(base: Mapping[str, tuple[int, ...]], tuned: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(base.keys() | tuned.keys()):
        if name not in base or name not in tuned:
            has, lacks = ("base", "tuned") if name in base else ("tuned", "base")
            raise ParameterMismatchError(
                f"{name} is in the {has} checkpoint and not in the {lacks} one: they are of "
                "different architectures, or one ties its head to the embedding and the other "
                "does not; save both in the same way"
            )
        if base[name] != tuned[name]:
            raise ParameterMismatchError(
                f"{name} has shape {base[name]} in the base and {tuned[name]} in the tuned "
                "checkpoint: they are of different architectures, or one vocabulary was padded; "
                "save both with the same config"
            )
