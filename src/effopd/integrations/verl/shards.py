"""The state of the search, one file a rank, next to verl's own shards."""

from pathlib import Path
from typing import Any

from effopd.errors import CheckpointError
from effopd.training.search_file import read_shard


def shard_path(directory: Path, rank: int, world_size: int) -> Path:
    """The file of one rank."""
    return directory / f"effopd_world_size_{world_size}_rank_{rank}.safetensors"


def load_shard(path: Path) -> dict[str, Any]:
    """Reads what `save_shard` wrote.

    Args:
        path: The file.

    Returns:
        A state for `restore_search`.

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
    return read_shard(path)
