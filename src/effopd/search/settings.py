"""The settings of the search, and the published ones by name."""

from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError
from effopd.search.direction import (
    AlphaPLS,
    Averaged,
    Relex,
    SinceAccepted,
    SinceBase,
    SinceRaw,
)
from effopd.search.scales import GeometricScales, LadderScales, QuadraticScales, TrackingScales
from effopd.search.schedule import Adaptive, AtSteps, EveryN, PowersOfTwo
from effopd.search.validation import AtLeast, LengthGuard, PairedMargin, Strict, Unconditional


@dataclass(frozen=True, kw_only=True)
class Search:
    """The settings of the search; see docs/presets.md for what the defaults rest on.

    Attributes:
        schedule: When to search.
        scales: How far to look.
        direction: What the ray points along, and which point becomes the next anchor.
        accept: When a candidate replaces the incumbent; `Unconditional` asks nobody.
        guard: Objection to degenerate text; None for none.
        retest: Confirm the winner on fresh prompts.
        momentum: What happens to Adam's first moment of the moved parameters after a jump to scale
            s: "keep" (released code), "reset" to zero, or "scale" by 1/s, by 1 where s is below 1:
            a step that was too long asks for no more momentum. SGD's momentum likewise.
        learning_rate: "keep" leaves it to the optimizer's schedule; "follow" multiplies it by the
            scales that searches ended at, see `Extrapolator.rate_factor`.
        parameters: Selection for `select_parameters` when a module is given.
        max_truncation: Where products of factors are searched, a point has up to twice their rank
            and the nearest of their rank is tried. Largest relative error of that, in [0, 1];
            beyond it a candidate is rejected unseen. 1 tries all.
    """

    schedule: PowersOfTwo | EveryN | AtSteps | Adaptive = PowersOfTwo()
    scales: LadderScales | GeometricScales | TrackingScales | QuadraticScales = GeometricScales()
    direction: SinceAccepted | SinceRaw | SinceBase | Averaged | Relex | AlphaPLS = SinceAccepted()
    accept: Strict | AtLeast | PairedMargin | Unconditional = Strict()
    guard: LengthGuard | None = LengthGuard()
    retest: bool = False
    momentum: Literal["keep", "reset", "scale"] = "keep"
    learning_rate: Literal["keep", "follow"] = "keep"
    parameters: str = "attention_mlp"
    max_truncation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_truncation <= 1:
            raise ConfigError(f"max_truncation must be in [0, 1], got {self.max_truncation}")
        if self.learning_rate not in {"keep", "follow"}:
            raise ConfigError(f"learning_rate is 'keep' or 'follow', got {self.learning_rate!r}")
        if self.momentum not in {"keep", "reset", "scale"}:
            raise ConfigError(f"momentum is 'keep', 'reset' or 'scale', got {self.momentum!r}")
        if isinstance(self.accept, Unconditional):
            self._check_nothing_needs_scores()

    def _check_nothing_needs_scores(self) -> None:
        """Without validation there is one scale, and nothing that compares scores."""
        one_scale = isinstance(self.scales, LadderScales) and len(self.scales.scales) == 1
        if not one_scale:
            raise ConfigError(
                "accept 'unconditional' takes the one scale there is, got scales "
                f"{self.scales}; use LadderScales with exactly one scale, or another accept rule"
            )
        if self.guard is not None or self.retest:
            raise ConfigError(
                "accept 'unconditional' scores nothing, so there is nothing to guard or to "
                f"re-test: set guard to None ('none' in a recipe) and retest to False, got guard "
                f"{self.guard}, retest {self.retest}"
            )
        if self.max_truncation < 1:
            raise ConfigError(
                "accept 'unconditional' takes its one point whatever it is: leave max_truncation "
                f"at 1, got {self.max_truncation}"
            )

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

    @classmethod
    def expo(cls, at_step: int = 16, alpha: float = 0.5) -> "Search":
        """ExPO: once, `base + (1 + alpha) (tip - base)` of all tensors, unseen.

        Source: arXiv 2404.16792, alpha 0.25 to 0.5. Departure: training goes on from there; the
        source extrapolates a finished model, and chooses alpha on held-out prompts.
        """
        return cls._jump(at_step, 1 + alpha, direction=SinceBase(), parameters="all")

    @classmethod
    def relex(cls, at_step: int = 16, target_step: int = 80) -> "Search":
        """RELEX: once, on to where rank 1 and a line in the step see `target_step`, unseen.

        Source: arXiv 2605.21468; the first 15 to 20 % of the steps match the whole run there.
        Departures: those of `Relex`, and training goes on from there.

        Raises:
            ConfigError: The target is not ahead.
        """
        if not 0 < at_step < target_step:
            raise ConfigError(
                f"target_step must be after at_step, got at_step {at_step}, target_step "
                f"{target_step}"
            )
        return cls._jump(at_step, target_step / at_step, direction=Relex(), parameters="all")

    @classmethod
    def alphaopd(cls, at_step: int = 16) -> "Search":
        """AlphaOPD: once, to the weights predicted for the teacher's level, unseen.

        Source: arXiv 2510.00553 (rank 1, a snapshot every 2 steps, prediction at 30 to 40 % of the
        steps), named AlphaOPD and a baseline in arXiv 2605.11739, which does not describe the
        adaptation. Departures: those of `AlphaPLS`, and training goes on from there.
        """
        return cls._jump(at_step, 2.0, direction=AlphaPLS(), parameters="matrices")

    @classmethod
    def _jump(
        cls,
        at_step: int,
        scale: float,
        *,
        direction: SinceBase | Relex | AlphaPLS,
        parameters: str,
    ) -> "Search":
        """One fixed extrapolation without validation."""
        return cls(
            schedule=AtSteps(steps=(at_step,)),
            scales=LadderScales(scales=(scale,)),
            direction=direction,
            accept=Unconditional(),
            guard=None,
            retest=False,
            momentum="keep",
            parameters=parameters,
        )
