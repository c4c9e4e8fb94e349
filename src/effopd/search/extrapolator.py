"""Extrapolation for any PyTorch loop: ties schedule, ray, scales and validator together.

Source: arXiv 2605.11739, section 4, equations 1 to 4. Departures are named at the presets of
`Search`.
"""

import dataclasses
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from effopd.errors import ConfigError, ParameterMismatchError, ValidatorError
from effopd.search.alpha import AlphaMemory
from effopd.search.direction import AlphaPLS
from effopd.search.factors import Factors
from effopd.search.line_search import LineSearch, OnTrial, SearchResult, rate_factor
from effopd.search.ray import Ray, check_fits
from effopd.search.scales import PastSearch
from effopd.search.selection import select_parameters
from effopd.search.settings import Search as Search
from effopd.search.validation import Draw, Score, Validator, as_score

STATE_VERSION = 4
_STATE_KEYS = {"version", "last_step", "search", "past", "anchor", "history", "recorded"}


class Extrapolator:
    """Looks ahead along the displacement of the parameters and keeps what validates.

    Call `step(n)` after optimizer update `n`. When a search is due the parameters are moved to each
    candidate in turn, scored by `validate`, and left at the best accepted one; otherwise, and when
    nothing is accepted, they are untouched bit for bit. Random generators are put back.

    Where the score comes from elsewhere, `begin(n)` gives the search to ask and tell instead.

    Args:
        parameters: A module (filtered by `search.parameters`) or name to live tensor. A module of
            `fully_shard` is resharded before each move, so that the next forward pass gathers the
            candidate; with a mapping of DTensors the caller does that.
        validate: Scores the live parameters under a `Draw`; returns a Score or a float. Called
            without gradients. None where searches are asked and told.
        search: Settings.
        mirrors: Low-precision copies of fp32 masters, see `Ray`.
        device: Where the anchor lives; None keeps it next to the parameters.
        factors: Pairs of parameters whose products are searched, as in LoRA.
        on_trial: Called as `on_trial(index, trial)` after each trial.

    Raises:
        ConfigError: A direction that cannot be had of these parameters.
    """

    def __init__(
        self,
        parameters: nn.Module | Mapping[str, Tensor],
        validate: Validator | None = None,
        *,
        search: Search | None = None,
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
        self._tensors = (*parameters.values(), *(mirrors or {}).values())
        self._validate = validate
        self._on_trial = on_trial
        self._ray = Ray(parameters, mirrors=mirrors, device=device, factors=factors)
        self._alpha: AlphaMemory | None = None
        if isinstance(self.search.direction, AlphaPLS):
            if factors is not None:
                raise ConfigError(
                    "search.direction 'alpha_pls' fits tensors, which factors of a product cannot "
                    "be: use 'since_accepted', 'since_raw' or 'since_base'"
                )
            self._alpha = AlphaMemory(self.search.direction, self._ray)
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
            ConfigError: The direction needs `progress` and never got any, or there is no validator.
            NonFiniteError: The tip's own score, or what the direction computes with, is not finite.
                The parameters are at the tip.
            ValidatorError: The validator changed the parameters, or returned no score.
        """
        search = self.begin(step, progress)
        if search is None:
            return None
        with search, torch.no_grad():
            while (draw := search.ask()) is not None:
                if self._validate is None:
                    raise ConfigError("step() needs a validator: pass validate=, or use begin()")
                search.tell(self._validate(draw))
        return search.result

    def begin(self, step: int, progress: float | None = None) -> "RaySearch | None":
        """The search after optimizer update `step`, to ask and tell; see `step` and `RaySearch`."""
        if step <= self._last_step:
            return None
        if self.search.schedule.is_due(step, self._past):
            return RaySearch(self, step, progress)
        self._finish(step, progress)
        return None

    def _finish(self, step: int, progress: float | None) -> None:
        """Takes note of a step that is over, its search included."""
        if self._alpha is not None:
            self._alpha.record_(self._ray, step, progress)
        self._last_step = step

    def _reshard(self) -> None:
        """Drops gathered copies, without communication.

        A forward pass without a backward pass leaves the root module's behind, and the next one
        would use them instead of the moved shards.
        """
        for module in self._sharded:
            module.reshard()

    @property
    def rate_factor(self) -> float:
        """What to multiply the optimizer's learning rate by in the next update.

        1 unless `search.learning_rate` is "follow"; a function of the searches so far, so a resumed
        run goes on with it. The caller sets the learning rate.
        """
        return rate_factor(self._past) if self.search.learning_rate == "follow" else 1.0

    def checksum(self) -> int:
        """Of this process's live parameters: tells whether a saved state belongs to them."""
        return self._ray.checksum()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to propose the same candidates.

        `anchor` and `history` (what `AlphaPLS` remembers) map name to tensor, each process's own
        shard when sharded; all else is JSON-able. Tensors are references: save before the next
        step.
        """
        return {
            "version": STATE_VERSION,
            "last_step": self._last_step,
            "search": dataclasses.asdict(self.search),
            "past": [[s.step, s.accepted_scale, s.rate_change] for s in self._past],
            "anchor": dict(self._ray.anchor),
            "history": self._alpha.tensors() if self._alpha else {},
            "recorded": self._alpha.notes() if self._alpha else {},
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
        settings = dataclasses.asdict(self.search), state["search"]
        ours, theirs = (json.loads(json.dumps(each)) for each in settings)  # tuples are lists
        if ours != theirs:
            changed = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
            raise ConfigError(
                f"the state was saved under other search settings; changed: {changed}. Resume with "
                "the settings it was saved under."
            )
        check_fits(state["anchor"], self._ray.anchor)
        if self._alpha is not None:
            self._alpha.load_(state["history"], state["recorded"])
        else:
            check_fits(state["history"], {})
        self._ray.load_anchor_(state["anchor"])
        self._past = [
            PastSearch(step=int(s), accepted_scale=float(a), rate_change=float(r))
            for s, a, r in state["past"]
        ]
        self._last_step = int(state["last_step"])


class RaySearch:
    """A search of an extrapolator, asked and told: `LineSearch` with the parameters moved along.

        with extrapolator.begin(step) as search:
            while (draw := search.ask()) is not None:   # the parameters are at point(draw.scale)
                search.tell(score)
        search.result                                   # and now where the search left them

    An error, leaving the block before the end, or `abandon()` puts the parameters back at the tip
    and leaves no trace. Random generators are put back at the end.
    """

    def __init__(self, extrapolator: Extrapolator, step: int, progress: float | None) -> None:
        self._owner, self._ray = extrapolator, extrapolator._ray
        self._step, self._progress = step, progress
        self._line = LineSearch(
            extrapolator.search, step, extrapolator._past, extrapolator._on_trial
        )
        self._before = 0  # checksum of the parameters in question
        self._is_over = False
        self._ray.capture_tip_()
        if extrapolator._alpha is not None:
            self._ray.aim_(extrapolator._alpha.displacement(self._ray, step, progress))
        self._preserved = ExitStack()
        self._preserved.enter_context(preserve_state(extrapolator._tensors))

    def ask(self) -> Draw | None:
        """Moves to the next point and names it; None when the search is over.

        Then the parameters are at the accepted point, and the extrapolator has taken note of it.
        """
        if self._is_over:
            return None
        owner, ray = self._owner, self._ray
        with ExitStack() as on_error:
            on_error.callback(self.abandon)
            while (draw := self._line.ask()) is not None:
                owner._reshard()
                ray.move_to_(draw.scale)
                if ray.truncation <= owner.search.max_truncation:
                    self._before = ray.checksum()
                    on_error.pop_all()
                    return draw
                reason = f"the rank cannot hold {ray.truncation:.2g} of the update"
                self._line.tell(Score(value=math.nan, reason=reason, truncation=ray.truncation))
            # Over: the parameters go where the search led, and the anchor follows.
            owner._reshard()
            result = self._line.result
            ray.move_to_(result.accepted_scale)
            owner._finish(self._step, self._progress)
            ray.advance_anchor_(owner.search.direction.anchor_scale(result.accepted_scale))
            owner._past.append(result.as_past)
            self._is_over = True
            self._preserved.close()
            on_error.pop_all()
        return None

    def tell(self, score: Score | float) -> None:
        """Answers the last question; see `LineSearch.tell`.

        Raises:
            ValidatorError: The parameters are not those that were in question.
        """
        with ExitStack() as on_error:
            on_error.callback(self.abandon)
            score = as_score(score)
            if self._ray.checksum() != self._before:
                raise ValidatorError(
                    f"the validator changed the parameters it was scoring (step {self._step}). "
                    "Those that the search moves were restored. Inside, do not step an optimizer, "
                    "cast the model or swap in averaged weights, or put all back exactly."
                )
            self._line.tell(dataclasses.replace(score, truncation=self._ray.truncation))
            on_error.pop_all()

    def abandon(self) -> None:
        """Puts the parameters back at the tip, unless the search is over."""
        if self._is_over:
            return
        self._is_over = True
        self._owner._reshard()
        self._ray.return_to_tip_()
        self._preserved.close()

    def __enter__(self) -> "RaySearch":
        return self

    def __exit__(self, *error: object) -> None:
        self.abandon()

    @property
    def result(self) -> SearchResult:
        """What the search did; final once `ask` has returned None."""
        return self._line.result


@contextmanager
def preserve_state(
    tensors: Iterable[Tensor] = (),
    *,
    modules: Iterable[nn.Module] = (),
    attributes: Iterable[tuple[Any, Mapping[str, Any]]] = (),
) -> Iterator[None]:
    """Keeps random generators, training modes and attributes as they are now; for `with`."""
    devices = {t.device for t in tensors if t.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    python, numpy = random.getstate(), np.random.get_state()
    modes = {module: module.training for module in modules}
    for module in modes:
        module.training = False
    with torch.random.fork_rng(list(devices), device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for module, mode in modes.items():
                module.training = mode
            for owner, values in attributes:
                for name, value in values.items():
                    setattr(owner, name, value)
