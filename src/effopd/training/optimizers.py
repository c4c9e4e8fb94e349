"""Optimizers by name: settings, schedule of the learning rate, making one, and its state on disk.

Sources: Prodigy arXiv 2306.06101, schedule-free AdamW arXiv 2405.15682, Muon
kellerjordan.github.io/posts/muon with the scale of arXiv 2502.16982, SOAP arXiv 2409.11321.
"""

import importlib
import inspect
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from effopd.data.problem import imported, is_path
from effopd.errors import CheckpointError, ConfigError
from effopd.models.names import is_head
from effopd.models.weights import is_embedding
from effopd.search.slope import SlopeSettings

if TYPE_CHECKING:
    from effopd.training.config import Config

OPTIMIZERS = {
    "adamw": "torch.optim:AdamW",
    "prodigy": "prodigyopt:Prodigy",
    "schedule_free": "schedulefree:AdamWScheduleFree",
    "muon": f"{__name__}:MuonAndAdamW",
    "soap": "pytorch_optimizer.optimizer.soap:SOAP",
}
"""Name -> class; others are named by `package.module:Class`."""
_SOAP_LARGEST = 10_000
_USUAL_LR = {"prodigy": 1.0}


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer and its learning-rate schedule; see docs/optimizers.md.

    Attributes:
        type: "adamw"; "prodigy" and "schedule_free" (AdamW), which need no tuned rate and no
            decay; "muon" and "soap", which precondition matrices; or "package.module:Class", a
            class like those of `torch.optim`. All but "adamw" and "muon" need the extra
            `optimizers`.
        options: More arguments of that class, such as `{d_coef = 3.0}` of Prodigy.
        lr: Peak learning rate; by default 1 with "prodigy", which multiplies its estimate of the
            rate, and 1e-4 else.
        betas: Decay rates of the moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of linear warm-up.
        decay: Shape after warm-up: "none" stays at the peak; "linear" and "cosine" fall to 0 at the
            last step.
        clip_norm: Largest gradient norm; larger gradients are scaled down.
        slope: Multiplies the scheduled rate of "adamw" by what the slopes of the loss say, so that
            the rate need not be known (docs/search.md); None leaves it as it is.
    """

    type: str = "adamw"
    options: dict[str, Any] = field(default_factory=dict)
    lr: float = None  # type: ignore[assignment]  # made a number at once
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    clip_norm: float = 1.0
    slope: SlopeSettings | None = None

    def __post_init__(self) -> None:
        if self.type not in OPTIMIZERS and not is_path(self.type):
            *others, last = map(repr, OPTIMIZERS)
            raise ConfigError(
                f"optimizer.type must be {', '.join(others)}, {last} or 'package.module:Class', "
                f"got {self.type!r}"
            )
        if self.slope is not None and self.type != "adamw":
            raise ConfigError(f"optimizer.slope knows the steps of 'adamw', not of {self.type!r}")
        object.__setattr__(self, "betas", tuple(self.betas))
        if self.lr is None:
            object.__setattr__(self, "lr", _USUAL_LR.get(self.type, 1e-4))
        for name in ("lr", "eps", "clip_norm"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"optimizer.{name} must be positive, got {getattr(self, name)}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"optimizer.weight_decay must be >= 0, got {self.weight_decay}")
        if self.warmup_steps < 0:
            raise ConfigError(f"optimizer.warmup_steps must be >= 0, got {self.warmup_steps}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas must be two numbers in [0, 1), got {self.betas}")

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of update `step` (1 is the first) of `steps`."""
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        left = {
            "none": 1.0,
            "linear": (steps + 1 - step) / steps,
            "cosine": (1 + math.cos(math.pi * (step - 1) / steps)) / 2,
        }[self.decay]
        return self.lr * min(warm, left)


def optimizer_contradictions(config: "Config") -> Iterator[str]:
    """What the points of an optimizer cannot be used for."""
    if config.optimizer.slope is not None and config.searches:
        yield (
            "optimizer.slope and a search both set the rate: use it with method = 'slope' or 'opd'"
        )
    if config.optimizer.slope is not None and config.objective.needs_rewards:
        yield (
            "optimizer.slope follows a divergence from a teacher, and rewards have no slope that "
            "one batch shows: leave it out"
        )
    if config.optimizer.type != "schedule_free":
        return
    if config.searches:
        yield (
            "optimizer.type = 'schedule_free' averages points that a search would leave behind, "
            "and the next average takes the jump back: use another optimizer, or method = 'opd'"
        )
    if config.average.is_active:
        yield "optimizer.type = 'schedule_free' is evaluated at an average of its own: drop average"


