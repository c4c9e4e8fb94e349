"""Model directories: where they are, what a wrong path means, and which files hold the weights.

Weights are safetensors that a complete index names; pickles and code are never opened.
"""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from effopd.errors import CheckpointError, ConfigError

CONFIG, GENERATION = "config.json", "generation_config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_TEXTS = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_ELSEWHERE = ["original/*", "onnx/*", "*.bin.index.json"]
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.bin.index.json")
_WEIGHT_FILES = (
    ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".distcp", ".zip",
)  # fmt: skip
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_URL = re.compile(r"(file|hf|s3|gs|https?):/*(/.*)")
_HUB = re.compile(r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:/+)([^/]+/[^/?#]+)")
_STEP = re.compile(r"(?:checkpoint|step|global_step|iter)[-_]?(\d+)")
_GGUF = (
    "GGUF files hold weights quantized for llama.cpp, which effopd does not read: give the "
    "original model, or write it with transformers: from_pretrained(DIRECTORY, gguf_file=FILE), "
    "then save_pretrained"
)


# Finding a model ----------------------------------------------------------------------------------


def find_model(path: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """The directory of a model or adapter, on this disk or in the cache of the Hugging Face Hub.

    A repository is downloaded where the cache lacks it: configuration and tokenizer first, then the
    weight files that its index names. Offline, the cache is used.
    """
    directory = Path(path).expanduser()
    if directory.is_dir():
        return directory
    if looks_local(str(path)):
        raise ConfigError(no_such_directory(path))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def snapshot(revision: str | None, files: Sequence[str]) -> Path:
        return Path(
            snapshot_download(
                str(path), revision=revision, allow_patterns=list(files), ignore_patterns=_ELSEWHERE
            )
        )

    try:
        directory = snapshot(revision, _TEXTS)
        if weights:
            index = read_index(directory / INDEX) if (directory / INDEX).is_file() else {}
            shards = sorted(set(index.values())) or [SINGLE, ADAPTER_WEIGHTS]
            directory = snapshot(directory.name, shards)  # of the same commit
    except ConfigError:
        raise
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, RepositoryNotFoundError):
            why = "there is none that can be seen (private and gated ones need access and HF_TOKEN)"
        elif not isinstance(error, HfHubHTTPError) and isinstance(
            error, LocalEntryNotFoundError | HTTPError | ConnectionError
        ):
            why = "it is not in the cache, and the Hub cannot be reached"
        else:
            why = str(error)
        raise ConfigError(
            f"cannot load {path}: {no_such_directory(path)}; as a repository of the Hugging Face "
            f"Hub, {why}"
        ) from error
    return directory


def looks_local(path: str) -> bool:
    """Whether a path that is no directory cannot be a repository of the Hugging Face Hub."""
    return (
        path.startswith((".", "/", "~"))
        or path.endswith(_WEIGHT_FILES)
        or Path(path).exists()
        or _REPOSITORY.fullmatch(path) is None
    )


def no_such_directory(path: str | Path) -> str:
    """Says why a path is no model directory, and what is near it."""
    found = Path(path).expanduser()
    if url := _URL.match(str(path)):
        instead = f"give the path alone, {unquote(url[2])}" if url[1] == "file" else "download it"
        if hub := _HUB.match(str(path)):
            instead = f"give the repository's name alone, {hub[1]}"
        return f"{path} is an address, not a model directory: {instead}"
    if found.suffix == ".gguf":
        return f"{path} is no model directory. {_GGUF}"
    if found.is_file():
        return f"{path} is a file: give the model directory that it is in, {found.parent}"
    # Similar names beside the path, or beside the first of its parents that is missing.
    while not found.parent.is_dir():
        found = found.parent
    try:
        beside = [entry.name for entry in found.parent.iterdir() if entry.is_dir()]
    except OSError:
        beside = []
    close = difflib.get_close_matches(found.name, beside, n=3)
    near = " or ".join(str(found.parent / name) for name in close)
    return f"no model directory at {path}" + (f" (did you mean {near}?)" if near else "")


def contents_instead(directory: Path) -> str:
    """Says what is in a directory that holds no weights, and what to give in its place."""
    if any(directory.glob("*.gguf")):
        return f"it holds {min(directory.glob('*.gguf')).name}. {_GGUF}"
    if snapshots := sorted(directory.glob("snapshots/*/config.json")):
        return f"it is a repository in the cache of the Hub: give {snapshots[-1].parent}"
    for parent in (directory / "checkpoints", directory):
        named = [(_STEP.fullmatch(p.name), p) for p in parent.glob("*") if p.is_dir()]
        steps = sorted((int(match[1]), path) for match, path in named if match)
        if steps:
            count = f"{len(steps)} checkpoints" if len(steps) > 1 else "a checkpoint"
            return (
                f"it is a trainer's output with {count}: give one of them, such as {steps[-1][1]}"
            )
    if any(directory.glob("*.distcp")) or any(directory.glob("*/*.distcp")):
        return (
            "it is a distributed checkpoint of FSDP: merge its shards (accelerate merge-weights) "
            "and give what that writes"
        )
    if any(path for pattern in _PICKLED for path in directory.glob(pattern)):
        return (
            "pickled weights are refused: convert them with model.save_pretrained(..., "
            "safe_serialization=True)"
        )
    if inside := sorted(path.parent for path in directory.glob("*/config.json")):
        return f"{inside[0]} is a model directory: give that"
    return "complete the download, or save the model there with model.save_pretrained(...)"


# Reading its small files --------------------------------------------------------------------------


def read_config(directory: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of config.json, or `missing` where there is none and that is given."""
    path = directory / CONFIG
    return read_object(path) if missing is None or path.is_file() else missing


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object."""
    if not path.is_file():  # reading a pipe would wait for ever
        raise ConfigError(f"{path} is missing or no regular file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): download or export it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it must hold a JSON object")
    return content


def read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name in an index, all of them safetensors files beside it."""
    shard_of = read_object(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ConfigError(f"{index} is damaged: weight_map must name the file of each tensor")
    for file in shard_of.values():
        if not isinstance(file, str):
            raise ConfigError(f"{index} is damaged: file names must be text")
        plain = Path(file).name == file and "\\" not in file and "\0" not in file
        if not (plain and file.endswith(".safetensors")):
            raise ConfigError(f"{index} names {file!r:.200}, which is no file of this directory")
    return shard_of


def find_shards(directory: Path) -> dict[str, str]:
    """Tensor name -> shard as the index states; empty where one file holds the model."""
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(
            f"{directory} holds no *.safetensors weights; {contents_instead(directory)}"
        )
    if not (directory / INDEX).exists():
        return {}
    if (directory / SINGLE).exists():
        raise CheckpointError(
            f"{directory} holds both {SINGLE} and {INDEX}: remove the one that is out of date"
        )
    return read_index(directory / INDEX)
