"""Writing a changed copy of a model, one tensor at a time."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.checkpoints import MANIFEST, write_checkpoint
from effopd.models.saving import CONFIG, GENERATION, TOKENIZER_FILES
from effopd.models.weights import (
    DTYPES,
    INDEX,
    SINGLE,
    Weights,
    check_file,
    is_finite,
    open_weights,
    read_config,
    size_bytes,
)

SHARD_BYTES = 5 * 10**9  # the Hugging Face default
_COPIED = (CONFIG, GENERATION, *TOKENIZER_FILES)
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


def write_model(
    directory: Path,
    source: Path,
    changed: Callable[[str, Tensor], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a copy of a model with changed tensors, atomically and one tensor at a time.

    Config, generation config and tokenizer are copied; code and trainer state are not. A head that
    the source ties to its embedding, and so does not store, stays tied. Memory: one tensor and
    what `changed` makes of it. Order: as in the source's files.

    Args:
        directory: To create; one written by effopd before is replaced.
        source: A model directory.
        changed: Called with the name and the stored tensor, gives the tensor to store, of the same
            shape; it is rounded to the stored dtype. Tensors to keep are given back as they are.
        shard_bytes: Largest size of a file, but for a single tensor that is larger.

    Raises:
        ConfigError: `shard_bytes` is not positive, or `directory` is the source or something that
            effopd did not write.
    """
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes must be at least 1, got {shard_bytes}")
    if directory.resolve() == source.resolve():
        raise ConfigError(f"{directory} is the model to copy: choose another directory")
    if directory.exists() and not (directory / MANIFEST).is_file():
        raise ConfigError(f"{directory} exists and was not written by effopd: choose a new one")
    weights = open_weights(source)
    read_config(source)
    copied = [source / name for name in _COPIED if os.path.lexists(source / name)]
    for path in copied:
        check_file(path)

    def fill(temporary: Path) -> None:
        for path in copied:
            shutil.copyfile(path, temporary / path.name)
        write_weights(temporary, weights, changed, shard_bytes=shard_bytes)

    write_checkpoint(directory, fill)


def write_weights(
    directory: Path,
    weights: Weights,
    changed: Callable[[str, Tensor], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes model.safetensors, or shards and their index, into an existing directory.

    Args:
        directory: Exists, without weights.
        weights: What to copy.
        changed: As for `write_model`.
        shard_bytes: Largest size of a file, but for a single tensor that is larger.
    """
    shards = _shards(weights, shard_bytes)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    for file, names in zip(files, shards, strict=True):
        _write_file(directory / file, weights, names, changed)
    if len(shards) > 1:
        shard_of = {n: file for file, names in zip(files, shards, strict=True) for n in names}
        sizes = {"total_size": sum(size_bytes(weights, name) for name in shard_of)}
        index = {"metadata": sizes, "weight_map": dict(sorted(shard_of.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(weights: Weights, shard_bytes: int) -> list[list[str]]:
    """Names of each file, filled in order."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name in weights.shapes:
        size = size_bytes(weights, name)
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _write_file(
    path: Path, weights: Weights, names: Sequence[str], changed: Callable[[str, Tensor], Tensor]
) -> None:
    """One safetensors file: length of the header (8 bytes), header, tensors without gaps.

    Larger dtypes come first, so that every tensor starts at a multiple of its item size.
    """
    names = sorted(names, key=lambda name: -weights.dtype(name).itemsize)  # stable
    with path.open("wb") as file:
        header = _header(weights, names)
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            _write_tensor(file, _changed(name, weights.read(name), changed))


def _header(weights: Weights, names: Iterable[str]) -> bytes:
    """The JSON header, padded with spaces to a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        end = start + size_bytes(weights, name)
        entries[name] = {
            "dtype": _KINDS[weights.dtype(name)],
            "shape": weights.shapes[name],
            "data_offsets": [start, end],
        }
        start = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header.ljust(math.ceil(len(header) / 8) * 8)


def _changed(name: str, stored: Tensor, changed: Callable[[str, Tensor], Tensor]) -> Tensor:
    """What to store in place of one tensor."""
    shape, dtype = stored.shape, stored.dtype
    tensor = changed(name, stored)
    if tensor.shape != shape:
        raise ParameterMismatchError(
            f"{name} was changed from shape {tuple(shape)} to {tuple(tensor.shape)}; a changed "
            "tensor must keep its shape"
        )
    tensor = tensor.detach().to("cpu", dtype)
    if not is_finite(tensor):
        raise NonFiniteError(
            f"{name} holds a NaN or an infinity after the change, as {dtype}: nothing was written"
        )
    return tensor


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    flat = tensor.contiguous().reshape(-1)
    file.write(flat.view(torch.uint8).numpy().data)
