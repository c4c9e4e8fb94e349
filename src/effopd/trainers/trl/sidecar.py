"""The search's state beside a trainer's checkpoint: `checkpoint-N/effopd/`.

One `search.json`, written last, and one safetensors file a process with its part of the anchor and
of what the direction remembers. Processes that hold the same (all but FSDP2) share one file.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from effopd.errors import CheckpointError, RecordError
from effopd.records import SCHEMA, read_json, write_json_atomic

FOLDER = "effopd"
STATE = "search.json"
_TENSORS = ("anchor", "history")


def tensors_file(shard: int, shards: int) -> str:
    """Name of a process's file."""
    return f"tensors-{shard:05d}-of-{shards:05d}.safetensors"


def save_tensors(
    directory: Path, state: Mapping[str, Any], *, shard: int, shards: int, weights: int
) -> None:
    """Writes this process's tensors; a reader sees the whole file or none.

    Args:
        directory: `checkpoint-N/effopd`.
        state: `Extrapolator.state_dict()`.
        shard: Which of them this is, from 0.
        shards: Files in all.
        weights: Checksum of the live weights that the state belongs to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / tensors_file(shard, shards)
    tensors = {f"{kind}.{name}": t for kind in _TENSORS for name, t in state[kind].items()}
    temporary = path.with_suffix(".tmp")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        temporary,
        {"weights": str(weights)},
    )
    os.replace(temporary, path)


def save_rest(directory: Path, state: Mapping[str, Any], **rest: Any) -> None:
    """Writes what is the same on every process, after all tensors are there."""
    plain = {key: value for key, value in state.items() if key not in _TENSORS}
    write_json_atomic(directory / STATE, {"schema": SCHEMA, "search": plain, **rest})


def load(directory: Path, *, shard: int, shards: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A saved state.

    Args:
        directory: `checkpoint-N/effopd`.
        shard: Which file is this process's.
        shards: Files in all.

    Returns:
        For `Extrapolator.load_state_dict`, and what else was saved: `weights` of `save_tensors`,
        and what `save_rest` was given.

    Raises:
        CheckpointError: It is missing, incomplete, damaged, or of another number of processes.
    """
    if not (directory / STATE).is_file():
        raise CheckpointError(
            f"{directory / STATE} is missing: the checkpoint was not written with the search, or "
            "the run was killed while it was written. Resume from an earlier checkpoint, name "
            "another with resume_from=, or pass start_anew=True to search from these weights on"
        )
    try:
        rest = read_json(directory / STATE)
    except RecordError as error:
        raise CheckpointError(f"{error} Resume from an earlier checkpoint") from error
    if rest["shards"] != shards:
        raise CheckpointError(
            f"{directory} was written by {rest['shards']} processes with a part each, and there "
            f"are {shards}: resume with as many"
        )
    path = directory / tensors_file(shard, shards)
    tensors, weights = _read(path)
    state: dict[str, Any] = dict(rest.pop("search"))
    for kind in _TENSORS:
        prefix = f"{kind}."
        state[kind] = {
            n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
        }
    return state, rest | {"weights": weights}


def _read(path: Path) -> tuple[dict[str, Tensor], int]:
    """Tensors and checksum of a process's file."""
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, int(file.metadata()["weights"])
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): resume from an earlier checkpoint"
        ) from error
