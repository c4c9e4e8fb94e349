"""LoRA students: low-rank adapters trained in place of the weights, with PEFT.

The adapters are part of the Hugging Face model itself, so whatever reads, writes or generates with
a model does so with its adapters. They are float32 whatever the model is.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, MissingExtraError
from effopd.models.adapters import CONFIG, WEIGHTS, read_lora_settings
from effopd.models.headers import read_model_header
from effopd.models.names import in_tower
from effopd.models.weights import check_file

ALL_LINEAR = "all-linear"
_NAME = "default"
_PREFIX = "base_model.model."
_LEFT, _RIGHT = f".lora_B.{_NAME}.weight", f".lora_A.{_NAME}.weight"


@dataclass(frozen=True, kw_only=True)
class LoraStudent:
    """Adapters that are trained while the weights of the model stay as they are.

    Attributes:
        r: Rank.
        alpha: The update is `alpha / r` times the product of the factors.
        dropout: Of what goes into the adapters, while training.
        target_modules: Names of the linear modules to adapt; "all-linear" is all but the head. A
            tower for images is left alone.
        rslora: Scale by `alpha / sqrt(r)` instead.
        adapter: Directory of an adapter to start from, in PEFT's format; None starts at the model.
        seed: Of the right factors' first values; the left ones start at zero.
    """

    r: int = 32
    alpha: float = 64.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    adapter: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        modules = self.target_modules
        object.__setattr__(self, "target_modules", tuple(modules))
        if self.r < 1:
            raise ConfigError(f"r must be at least 1, got {self.r}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")
        if isinstance(modules, str) or not modules or not all(modules):
            raise ConfigError(f"target_modules must be a list of names, got {modules!r}")
        if ALL_LINEAR in modules and len(modules) > 1:
            raise ConfigError(f"target_modules is {ALL_LINEAR!r} or names, got {modules!r}")


def add_adapters_(model: Any, settings: LoraStudent) -> None:
    """Puts trainable adapters into a model; everything else of it no longer trains.

    Args:
        model: Hugging Face causal language model, on the CPU so that the first values are the same
            wherever it goes.
        settings: Which adapters.

    Raises:
        MissingExtraError: PEFT is not installed.
        ConfigError: No such modules, the head is among them, or the adapter to start from has other
            settings.
    """
    if find_spec("peft") is None:
        raise MissingExtraError(
            "training adapters needs peft, which is not installed: pip install 'effopd[lora]'"
        )
    from peft import LoraConfig, inject_adapter_in_model

    everything = settings.target_modules == (ALL_LINEAR,)
    apart = [name for name, _ in model.named_modules() if in_tower(f"{name}.weight")]
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=ALL_LINEAR if everything else list(settings.target_modules),
        exclude_modules=apart or None,  # text gives them no gradient
        use_rslora=settings.rslora,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name_or_path,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        try:
            inject_adapter_in_model(config, model, _NAME)
        except ValueError as error:
            raise ConfigError(f"cannot adapt {settings.target_modules}: {error}") from error
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            _check_factor(name)
    _check_head(model)
    if settings.adapter is not None:
        directory = Path(settings.adapter).expanduser()
        _check_same_adapter(settings, directory)
        load_adapters_(model, directory)


def trains_adapters(model: Any) -> bool:
    """Whether `add_adapters_` was there."""
    return bool(_tensors(model))


def factor_pairs(model: Any) -> list[tuple[str, str]]:
    """Names of the left and right factor of every adapter, in the model's order."""
    rights = [name for name, _ in model.named_parameters() if name.endswith(_RIGHT)]
    return [(name.removesuffix(_RIGHT) + _LEFT, name) for name in rights]


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """The model that the adapters were put into, inside; may be entered within itself."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if layers[0].disable_adapters:
        yield
        return
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapters(model: Any, directory: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, as PEFT does."""
    model.peft_config[_NAME].save_pretrained(str(directory))
    path = directory / CONFIG
    raw = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):  # PEFT's order is that of a set
        raw[name] = sorted(raw[name]) if raw.get(name) else raw.get(name)
    path.write_text(json.dumps(raw, indent=2, sort_keys=True), encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(model).items()}
    save_file(tensors, directory / WEIGHTS, {"format": "pt"})


@torch.no_grad()
def load_adapters_(model: Any, directory: Path) -> None:
    """Copies the factors of an adapter directory into those of the model.

    Raises:
        CheckpointError: A factor is missing, unknown or of another shape.
    """
    if not (directory / WEIGHTS).is_file():
        raise CheckpointError(f"{directory} holds no {WEIGHTS}: it is no adapter in PEFT's format")
    check_file(directory / WEIGHTS)
    read_model_header(directory / WEIGHTS)
    own, saved = _tensors(model), load_file(directory / WEIGHTS)
    different = {n for n in own.keys() & saved.keys() if own[n].shape != saved[n].shape}
    different |= own.keys() ^ saved.keys()
    if different:
        raise CheckpointError(
            f"{directory} holds another adapter: {sorted(different)[:3]} ({len(different)} tensors "
            "in all) are missing, unknown or of another shape; compare lora.r and "
            "lora.target_modules"
        )
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _tensors(model: Any) -> dict[str, Tensor]:
    """The factors by their names in PEFT's files."""
    return {
        _PREFIX + name.replace(f".{_NAME}.", "."): parameter.detach()
        for name, parameter in model.named_parameters()
        if name.endswith((_LEFT, _RIGHT))
    }


def _check_factor(name: str) -> None:
    if not name.endswith((_LEFT, _RIGHT)):
        raise ConfigError(
            f"lora.target_modules must be linear modules: {name} is adapted otherwise"
        )


def _check_head(model: Any) -> None:
    """Objectives multiply by the head themselves and would not see an adapter of it."""
    adapted = {name.rpartition(".lora_")[0] for name in _tensors(model)}
    head = model.get_output_embeddings()
    (name,) = [name for name, module in model.named_modules() if module is head]
    if _PREFIX + name in adapted:
        raise ConfigError(f"the head {name!r} cannot be adapted: leave it out of target_modules")


def _check_same_adapter(settings: LoraStudent, directory: Path) -> None:
    """A factor means nothing without its scale.

    Raises:
        ConfigError: Rank or scale of the adapter are others, or differ between its modules.
    """
    saved = read_lora_settings(directory)
    asked = {"r": settings.r, "alpha": settings.alpha, "rslora": settings.rslora}
    found = {"r": saved.rank, "alpha": saved.alpha, "rslora": saved.rank_stabilized}
    if asked != found or saved.rank_pattern or saved.alpha_pattern:
        raise ConfigError(
            f"the adapter in {directory} has {found}, patterns {dict(saved.rank_pattern)} and "
            f"{dict(saved.alpha_pattern)}; lora asks for {asked}: they must be the same, without "
            "patterns"
        )
