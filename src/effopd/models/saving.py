"""Writing model directories that others read: a trained model, or a changed copy of one on disk."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.architecture import without_bars
from effopd.models.checkpoints import write_checkpoint
from effopd.models.directory import CONFIG, GENERATION, INDEX, SINGLE, find_model, read_config
from effopd.models.weights import Weights, is_finite, open_weights
from effopd.records import MANIFEST

SHARD_BYTES = 10**9
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"
_DTYPES = ("dtype", "torch_dtype")
"""Names of the precision in config.json, since and before transformers 5."""
_OF_THE_WRITER = {*_DTYPES, "_name_or_path", "transformers_version"}


def save_model(model: Any, directory: Path, ends: Sequence[int] = ()) -> None:
    """Writes weights and configuration of a Hugging Face model into an existing directory.

    generation_config.json names all of `ends`, the tokens that it was trained to end answers with,
    so that others stop where training stopped.

    transformers 5 writes settings under names that readers made for earlier versions overlook
    (`rope_theta`), and ends of a generation as it read them. So config.json and
    generation_config.json are those of the directory that the model was loaded from, with the
    precision it has now, unless the model is no longer what they describe.
    """
    with without_bars():
        model.save_pretrained(directory)
    if (source := _source(model.name_or_path, CONFIG)) is not None:
        _keep_description(model, source, directory)
    name_ends(directory / GENERATION, ends)


def _keep_description(model: Any, source: Path, directory: Path) -> None:
    """Writes config.json and generation_config.json as `source` has them, where that holds."""
    from transformers import AutoConfig

    try:
        described = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        raw = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # it was replaced while the model trained: what was written above is right
    ours, theirs = (
        {key: value for key, value in config.to_dict().items() if key not in _OF_THE_WRITER}
        for config in (model.config, described)
    )
    same = type(described) is type(model.config) and ours == theirs
    if same and raw.get("architectures") == [type(model).__name__]:
        names = [name for name in _DTYPES if name in raw] or ["torch_dtype"]
        raw |= dict.fromkeys(names, str(model.dtype).removeprefix("torch."))
        text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
        (directory / CONFIG).write_text(text, encoding="utf-8")
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, directory / GENERATION)


def name_ends(path: Path, ends: Sequence[int]) -> None:
    """Adds the missing ones of `ends` to `eos_token_id`; a file with all of them stays as it is."""
    raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = raw.get("eos_token_id")
    listed = named if isinstance(named, list) else [] if named is None else [named]
    if {*ends} - {*listed}:
        raw["eos_token_id"] = list(dict.fromkeys([*listed, *ends]))
        text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Writes a tokenizer into an existing directory: its own files, if it was loaded from any.

    What transformers 5 writes, earlier versions cannot read.
    """
    own = [*TOKENIZER_FILES, *tokenizer.vocab_files_names.values()]
    source = _source(tokenizer.name_or_path, *own)
    if source is None:
        tokenizer.save_pretrained(directory)
        return
    for name in own:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    if (source / _TEMPLATES).is_dir():
        shutil.copytree(source / _TEMPLATES, directory / _TEMPLATES)


def write_model(
    directory: str | Path,
    source: str | Path,
    changed: Callable[[str, Tensor], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a copy of a model with changed tensors, atomically and one file at a time.

    Config, generation config and tokenizer are copied; code and trainer state are not. A head that
    the source ties to its embedding, and so does not store, stays tied. Memory: one file.
    """
    directory, source = Path(directory), find_model(source)
    if shard_bytes < 1:
        raise ConfigError(f"shard_bytes must be at least 1, got {shard_bytes}")
    if directory.resolve() == source.resolve():
        raise ConfigError(f"{directory} is the model to copy: choose another directory")
    if directory.exists() and not (directory / MANIFEST).is_file():
        raise ConfigError(f"{directory} exists and was not written by effopd: choose a new one")
    weights = open_weights(source)
    read_config(source)

    def fill(temporary: Path) -> None:
        for name in (CONFIG, GENERATION, *TOKENIZER_FILES):
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
        write_weights(temporary, weights, changed, shard_bytes=shard_bytes)

    write_checkpoint(directory, fill)


def write_weights(
    directory: Path,
    weights: Weights,
    changed: Callable[[str, Tensor], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes model.safetensors, or shards and their index, into a directory without weights.

    The other arguments are those of `write_model`.
    """
    # Fill the files in order, each up to its size.
    sizes = {n: math.prod(s) * weights.dtype(n).itemsize for n, s in weights.shapes.items()}
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [SINGLE]
    # Write one file at a time.
    for file, names in zip(files, shards, strict=True):
        tensors = {name: _changed(name, weights.read(name), changed) for name in names}
        save_file(tensors, directory / file, {"format": "pt"})
    if len(shards) > 1:
        shard_of = {n: file for file, names in zip(files, shards, strict=True) for n in names}
        total = {"total_size": sum(sizes.values())}
        index = {"metadata": total, "weight_map": dict(sorted(shard_of.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _changed(name: str, stored: Tensor, changed: Callable[[str, Tensor], Tensor]) -> Tensor:
    """What to store in place of one tensor."""
    shape, dtype = stored.shape, stored.dtype
    tensor = changed(name, stored)
    if tensor.shape != shape:
        raise ParameterMismatchError(
            f"{name} was changed from shape {tuple(shape)} to {tuple(tensor.shape)}; a changed "
            "tensor must keep its shape"
        )
    tensor = tensor.detach().to("cpu", dtype).contiguous()
    if not is_finite(tensor):
        raise NonFiniteError(
            f"{name} holds a NaN or an infinity after the change, as {dtype}: nothing was written"
        )
    return tensor


def _source(name_or_path: str, *files: str) -> Path | None:
    """The directory that something was loaded from; None if it was made in memory."""
    directory = Path(name_or_path or "-")
    return directory if any((directory / name).is_file() for name in files) else None
