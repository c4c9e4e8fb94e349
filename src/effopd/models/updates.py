"""What training changed: tuned minus base, one tensor at a time."""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import NonFiniteError, ParameterMismatchError
from effopd.models.adapters import CONFIG, LoraAdapter
from effopd.models.layout import Place, place_of
from effopd.models.names import by_reason, counterparts, draft_layers, extra, is_head
from effopd.models.tying import equals_embedding, is_embedding
from effopd.models.weights import (
    Weights,
    check_name,
    check_rows,
    is_finite,
    open_weights,
    read_config,
    wide_dtype,
)
from effopd.precision import float32_products


class Update(Protocol):
    """Tuned minus base of every tensor, read one at a time.

    `rows` are the first and past-the-last index of the first axis; None reads all of it.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor that both have, by its name in the base."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Tensors that only one of the two has, and why that does no harm."""
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
    """Update between two checkpoints of one architecture, of the tensors that both have.

    Args:
        base: Before training.
        tuned: After it; names may differ in their leading parts.
        drafts: Numbers of layers that are no part of the model, see `draft_layers`.

    Attributes:
        base_names: Name of each tensor in the tuned checkpoint to that in the base.

    Raises:
        ParameterMismatchError: A tensor that the logits need is in one of them only, or has
            different shapes.
    """

    def __init__(self, base: Weights, tuned: Weights, drafts: Collection[int] = ()) -> None:
        self._base, self._tuned = base, tuned
        self._tuned_names, self._left_out = _compared(base, tuned, drafts)
        self.base_names = {there: name for name, there in self._tuned_names.items()}
        self._shapes = {name: base.shapes[name] for name in self._tuned_names}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor that both have, in the order of the base."""
        return self._shapes

    @property
    def left_out(self) -> Mapping[str, str]:
        """Tensors that only one of the two has, and why that does no harm."""
        return self._left_out

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Tuned minus base, subtracted in float32 (float64 where one is stored so).

        A NaN or an infinity is refused with NonFiniteError.
        """
        return _subtract(name, self.read_tuned(name, rows), self._base.read(name, rows))

    def read_base(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The base's tensor in its stored dtype."""
        check_name(name, self._shapes, "the update")
        return self._base.read(name, rows)

    def read_tuned(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tuned tensor in its stored dtype."""
        check_name(name, self._shapes, "the update")
        return self._tuned.read(self._tuned_names[name], rows)


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
    def left_out(self) -> Mapping[str, str]:
        """Nothing: the adapter is checked against the base."""
        return {}

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
    config = read_config(base_dir) if (base_dir / "config.json").is_file() else {}
    return PairUpdate(base, open_weights(tuned_dir), draft_layers(config))


def say_left_out(update: Update, say: Callable[[str], None], where: str = "") -> None:
    """Tells which tensors an update does not have, one sentence for each reason.

    Args:
        update: Of which.
        say: Receives the sentences.
        where: Which update it is, in front of each.
    """
    for why, names in by_reason(update.left_out).items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        say(f"{where}{len(names)} tensors not compared, {why} ({shown})")


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


def _compared(
    base: Weights, tuned: Weights, drafts: Collection[int]
) -> tuple[dict[str, str], dict[str, str]]:
    """Name in the base to that in the tuned checkpoint; and what only one of them has, and why."""
    pairs = counterparts(base.shapes, tuned.shapes) | _tied_counterpart(base, tuned)
    sides = ("base", base, pairs.keys()), ("tuned", tuned, set(pairs.values()))
    left_out: dict[str, str] = {}
    missing: dict[str, list[str]] = {"base": [], "tuned": []}
    for side, weights, paired in sides:
        for name in weights.shapes:
            if name in paired:
                continue
            why = _why_alone(name, weights, drafts)
            if why is None:
                missing[side].append(name)
            else:
                left_out[name] = f"in the {side} checkpoint only: {why}"
    if any(missing.values()) or not pairs:
        raise ParameterMismatchError(_difference(missing, base, tuned))
    for name, there in sorted(pairs.items()):
        if base.shapes[name] == tuned.shapes[there]:
            continue
        why = extra(name, drafts)
        if why is None:
            raise ParameterMismatchError(_other_shape(name, base.shapes[name], tuned.shapes[there]))
        del pairs[name]
        left_out[name] = f"of other shapes in the two checkpoints: {why}"
    return pairs, left_out


def _tied_counterpart(base: Weights, tuned: Weights) -> dict[str, str]:
    """A head stored in place of the embedding that it is tied to, and the other's embedding."""
    either = [{n for n in each.shapes if is_head(n) or is_embedding(n)} for each in (base, tuned)]
    if not all(len(names) == 1 for names in either):
        return {}
    ours, theirs = (names.pop() for names in either)
    return {ours: theirs} if is_head(ours) != is_head(theirs) else {}


def _why_alone(name: str, weights: Weights, drafts: Collection[int]) -> str | None:
    """Why one checkpoint may have a tensor that the other lacks; None where it may not."""
    if is_head(name):
        return "the embedding, stored a second time" if equals_embedding(weights, name) else None
    return extra(name, drafts)


def _difference(missing: Mapping[str, list[str]], base: Weights, tuned: Weights) -> str:
    """What tells two checkpoints apart, in words."""
    heads = [(side, name) for side, names in missing.items() for name in names if is_head(name)]
    if len(heads) == sum(map(len, missing.values())) == 1:
        ((side, head),) = heads
        other = "tuned" if side == "base" else "base"
        return (
            f"{head} is in the {side} checkpoint only, with other values than its embedding: the "
            f"{other} one ties its head to the embedding, or lacks it. Save both in the same way"
        )
    found = [
        f"{len(names)} tensors are in the {side} checkpoint only, such as {min(names)}"
        for side, names in missing.items()
        if names
    ]
    depths = [
        1 + max((place.layer for name in each.shapes if (place := place_of(name)).layer is not None
                 and extra(name) is None), default=-1)
        for each in (base, tuned)
    ]  # fmt: skip
    if depths[0] != depths[1]:
        found.append(f"the base has {depths[0]} layers and the tuned model {depths[1]}")
    return (
        "; ".join(found or ["one of the checkpoints holds no tensors"])
        + ". They are of different architectures, or one is not whole"
    )


def _other_shape(name: str, base: tuple[int, ...], tuned: tuple[int, ...]) -> str:
    found = f"{name} has shape {base} in the base and {tuned} in the tuned checkpoint: "
    if 0 in (math.prod(base), math.prod(tuned)):
        return found + (
            "the empty one was saved by a sharded trainer without gathering its weights; save it "
            "again with stage3_gather_16bit_weights_on_model_save (DeepSpeed) or a full state dict "
            "(FSDP)"
        )
    return found + (
        "they are of different architectures, or one vocabulary was padded; save both with the "
        "same config"
    )
