"""Tensors of a checkpoint, one at a time.

A safetensors file is memory-mapped anew for every read, so a tensor that is dropped gives its pages
back: a model of any size is read in the memory of the tensors held.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, ParameterMismatchError
from effopd.models.headers import MAX_TENSORS, Stored, read_model_header
from effopd.models.names import plain_names
from effopd.models.paths import contents_instead, no_such_directory
from effopd.models.tying import tied_copy

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGEST_JSON_BYTES = 64 * 2**20
_CACHED = re.compile(r"/models--[^/]+/blobs/([0-9a-f]{40}|[0-9a-f]{64})$")
"""Where the Hugging Face cache has a file of a model."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Weights(Protocol):
    """Named tensors that are read one at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, by name; known without reading any."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype."""
        ...

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tensor on the CPU in its stored dtype; not to be changed in place.

        Args:
            name: One of `shapes`.
            rows: First and past-the-last index of the first axis; None reads all of it.
        """
        ...


class MemoryWeights:
    """Tensors already in memory, such as a `state_dict`.

    A tensor under two names, such as a head tied to the embedding, counts once, under the first
    name: that is how a checkpoint stores it.

    Args:
        tensors: By name; nothing is copied. Those on a device are read as CPU tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors: dict[str, Tensor] = {}
        seen: set[tuple[Any, ...]] = set()
        for name, tensor in tensors.items():
            place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if tensor.data_ptr() == 0 or place not in seen:  # 0: empty, or without data
                self._tensors[name] = tensor.detach()
            seen.add(place)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, in the order given."""
        return MappingProxyType(self._shapes)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of one tensor."""
        check_name(name, self._shapes, "the tensors given")
        return self._tensors[name].dtype

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tensor, or some of its rows, as a view where it is on the CPU."""
        check_name(name, self._shapes, "the tensors given")
        check_rows(name, self._shapes[name], rows)
        tensor = self._tensors[name]
        return (tensor if rows is None else tensor[rows[0] : rows[1]]).cpu()


class SafetensorsWeights:
    """Tensors of `model.safetensors` or of shards with an index, checked before any is read.

    Args:
        directory: A Hugging Face model directory; config.json is not needed.
        files: Names of the files to read; None finds those of the model.

    Raises:
        CheckpointError: Numbers are stored in a way that cannot be read; or as `stored_tensors`.
    """

    def __init__(self, directory: Path, files: Sequence[str] | None = None) -> None:
        self._directory = directory
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for name, (path, stored) in stored_tensors(directory, files).items():
            if stored.kind not in DTYPES:
                raise CheckpointError(
                    f"{name} in {path} is stored as {stored.kind}; can be read: "
                    f"{', '.join(DTYPES)}. Convert the model to one of them"
                )
            self._file_of[name] = path
            self._shapes[name], self._dtypes[name] = stored.shape, DTYPES[stored.kind]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, in the order of the files."""
        return MappingProxyType(self._shapes)

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of one tensor."""
        check_name(name, self._shapes, str(self._directory))
        return self._dtypes[name]

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tensor, or some of its rows, memory-mapped.

        Raises:
            CheckpointError: The file has changed or gone since it was opened.
        """
        check_name(name, self._shapes, str(self._directory))
        check_rows(name, self._shapes[name], rows)
        path = self._file_of[name]
        try:
            with safe_open(path, framework="pt") as file:
                if rows is None:
                    return file.get_tensor(name)
                return file.get_slice(name)[rows[0] : rows[1]]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {name} cannot be read ({error})") from error


