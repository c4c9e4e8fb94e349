"""The state of the search, one file a rank, next to verl's own shards.

`effopd_world_size_2_rank_0.safetensors` holds this rank's shards of the anchor and of what the
direction remembers; its metadata hold the rest of `Extrapolator.state_dict` as JSON.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from effopd.errors import CheckpointError

METADATA = "effopd"
TENSORS = ("anchor", "history")


def shard_path(directory: Path, rank: int, world_size: int) -> Path:
    """The file of one rank."""
    return directory / f"effopd_world_size_{world_size}_rank_{rank}.safetensors"


def save_shard(path: Path, state: dict[str, Any]) -> None:
    """Writes a state, whole or not at all.

    Args:
        path: Final name.
        state: What `Extrapolator.state_dict` returned.
    """
    tensors = {
        f"{part}/{name}": tensor.contiguous()
        for part in TENSORS
        for name, tensor in state[part].items()
    }
    rest = {key: value for key, value in state.items() if key not in TENSORS}
    temporary = path.with_name(f".writing-{path.name}")
    save_file(tensors, temporary, metadata={METADATA: json.dumps(rest)})
    os.replace(temporary, path)


def load_shard(path: Path) -> dict[str, Any]:
    """Reads what `save_shard` wrote.

    Args:
        path: The file.

    Returns:
        A state for `Extrapolator.load_state_dict`.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the checkpoint was written without effopd or by another number of "
            "processes, and without the anchor the next search would look in another direction. "
            "Resume on as many processes with a checkpoint that has it, or start a new run from "
            "its weights (trainer.resume_mode=disable)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()[METADATA])
            state |= {part: {} for part in TENSORS}
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part, _, name = key.partition("/")
                state[part][name] = file.get_tensor(key)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): resume from an earlier checkpoint"
        ) from None
    return state
