"""What a model directory may hold, checked before transformers opens any of it.

Transformers follows links, takes names of files from config.json, and builds whatever sizes it
names; docs/safety.md lists what is refused and why.
"""

import codecs
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.modules import module as torch_modules

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.weights import INDEX, SINGLE, check_file, read_config, stored_tensors

LARGEST_TEXT_BYTES = 2**28
"""Of a tokenizer; those published have up to 40 million bytes."""
MOST_LAYERS = 100_000
"""Also of heads and experts: transformers makes lists of that length before it builds a model."""
MOST_POSITIONS = 2**27
SPARE_ELEMENTS = 2**26
"""A model may be larger than its files by this much: buffers that no file holds."""

_READ = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_TEMPLATES = "additional_chat_templates"
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_REDIRECTING = {
    "transformers_weights": "names other weight files than the usual ones",
    "fusion_config": "replaces parts of the model",
}
_USUAL = (None, SINGLE, INDEX)
_AT_LEAST_ONE = {
    "hidden_size", "n_embd", "d_model", "intermediate_size", "vocab_size", "head_dim",
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_attention_heads", "n_head",
    "num_heads", "num_key_value_heads", "max_position_embeddings", "n_positions",
}  # fmt: skip
_COUNTS = {
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_attention_heads", "n_head",
    "num_heads", "num_key_value_heads", "num_experts", "num_local_experts", "n_routed_experts",
}  # fmt: skip
_POSITIONS = {"max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx"}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """How much the weight files of a model hold.

    Attributes:
        tensors: Number of tensors.
        elements: Their elements; packed ones of a quantized model count as stored.
        stored_bytes: Their bytes.
        quantized: config.json describes quantized weights.
    """

    tensors: int
    elements: int
    stored_bytes: int
    quantized: bool = False

    @property
    def most_elements(self) -> int:
        """Largest number of elements that a model made of these files may have.

        Twice what is stored leaves tensors that are stored once and used twice, and missing ones,
        to messages that name them. A quantized element takes one bit or more.
        """
        stored = 8 * self.stored_bytes if self.quantized else 2 * self.elements
        return stored + SPARE_ELEMENTS

    @property
    def most_modules(self) -> int:
        """Likewise of modules, which need no weights of their own."""
        return 20 * self.tensors + 1000


def check_model(directory: Path) -> Contents:
    """Checks config.json and the headers of the weights; reads no weights.

    Args:
        directory: A Hugging Face model directory.

    Returns:
        What the weights amount to.

    Raises:
        ConfigError: Something is a pipe, leads out of the directory, is too large or pickled; or
            config.json redirects transformers or has impossible sizes.
    """
    check_texts(directory)
    for path in sorted(directory.glob("*.safetensors")):
        check_file(path)
        if _DISTRIBUTED.fullmatch(path.name):
            raise ConfigError(
                f"{path} is part of a distributed checkpoint: gather it with "
                "model.save_pretrained(...) and use that"
            )
    config = read_config(directory)
    check_config(directory / "config.json", config)
    stored = [each for _, each in stored_tensors(directory).values()]
    return Contents(
        tensors=len(stored),
        elements=sum(math.prod(each.shape) for each in stored),
        stored_bytes=sum(each.end - each.start for each in stored),
        quantized=any(section.get("quantization_config") for section in _sections(config)),
    )


def check_texts(directory: Path) -> None:
    """Checks that configuration and tokenizer are files of the directory and not too large.

    Raises:
        ConfigError: One is a pipe or a link that leads elsewhere, has more than
            `LARGEST_TEXT_BYTES`, or is JSON that begins with a byte order mark.
    """
    for path in sorted([*directory.iterdir(), *(directory / _TEMPLATES).glob("*")]):
        if path.suffix not in _READ:
            continue
        check_file(path, directory)
        if path.stat().st_size > LARGEST_TEXT_BYTES:
            raise ConfigError(f"{path} has more than {LARGEST_TEXT_BYTES} bytes: remove it")
        if path.name.startswith("tokenizer") or path.name.endswith("config.json"):
            with path.open("rb") as file:
                if file.read(3) == codecs.BOM_UTF8:  # transformers cannot read it
                    remedy = "save it as UTF-8 without one"
                    raise ConfigError(f"{path} is damaged by a byte order mark: {remedy}")


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses settings that redirect transformers, and sizes that no model has.

    Raises:
        ConfigError: There is one.
    """
    for section in _sections(config):
        for name, why in _REDIRECTING.items():
            if section.get(name) not in _USUAL:
                raise ConfigError(f"{path} sets {name}, which {why}: remove the setting")
        for name, value in section.items():
            if name in _AT_LEAST_ONE | _COUNTS | _POSITIONS:
                _check_size(path, name, value)


@contextmanager
def built_from(directory: Path, contents: Contents) -> Iterator[None]:
    """Stops building a model, inside, once it outgrows the files that it is to be filled from.

    Transformers builds a model without memory (on the meta device) and then makes room for it: what
    is counted here has cost nothing yet. Of all threads.

    Raises:
        ParameterMismatchError: The model of config.json is too large.
    """
    elements = modules = 0

    def refuse(what: str) -> None:
        raise ParameterMismatchError(
            f"the model that {directory / 'config.json'} describes has more than {what}, but its "
            f"files hold {contents.tensors} tensors of {contents.elements} elements: config.json "
            "and weights belong to different models"
        )

    def count_tensor(owner: object, name: str, tensor: Tensor | None) -> None:
        nonlocal elements
        elements += tensor.numel() if tensor is not None and tensor.is_meta else 0
        if elements > contents.most_elements:
            refuse(f"{contents.most_elements} elements")

    def count_module(owner: object, name: str, part: object) -> None:
        nonlocal modules
        modules += 1
        if modules > contents.most_modules:
            refuse(f"{contents.most_modules} modules")

    with ExitStack() as hooks:
        for register, hook in (
            (torch_modules.register_module_parameter_registration_hook, count_tensor),
            (torch_modules.register_module_buffer_registration_hook, count_tensor),
            (torch_modules.register_module_module_registration_hook, count_module),
        ):
            hooks.callback(register(hook).remove)
        yield


def _sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration and those within it, such as text_config."""
    waiting = [config]
    while waiting:
        section = waiting.pop()
        yield section
        waiting += [value for value in section.values() if isinstance(value, dict)]


def _check_size(path: Path, name: str, value: Any) -> None:
    """One size; None and lists, one entry a layer, are left to transformers."""
    if value is None or isinstance(value, list):
        return
    least = int(name in _AT_LEAST_ONE)
    most = MOST_LAYERS if name in _COUNTS else MOST_POSITIONS if name in _POSITIONS else 2**63 - 1
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(
            f"{path}: {name} must be a whole number from {least} to {most}, got {value!r:.60}"
        )
