"""The search on disk: its state beside a checkpoint, and `search.jsonl`, the record of its trials.

The state is one safetensors file a process. Tensors are the anchor and what the direction
remembers, of this process alone where they are sharded; the metadata hold the rest of
`Extrapolator.state_dict` as JSON, and a digest of all of it: an anchor with one bit flipped would
look like any other, and the search would go astray.
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
from effopd.records import JsonlWriter, truncate_jsonl
from effopd.search.extrapolator import Extrapolator
from effopd.search.scales import Trial
from effopd.training.rows import trial_row

METADATA = "effopd"
"""The only key of the metadata: safetensors writes several in an order of chance."""
TENSORS = ("anchor", "history")
"""Parts of the state that are tensors by name."""


def search_file(directory: Path, shard: int = 0, shards: int = 1) -> Path:
    """The file of one process; those that hold the same weights share one."""
    return directory / f"search-{shard:05d}-of-{shards:05d}.safetensors"


def save_search(path: Path, extrapolator: Extrapolator) -> None:
    """Writes the state of a search, whole or not at all."""
    state = extrapolator.state_dict() | {"weights": extrapolator.checksum()}
    tensors = {
        f"{part}/{name}": tensor.contiguous()
        for part in TENSORS
        for name, tensor in state.pop(part).items()
    }
    rest = json.dumps(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}")
    save_file(tensors, temporary, metadata={METADATA: f"{_digest(rest, tensors)} {rest}"})
    with open(temporary, "r+b") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_search(path: Path) -> dict[str, Any]:
    """A saved state for `restore_search`."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the checkpoint was written without effopd's search or by another "
            "number of processes, or the run was killed while it was written. Resume on as many "
            "processes from a checkpoint that has it, or search from its weights on (TRL: "
            "start_anew=True, verl: trainer.resume_mode=disable)"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        digest, _, rest = metadata[METADATA].partition(" ")
        if _digest(rest, tensors) != digest:
            raise ValueError("its digest is another one")
        state: dict[str, Any] = json.loads(rest) | {part: {} for part in TENSORS}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            state[part][name] = tensor
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): resume from an earlier checkpoint"
        ) from None
    return state


def restore_search(extrapolator: Extrapolator, state: Mapping[str, Any], path: Path) -> None:
    """Loads what `read_search` gave; the weights have to be in place."""
    extrapolator.load_state_dict(state)
    if state["weights"] != extrapolator.checksum():
        raise CheckpointError(
            f"{path} belongs to other weights than those that training resumes with: resume from "
            "the checkpoint that it is part of (TRL: name it with resume_from=), or an earlier one"
        )


def _digest(rest: str, tensors: Mapping[str, Tensor]) -> str:
    """Over names, types, shapes and bytes, whatever their order in the file."""
    digest = xxhash.xxh3_128(rest.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class SearchLog:
    """Appends a row a trial to `search.jsonl` of a run in another library's trainer.

    Rows of searches after `step`, which the run goes on from, are cut off: they will be repeated.
    """

    def __init__(self, path: Path, step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        JsonlWriter(path).close()  # repairs an unfinished line
        end = 0
        with path.open("rb") as file:
            for line in file:
                if json.loads(line)["step"] > step:
                    break
                end += len(line)
        truncate_jsonl(path, end)
        self._writer = JsonlWriter(path)

    def write(self, step: int, index: int, trial: Trial) -> None:
        """One row."""
        self._writer.write(trial_row(step, index, trial))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
