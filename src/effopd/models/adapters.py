"""LoRA adapters in PEFT's format, as factors of an update; nothing is merged.

Legend: m rows and n columns of the adapted tensor, r rank.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from effopd.errors import CheckpointError, ConfigError, ParameterMismatchError
from effopd.models.names import counterparts, unwrapped
from effopd.models.weights import SafetensorsWeights, check_file, read_object, wide_dtype

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
Number = TypeVar("Number", int, float)
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?"
)
# Settings that make the update something else than scaling * B @ A of the base's own weights.
_REFUSED = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
)
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # the others change the base


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What adapter_config.json says about the size of the update.

    Attributes:
        rank: r of modules that no pattern names.
        alpha: Numerator of the scaling of modules that no pattern names.
        rank_stabilized: Divide by sqrt(r) instead of r (rsLoRA).
        transposed: The base stores `[in, out]` (PEFT's fan_in_fan_out).
        rank_pattern: Rank by module name or regular expression; the first match counts.
        alpha_pattern: Alpha, likewise.
    """

    rank: int
    alpha: float
    rank_stabilized: bool = False
    transposed: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rank in (self.rank, *self.rank_pattern.values()):
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ConfigError(f"r must be a whole number of at least 1, got {rank!r}")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if isinstance(alpha, bool) or not isinstance(alpha, int | float):
                raise ConfigError(f"lora_alpha must be a number, got {alpha!r}")
            if not math.isfinite(alpha):
                raise ConfigError(f"lora_alpha must be finite, got {alpha}")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{pattern!r} is no regular expression: {error}") from None

    def rank_of(self, module: str) -> int:
        """Rank of one module's update."""
        return _matching(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """`alpha / r`, or `alpha / sqrt(r)` when rank-stabilized."""
        rank = self.rank_of(module)
        divisor = math.sqrt(rank) if self.rank_stabilized else rank
        return _matching(self.alpha_pattern, module, self.alpha) / divisor


def read_lora_settings(directory: Path) -> LoraSettings:
    """The settings of an adapter directory.

    Raises:
        ConfigError: adapter_config.json describes something other than plain LoRA on the unchanged
            base.
    """
    path = directory / CONFIG
    raw = read_object(path)
    kind = raw.get("peft_type")
    remedy = "merge the adapter into its base model, save that and analyze it instead"
    if kind != "LORA":
        raise ConfigError(f"{path} describes an adapter of kind {kind!r}, not LORA: {remedy}")
    for name in _REFUSED:
        if raw.get(name):
            raise ConfigError(f"{path} sets {name}, which plain LoRA does not have: {remedy}")
    if raw.get("bias", "none") != "none":
        raise ConfigError(f"{path} trains biases (bias = {raw['bias']!r}): {remedy}")
    if raw.get("init_lora_weights") not in _INITS:
        raise ConfigError(
            f"{path} starts from init_lora_weights = {raw['init_lora_weights']!r}, which changes "
            f"the base model's weights too: {remedy}"
        )
    return _settings(path, raw)


def _settings(path: Path, raw: Mapping[str, Any]) -> LoraSettings:
    try:
        return LoraSettings(
            rank=raw["r"],
            alpha=raw["lora_alpha"],
            rank_stabilized=bool(raw.get("use_rslora")),
            transposed=bool(raw.get("fan_in_fan_out")),
            rank_pattern=dict(raw.get("rank_pattern") or {}),
            alpha_pattern=dict(raw.get("alpha_pattern") or {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {error!r}") from None


class LoraAdapter:
    """The tensors of an adapter directory by the base tensor they change, read when asked for.

    Args:
        directory: With adapter_config.json and adapter_model.safetensors.
        shapes: Of the base model's tensors.

    Raises:
        CheckpointError: A tensor is of unknown kind, or a factor lacks its partner.
        ParameterMismatchError: An adapted tensor is not in the base, or shapes do not fit.
    """

    def __init__(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.settings = read_lora_settings(directory)
        self._directory = directory
        self._weights = _open(directory)
        self._replacing: dict[str, str] = {}  # base tensor -> tensor of the adapter
        self._factors: dict[str, dict[str, str]] = {}  # module -> side -> tensor of the adapter
        self._embeddings: set[str] = set()
        for stored in self._weights.shapes:
            self._sort(stored, shapes)
        for name, stored in self._replacing.items():
            self._check_target(name, shapes, self._weights.shapes[stored])
        for module, pair in self._factors.items():
            self._check_factors(module, pair, shapes)

    @property
    def factored(self) -> frozenset[str]:
        """Base tensors that get a low-rank update."""
        return frozenset(f"{module}.weight" for module in self._factors)

    @property
    def replaced(self) -> frozenset[str]:
        """Base tensors that the adapter holds whole (PEFT's modules_to_save)."""
        return frozenset(self._replacing)

    def factors(self, name: str) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r n"]]:
        """The factors whose product is the low-rank update, the first one scaled.

        Args:
            name: One of `factored`.

        Returns:
            Both in float32, or float64 when stored so.
        """
        module = name.removesuffix(".weight")
        pair = self._factors[module]
        a_rn, b_mr = self._weights.read(pair["A"]), self._weights.read(pair["B"])
        wide = wide_dtype(a_rn.dtype, b_mr.dtype)
        left, right = b_mr.to(wide), a_rn.to(wide)
        if self._is_transposed(module):
            left, right = right.T, left.T
        return left * self.settings.scaling_of(module), right

    def replacement(self, name: str) -> Tensor:
        """The whole tensor, in its stored dtype, that takes the place of one of `replaced`."""
        return self._weights.read(self._replacing[name])

    def _sort(self, stored: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Finds out what one tensor of the adapter is, and of which tensor of the base."""
        name = unwrapped(stored)
        factor = _FACTOR.fullmatch(name)
        if factor:
            adapted = f"{factor['module']}.weight"
            adapted = counterparts([adapted], shapes).get(adapted, adapted)
            module = adapted.removesuffix(".weight")
            self._factors.setdefault(module, {})[factor["side"]] = stored
            if factor["embedding"]:
                self._embeddings.add(module)
        elif name == stored or "lora_" in name:
            raise CheckpointError(
                f"{stored} in {self._directory} is of no kind that plain LoRA has: save the "
                "adapter with save_pretrained of PEFT, or merge it into its base model"
            )
        else:
            name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
            self._replacing[counterparts([name], shapes).get(name, name)] = stored

    def _is_transposed(self, module: str) -> bool:
        return self.settings.transposed or module in self._embeddings

    def _check_factors(
        self, module: str, pair: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        if len(pair) != 2:
            raise CheckpointError(
                f"{self._directory} holds only one of the two factors of {module}: save it again"
            )
        a, b = self._weights.shapes[pair["A"]], self._weights.shapes[pair["B"]]
        rank = self.settings.rank_of(module)
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            raise ParameterMismatchError(
                f"the factors of {module} have shapes {a} and {b}, but {CONFIG} of "
                f"{self._directory} asks for [{rank}, in] and [out, {rank}]"
            )
        product = (a[1], b[0]) if self._is_transposed(module) else (b[0], a[1])
        self._check_target(f"{module}.weight", shapes, product)

    def _check_target(
        self, name: str, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, ...]
    ) -> None:
        if name not in shapes:
            raise ParameterMismatchError(
                f"{self._directory} adapts {name}, which the base does not hold: it is of another "
                "model, or the base ties its head to the embedding; save the base untied"
            )
        if shapes[name] != shape:
            raise ParameterMismatchError(
                f"{self._directory} adapts {name} as {shape}, the base holds {shapes[name]}: "
                "it is of another model"
            )


def _open(directory: Path) -> SafetensorsWeights:
    if not (directory / WEIGHTS).exists():
        raise ConfigError(
            f"{directory} holds no {WEIGHTS} (pickled weights are refused): save the adapter with "
            "save_pretrained(..., safe_serialization=True)"
        )
    check_file(directory / WEIGHTS)
    return SafetensorsWeights(directory, (WEIGHTS,))


def _matching(pattern: Mapping[str, Number], module: str, default: Number) -> Number:
    """The entry of the first key that ends the module's name, as a regular expression."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
