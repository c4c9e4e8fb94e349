"""The search's state beside a trainer's checkpoint: `checkpoint-N/effopd/`.

One file a process with its part of the state, and `search.json`, written last, which says that all
are there. Processes that hold the same (all but FSDP2) share one file.
"""

from pathlib import Path
from typing import Any

from effopd.errors import CheckpointError, RecordError
from effopd.records import SCHEMA, read_json, write_json_atomic
from effopd.training.search_file import read_shard, save_shard

FOLDER = "effopd"
STATE = "search.json"


def shard_file(directory: Path, shard: int, shards: int) -> Path:
    """The file of one process."""
    return directory / f"search-{shard:05d}-of-{shards:05d}.safetensors"


def save(directory: Path, state: dict[str, Any], *, shard: int, shards: int) -> None:
    """Writes this process's part; a reader sees the whole file or none.

    Args:
        directory: `checkpoint-N/effopd`.
        state: What `search_state` returned.
        shard: Which part this is, from 0.
        shards: Parts in all.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_shard(shard_file(directory, shard, shards), state)


def finish(directory: Path, *, shards: int, recorded_bytes: int) -> None:
    """Says that all parts are there, and how long the record of trials was."""
    content = {"schema": SCHEMA, "shards": shards, "recorded_bytes": recorded_bytes}
    write_json_atomic(directory / STATE, content)


def load(directory: Path, *, shard: int, shards: int) -> tuple[dict[str, Any], int]:
    """A saved state.

    Args:
        directory: `checkpoint-N/effopd`.
        shard: Which part is this process's.
        shards: Parts in all.

    Returns:
        The state that `save` was given, and the length of the record.

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
    return read_shard(shard_file(directory, shard, shards)), int(rest["recorded_bytes"])
