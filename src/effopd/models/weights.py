"""Tensors of a checkpoint, one at a time.

A safetensors file is memory-mapped anew for every read, so a tensor that is dropped gives its pages
back: a model of any size is read in the memory of the tensors held.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, ParameterMismatchError
from effopd.models.directory import (
    ADAPTER_CONFIG,
    INDEX,
    SINGLE,
    find_model,
    find_shards,
    read_config,
)  # fmt: skip
from effopd.models.names import extra, is_head, plain_names

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "embed_in", "word_embeddings", "embeddings", "tok_embeddings"}
)
_ROWS = 2**14
"""Of head and embedding, compared at a time."""


class Weights(ABC):
    """Named tensors that are read one at a time, of `shapes` that are known without reading any."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
        self.shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(dict(shapes))
        self._where = where

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype."""
        check_name(name, self.shapes, self._where)
        return self._dtype(name)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tensor, or some of its rows, on the CPU as stored; not to be changed in place."""
        check_name(name, self.shapes, self._where)
        check_rows(name, self.shapes[name], rows)
        return self._read(name, rows)

    @abstractmethod
    def _dtype(self, name: str) -> torch.dtype: ...

    @abstractmethod
    def _read(self, name: str, rows: tuple[int, int] | None) -> Tensor: ...


