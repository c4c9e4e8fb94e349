"""Adaptive extrapolation for any PyTorch loop: ties schedule, ray, scales and validator together.

Source: arXiv 2605.11739, section 4, equations 1 to 4. Departures are named at `Search.paper` and
`Search.release`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from effopd.core.direction import SinceAccepted, SinceRaw
from effopd.core.ray import Ray, local_
from effopd.core.scales import GeometricScales, LadderScales, QuadraticScales
from effopd.core.schedule import AtSteps, EveryN, PowersOfTwo
from effopd.core.search import OnTrial, SearchResult, line_search
from effopd.core.selection import select_parameters
from effopd.core.validation import (
    AtLeast,
    Draw,
    LengthGuard,
    PairedMargin,
    Score,
    Strict,
    Validator,
    as_score,
)
from effopd.errors import ConfigError, ParameterMismatchError, ValidatorError

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Search:
    """The settings of the search; see docs/presets.md for what the defaults rest on.

    Attributes:
        schedule: When to search.
        scales: How far to look.
        direction: Which point becomes the next anchor.
        accept: When a candidate replaces the incumbent.
        guard: Objection to degenerate text; None for none.
        retest: Confirm the winner on fresh prompts.
        momentum: What happens to Adam's first moment of the moved parameters after a jump to scale
            s: "keep" (released code), "reset" to zero, or "scale" by 1/s. SGD's momentum likewise.
        parameters: Selection for `select_parameters` when a module is given.
    """

    schedule: PowersOfTwo | EveryN | AtSteps = PowersOfTwo()
    scales: LadderScales | GeometricScales | QuadraticScales = GeometricScales()
    direction: SinceAccepted | SinceRaw = SinceAccepted()
    accept: Strict | AtLeast | PairedMargin = Strict()
    guard: LengthGuard | None = LengthGuard()
    retest: bool = False
    momentum: Literal["keep", "reset", "scale"] = "keep"
    parameters: str = "attention_mlp"

    def __post_init__(self) -> None:
        if self.momentum not in {"keep", "reset", "scale"}:
            raise ConfigError(f"momentum is 'keep', 'reset' or 'scale', got {self.momentum!r}")

    @classmethod
    def paper(cls) -> "Search":
        """The paper to the letter: equations 1 to 4, raw displacement, accept at equality."""
        return cls(
            schedule=PowersOfTwo(),
            scales=LadderScales(),
            direction=SinceRaw(),
            accept=AtLeast(),
            guard=None,
            retest=False,
            momentum="keep",
            parameters="all",
        )

    @classmethod
    def release(cls) -> "Search":
        """The released code: strict improvement, accepted anchor, attention and MLP tensors."""
        return cls(
            schedule=PowersOfTwo(),
            scales=LadderScales(),
            direction=SinceAccepted(),
            accept=Strict(),
            guard=None,
            retest=False,
            momentum="keep",
            parameters="attention_mlp",
        )


class Extrapolator:
    """Looks ahead along the displacement of the parameters and keeps what validates.

    Call `step(n)` after optimizer update `n`. When a search is due the parameters are moved to each
    candidate in turn, scored by `validate`, and left at the best accepted one; otherwise, and when
    nothing is accepted, they are untouched bit for bit. Torch's random generators are put back.

    Args:
        parameters: A module (filtered by `search.parameters`) or name to live tensor. A module of
            `fully_shard` is resharded before each move, so that the next forward pass gathers the
            candidate; with a mapping of DTensors the caller does that.
        validate: Scores the live parameters under a `Draw`; returns a Score or a float. Called
            without gradients.
        search: Settings.
        optimizer: Needed when `search.momentum` is not "keep".
        mirrors: Low-precision copies of fp32 masters, see `Ray`.
        device: Where the anchor lives; None keeps it next to the parameters.
        on_trial: Called as `on_trial(index, trial)` after each trial.

    Raises:
        ConfigError: A momentum policy without the optimizer of the parameters.
    """

    def __init__(
        self,
        parameters: nn.Module | Mapping[str, Tensor],
        validate: Validator,
        *,
        search: Search | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        mirrors: Mapping[str, Tensor] | None = None,
        device: torch.device | str | None = "cpu",
        on_trial: OnTrial | None = None,
    ) -> None:
        self.search = search or Search()
        self._sharded: list[FSDPModule] = []
        if isinstance(parameters, nn.Module):
            self._sharded = [m for m in parameters.modules() if isinstance(m, FSDPModule)]
            self._reshard()
            parameters = select_parameters(parameters, self.search.parameters)
        if self.search.momentum != "keep":
            _check_optimizer(optimizer, parameters, self.search.momentum)
        self._live = dict(parameters)
        self._mirrors = dict(mirrors or {})
        self._validate = validate
        self._optimizer = optimizer
        self._on_trial = on_trial
        self._ray = Ray(parameters, mirrors=mirrors, device=device)
        self._last_step = 0

    def step(self, step: int) -> SearchResult | None:
        """Searches if one is due after optimizer update `step`.

        Args:
            step: Number of optimizer updates done, counting from 1.

        Returns:
            The search's result, or None when none was due or this step was searched already (a
            resumed run calls again for the step it was saved at).

        Raises:
            NonFiniteError: The tip's own score is not finite. The parameters are at the tip.
            ValidatorError: The validator changed the parameters, or returned no score.
        """
        if step <= self._last_step or not self.search.schedule.is_due(step):
            return None
        self._ray.capture_tip_()
        finished = False
        try:
            with _generators_kept((*self._live.values(), *self._mirrors.values())):
                result = line_search(
                    self._evaluate,
                    step,
                    scales=self.search.scales,
                    accept=self.search.accept,
                    guard=self.search.guard,
                    retest=self.search.retest,
                    on_trial=self._on_trial,
                )
            self._reshard()
            self._ray.move_to_(result.accepted_scale)
            finished = True
        finally:
            if not finished:
                self._reshard()
                self._ray.return_to_tip_()
        self._adjust_momentum_(result.accepted_scale)
        self._ray.advance_anchor_(self.search.direction.anchor_scale(result.accepted_scale))
        self._last_step = step
        return result

    def _evaluate(self, scale: float, draw: Draw) -> Score:
        """Moves to `point(scale)` and scores it."""
        self._reshard()
        self._ray.move_to_(scale)
        before = self._ray.checksum()
        with torch.no_grad():
            score = as_score(self._validate(draw))
        if self._ray.checksum() != before:
            raise ValidatorError(
                f"the validator changed the parameters it was scoring (step {draw.step}, scale "
                f"{scale:g}). Those that the search moves were restored. Inside, do not step an "
                "optimizer, cast the model or swap in averaged weights, or put all back exactly."
            )
        return score

    def _reshard(self) -> None:
        """Drops gathered copies, without communication.

        A forward pass without a backward pass leaves the root module's behind, and the next one
        would use them instead of the moved shards.
        """
        for module in self._sharded:
            module.reshard()

    @torch.no_grad()
    def _adjust_momentum_(self, accepted_scale: float) -> None:
        """Applies the momentum policy after a jump."""
        if self.search.momentum == "keep" or accepted_scale == 1.0 or self._optimizer is None:
            return
        factor = 0.0 if self.search.momentum == "reset" else 1.0 / accepted_scale
        for tensor in {id(tensor): tensor for tensor in self._live.values()}.values():
            state = self._optimizer.state.get(tensor, {})
            for key in ("exp_avg", "momentum_buffer"):
                if isinstance(state.get(key), Tensor):
                    local_(state[key]).mul_(factor)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to propose the same candidates.

        Returns:
            `version`, `last_step`, `search` (settings, JSON-able) and `anchor` (name to tensor;
            each process's own shard when sharded). Tensors are references: save before the next
            step.
        """
        return {
            "version": STATE_VERSION,
            "last_step": self._last_step,
            "search": dataclasses.asdict(self.search),
            "anchor": dict(self._ray.anchor),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`; the live parameters are the caller's to restore.

        Raises:
            ConfigError: The state was saved under other search settings.
            ParameterMismatchError: The state is incomplete, or its anchor does not fit.
        """
        missing = {"version", "last_step", "search", "anchor"} - state.keys()
        if missing or state["version"] != STATE_VERSION:
            raise ParameterMismatchError(
                f"not an extrapolator state of version {STATE_VERSION}: missing {sorted(missing)}, "
                f"version {state.get('version')}"
            )
        ours, theirs = _plain(dataclasses.asdict(self.search)), _plain(state["search"])
        if ours != theirs:
            changed = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
            raise ConfigError(
                f"the state was saved under other search settings; changed: {changed}. Resume with "
                "the settings it was saved under."
            )
        self._ray.load_anchor_(state["anchor"])
        self._last_step = int(state["last_step"])


def _check_optimizer(
    optimizer: torch.optim.Optimizer | None, parameters: Mapping[str, Tensor], momentum: str
) -> None:
    """A momentum policy needs the optimizer that updates the moved tensors themselves."""
    groups = [] if optimizer is None else optimizer.param_groups
    held = {id(tensor) for group in groups for tensor in group["params"]}
    unknown = [name for name, tensor in parameters.items() if id(tensor) not in held]
    if unknown:
        raise ConfigError(
            f"momentum={momentum!r} changes the optimizer's state of the moved parameters: pass "
            f"optimizer= that updates them; {unknown[:3]} ({len(unknown)} in all) are in none of "
            f"its {len(groups)} parameter groups"
        )


@contextmanager
def _generators_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Puts torch's generators back on exit: the host's and those of the tensors' devices."""
    devices = {t.device for t in tensors if t.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    with torch.random.fork_rng(list(devices), device_type=kind):
        yield


def _plain(value: Any) -> Any:
    """Settings as JSON would give them back: tuples are lists."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
