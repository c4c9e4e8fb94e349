"""The header of a safetensors file, read and checked by ourselves.

A file is 8 bytes with the length of the header (little-endian), the header as JSON, and the bytes
of the tensors without gaps (https://github.com/huggingface/safetensors, "Format"). The library
accepts more than a model needs, such as a name twice; both must agree before a tensor is read.
Reading costs the header alone.
"""

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from effopd.errors import CheckpointError

MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 200_000
"""Of one model; the largest ones published store about 70,000."""
MAX_AXES = 16
LONGEST_EMPTY = 2**31 - 1
"""Axis of a tensor without elements, which no size of the file bounds."""
BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Size of one element of every kind that the format knows."""

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,499}")


class Stored(NamedTuple):
    """One tensor as a header describes it; offsets are bytes after the header."""

    shape: tuple[int, ...]
    kind: str
    start: int
    end: int


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file, by name in alphabetical order.

    Raises:
        CheckpointError: It is no regular file, or damaged: header and size of the file contradict
            each other, a name is there twice, or tensors overlap or leave gaps.
    """
    try:
        header, data_bytes = _split(path)
        found = _tensors(json.loads(header.decode(), object_pairs_hook=_each_once))
        _check_layout(found, data_bytes)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): download or export it again"
        ) from error
    return dict(sorted(found.items()))


def read_model_header(path: Path) -> dict[str, Stored]:
    """As `read_header`, for weights of a model.

    Raises:
        CheckpointError: A name is not made of letters, digits, `.`, `-` and `_`, or a tensor has
            no elements and an axis longer than `LONGEST_EMPTY`.
    """
    found = read_header(path)
    for name, stored in found.items():
        if not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{path} holds a tensor named {name!r:.120}; names of weights have up to 500 "
                "letters, digits, '.', '-' and '_': export the model again with save_pretrained"
            )
        if stored.start == stored.end and max(stored.shape) > LONGEST_EMPTY:
            raise CheckpointError(
                f"{name} in {path} has shape {stored.shape} and no elements: export the model again"
            )
    return found


def _split(path: Path) -> tuple[bytes, int]:
    """The header's bytes and how many bytes follow it; does not wait for a pipe."""
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no regular file")
        length = int.from_bytes(_exactly(file, _LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
        return _exactly(file, length), status.st_size - _LENGTH_BYTES - length


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _exactly(file: BinaryIO, count: int) -> bytes:
    found = file.read(count)
    if len(found) < count:
        raise ValueError("it ends within its header")
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python keeps the last of equal keys and other readers may keep the first."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r:.120} is there twice")
        found[key] = value
    return found


def _tensors(entries: Any) -> dict[str, Stored]:
    if not isinstance(entries, dict):
        raise ValueError("its header is no JSON object")
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts by name")
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"{len(entries)} tensors; at most {MAX_TENSORS} are read")
    return {name: _tensor(name, entry) for name, entry in entries.items()}


def _tensor(name: str, entry: Any) -> Stored:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise ValueError(f"{name!r:.120} is not described by {', '.join(sorted(_FIELDS))}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in BITS:
        raise ValueError(f"{name!r:.120} has the unknown dtype {kind!r:.40}")
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        raise ValueError(f"{name!r:.120} has no possible shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r:.120} has no possible place")
    start, end = offsets
    if math.prod(shape) * BITS[kind] != 8 * (end - start):
        raise ValueError(f"{name!r:.120} has {end - start} bytes, which its shape does not take")
    return Stored(tuple(shape), kind, start, end)


def _are_sizes(values: Any) -> bool:
    """Whether it is a list of whole numbers that 64 bits hold."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_layout(found: dict[str, Stored], data_bytes: int) -> None:
    """The tensors follow one another and fill the file."""
    end = 0
    for name, stored in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if stored.start != end:
            raise ValueError(f"{name!r:.120} starts at byte {stored.start}, expected {end}")
        end = stored.end
    if end != data_bytes:
        raise ValueError(f"the tensors take {end} bytes, the file holds {data_bytes}")
