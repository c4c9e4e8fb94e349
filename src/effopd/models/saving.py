"""Model directories that others read: the student's own files wherever it came from some."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
CONFIG, GENERATION = "config.json", "generation_config.json"
_TEMPLATES = "additional_chat_templates"
_DTYPES = ("dtype", "torch_dtype")
"""Names of the precision in config.json, since and before transformers 5."""
_OF_THE_WRITER = {*_DTYPES, "_name_or_path", "transformers_version"}


def save_model(model: Any, directory: Path) -> None:
    """Writes weights and configuration of a Hugging Face model into an existing directory.

    transformers 5 writes settings under names that readers made for earlier versions overlook
    (`rope_theta`), and ends of a generation as it read them. So config.json and
    generation_config.json are those of the directory that the model was loaded from, with the
    precision it has now, unless the model is no longer what they describe.
    """
    model.save_pretrained(directory)
    source = _source(model.name_or_path, CONFIG)
    if source is None:
        return
    try:
        described = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
        raw = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # it was replaced while the model trained: what was written above is right
    same = type(described) is type(model.config) and _content(described) == _content(model.config)
    if same and raw.get("architectures") == [type(model).__name__]:
        names = [name for name in _DTYPES if name in raw] or ["torch_dtype"]
        raw |= dict.fromkeys(names, str(model.dtype).removeprefix("torch."))
        text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
        (directory / CONFIG).write_text(text, encoding="utf-8")
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, directory / GENERATION)


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


def _source(name_or_path: str, *files: str) -> Path | None:
    """The directory that something was loaded from; None if it was made in memory."""
    directory = Path(name_or_path or "-")
    return directory if any((directory / name).is_file() for name in files) else None


def _content(config: Any) -> dict[str, Any]:
    """What a configuration says about the model."""
    return {k: v for k, v in config.to_dict().items() if k not in _OF_THE_WRITER}
