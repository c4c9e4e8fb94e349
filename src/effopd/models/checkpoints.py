"""Checkpoint directories that are either whole or not there.

A checkpoint is written under a temporary name, hashed into `manifest.json`, synced to disk and
renamed. Reading verifies every byte first, so a damaged or half-written one is never used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

from effopd.errors import CheckpointError
from effopd.records import MANIFEST, list_checkpoints

_TEMPORARY = ".writing-"


def write_checkpoint(directory: Path, write: Callable[[Path], None]) -> None:
    """Creates `directory` with what `write` puts into it, atomically."""
    temporary = directory.with_name(_TEMPORARY + directory.name)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        files = {
            path.relative_to(temporary).as_posix(): {
                "bytes": path.stat().st_size,
                "xxh3_128": _digest(path),
            }
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        (temporary / MANIFEST).write_bytes(_canonical(files))
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.rename(directory)
        _sync(directory.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # A full disk is an OSError in Python, and something else in Rust: a SafetensorError, or a
        # bare Exception from tokenizers.
        if isinstance(error, OSError | SafetensorError) or type(error) is Exception:
            raise CheckpointError(
                f"cannot write checkpoint {directory}: {error}. Earlier checkpoints are "
                "untouched; free space or fix permissions and resume."
            ) from error
        raise


def verify_checkpoint(directory: str | Path) -> None:
    """Checks size and hash of every file against the manifest."""
    directory = Path(directory)
    try:
        written = (directory / MANIFEST).read_bytes()
        files = json.loads(written)["files"]
        expected = [(name, entry["bytes"], entry["xxh3_128"]) for name, entry in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{directory}: {MANIFEST} is missing or damaged ({error})") from None
    if written != _canonical(files):
        raise CheckpointError(f"{directory}: {MANIFEST} is damaged")
    for name, size, digest in expected:
        path = directory / name
        try:
            whole = path.is_file() and path.stat().st_size == size and _digest(path) == digest
        except OSError as error:
            raise CheckpointError(f"{directory}: {name} cannot be read ({error})") from None
        if not whole:
            raise CheckpointError(f"{directory}: {name} is missing or damaged")


def newest_good(parent: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones.

    Leftovers of interrupted writes are ignored; they never have a final name.
    """
    problems: list[str] = []
    for directory in list_checkpoints(parent):
        try:
            verify_checkpoint(directory)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return directory, problems
    return None, problems


def prune(parent: Path, keep: int, also: Collection[Path] = ()) -> None:
    """Deletes all but the newest `keep` checkpoints and `also`, and leftovers of writes.

    Nothing is deleted unless one of those kept verifies. A directory that cannot be deleted is
    tried again the next time.
    """
    for leftover in parent.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    directories = list_checkpoints(parent)
    good, _ = newest_good(parent)
    if good in directories[:keep]:
        for directory in directories[keep:]:
            if directory in also:
                continue
            shutil.rmtree(directory, ignore_errors=True)


@torch.no_grad()
def restore_(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor], what: str) -> None:
    """Copies what was saved into the tensors of the same names; refuses another model's."""
    for name, tensor in tensors.items():
        if name not in saved or saved[name].shape != tensor.shape:
            raise CheckpointError(f"the saved {what} does not fit this model: {name}")
        tensor.copy_(saved[name])


def weights_fingerprint(directories: Iterable[Path]) -> str:
    """A digest that changes when a weight file does, by name, size or time; reads no weights.

    What is no directory, such as a repository's name, counts as empty; "" without weight files.
    """
    files = [path for each in directories for path in sorted(each.glob("*.safetensors"))]
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(repr(found).encode(), digest_size=16).hexdigest() if found else ""


def _canonical(files: Mapping[str, Any]) -> bytes:
    """One byte string per content, with a digest of the list, so that any flip in it shows."""
    listing = json.dumps(files, sort_keys=True)
    digest = xxhash.xxh3_128_hexdigest(listing.encode())
    return json.dumps({"digest": digest, "files": files}, sort_keys=True, indent=1).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
