"""Paths that are no model: what they are instead, and what to give in their place."""

import difflib
import re
from pathlib import Path
from urllib.parse import unquote

_WEIGHT_FILES = (
    ".gguf",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".distcp",
    ".zip",
)
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_URL = re.compile(r"(file|hf|s3|gs|https?):/*(/.*)")
_HUB = re.compile(r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:/+)([^/]+/[^/?#]+)")
_STEP = re.compile(r"(?:checkpoint|step|global_step|iter)[-_]?(\d+)")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.bin.index.json")
_GGUF = (
    "GGUF files hold weights quantized for llama.cpp, which effopd does not read: give the "
    "original model, or write it with transformers: from_pretrained(DIRECTORY, gguf_file=FILE), "
    "then save_pretrained"
)


def looks_local(path: str) -> bool:
    """Whether a path that is no directory cannot be a repository of the Hugging Face Hub."""
    return (
        path.startswith((".", "/", "~"))
        or path.endswith(_WEIGHT_FILES)
        or Path(path).exists()
        or _REPOSITORY.fullmatch(path) is None
    )


def no_such_directory(path: str | Path, wanted: str = "model directory") -> str:
    """Why a path is no directory of the kind that is wanted, and what is near it."""
    found = Path(path).expanduser()
    if url := _URL.match(str(path)):
        instead = f"give the path alone, {unquote(url[2])}" if url[1] == "file" else "download it"
        if hub := _HUB.match(str(path)):
            instead = f"give the repository's name alone, {hub[1]}"
        return f"{path} is an address, not a {wanted}: {instead}"
    if found.suffix == ".gguf":
        return f"{path} is no model directory. {_GGUF}"
    if found.is_file():
        return f"{path} is a file: give the model directory that it is in, {found.parent}"
    return f"no {wanted} at {path}{_nearest(found)}"


def contents_instead(directory: Path) -> str:
    """What is in a directory that holds no weights, and what to give in its place."""
    if any(directory.glob("*.gguf")):
        return f"it holds {min(directory.glob('*.gguf')).name}. {_GGUF}"
    if snapshots := sorted(directory.glob("snapshots/*/config.json")):
        return f"it is a repository in the cache of the Hub: give {snapshots[-1].parent}"
    for parent in (directory / "checkpoints", directory):
        steps = _checkpoints(parent)
        if steps:
            count = f"{len(steps)} checkpoints" if len(steps) > 1 else "a checkpoint"
            return f"it is a trainer's output with {count}: give one of them, such as {steps[-1]}"
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
    inside = sorted(path.parent for path in directory.glob("*/config.json"))
    if inside:
        return f"{inside[0]} is a model directory: give that"
    return "complete the download, or save the model there with model.save_pretrained(...)"


def _checkpoints(parent: Path) -> list[Path]:
    """Directories named by a step, in order."""
    named = [(_STEP.fullmatch(path.name), path) for path in parent.glob("*") if path.is_dir()]
    return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]


def _nearest(path: Path) -> str:
    """Directories with nearly the same name, beside it or beside the first parent that is away."""
    while not path.parent.is_dir():
        path = path.parent
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, beside, n=3)
    return (
        f" (did you mean {' or '.join(str(path.parent / name) for name in close)}?)"
        if close
        else ""
    )
