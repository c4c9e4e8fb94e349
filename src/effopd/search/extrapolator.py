"""Adaptive extrapolation for any PyTorch loop: ties schedule, ray, scales and validator together.

Source: arXiv 2605.11739, section 4, equations 1 to 4. Departures are named at the presets of
`Search`.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from effopd.errors import ConfigError, ParameterMismatchError, ValidatorError
from effopd.search.alpha_memory import AlphaMemory
from effopd.search.direction import AlphaPLS, Averaged, Relex
from effopd.search.factors import Factors
from effopd.search.line_search import OnTrial, SearchResult, line_search
from effopd.search.memory import AverageMemory, Memory, NoMemory
from effopd.search.past import PastSearch
from effopd.search.rate import rate_change, rate_factor
from effopd.search.ray import Ray, check_fits, local_
from effopd.search.relex import RelexMemory
from effopd.search.selection import select_parameters
from effopd.search.settings import Search as Search
from effopd.search.validation import Draw, Score, Validator, as_score

STATE_VERSION = 3
_STATE_KEYS = {"version", "last_step", "search", "past", "anchor", "history", "recorded"}


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
        factors: Pairs of parameters whose products are searched, as in LoRA.
        on_trial: Called as `on_trial(index, trial)` after each trial.

    Raises:
        ConfigError: A momentum policy without the optimizer of the parameters, or a direction that
            cannot be had of these parameters.
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
        factors: Factors | None = None,
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
        self._ray = Ray(parameters, mirrors=mirrors, device=device, factors=factors)
        self._memory = _memory_of(self.search, self._ray)
        if factors is not None and not isinstance(self._memory, NoMemory):
            raise ConfigError(
                f"search.direction {self.search.direction.type!r} averages or fits tensors, which "
                "factors of a product cannot be: use 'since_accepted', 'since_raw' or 'since_base'"
            )
        self._past: list[PastSearch] = []
        self._last_step = 0

    def step(self, step: int, progress: float | None = None) -> SearchResult | None:
        """Searches if one is due after optimizer update `step`.

        Args:
            step: Number of optimizer updates done, counting from 1.
            progress: How far the weights that update `step` started from had come, 0 at the base
                and 1 at the teacher: what its training batch measures for free. Only directions
                that regress on it ask for it.

        Returns:
            The search's result, or None when none was due or this step is over already (a resumed
            run calls again for the step it was saved at).

        Raises:
            ConfigError: The direction needs `progress` and never got any.
            NonFiniteError: The tip's own score, or what the direction computes with, is not finite.
                The parameters are at the tip.
            ValidatorError: The validator changed the parameters, or returned no score.
        """
        if step <= self._last_step:
            return None
        result = None
        if self.search.schedule.is_due(step, self._past):
            result = self._search_(step, progress)
        else:
            self._memory.record_(self._ray, step, progress, searched=False)
        self._last_step = step
        return result

    @property
    def rate_factor(self) -> float:
        """What to multiply the optimizer's learning rate by in the next update.

        1 unless `search.learning_rate` is "follow"; a function of the searches so far, so a resumed
        run goes on with it. The caller sets the learning rate.
        """
        return rate_factor(self._past) if self.search.learning_rate == "follow" else 1.0

    def _search_(self, step: int, progress: float | None) -> SearchResult:
        """One search: moves the parameters, or leaves everything as it was and raises."""
        self._ray.capture_tip_()
        displacement = self._memory.displacement(self._ray, step, progress, self._past)
        if displacement is not None:
            self._ray.aim_(displacement)
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
                    past=self._past,
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
        self._memory.record_(self._ray, step, progress, searched=True)
        self._ray.advance_anchor_(self.search.direction.anchor_scale(result.accepted_scale))
        scale = result.accepted_scale
        change = rate_change(result.trials, scale)
        self._past.append(PastSearch(step=step, accepted_scale=scale, rate_change=change))
        return result

    def _evaluate(self, scale: float, draw: Draw) -> Score:
        """Moves to `point(scale)` and scores it."""
        self._reshard()
        self._ray.move_to_(scale)
        truncation = self._ray.truncation
        if truncation > self.search.max_truncation:
            lost = f"the rank cannot hold {truncation:.2g} of the update"
            return Score(value=math.nan, reason=lost, truncation=truncation)
        before = self._ray.checksum()
        with torch.no_grad():
            score = as_score(self._validate(draw))
        if self._ray.checksum() != before:
            raise ValidatorError(
                f"the validator changed the parameters it was scoring (step {draw.step}, scale "
                f"{scale:g}). Those that the search moves were restored. Inside, do not step an "
                "optimizer, cast the model or swap in averaged weights, or put all back exactly."
            )
        return dataclasses.replace(score, truncation=truncation)

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
        factor = 0.0 if self.search.momentum == "reset" else 1.0 / max(accepted_scale, 1.0)
        for tensor in {id(tensor): tensor for tensor in self._live.values()}.values():
            state = self._optimizer.state.get(tensor, {})
            for key in ("exp_avg", "momentum_buffer"):
                if isinstance(state.get(key), Tensor):
                    local_(state[key]).mul_(factor)

    def checksum(self) -> int:
        """Of this process's live parameters: tells whether a saved state belongs to them."""
        return self._ray.checksum()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to propose the same candidates.

        Returns:
            `version`, `last_step`, `search` (settings), `past` (step, accepted scale and
            change of the rate of each search) and `recorded` (what the direction noted), all
            JSON-able; `anchor` and `history` (what the direction remembers, often nothing), name
            to tensor, each process's own shard when sharded. Tensors are references: save before
            the next step.
        """
        return {
            "version": STATE_VERSION,
            "last_step": self._last_step,
            "search": dataclasses.asdict(self.search),
            "past": [[s.step, s.accepted_scale, s.rate_change] for s in self._past],
            "anchor": dict(self._ray.anchor),
            "history": self._memory.tensors(),
            "recorded": self._memory.notes(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict()`; the live parameters are the caller's to restore.

        Raises:
            ConfigError: The state was saved under other search settings.
            ParameterMismatchError: The state is incomplete, or its tensors do not fit.
        """
        missing = _STATE_KEYS - state.keys()
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
        check_fits(state["anchor"], self._ray.anchor)
        self._memory.load_(state["history"], state["recorded"])
        self._ray.load_anchor_(state["anchor"])
        self._past = [
            PastSearch(step=int(s), accepted_scale=float(a), rate_change=float(r))
            for s, a, r in state["past"]
        ]
        self._last_step = int(state["last_step"])


def _memory_of(search: Search, ray: Ray) -> Memory:
    """What the direction of `search` remembers, at the start of a run."""
    match search.direction:
        case Averaged() as settings:
            return AverageMemory(settings.beta, ray)
        case Relex() as settings:
            return RelexMemory(settings, ray)
        case AlphaPLS() as settings:
            return AlphaMemory(settings, ray)
        case _:
            return NoMemory()


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
