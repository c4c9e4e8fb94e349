"""The settings of the search, and the published ones by name."""

from dataclasses import dataclass, replace
from typing import Literal

from effopd.errors import ConfigError
from effopd.search.direction import AlphaPLS, Direction, SinceAccepted, SinceBase, SinceRaw
from effopd.search.scales import GeometricScales, LadderScales, Scales
from effopd.search.schedule import AtSteps, EveryN, PowersOfTwo, Schedule
from effopd.search.validation import (
    AcceptRule,
    AtLeast,
    LengthGuard,
    PairedMargin,
    Strict,
    Unconditional,
)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The settings of the search; see docs/presets.md for what the defaults rest on.

    Attributes:
        schedule: When to search.
        scales: How far to look.
        direction: What the ray points along, and which point becomes the next anchor.
        accept: When a candidate replaces the incumbent; `Unconditional` asks nobody.
        guard: Objection to degenerate text; None for none.
        learning_rate: "keep" leaves it to the optimizer's schedule; "follow" multiplies it by the
            scales that searches ended at, see `Extrapolator.rate_factor`.
        parameters: Selection for `select_parameters` when a module is given.
        max_truncation: Where products of factors are searched, a point has up to twice their rank
            and the nearest of their rank is tried. Largest relative error of that, in [0, 1];
            beyond it a candidate is rejected unseen. 1 tries all.
    """

    schedule: Schedule = PowersOfTwo()
    scales: Scales = GeometricScales()
    direction: Direction = SinceAccepted()
    accept: AcceptRule | Unconditional = Strict()
    guard: LengthGuard | None = LengthGuard()
    learning_rate: Literal["keep", "follow"] = "keep"
    parameters: str = "attention_mlp"
    max_truncation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_truncation <= 1:
            raise ConfigError(f"max_truncation must be in [0, 1], got {self.max_truncation}")
        if self.learning_rate not in {"keep", "follow"}:
            raise ConfigError(f"learning_rate is 'keep' or 'follow', got {self.learning_rate!r}")
        if not isinstance(self.accept, Unconditional):
            return
        # Without validation there is one scale, and nothing that compares scores.
        if not isinstance(self.scales, LadderScales) or len(self.scales.scales) > 1:
            raise ConfigError(
                "accept 'unconditional' takes the one scale there is, got scales "
                f"{self.scales}; use LadderScales with exactly one scale, or another accept rule"
            )
        if self.guard is not None:
            raise ConfigError(
                "accept 'unconditional' scores nothing, so there is nothing to guard: set guard to "
                f"None ('none' in a recipe), got {self.guard}"
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
            schedule=PowersOfTwo(), scales=LadderScales(), direction=SinceRaw(), accept=AtLeast(),
            guard=None, parameters="all",
        )  # fmt: skip

    @classmethod
    def release(cls) -> "Search":
        """The released code: strict improvement, accepted anchor, attention and MLP tensors."""
        return cls(
            schedule=PowersOfTwo(), scales=LadderScales(), direction=SinceAccepted(),
            accept=Strict(), guard=None, parameters="attention_mlp",
        )  # fmt: skip

    @classmethod
    def effopd(cls) -> "Search":
        """What measured best (docs/search.md): every step, both ways, the rate following.

        For a loop that searches between writing a batch and training on it, and a validator that
        scores on that batch, as `effopd.training.loop` does.
        """
        return cls(
            schedule=EveryN(n=1), scales=GeometricScales(floor=0.125), accept=PairedMargin(z=1.65),
            learning_rate="follow",
        )  # fmt: skip

    @classmethod
    def expo(cls, at_step: int = 16, alpha: float = 0.5) -> "Search":
        """ExPO: once, `base + (1 + alpha) (tip - base)` of all tensors, unseen.

        Source: arXiv 2404.16792, alpha 0.25 to 0.5. Departure: training goes on from there; the
        source extrapolates a finished model, and chooses alpha on held-out prompts.
        """
        return cls._jump(at_step, 1 + alpha, direction=SinceBase(), parameters="all")

    @classmethod
    def alphaopd(cls, at_step: int = 16) -> "Search":
        """AlphaOPD: once, to the weights predicted for the teacher's level, unseen.

        Source: arXiv 2510.00553 (rank 1, a snapshot every 2 steps, prediction at 30 to 40% of the
        steps), named AlphaOPD and a baseline in arXiv 2605.11739, which does not describe the
        adaptation. Departures: those of `AlphaPLS`, and training goes on from there.
        """
        return cls._jump(at_step, 2.0, direction=AlphaPLS(), parameters="matrices")

    @classmethod
    def first_update(cls, alpha: float = 8.0) -> "Search":
        """Once, after step 1: `base + alpha (tip - base)` of all tensors, unseen.

        A control: what the direction of the first update alone is worth.
        """
        return cls._jump(1, alpha, direction=SinceBase(), parameters="all")

    @classmethod
    def fixed_alpha(cls, n: int = 4, alpha: float = 3.0) -> "Search":
        """Every n steps, `anchor + alpha (tip - anchor)` since the last jump, unseen.

        A control: what validation adds. 3 is the first scale that arXiv 2605.11739 tries.
        """
        jump = cls._jump(n, alpha, direction=SinceAccepted(), parameters="attention_mlp")
        return replace(jump, schedule=EveryN(n=n))

    @classmethod
    def _jump(
        cls, at_step: int, scale: float, *, direction: Direction, parameters: str
    ) -> "Search":
        """One fixed extrapolation without validation."""
        return cls(
            schedule=AtSteps(steps=(at_step,)),
            scales=LadderScales(scales=(scale,)),
            direction=direction,
            accept=Unconditional(),
            guard=None,
            parameters=parameters,
        )
