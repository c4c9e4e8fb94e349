"""What training changed: tuned minus base, one tensor at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import NonFiniteError, ParameterMismatchError
from effopd.models.adapters import CONFIG, LoraAdapter
from effopd.models.layout import Place
from effopd.models.weights import (
    Weights,
    check_name,
    check_rows,
    is_finite,
    open_weights,
    wide_dtype,
)
from effopd.precision import float32_products


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

        A NaN or an infinity is refused with NonFiniteError.
        """
        return _subtract(name, self._tuned.read(name, rows), self._base.read(name, rows))

    def read_base(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The base's tensor in its stored dtype."""
        return self._base.read(name, rows)

    def read_tuned(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tuned tensor in its stored dtype."""
        return self._tuned.read(name, rows)


class AdapterUpdate:
    """Update that a LoRA adapter makes to its base: `scaling * B @ A`, never merged.

    Tensors that the adapter does not name have a zero update; those it holds whole (PEFT's
    modules_to_save) have theirs minus the base's. An adapted embedding leaves a head tied to it as
    it was, as PEFT does until it merges.

    Args:
        base: The model that the adapter was trained on.
        directory: With adapter_config.json and adapter_model.safetensors.
    """

    def __init__(self, base: Weights, directory: Path) -> None:
        self._base = base
        self._adapter = LoraAdapter(directory, base.shapes)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor of the base, adapted or not."""
        return self._base.shapes

    @property
    def adapted(self) -> frozenset[str]:
        """The tensors that the adapter names; the others have a zero update."""
        return self._adapter.factored | self._adapter.replaced

    def factors(self, name: str) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]] | None:
        """The two factors of the update, the first one scaled; None where it is none of low rank.

        Args:
            name: A tensor of the base.

        Returns:
            Both in float32, or float64 when stored so.
        """
        check_name(name, self.shapes, "the base")
        if name in self._adapter.replaced or name not in self._adapter.factored:
            return None
        return self._adapter.factors(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The update in float32, or float64 where base or adapter are stored so.

        A NaN or an infinity is refused with NonFiniteError.
        """
        check_name(name, self.shapes, "the base")
        check_rows(name, self.shapes[name], rows)
        update = torch.zeros(())
        if name in self._adapter.replaced:
            replacement = self._adapter.replacement(name)
            part = replacement[slice(*rows)] if rows else replacement
            update = _subtract(name, part, self._base.read(name, rows))
        if name in self._adapter.factored:
            left_mr, right_rn = self._adapter.factors(name)
            with float32_products():
                update = (left_mr[slice(*rows)] if rows else left_mr) @ right_rn + update
        shape = (rows[1] - rows[0], *self.shapes[name][1:]) if rows else self.shapes[name]
        update = update.to(wide_dtype(self._base.dtype(name), update.dtype))
        return _checked(name, update if update.shape == shape else update.expand(shape).clone())

    def read_base(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The base's tensor in its stored dtype."""
        return self._base.read(name, rows)

    def read_tuned(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Base plus update in the update's dtype: an unmerged adapter is not rounded."""
        return self.read(name, rows).add_(self.read_base(name, rows))


def open_update(base_dir: Path, tuned_dir: Path) -> Update:
    """Update from one model directory to another, or the one of a LoRA adapter of the first."""
    base = open_weights(base_dir)
    if (tuned_dir / CONFIG).is_file():
        return AdapterUpdate(base, tuned_dir)
    return PairUpdate(base, open_weights(tuned_dir))


def read_place(update: Update, place: Place) -> Tensor:
    """The update at a place, `[m, n]` for a matrix; of a fused or batched tensor only that part."""
    return read_at(update.read, place)


def read_at(read: Callable[[str, tuple[int, int] | None], Tensor], place: Place) -> Tensor:
    """The same of anything that is read by name and rows, such as `Update.read_base`."""
    if place.batched and place.expert is not None:
        whole = read(place.name, (place.expert, place.expert + 1))[0]
        return whole if place.rows is None else whole[place.rows[0] : place.rows[1]]
    return read(place.name, place.rows)


def _subtract(name: str, tuned: Tensor, base: Tensor) -> Tensor:
    """Tuned minus base; only the result is a wide copy, unless base holds no floating numbers."""
    wide = wide_dtype(base.dtype, tuned.dtype)
    subtracted = base if base.is_floating_point() else base.to(wide)
    return _checked(name, tuned.to(wide, copy=True).sub_(subtracted))


def _checked(name: str, update: Tensor) -> Tensor:
    if not is_finite(update):
        raise NonFiniteError(
            f"the update of {name} holds a NaN or an infinity: one of the two checkpoints is "
            "damaged or has diverged"
        )
    return update


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
