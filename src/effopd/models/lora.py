"""LoRA: adapters on disk in PEFT's format, and adapters trained in place of a model's weights.

Settings on disk are read without PEFT, so that analyses work without the extra. Trained adapters
are part of the Hugging Face model itself, so whatever reads, writes or generates with a model does
so with its adapters. They are float32 whatever the model is.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, MissingExtraError
from effopd.models.directory import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_object
from effopd.models.names import in_tower
from effopd.models.weights import read_header

ALL_LINEAR = "all-linear"
Number = TypeVar("Number", int, float)
_NAME = "default"
_PREFIX = "base_model.model."
_LEFT, _RIGHT = f".lora_B.{_NAME}.weight", f".lora_A.{_NAME}.weight"
# Settings that make the update something else than scaling * B @ A of the base's own weights.
_REFUSED = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "arrow_config", "layer_replication",
    "alora_invocation_tokens", "target_parameters", "trainable_token_indices",
)  # fmt: skip
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # the others change the base


# Adapters on disk ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What adapter_config.json says about the size of the update.

    `rank_pattern` and `alpha_pattern` hold values of single modules, by name or regular expression;
    the first match counts.
    """

    rank: int
    alpha: float
    rank_stabilized: bool  # divide by sqrt(r) instead of r (rsLoRA)
    transposed: bool  # the base stores [in, out] (PEFT's fan_in_fan_out)
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def of(self, module: str) -> tuple[int, float]:
        """Rank and scaling, `alpha / r` or `alpha / sqrt(r)`, of one module's update."""
        rank = _matching(self.rank_pattern, module, self.rank)
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_lora_settings(directory: Path) -> LoraSettings:
    """The settings of an adapter directory; ConfigError unless it is plain LoRA on the base."""
    path = directory / ADAPTER_CONFIG
    raw = read_object(path)
    kind, init = raw.get("peft_type"), raw.get("init_lora_weights")
    problem = ""
    if kind != "LORA":
        problem = f"describes an adapter of kind {kind!r}, not LORA"
    elif used := [name for name in _REFUSED if raw.get(name)]:
        problem = f"sets {used[0]}, which plain LoRA does not have"
    elif raw.get("bias", "none") != "none":
        problem = f"trains biases (bias = {raw['bias']!r})"
    elif init not in _INITS:
        problem = f"starts from init_lora_weights = {init!r}, which changes the base's weights too"
    if problem:
        raise ConfigError(
            f"{path} {problem}: merge the adapter into its base model, save that and analyze it "
            "instead"
        )
    try:
        found = LoraSettings(
            rank=raw["r"],
            alpha=raw["lora_alpha"],
            rank_stabilized=bool(raw.get("use_rslora")),
            transposed=bool(raw.get("fan_in_fan_out")),
            rank_pattern=dict(raw.get("rank_pattern") or {}),
            alpha_pattern=dict(raw.get("alpha_pattern") or {}),
        )
        for rank in (found.rank, *found.rank_pattern.values()):
            if type(rank) is not int or rank < 1:
                raise ValueError(f"r must be a whole number of at least 1, got {rank!r}")
        for alpha in (found.alpha, *found.alpha_pattern.values()):
            if type(alpha) not in (int, float) or not math.isfinite(alpha):
                raise ValueError(f"lora_alpha must be a finite number, got {alpha!r}")
        for pattern in (*found.rank_pattern, *found.alpha_pattern):
            re.compile(pattern)
    except (KeyError, TypeError, ValueError, re.error) as error:
        raise ConfigError(f"{path} is damaged: {error!r}") from None
    return found


def _matching(pattern: Mapping[str, Number], module: str, default: Number) -> Number:
    """The entry of the first key that ends the module's name, as a regular expression."""
    found = (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, default)


# Adapters that are trained ------------------------------------------------------------------------


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

    The model is on the CPU, so that the first values are the same wherever it goes.
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
            if not name.endswith((_LEFT, _RIGHT)):
                raise ConfigError(
                    f"lora.target_modules must be linear modules: {name} is adapted otherwise"
                )
    # Objectives multiply by the head themselves and would not see an adapter of it.
    head = model.get_output_embeddings()
    (name,) = [name for name, module in model.named_modules() if module is head]
    if any(tensor.startswith(f"{_PREFIX}{name}.lora_") for tensor in _tensors(model)):
        raise ConfigError(f"the head {name!r} cannot be adapted: leave it out of target_modules")
    if settings.adapter is None:
        return
    # A factor means nothing without its scale, so that of the adapter to start from must agree.
    directory = Path(settings.adapter).expanduser()
    saved = read_lora_settings(directory)
    asked = {"r": settings.r, "alpha": settings.alpha, "rslora": settings.rslora}
    found = {"r": saved.rank, "alpha": saved.alpha, "rslora": saved.rank_stabilized}
    if asked != found or saved.rank_pattern or saved.alpha_pattern:
        raise ConfigError(
            f"the adapter in {directory} has {found}, patterns {dict(saved.rank_pattern)} and "
            f"{dict(saved.alpha_pattern)}; lora asks for {asked}: they must be the same, without "
            "patterns"
        )
    load_adapters_(model, directory)


def trains_adapters(model: Any) -> bool:
    """Whether the model has adapters of `add_adapters_`."""
    return bool(_tensors(model))


def factor_pairs(model: Any) -> list[tuple[str, str]]:
    """Names of the left and right factor of every adapter, in the model's order."""
    rights = [name for name, _ in model.named_parameters() if name.endswith(_RIGHT)]
    return [(name.removesuffix(_RIGHT) + _LEFT, name) for name in rights]


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Switches the adapters off inside a `with` block, which may be entered within itself."""
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
    path = directory / ADAPTER_CONFIG
    raw = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules"):  # PEFT's order is that of a set
        raw[name] = sorted(raw[name]) if raw.get(name) else raw.get(name)
    path.write_text(json.dumps(raw, indent=2, sort_keys=True), encoding="utf-8")
    tensors = {name: tensor.contiguous() for name, tensor in _tensors(model).items()}
    save_file(tensors, directory / ADAPTER_WEIGHTS, {"format": "pt"})


@torch.no_grad()
def load_adapters_(model: Any, directory: Path) -> None:
    """Copies the factors of an adapter directory into those of the model, which has the same."""
    path = directory / ADAPTER_WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"{directory} holds no {ADAPTER_WEIGHTS}: it is no adapter in PEFT's format"
        )
    own, shapes = _tensors(model), {n: each.shape for n, each in read_header(path).items()}
    different = {n for n in own.keys() & shapes.keys() if tuple(own[n].shape) != shapes[n]}
    different |= own.keys() ^ shapes.keys()
    if different:
        raise CheckpointError(
            f"{directory} holds another adapter: {sorted(different)[:3]} ({len(different)} tensors "
            "in all) are missing, unknown or of another shape; compare lora.r and "
            "lora.target_modules"
        )
    saved = load_file(path)
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _tensors(model: Any) -> dict[str, Tensor]:
    """The factors by their names in PEFT's files."""
    return {
        _PREFIX + name.replace(f".{_NAME}.", "."): parameter.detach()
        for name, parameter in model.named_parameters()
        if name.endswith((_LEFT, _RIGHT))
    }