class MemoryWeights(Weights):
    """Tensors already in memory, such as a `state_dict`.

    A tensor under two names, such as a head tied to the embedding, counts once, under the first
    name: that is how a checkpoint stores it. Nothing is copied.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors: dict[str, Tensor] = {}
        seen: set[tuple[Any, ...]] = set()
        for name, tensor in tensors.items():
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if tensor.data_ptr() == 0 or place not in seen:  # 0: empty, or without data
                self._tensors[name] = tensor.detach()
            seen.add(place)
        super().__init__({n: tuple(t.shape) for n, t in self._tensors.items()}, "the tensors given")

    def _dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def _read(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        tensor = self._tensors[name]
        return (tensor if rows is None else tensor[rows[0] : rows[1]]).cpu()


class StoredTensor(NamedTuple):
    """Where a tensor is on disk, its shape, and its dtype as safetensors calls it ("BF16")."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class SafetensorsWeights(Weights):
    """Tensors of safetensors files, memory-mapped, by the names they are to be read under."""

    def __init__(self, stored: Mapping[str, StoredTensor]) -> None:
        for name, tensor in stored.items():
            if tensor.dtype not in DTYPES:
                raise CheckpointError(
                    f"{name} in {tensor.file} is stored as {tensor.dtype}; can be read: "
                    f"{', '.join(DTYPES)}. Convert the model to one of them"
                )
        super().__init__({name: each.shape for name, each in stored.items()}, "the checkpoint")
        self._stored = dict(stored)

    def _dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._stored[name].dtype]

    def _read(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        tensor = self._stored[name]
        try:
            with safe_open(tensor.file, framework="pt") as file:
                if rows is None:
                    return file.get_tensor(tensor.name)
                return file.get_slice(tensor.name)[rows[0] : rows[1]]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{tensor.file}: {name} cannot be read ({error})") from error


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by name in alphabetical order.

    A missing file is a ConfigError, a damaged one a CheckpointError.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing or no regular file")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {
                name: StoredTensor(path, name, tuple(each.get_shape()), each.get_dtype())
                for name, each in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): download or export it again"
        ) from error


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model directory, in the order of the files and then of the alphabet."""
    shard_of = find_shards(directory)
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(shard_of.values())) or (SINGLE,):
        for name, stored in read_header(directory / file).items():
            if name in found:
                raise CheckpointError(
                    f"{name} is in both {found[name].file.name} and {file} of {directory}: "
                    "these shards do not belong together"
                )
            if shard_of and name not in shard_of:
                raise CheckpointError(
                    f"{file} of {directory} holds {name}, which {INDEX} does not list: "
                    "they belong to different models"
                )
            found[name] = stored
    for name, shard in shard_of.items():
        if name not in found or found[name].file.name != shard:
            raise CheckpointError(
                f"{INDEX} of {directory} lists {name}, which is not in {shard}: "
                "complete the download, or export the model again"
            )
    return found


def open_weights(path: str | Path, revision: str | None = None) -> Weights:
    """The weights of a model, by the names that transformers has for them.

    What wrappers of trainers add to names is left out, and so is a stored head that is the
    embedding.
    """
    directory = find_model(path, revision)
    if (directory / ADAPTER_CONFIG).is_file():
        raise ConfigError(f"{path} is an adapter: name its base model first and open both together")
    config = read_config(directory, missing={})
    if config.get("quantization_config"):
        raise ConfigError(
            f"{path} holds quantized weights, whose numbers are not the model's: "
            "dequantize the model and save that"
        )
    stored = stored_tensors(directory)
    named = {plain: stored[name] for name, plain in plain_names(stored, path).items()}
    copy = tied_copy(SafetensorsWeights(named), config, path)
    return SafetensorsWeights({name: each for name, each in named.items() if name != copy})


# Heads that are the embedding ---------------------------------------------------------------------


def ties_head(config: Mapping[str, Any]) -> bool | None:
    """Whether the head is the embedding, by the content of a config.json; None where unknown."""
    text = config.get("text_config")
    sections = [config, *([text] if isinstance(text, dict) else [])]
    said = {section.get("tie_word_embeddings") for section in sections} - {None}
    kind = config.get("model_type")
    if not said and isinstance(kind, str):  # what the architecture does by default
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        try:
            whole = CONFIG_MAPPING[kind]()
            said = {whole.tie_word_embeddings, whole.get_text_config().tie_word_embeddings}
        except (AttributeError, KeyError, ValueError):  # unknown, or no single language model
            return None
    return bool(said.pop()) if len(said) == 1 else None


def is_embedding(name: str) -> bool:
    """Whether it is the weight of the embedding of tokens."""
    return name.endswith(".weight") and name.split(".")[-2] in _EMBEDDINGS and extra(name) is None


def equals_embedding(weights: Weights, head: str) -> bool | None:
    """Whether a stored head has the values of the embedding; None without one of its shape."""
    shape = weights.shapes[head]
    found = filter(is_embedding, weights.shapes)
    embedding = next((name for name in found if weights.shapes[name] == shape), None)
    if embedding is None or len(shape) != 2:
        return None
    for first in range(0, shape[0], _ROWS):
        rows = first, min(first + _ROWS, shape[0])
        ours, theirs = weights.read(head, rows), weights.read(embedding, rows)
        if not torch.equal(ours.to(torch.float64), theirs.to(torch.float64)):
            return False
    return True


def check_tied_shapes(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], where: object
) -> None:
    """Refuses a tied head that is stored in another shape than its embedding."""
    head = next(filter(is_head, shapes), None)
    embedding = next(filter(is_embedding, shapes), None)
    if head is None or embedding is None or not ties_head(config) or 0 in shapes[head]:
        return
    if shapes[head] != shapes[embedding]:
        raise ParameterMismatchError(
            f"config.json of {where} ties the head to the embedding, but {head} is stored with "
            f"shape {shapes[head]} and {embedding} with {shapes[embedding]}: save the model again "
            "without the head, or set tie_word_embeddings to what the weights are"
        )


def tied_copy(weights: Weights, config: Mapping[str, Any], where: object) -> str | None:
    """Name of a stored head that is the embedding, as config.json says; None without one."""
    check_tied_shapes(weights.shapes, config, where)
    head = next(filter(is_head, weights.shapes), None)
    if head is None or ties_head(config) is not True:
        return None
    if 0 in weights.shapes[head]:  # a sharded trainer's place holder
        return head
    equal = equals_embedding(weights, head)
    if equal is False:
        raise ParameterMismatchError(
            f"config.json of {where} ties the head to the embedding, but {head} is stored with "
            "different values: set tie_word_embeddings to what the weights are"
        )
    return head if equal else None


# Small facts --------------------------------------------------------------------------------------


def wide_dtype(*stored: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float32, or float64 when one of `stored` is."""
    return torch.float64 if torch.float64 in stored else torch.float32


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; makes no copy."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)  # both are NaN when one element is
    return bool(torch.isfinite(low) and torch.isfinite(high))


def check_name(name: str, shapes: Mapping[str, Any], where: str) -> None:
    """Refuses a tensor that is not there with ParameterMismatchError."""
    if name not in shapes:
        raise ParameterMismatchError(
            f"no tensor {name!r} in {where}, which holds {len(shapes)} tensors"
            + (f" such as {next(iter(shapes))}" if shapes else "")
        )


def check_rows(name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> None:
    """Refuses rows that the first axis does not have with ParameterMismatchError."""
    if rows is not None and not (shape and 0 <= rows[0] < rows[1] <= shape[0]):
        raise ParameterMismatchError(f"{name} has shape {shape}: no rows {rows[0]} to {rows[1]}")
