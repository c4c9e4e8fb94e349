"""What training changed: tuned minus base, one tensor at a time.

Legend: m rows and n columns of a tensor, r rank of an adapter.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.directory import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_model, read_config
from effopd.models.layout import ModuleTensor, module_of
from effopd.models.lora import read_lora_settings
from effopd.models.names import by_reason, counterparts, draft_layers, extra, is_head, unwrapped
from effopd.models.weights import (
    SafetensorsWeights,
    Weights,
    check_name,
    check_rows,
    equals_embedding,
    is_embedding,
    is_finite,
    open_weights,
    read_header,
    wide_dtype,
)
from effopd.precision import float32_products

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?"
)


class Update(ABC):
    """Tuned minus base of every tensor that both have, by its name in the base, read one at a time.

    `rows` are the first and past-the-last index of the first axis; None reads all of it. `left_out`
    are the tensors that only one of the two has, and why that does no harm.
    """

    def __init__(
        self, base: Weights, shapes: Mapping[str, tuple[int, ...]], left_out: Mapping[str, str]
    ) -> None:
        self._base, self.shapes, self.left_out = base, shapes, left_out
        self._held: dict[tuple[str, str], Tensor] | None = None

    @contextmanager
    def holding(self, bases: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Inside, a tensor of base and tuned model is read once, however often it is asked for.

        All that was read is in memory until the end; `bases` are tensors of the base that are there
        already. For one thread.
        """
        self._held = {("base", name): tensor for name, tensor in (bases or {}).items()}
        try:
            yield
        finally:
            self._held = None

    def _once(
        self, side: str, name: str, rows: tuple[int, int] | None, read: Callable[..., Tensor]
    ) -> Tensor:
        """Rows of a held tensor; `read(rows)` where nothing is held."""
        if self._held is None:
            return read(rows)
        if (side, name) not in self._held:
            self._held[side, name] = read(None)
        return self._held[side, name][slice(*rows) if rows else ...]

    def base_dtype(self, name: str) -> torch.dtype:
        """The dtype that the base stores a tensor in; reads no numbers."""
        check_name(name, self.shapes, "the update")
        return self._base.dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """Tuned minus base: float32, or float64 where one of the two is stored so."""
        check_name(name, self.shapes, "the update")
        return self._read(name, rows)

    def read_base(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The base's tensor in its stored dtype; not to be changed in place."""
        check_name(name, self.shapes, "the update")
        return self._once("base", name, rows, lambda r: self._base.read(name, r))

    def read_tuned(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tuned tensor as stored; of an adapter base plus update, in the update's dtype.

        It is not to be changed in place.
        """
        return self._once(
            "tuned", name, rows, lambda r: self.read(name, r).add_(self.read_base(name, r))
        )

    @abstractmethod
    def _read(self, name: str, rows: tuple[int, int] | None) -> Tensor: ...


class PairUpdate(Update):
    """Update between two checkpoints of one architecture, of the tensors that both have.

    Names may differ in their leading parts; `base_names` has that in the base of each in the tuned
    checkpoint. `drafts` are numbers of layers that are no part of the model. A tensor that the
    logits need and one of them lacks, or has in another shape, is a ParameterMismatchError.
    """

    def __init__(self, base: Weights, tuned: Weights, drafts: Collection[int] = ()) -> None:
        names, left_out = _compared(base, tuned, drafts)
        super().__init__(base, {name: base.shapes[name] for name in names}, left_out)
        self._tuned, self._tuned_names = tuned, names
        self.base_names = {there: name for name, there in names.items()}

    def _read(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        return _subtract(name, self.read_tuned(name, rows), self.read_base(name, rows))

    def read_tuned(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tuned tensor in its stored dtype; not to be changed in place."""
        check_name(name, self.shapes, "the update")
        there = self._tuned_names[name]
        return self._once("tuned", name, rows, lambda r: self._tuned.read(there, r))


class AdapterUpdate(Update):
    """Update that a LoRA adapter makes to its base: `scaling * B @ A`, never merged.

    Tensors that the adapter does not name have a zero update; those it holds whole (PEFT's
    modules_to_save) have theirs minus the base's. An adapted embedding leaves a head tied to it as
    it was, as PEFT does until it merges. `adapted` are the tensors that the adapter names. What is
    no plain LoRA is a ConfigError, a damaged file a CheckpointError, an adapter of another model a
    ParameterMismatchError.
    """

    def __init__(self, base: Weights, directory: Path) -> None:
        super().__init__(base, base.shapes, {})
        self._settings = read_lora_settings(directory)
        if not (directory / ADAPTER_WEIGHTS).exists():
            raise ConfigError(
                f"{directory} holds no {ADAPTER_WEIGHTS} (pickled weights are refused): save the "
                "adapter with save_pretrained(..., safe_serialization=True)"
            )
        self._weights = SafetensorsWeights(read_header(directory / ADAPTER_WEIGHTS))
        self._replacing: dict[str, str] = {}  # base tensor -> tensor of the adapter
        self._factors: dict[str, dict[str, str]] = {}  # module -> side -> tensor of the adapter
        self._embeddings: set[str] = set()
        # Find out what each tensor of the adapter is, and of which tensor of the base.
        for stored in self._weights.shapes:
            name = unwrapped(stored)
            if factor := _FACTOR.fullmatch(name):
                adapted = f"{factor['module']}.weight"
                module = counterparts([adapted], self.shapes).get(adapted, adapted)
                module = module.removesuffix(".weight")
                self._factors.setdefault(module, {})[factor["side"]] = stored
                if factor["embedding"]:
                    self._embeddings.add(module)
            elif name == stored or "lora_" in name:
                raise CheckpointError(
                    f"{stored} in {directory} is of no kind that plain LoRA has: save the adapter "
                    "with save_pretrained of PEFT, or merge it into its base model"
                )
            else:
                name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
                self._replacing[counterparts([name], self.shapes).get(name, name)] = stored
        self.adapted = frozenset(self._replacing) | {f"{m}.weight" for m in self._factors}
        # Check that each fits the base.
        targets = [(name, self._weights.shapes[t]) for name, t in self._replacing.items()]
        for module, pair in self._factors.items():
            if len(pair) != 2:
                raise CheckpointError(
                    f"{directory} holds only one of the two factors of {module}: save it again"
                )
            a, b = self._weights.shapes[pair["A"]], self._weights.shapes[pair["B"]]
            rank = self._settings.of(module)[0]
            if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
                raise ParameterMismatchError(
                    f"the factors of {module} have shapes {a} and {b}, but {ADAPTER_CONFIG} of "
                    f"{directory} asks for [{rank}, in] and [out, {rank}]"
                )
            product = (a[1], b[0]) if self._is_transposed(module) else (b[0], a[1])
            targets.append((f"{module}.weight", product))
        for name, shape in targets:
            if self.shapes.get(name) != shape:
                why = f" as {shape}, the base holds {self.shapes.get(name)}: it is of another model"
                if name not in self.shapes:
                    why = (
                        ", which the base does not hold: it is of another model, or the base ties "
                        "its head to the embedding; save the base untied"
                    )
                raise ParameterMismatchError(f"{directory} adapts {name}{why}")

    def factors(self, name: str) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]] | None:
        """The two factors of the update, the first one scaled; None where it is none of low rank.

        Both are in float32, or float64 when stored so.
        """
        check_name(name, self.shapes, "the base")
        return None if name in self._replacing else self._low_rank(name)

    def _read(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        check_rows(name, self.shapes[name], rows)
        update = torch.zeros(())
        if name in self._replacing:
            tuned = self._weights.read(self._replacing[name], rows)
            update = _subtract(name, tuned, self.read_base(name, rows))
        if pair := self._low_rank(name):
            left_mr, right_rn = pair
            with float32_products():
                update = (left_mr[slice(*rows)] if rows else left_mr) @ right_rn + update
        shape = (rows[1] - rows[0], *self.shapes[name][1:]) if rows else self.shapes[name]
        update = update.to(wide_dtype(self._base.dtype(name), update.dtype))
        return _checked(name, update if update.shape == shape else update.expand(shape).clone())

    def _low_rank(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The factors [m, r] and [r, n], the first one scaled; None where there are none."""
        module = name.removesuffix(".weight")
        pair = self._factors.get(module) if name.endswith(".weight") else None
        if pair is None:
            return None
        a_rn, b_mr = self._weights.read(pair["A"]), self._weights.read(pair["B"])
        wide = wide_dtype(a_rn.dtype, b_mr.dtype)
        left, right = b_mr.to(wide), a_rn.to(wide)
        if self._is_transposed(module):
            left, right = right.T, left.T
        return left * self._settings.of(module)[1], right

    def _is_transposed(self, module: str) -> bool:
        return self._settings.transposed or module in self._embeddings


def open_update(
    base: str | Path,
    tuned: str | Path,
    *,
    base_revision: str | None = None,
    tuned_revision: str | None = None,
) -> Update:
    """What training changed from one model to another, or what a LoRA adapter of the first changes.

    Both are model directories or repositories of the Hugging Face Hub, at a commit, tag or branch.

    Raises:
        ConfigError: One of them is no model, or its weights are pickled or quantized.
        CheckpointError: A file is damaged.
        ParameterMismatchError: The two are of different architectures.
    """
    base, tuned = find_model(base, base_revision), find_model(tuned, tuned_revision)
    before = open_weights(base)
    if (tuned / ADAPTER_CONFIG).is_file():
        return AdapterUpdate(before, tuned)
    config = read_config(base, missing={})
    return PairUpdate(before, open_weights(tuned), draft_layers(config))


def say_left_out(update: Update, say: Callable[[str], None], where: str = "") -> None:
    """Tells which tensors an update does not have, one sentence for each reason, behind `where`."""
    for why, names in by_reason(update.left_out).items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        say(f"{where}{len(names)} tensors not compared, {why} ({shown})")


def read_module(update: Update, module: ModuleTensor) -> Tensor:
    """A module's update, `[m, n]` for a matrix; of a fused or batched tensor only that part."""
    return read_at(update.read, module)


def read_at(read: Callable[[str, tuple[int, int] | None], Tensor], module: ModuleTensor) -> Tensor:
    """The same of anything that is read by name and rows, such as `Update.read_base`."""
    if module.batched and module.expert is not None:
        whole = read(module.name, (module.expert, module.expert + 1))[0]
        return whole if module.rows is None else whole[module.rows[0] : module.rows[1]]
    return read(module.name, module.rows)


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
    pairs = counterparts(base.shapes, tuned.shapes)
    # A head stored in place of the embedding that it is tied to, and the other's embedding.
    either = [{n for n in each.shapes if is_head(n) or is_embedding(n)} for each in (base, tuned)]
    if all(len(names) == 1 for names in either):
        ours, theirs = (names.pop() for names in either)
        if is_head(ours) != is_head(theirs):
            pairs[ours] = theirs
    # Tensors without a counterpart: a copy of the embedding, or no part of the model of text.
    left_out: dict[str, str] = {}
    missing: dict[str, list[str]] = {"base": [], "tuned": []}
    sides = ("base", base, pairs.keys()), ("tuned", tuned, set(pairs.values()))
    for side, weights, paired in sides:
        for name in [name for name in weights.shapes if name not in paired]:
            why = extra(name, drafts)
            if is_head(name):
                copied = equals_embedding(weights, name)
                why = "the embedding, stored a second time" if copied else None
            missing[side] += [name] if why is None else []
            left_out |= {name: f"in the {side} checkpoint only: {why}"} if why else {}
    if any(missing.values()) or not pairs:
        raise ParameterMismatchError(_difference(missing, base, tuned))
    # Tensors of different shapes: only those that are no part of the model of text may differ.
    for name, there in sorted(pairs.items()):
        shapes = base.shapes[name], tuned.shapes[there]
        if shapes[0] == shapes[1]:
            continue
        why = extra(name, drafts)
        if why is None:
            remedy = (
                "they are of different architectures, or one vocabulary was padded; save both with "
                "the same config"
            )
            if 0 in map(math.prod, shapes):
                remedy = (
                    "the empty one was saved by a sharded trainer without gathering its weights; "
                    "save it again with stage3_gather_16bit_weights_on_model_save (DeepSpeed) or a "
                    "full state dict (FSDP)"
                )
            raise ParameterMismatchError(
                f"{name} has shape {shapes[0]} in the base and {shapes[1]} in the tuned "
                f"checkpoint: {remedy}"
            )
        del pairs[name]
        left_out[name] = f"of other shapes in the two checkpoints: {why}"
    return pairs, left_out


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
    depths = []
    for weights in (base, tuned):
        layers = (module_of(name).layer for name in weights.shapes if extra(name) is None)
        depths.append(1 + max((layer for layer in layers if layer is not None), default=-1))
    if depths[0] != depths[1]:
        found.append(f"the base has {depths[0]} layers and the tuned model {depths[1]}")
    return (
        "; ".join(found or ["one of the checkpoints holds no tensors"])
        + ". They are of different architectures, or one is not whole"
    )