class NamedWeights:
    """Other weights under other names, or some of them.

    Args:
        weights: What to read.
        names: New name to the name in `weights`.
    """

    def __init__(self, weights: Weights, names: Mapping[str, str]) -> None:
        self._weights, self._names = weights, names
        self._shapes = {name: weights.shapes[there] for name, there in names.items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, in the order of the names."""
        return MappingProxyType(self._shapes)

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype of one tensor."""
        check_name(name, self._shapes, "the weights")
        return self._weights.dtype(self._names[name])

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """The tensor, or some of its rows."""
        check_name(name, self._shapes, "the weights")
        return self._weights.read(self._names[name], rows)


def stored_tensors(
    directory: Path, files: Sequence[str] | None = None
) -> dict[str, tuple[Path, Stored]]:
    """Where every tensor of a model is and how it is stored, from the headers of its files.

    Args:
        directory: A Hugging Face model directory; config.json is not needed.
        files: Names of the files to read; None finds those of the model.

    Returns:
        Name -> file and place in it, in the order of the files and then of the alphabet.

    Raises:
        CheckpointError: A file is damaged, there are too many tensors, or index and shards do not
            name the same ones.
    """
    shard_of = {} if files else _find_shards(directory)
    found: dict[str, tuple[Path, Stored]] = {}
    for file in files or sorted(set(shard_of.values())) or (SINGLE,):
        for name, stored in read_model_header(directory / file).items():
            if name in found:
                raise CheckpointError(
                    f"{name} is in both {found[name][0].name} and {file} of {directory}: "
                    "these shards do not belong together"
                )
            found[name] = directory / file, stored
        if len(found) > MAX_TENSORS:
            raise CheckpointError(f"{directory} holds more than {MAX_TENSORS} tensors")
    if shard_of:
        _check_same_tensors(directory, shard_of, found)
    return found


def open_weights(directory: Path) -> Weights:
    """The weights of a model directory, by the names that transformers has for them.

    What wrappers of trainers add to names is left out, and so is a stored head that is the
    embedding.

    Raises:
        ConfigError: There is no such directory, it holds an adapter, merged or not, or its weights
            are quantized.
        ParameterMismatchError: config.json ties head and embedding, and their values differ.
    """
    if not directory.is_dir():
        raise ConfigError(no_such_directory(directory))
    if (directory / "adapter_config.json").is_file():
        raise ConfigError(
            f"{directory} is an adapter: name its base model first and open both together"
        )
    config = read_config(directory) if (directory / "config.json").is_file() else {}
    if config.get("quantization_config"):
        raise ConfigError(
            f"{directory} holds quantized weights, whose numbers are not the model's: "
            "dequantize the model and save that"
        )
    stored = SafetensorsWeights(directory)
    names = plain_names(stored.shapes, directory)
    weights = NamedWeights(stored, {plain: name for name, plain in names.items()})
    copy = tied_copy(weights, config, directory)
    if copy is None:
        return weights
    return NamedWeights(weights, {name: name for name in weights.shapes if name != copy})


def read_config(directory: Path) -> dict[str, Any]:
    """The content of config.json."""
    return read_object(directory / "config.json")


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        ConfigError: It is missing, no regular file, larger than `LARGEST_JSON_BYTES`, or no JSON
            object.
    """
    if not path.is_file():  # reading a pipe would wait for ever
        raise ConfigError(f"{path} is missing or no regular file")
    try:
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise ValueError(f"more than {LARGEST_JSON_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): download or export it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it must hold a JSON object")
    return content


def size_bytes(weights: Weights, name: str) -> int:
    """Bytes that one tensor takes as stored."""
    return math.prod(weights.shapes[name]) * weights.dtype(name).itemsize


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
    """Refuses a tensor that is not there.

    Raises:
        ParameterMismatchError: `name` is none of `shapes`.
    """
    if name not in shapes:
        raise ParameterMismatchError(
            f"no tensor {name!r} in {where}, which holds {len(shapes)} tensors"
            + (f" such as {next(iter(shapes))}" if shapes else "")
        )


def check_rows(name: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> None:
    """Refuses rows that the first axis does not have.

    Raises:
        ParameterMismatchError: Not `0 <= first < last <= shape[0]`.
    """
    if rows is not None and not (shape and 0 <= rows[0] < rows[1] <= shape[0]):
        raise ParameterMismatchError(f"{name} has shape {shape}: no rows {rows[0]} to {rows[1]}")


def check_file(path: Path, directory: Path | None = None) -> None:
    """Allows a regular file, or a link that stays in the directory or leads to a cache's blobs.

    Downloads into a directory of one's own used to be links into the Hugging Face cache, and are
    followed wherever that is: its files are named by their hash and are nothing but downloads.

    Args:
        path: The file.
        directory: The model directory that it is below; None for the one it is in.

    Raises:
        ConfigError: It is missing, a pipe or device, or a link that leads elsewhere.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is missing or no regular file")
    root, target = (directory or path.parent).resolve(), path.resolve()
    allowed = [path.parent.resolve()]
    if root.parent.name == "snapshots":  # .../snapshots/REVISION/x -> .../blobs/HASH
        allowed.append(root.parent.parent / "blobs")
    if target.parent not in allowed and _CACHED.search(str(target)) is None:
        raise ConfigError(
            f"{path} is a link that leads out of its directory, to {target}: copy the file there, "
            "or give the directory that holds the files themselves"
        )


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as the index of a sharded checkpoint states.

    Raises:
        ConfigError: It is no such index, or names a file outside its directory.
    """
    check_file(index)
    shard_of = read_object(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or len(shard_of) > MAX_TENSORS:
        raise ConfigError(
            f"{index} is damaged: weight_map must name the files of 1 to {MAX_TENSORS} tensors"
        )
    if not all(isinstance(file, str) for file in shard_of.values()):
        raise ConfigError(f"{index} is damaged: file names must be text")
    for file in sorted(set(shard_of.values())):
        plain = Path(file).name == file and "\\" not in file and "\0" not in file
        if not (plain and file.endswith(".safetensors")):
            raise ConfigError(f"{index} names {file!r:.200}, which is no file of this directory")
    return shard_of


def _find_shards(directory: Path) -> dict[str, str]:
    """Tensor name -> shard; empty when there is one file and no index.

    Only safetensors files that lie in the directory itself, or in the cache that it is part of.
    """
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(
            f"{directory} holds no *.safetensors weights; {contents_instead(directory)}"
        )
    index = directory / INDEX
    if not os.path.lexists(index):
        check_file(directory / SINGLE)
        return {}
    if os.path.lexists(directory / SINGLE):
        raise CheckpointError(
            f"{directory} holds both {SINGLE} and {INDEX}: remove the one that is out of date"
        )
    shard_of = read_index(index)
    for file in sorted(set(shard_of.values())):
        check_file(directory / file)
    return shard_of


def _check_same_tensors(
    directory: Path, shard_of: Mapping[str, str], found: Mapping[str, tuple[Path, Stored]]
) -> None:
    """The index lists exactly what the shards hold."""
    for name, shard in shard_of.items():
        if name not in found or found[name][0].name != shard:
            raise CheckpointError(
                f"{INDEX} of {directory} lists {name}, which is not in {shard}: "
                "complete the download, or export the model again"
            )
    for name, (path, _) in found.items():
        if name not in shard_of:
            raise CheckpointError(
                f"{path.name} of {directory} holds {name}, which {INDEX} does not list: "
                "they belong to different models"
            )
