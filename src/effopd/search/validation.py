"""What a candidate is worth: scores, accept rules and the guard against degenerate text.

A validator is a callable `validate(draw) -> Score | float` that scores the parameters as they are
now. Higher is better. All draws of one step must use the same prompts and the same random numbers,
so that the difference of two scores is due to the parameters alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError, ValidatorError


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One question of a search: what is `point(scale)` worth?

    Attributes:
        step: Optimizer step of the search; decides prompts and random numbers.
        scale: Position on the ray. 1 is the tip, which comes first; all others are candidates, and
            are scored on the prompts of the tip.
    """

    step: int
    scale: float = 1.0

    @property
    def is_candidate(self) -> bool:
        """Whether the point is compared with the tip instead of being it."""
        return self.scale != 1.0


@dataclass(frozen=True, kw_only=True)
class Score:
    """The value of one candidate; higher is better.

    Attributes:
        value: Mean over prompts, in the validator's unit (accuracy in [0, 1], or minus nats).
        per_prompt: One value a prompt, in a fixed order; empty when the validator has none.
        tokens: Tokens the student sampled to compute it.
        teacher_tokens: Tokens the teacher scored to compute it.
        mean_length: Mean completion length in tokens; None when nothing was generated.
        truncated_share: Share of completions cut at the length cap, in [0, 1].
        reason: Why the value is not finite; the search records it.
        truncation: Relative error of the point that was scored, where factors of a given rank
            cannot hold it; the search fills it in.
    """

    value: float
    per_prompt: tuple[float, ...] = ()
    tokens: int = 0
    teacher_tokens: int = 0
    mean_length: float | None = None
    truncated_share: float = 0.0
    reason: str = ""
    truncation: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether the value and every per-prompt value are finite."""
        return math.isfinite(self.value) and all(map(math.isfinite, self.per_prompt))

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean over prompts; None with fewer than two prompts."""
        return standard_error(self.per_prompt)


Validator = Callable[[Draw], Score | float]


def score_of(
    values: Sequence[float],
    lengths: Sequence[float],
    truncated: Sequence[float],
    *,
    tokens: int = 0,
    teacher_tokens: int = 0,
) -> Score:
    """The score of a candidate from its answers, one entry an answer; higher values are better.

    `truncated` is 1 (or its weight) where the answer was cut at the length cap, else 0.
    """
    return Score(
        value=math.fsum(values) / len(values),
        per_prompt=tuple(values),
        tokens=tokens,
        teacher_tokens=teacher_tokens,
        mean_length=math.fsum(lengths) / len(lengths),
        truncated_share=math.fsum(truncated) / len(truncated),
    )


@dataclass(frozen=True, kw_only=True)
class Strict:
    """Accept when the score is strictly higher: the released code's rule."""

    type: Literal["strict"] = "strict"

    def accepts(self, candidate: Score, incumbent: Score) -> bool:
        """`candidate > incumbent`."""
        return candidate.value > incumbent.value


@dataclass(frozen=True, kw_only=True)
class AtLeast:
    """Accept when the score is not lower: the paper's rule, arXiv 2605.11739, equation 3."""

    type: Literal["at_least"] = "at_least"

    def accepts(self, candidate: Score, incumbent: Score) -> bool:
        """`candidate >= incumbent`."""
        return candidate.value >= incumbent.value


@dataclass(frozen=True, kw_only=True)
class PairedMargin:
    """Accept when the mean paired difference exceeds `z` of its standard errors.

    Both scores come from the same prompts and random numbers, so prompt difficulty cancels:
    `mean(d) > z * std(d) / sqrt(n)` with `d = candidate - incumbent` per prompt.

    Attributes:
        z: Standard errors demanded; 0 asks for a positive mean difference only.
    """

    type: Literal["paired_margin"] = "paired_margin"
    z: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.z) and self.z >= 0):
            raise ConfigError(f"z must be a finite number >= 0, got {self.z}")

    def accepts(self, candidate: Score, incumbent: Score) -> bool:
        """Whether the paired improvement is significant; both need equally many prompts."""
        n = len(candidate.per_prompt)
        if n < 2 or n != len(incumbent.per_prompt):
            raise ValidatorError(
                "PairedMargin compares prompt by prompt and needs at least two values in both "
                f"scores; got {n} and {len(incumbent.per_prompt)}. Return Score(per_prompt=...) "
                "from the validator, or use Strict()."
            )
        pairs = zip(candidate.per_prompt, incumbent.per_prompt, strict=True)
        differences = tuple(c - i for c, i in pairs)
        return sum(differences) / n > self.z * (standard_error(differences) or 0.0)


AcceptRule = Strict | AtLeast | PairedMargin
"""Decides whether a candidate replaces the incumbent, the best point so far; both are finite."""


@dataclass(frozen=True, kw_only=True)
class Unconditional:
    """Take the one scale there is without asking the validator: fixed extrapolation.

    Not an accept rule, since there are no scores to compare: the search makes one trial without a
    score and spends no tokens. The baseline that shows what validation is worth.
    """

    type: Literal["unconditional"] = "unconditional"


@dataclass(frozen=True, kw_only=True)
class LengthGuard:
    """Objects to candidates that score well by writing degenerate text.

    A divergence per token can fall because answers collapse to a few easy tokens, or run into the
    length cap. The comparison is always with the tip, so that small losses cannot add up.

    Attributes:
        shortest: Smallest allowed ratio of mean completion length to the tip's.
        longest: Largest allowed ratio.
        truncated_rise: Largest allowed rise of the truncated share, absolute.
    """

    shortest: float = 0.5
    longest: float = 2.0
    truncated_rise: float = 0.1

    def __post_init__(self) -> None:
        if not (0 <= self.shortest <= 1 <= self.longest and self.truncated_rise >= 0):
            raise ConfigError(
                "a guard needs 0 <= shortest <= 1 <= longest and truncated_rise >= 0, got "
                f"{self.shortest}, {self.longest}, {self.truncated_rise}"
            )

    def objection(self, candidate: Score, tip: Score) -> str | None:
        """Why the candidate must not be accepted, or None."""
        if candidate.truncated_share > tip.truncated_share + self.truncated_rise:
            return f"truncated share {tip.truncated_share:.2f} -> {candidate.truncated_share:.2f}"
        if candidate.mean_length is None or tip.mean_length is None:
            return None
        low, high = self.shortest * tip.mean_length, self.longest * tip.mean_length
        if not low <= candidate.mean_length <= high:
            return f"mean length {tip.mean_length:.1f} -> {candidate.mean_length:.1f} tokens"
        return None


def as_score(returned: Score | float) -> Score:
    """The validator's return value, a Score or a real number, as a Score."""
    if isinstance(returned, Score):
        return returned
    if isinstance(returned, bool) or not isinstance(returned, int | float):
        raise ValidatorError(
            f"a validator returns a Score or a float, got {type(returned).__name__}; "
            "for a one-element tensor return tensor.item()"
        )
    return Score(value=float(returned))


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean, `std(ddof=1) / sqrt(n)`; None with fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