def kept_numbers(settings: OptimizerSettings, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers an optimizer keeps of named tensors; two a parameter of an unknown class.

    Muon has one of a hidden matrix. SOAP adds to AdamW's a square factor and its basis for each
    side of a tensor of two axes or more, up to `max_precondition_dim`.
    """
    total = 0
    for name, shape in shapes.items():
        numbers = math.prod(shape)
        total += (1 if settings.type == "muon" and _is_hidden(name, shape) else 2) * numbers
        if settings.type == "soap" and len(shape) > 1:
            largest = settings.options.get("max_precondition_dim", _SOAP_LARGEST)
            total += sum(2 * side * side for side in shape if side <= largest)
        if settings.type == "prodigy":
            total += 2 * (numbers // settings.options.get("slice_p", 1))
    return total


def _is_hidden(name: str, shape: Sequence[int]) -> bool:
    """Whether it is a matrix between hidden states: neither embedding nor head."""
    return len(shape) == 2 and not (is_embedding(name) or is_head(name))


def make_optimizer(
    settings: OptimizerSettings, moved: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    """The optimizer of named tensors.

    Its class gets `options`, and of rate, betas, eps and weight decay what its signature names.

    Raises:
        ConfigError: The class cannot be imported, or refuses its arguments.
    """
    name = settings.type
    if name in OPTIMIZERS:
        package = OPTIMIZERS[name].partition(":")[0]
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"optimizer.type = {name!r} needs the package {package.partition('.')[0]!r} "
                f"({error}): pip install 'effopd[optimizers]'"
            ) from None
    cls = imported(OPTIMIZERS.get(name, name), "optimizer.type", "name a class of optimizers")
    accepted = inspect.signature(cls).parameters
    known = ("lr", "betas", "eps", "weight_decay")
    arguments: Any = {each: getattr(settings, each) for each in known if each in accepted}
    if name == "adamw" and all(tensor.device.type == "cpu" for tensor in moved.values()):
        arguments["fused"] = True  # a third of the time; on a GPU the default is as good
    parameters: Any = list(moved.values())
    if name == "muon":  # embedding and head are no maps between hidden states
        parameters = [
            [tensor for n, tensor in moved.items() if _is_hidden(n, tensor.shape) is hidden]
            for hidden in (True, False)
        ]
    try:
        with redirect_stdout(io.StringIO()):  # Prodigy prints that its weight decay is decoupled
            made = cls(parameters, **(arguments | settings.options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.options of {name!r}: {error}") from None
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(f"optimizer.type = {name!r} is no class of torch.optim.Optimizer")
    if callable(train := getattr(made, "train", None)):
        train()
    return made


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon on some matrices, AdamW on all else, at one learning rate.

    Muon's updates are scaled to the size of AdamW's, 0.2 sqrt(max(m, n)), unless `options` say
    otherwise (`adjust_lr_fn`).

    Args:
        parameters: Matrices for Muon; then everything else.
        lr: Learning rate of both.
        betas: Of AdamW.
        eps: Of AdamW.
        weight_decay: Of both.
        momentum: Of Muon.
        muon: More arguments of `torch.optim.Muon`.
    """

    def __init__(
        self,
        parameters: Sequence[list[Tensor]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        **muon: Any,
    ) -> None:
        if getattr(torch.optim, "Muon", None) is None:
            raise ConfigError("optimizer.type = 'muon' needs PyTorch 2.9 or newer")
        matrices, others = parameters
        super().__init__([*matrices, *others], {"lr": lr})
        both: Any = {"lr": lr, "weight_decay": weight_decay}
        own: Any = {"adjust_lr_fn": "match_rms_adamw", "momentum": momentum} | muon
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, **both, **own))
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=betas, eps=eps, **both))
        self.param_groups = [group for part in self._parts for group in part.param_groups]
        for part in self._parts:  # one state, in which each has what it needs of its own
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of both."""
        for part in self._parts:
            part.step(closure)


# State on disk ------------------------------------------------------------------------------------

_OF_SHAPE = {"exp_avg", "exp_avg_sq", "momentum_buffer", "z"}
"""Entries with the shape of their parameter."""
_METADATA = "effopd"


def save_optimizer(
    path: Path, optimizer: torch.optim.Optimizer, moved: Mapping[str, Tensor]
) -> None:
    """Writes what an optimizer remembers: tensors as `NAME/ENTRY`, everything else as JSON.

    Of its groups the numbers are kept, in which some count and estimate; the rate is set anew at
    every step. Tensors in lists and in groups have names of their own.
    """
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {"state": {}, "groups": []}
    for name, parameter in moved.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            plain = _without_tensors(value, f"{name}/{entry}", tensors)
            if not isinstance(value, Tensor):
                rest["state"].setdefault(name, {})[entry] = plain
    for index, group in enumerate(optimizer.param_groups):
        counted = {k: v for k, v in group.items() if isinstance(v, int | float | Tensor)}
        counted.pop("lr", None)
        rest["groups"].append(
            {k: _without_tensors(v, f"/{index}/{k}", tensors) for k, v in counted.items()}
        )
    # Products of matrices are rounded as they lie in memory, which a file would not say.
    orders = {key: sorted(range(t.ndim), key=t.stride, reverse=True) for key, t in tensors.items()}
    rest["orders"] = {key: order for key, order in orders.items() if order != sorted(order)}
    laid = {key: tensor.permute(orders[key]).contiguous() for key, tensor in tensors.items()}
    save_file(laid, path, metadata={_METADATA: json.dumps(rest)})


def load_optimizer_(
    path: Path, optimizer: torch.optim.Optimizer, moved: Mapping[str, Tensor]
) -> None:
    """Restores what `save_optimizer` wrote, in the precision it was kept in."""
    try:
        with safe_open(path, framework="pt") as file:
            rest = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            # Copies, since the alignment of memory tells how products of matrices are rounded too.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    for key, order in rest.get("orders", {}).items():
        tensors[key] = tensors[key].permute([order.index(axis) for axis in range(len(order))])
    used: set[str] = set()
    states, groups = rest.get("state", {}), rest.get("groups", [])
    if groups and len(groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{path} is the state of another optimizer: it has {len(groups)} groups of parameters, "
            f"this one {len(optimizer.param_groups)}"
        )
    for group, saved in zip(optimizer.param_groups, groups, strict=False):
        device = group["params"][0].device
        group.update({k: _with_tensors(v, tensors, device, used) for k, v in saved.items()})
    optimizer.state.clear()
    entries = [(name, entry, v) for name, own in states.items() for entry, v in own.items()]
    found = [
        (name, entry, _with_tensors(value, tensors, moved[name].device, used))
        for name, entry, value in entries
        if name in moved
    ]
    found += [(*_parts(key), tensor) for key, tensor in tensors.items() if key not in used]
    for name, entry, value in found:
        parameter, shape = moved.get(name), getattr(value, "shape", None)
        if parameter is None or (entry in _OF_SHAPE and shape != parameter.shape):
            raise CheckpointError(
                f"the optimizer state does not fit the model: {name}/{entry} of shape "
                f"{tuple(shape or ())}"
            )
        if isinstance(value, Tensor) and entry != "step":
            value = value.to(parameter.device)
        optimizer.state.setdefault(parameter, {})[entry] = value


def _parts(key: str) -> tuple[str, str]:
    name, _, entry = key.rpartition("/")
    return name, entry


def _without_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; tensors go to `tensors` and leave their name."""
    if isinstance(value, Tensor):
        tensors[key] = value.detach()
        return {_METADATA: key}
    if isinstance(value, list | tuple):
        return [_without_tensors(each, f"{key}/{i}", tensors) for i, each in enumerate(value)]
    if value is None or isinstance(value, int | float | str):
        return value
    raise ConfigError(
        f"the optimizer keeps {type(value).__name__} in {key}, which a checkpoint cannot hold: use "
        "one that keeps tensors, numbers and lists of them"
    )


def _with_tensors(
    value: Any, tensors: Mapping[str, Tensor], device: torch.device, used: set[str]
) -> Any:
    """The inverse; notes the names of tensors that it used."""
    if isinstance(value, dict):
        used.add(value[_METADATA])
        return tensors[value[_METADATA]].to(device)
    if isinstance(value, list):
        return [_with_tensors(each, tensors, device, used) for each in value]
    return value
