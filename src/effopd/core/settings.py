"""The settings of the search, and the published ones by name."""

from dataclasses import dataclass
from typing import Literal

from effopd.core.direction import Averaged, SinceAccepted, SinceBase, SinceRaw
from effopd.core.scales import GeometricScales, LadderScales, QuadraticScales, TrackingScales
from effopd.core.schedule import Adaptive, AtSteps, EveryN, PowersOfTwo
from effopd.core.validation import AtLeast, LengthGuard, PairedMargin, Strict, Unconditional
from effopd.errors import ConfigError


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
            s: "keep" (released code), "reset" to zero, or "scale" by 1/s. SGD's momentum likewise.
        parameters: Selection for `select_parameters` when a module is given.
    """

    schedule: PowersOfTwo | EveryN | AtSteps | Adaptive = PowersOfTwo()
    scales: LadderScales | GeometricScales | TrackingScales | QuadraticScales = GeometricScales()
    direction: SinceAccepted | SinceRaw | SinceBase | Averaged = SinceAccepted()
    accept: Strict | AtLeast | PairedMargin | Unconditional = Strict()
    guard: LengthGuard | None = LengthGuard()
    retest: bool = False
    momentum: Literal["keep", "reset", "scale"] = "keep"
    parameters: str = "attention_mlp"

    def __post_init__(self) -> None:
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
