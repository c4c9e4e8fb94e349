"""Models of the Hugging Face Hub as directories on this disk, so that both are checked alike."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from effopd.errors import ConfigError
from effopd.models.paths import looks_local, no_such_directory
from effopd.models.weights import INDEX, SINGLE, read_index

_TEXTS = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_ELSEWHERE = ["original/*", "onnx/*", "*.bin.index.json"]

_UNREACHABLE = (LocalEntryNotFoundError, HTTPError, ConnectionError)


def fetch(repository: str, revision: str | None, *, weights: bool) -> Path:
    """The directory of a repository in the cache, downloaded where it is not there.

    Configuration and tokenizer come first, and then the weight files that the index names; code and
    pickled weights are never downloaded. Offline, what is in the cache is taken.

    Args:
        repository: Id such as `Qwen/Qwen3-1.7B`.
        revision: Commit, tag or branch; None for the main one.
        weights: Whether weight files are wanted.

    Returns:
        A model directory.

    Raises:
        ConfigError: It is a path of this disk that is not there, there is no such repository, or
            the Hub cannot be reached and it is not in the cache.
    """
    if looks_local(repository):
        raise ConfigError(no_such_directory(repository))
    try:
        directory = _snapshot(repository, revision, _TEXTS)
        if weights:
            index = directory / INDEX
            shards = sorted(set(read_index(index).values())) if index.is_file() else [SINGLE]
            directory = _snapshot(repository, directory.name, shards)  # of the same commit
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, ConfigError):
            raise
        if isinstance(error, RepositoryNotFoundError):
            why = "there is none that can be seen (private and gated ones need access and HF_TOKEN)"
        elif isinstance(error, HfHubHTTPError) or not isinstance(error, _UNREACHABLE):
            why = str(error)
        else:
            why = "it is not in the cache, and the Hub cannot be reached"
        raise ConfigError(
            f"cannot load {repository}: {no_such_directory(repository)}; as a repository of the "
            f"Hugging Face Hub, {why}"
        ) from error
    return directory


def _snapshot(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    return Path(
        snapshot_download(
            repository, revision=revision, allow_patterns=list(files), ignore_patterns=_ELSEWHERE
        )
    )
