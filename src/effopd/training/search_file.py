"""The state of a search as one safetensors file, beside the checkpoints of others' trainers.

Tensors are the anchor and what the direction remembers, of this process alone where they are
sharded; the metadata hold the rest of `Extrapolator.state_dict` as JSON, and a digest of all of it:
an anchor with one bit flipped would look like any other, and the search would go astray.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from effopd.errors import CheckpointError
from effopd.search.extrapolator import Extrapolator
from effopd.training.state import SEARCH_TENSORS

METADATA = "effopd"
DIGEST = "xxh3_128"
WEIGHTS = "weights"


def search_state(extrapolator: Extrapolator) -> dict[str, Any]:
    """The state of a search, with a checksum of the weights that it belongs to."""
    return extrapolator.state_dict() | {WEIGHTS: extrapolator.checksum()}


def restore_search(extrapolator: Extrapolator, state: dict[str, Any]) -> bool:
    """Loads what `search_state` gave; whether the weights are those that it belongs to."""
    weights = state.pop(WEIGHTS, None)
    extrapolator.load_state_dict(state)
    return weights == extrapolator.checksum()


def save_shard(path: Path, state: dict[str, Any]) -> None:
    """Writes a state, whole or not at all.

    Args:
        path: Final name.
        state: What `search_state` returned.
    """
    tensors = {
        f"{part}/{name}": tensor.contiguous()
        for part in SEARCH_TENSORS
        for name, tensor in state[part].items()
    }
    rest = json.dumps({key: value for key, value in state.items() if key not in SEARCH_TENSORS})
    temporary = path.with_name(f".writing-{path.name}")
    save_file(tensors, temporary, metadata={METADATA: rest, DIGEST: _digest(rest, tensors)})
    with open(temporary, "r+b") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_shard(path: Path) -> dict[str, Any]:
    """Reads what `save_shard` wrote.

    Args:
        path: The file.

    Returns:
        A state for `restore_search`.

    Raises:
        CheckpointError: It cannot be read, or is not what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        rest = metadata[METADATA]
        if _digest(rest, tensors) != metadata[DIGEST]:
            raise ValueError("its digest is another one")
        state: dict[str, Any] = json.loads(rest) | {part: {} for part in SEARCH_TENSORS}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            state[part][name] = tensor
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): resume from an earlier checkpoint"
        ) from None
    return state


def _digest(rest: str, tensors: Mapping[str, Tensor]) -> str:
    """Over names, types, shapes and bytes, whatever their order in the file."""
    digest = xxhash.xxh3_128(rest.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
