import math
from statistics import NormalDist

import pytest
import torch

from effopd.errors import ValidatorError
from effopd.search.validation import AtLeast, LengthGuard, PairedMargin, Score, Strict, as_score


def of(*per_prompt: float) -> Score:
    return Score(value=sum(per_prompt) / len(per_prompt), per_prompt=per_prompt)


# Scores -------------------------------------------------------------------------------------------


def test_standard_error_of_known_numbers() -> None:
    assert of(1.0, 0.0, 0.0, 1.0).standard_error == pytest.approx(math.sqrt(1 / 3 / 4))
    assert of(2.0, 2.0, 2.0).standard_error == 0.0
    assert of(1.0).standard_error is None
    assert Score(value=0.5).standard_error is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_is_finite_only_as_a_whole(bad: float) -> None:
    assert Score(value=0.5, per_prompt=(0.0, 1.0)).is_finite
    assert not Score(value=bad).is_finite
    assert not Score(value=0.5, per_prompt=(0.0, bad)).is_finite


def test_a_validator_may_return_a_number() -> None:
    assert as_score(0.25) == Score(value=0.25)
    assert as_score(-3) == Score(value=-3.0)
    assert as_score(of(1.0, 0.0)) == of(1.0, 0.0)


@pytest.mark.parametrize("returned", [True, torch.tensor(0.5), "0.5", None, (0.5,)])
def test_a_validator_may_return_nothing_else(returned: object) -> None:
    with pytest.raises(ValidatorError, match=f"got {type(returned).__name__}"):
        as_score(returned)  # type: ignore[arg-type]


# Accept rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "strict", "at_least"),
    [(0.4, False, False), (0.5, False, True), (0.6, True, True)],
)
def test_strict_and_at_least_differ_on_ties(candidate: float, strict: bool, at_least: bool) -> None:
    scores = Score(value=candidate), Score(value=0.5)
    assert Strict().accepts(*scores) is strict
    assert AtLeast().accepts(*scores) is at_least


# differences 0.1, 0.3, -0.1, 0.1: mean 0.1, variance 0.08 / 3, standard error 0.08165, ratio 1.2247
BEFORE, AFTER = of(0.9, 0.1, 0.5, 0.2), of(1.0, 0.4, 0.4, 0.3)


@pytest.mark.parametrize(("z", "accepted"), [(0, True), (1, True), (1.22, True), (1.23, False)])
def test_paired_margin_on_hand_numbers(z: float, accepted: bool) -> None:
    assert PairedMargin(z=z).accepts(AFTER, BEFORE) is accepted
    assert PairedMargin(z=z).accepts(BEFORE, AFTER) is False


def test_paired_margin_without_spread() -> None:
    assert PairedMargin(z=3.0).accepts(of(0.75, 0.5), of(0.5, 0.25))
    assert not PairedMargin(z=0.0).accepts(BEFORE, BEFORE)


def null_pairs(count: int, prompts: int) -> list[tuple[Score, Score]]:
    """Candidates no better than their incumbents: same prompts, independent sampling noise."""
    rng = torch.Generator().manual_seed(5)
    difficulty = 3 * torch.randn(count, 1, prompts, generator=rng)
    noisy = difficulty + torch.randn(count, 2, prompts, generator=rng)
    return [(of(*candidate), of(*incumbent)) for candidate, incumbent in noisy.tolist()]


def test_false_accept_rate_is_the_quantile_of_z() -> None:
    count = 4000
    pairs = null_pairs(count, prompts=40)
    for z in (0.0, 1.0, 1.645):
        expected = 1 - NormalDist().cdf(z)
        deviation = math.sqrt(expected * (1 - expected) / count)
        rate = sum(PairedMargin(z=z).accepts(*pair) for pair in pairs) / count
        assert abs(rate - expected) < 3.5 * deviation + 0.004  # Student's t against the normal
    strict = sum(Strict().accepts(*pair) for pair in pairs) / count
    assert abs(strict - 0.5) < 3.5 * math.sqrt(0.25 / count)


@pytest.mark.parametrize(
    ("candidate", "incumbent", "counts"),
    [
        (Score(value=1.0), Score(value=0.0), "got 0 and 0"),
        (of(1.0), of(0.0), "got 1 and 1"),
        (of(1.0, 1.0), of(0.0, 0.0, 0.0), "got 2 and 3"),
    ],
)
def test_paired_margin_needs_pairs(candidate: Score, incumbent: Score, counts: str) -> None:
    with pytest.raises(ValidatorError, match=counts):
        PairedMargin().accepts(candidate, incumbent)


# The guard ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tip", "candidate", "objection"),
    [
        ((100.0, 0.0), (100.0, 0.0), None),
        ((100.0, 0.0), (50.0, 0.1), None),
        ((100.0, 0.0), (200.0, 0.0), None),
        ((100.0, 0.0), (49.9, 0.0), "mean length 100.0 -> 49.9 tokens"),
        ((100.0, 0.0), (200.1, 0.0), "mean length 100.0 -> 200.1 tokens"),
        ((100.0, 0.2), (100.0, 0.31), "truncated share 0.20 -> 0.31"),
        ((100.0, 0.9), (100.0, 0.1), None),
        ((100.0, 0.0), (math.nan, 0.0), "mean length 100.0 -> nan tokens"),
        ((None, 0.0), (3.0, 0.0), None),
        ((100.0, 0.0), (None, 0.0), None),
        ((None, 0.0), (None, 0.5), "truncated share 0.00 -> 0.50"),
    ],
)
def test_guard_objects_to_degenerate_text(
    tip: tuple[float | None, float],
    candidate: tuple[float | None, float],
    objection: str | None,
) -> None:
    scores = [
        Score(value=0.0, mean_length=length, truncated_share=share)
        for length, share in (candidate, tip)
    ]
    assert LengthGuard().objection(*scores) == objection
