"""The state of a search as one safetensors file, beside the checkpoints of others' trainers.

Tensors are the anchor and what the direction remembers, of this process alone where they are
sharded; the metadata hold the rest of `Extrapolator.state_dict` as JSON.
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from effopd.errors import CheckpointError
from effopd.trainers.state import SEARCH_TENSORS

METADATA = "effopd"


def save_shard(path: Path, state: dict[str, Any]) -> None:
    """Writes a state, whole or not at all.

    Args:
        path: Final name.
        state: What `Extrapolator.state_dict` returned, and plain values of the caller's.
    """
    tensors = {
        f"{part}/{name}": tensor.contiguous()
        for part in SEARCH_TENSORS
        for name, tensor in state[part].items()
    }
    rest = {key: value for key, value in state.items() if key not in SEARCH_TENSORS}
    temporary = path.with_name(f".writing-{path.name}")
    save_file(tensors, temporary, metadata={METADATA: json.dumps(rest)})
    os.replace(temporary, path)


def read_shard(path: Path) -> dict[str, Any]:
    """Reads what `save_shard` wrote.

    Args:
        path: The file.

    Returns:
        A state for `Extrapolator.load_state_dict`, with the caller's values.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()[METADATA])
            state |= {part: {} for part in SEARCH_TENSORS}
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part, _, name = key.partition("/")
                state[part][name] = file.get_tensor(key)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): resume from an earlier checkpoint"
        ) from None
    return state
