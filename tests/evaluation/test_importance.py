"""Importance weights against their twin, closed forms, and policies that can be enumerated."""

import math
import random
from itertools import product
from statistics import mean

import pytest
import torch
from tests.reference import importance_twin as twin

from effopd.evaluation.importance_kl import (
    effective_share,
    mean_k3,
    prefix_weights,
    ratio_values,
    weighted_kl,
)

REDUCTIONS = ["token", "sequence"]
Rows = list[list[float]]


def random_rows(seed: int, spread: float = 0.3) -> tuple[Rows, Rows, Rows]:
    """Log-probabilities of candidate and behaviour, and a divergence a token; 7 answers."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, 9) for _ in range(7)]
    behaviour = [[-rng.expovariate(1) for _ in range(n)] for n in lengths]
    candidate = [[value + rng.gauss(0, spread) for value in row] for row in behaviour]
    values = [[rng.expovariate(1) for _ in range(n)] for n in lengths]
    return candidate, behaviour, values


# Against the twin ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_weights_equal_the_twin(seed: int) -> None:
    candidate, behaviour, values = random_rows(seed)
    weights_BT, whole_B = prefix_weights(candidate, behaviour)
    longest = max(map(len, values))
    for position in range(longest):
        expected = twin.weights_at(candidate, behaviour, position)
        assert weights_BT[:, position].tolist() == pytest.approx(expected, rel=1e-12)
    assert whole_B.tolist() == pytest.approx(
        twin.weights_at(candidate, behaviour, longest), rel=1e-12
    )


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_estimates_equal_the_twin(seed: int, reduce: str) -> None:
    rows = random_rows(seed)
    found = weighted_kl(*rows, reduce)
    expected = twin.estimate(*rows, reduce)
    assert sum(found.per_answer_nats) / 7 == pytest.approx(expected, rel=1e-12)
    assert found.per_answer_nats == pytest.approx(twin.per_answer(*rows, reduce), rel=1e-6)
    candidate, behaviour, values = rows
    lengths = twin.weighted_sum(candidate, behaviour, twin.ones(values))
    assert mean(found.lengths) == pytest.approx(lengths, rel=1e-12)
    assert mean_k3(candidate, behaviour) == pytest.approx(twin.k3(candidate, behaviour), rel=1e-9)


# Closed forms -------------------------------------------------------------------------------------


def test_ratios_of_thousands_of_nats_are_finite() -> None:
    behaviour = [[-1.0] * 300, [-1.0] * 200]
    found = weighted_kl([[-30.0] * 300, [-0.5] * 200], behaviour, behaviour, "sequence")
    assert all(map(math.isfinite, found.per_answer_nats))
    assert found.answer_weights == (0.0, 2.0)
    assert math.isinf(mean_k3([[5e3]], [[0.0]]))


@pytest.mark.parametrize(
    ("weights", "share"), [([1, 1, 1, 1], 1.0), ([4, 0, 0, 0], 0.25), ([2, 2, 0, 0], 0.5)]
)
def test_effective_share(weights: list[float], share: float) -> None:
    assert effective_share(torch.tensor(weights)) == pytest.approx(share)


def test_a_ratio_has_the_standard_error_of_the_delta_method() -> None:
    """Against the spread of the ratio itself over many samples."""
    generator = torch.Generator().manual_seed(0)
    lengths = 1 + 4 * torch.rand(2000, 40, generator=generator, dtype=torch.float64)
    sums = 0.5 * lengths + 0.3 * torch.randn(2000, 40, generator=generator, dtype=torch.float64)
    ratios = sums.mean(dim=1) / lengths.mean(dim=1)
    values = torch.stack([ratio_values(s, n) for s, n in zip(sums, lengths, strict=True)])
    assert torch.allclose(values.mean(dim=1), ratios, rtol=1e-12)
    errors = values.std(dim=1) / math.sqrt(40)
    assert errors.mean().item() == pytest.approx(ratios.std().item(), rel=0.05)


# Policies that can be enumerated ------------------------------------------------------------------

LONGEST = 3
BEHAVIOUR = {None: "aabe", "a": "abbe", "b": "aabb"}
"""What follows a token, four equally likely letters; e ends the answer."""
CANDIDATE = {None: (0.3, 0.6, 0.1), "a": (0.5, 0.3, 0.2), "b": (0.3, 0.7, 0.0)}
"""Probabilities of a, b and e; 0 where the behaviour policy never goes."""
TEACHER = {None: (0.2, 0.2, 0.6), "a": (0.6, 0.3, 0.1), "b": (0.3, 0.3, 0.4)}


def kl(last: str | None) -> float:
    pairs = zip(CANDIDATE[last], TEACHER[last], strict=True)
    return sum(p * math.log(p / q) for p, q in pairs if p > 0)


def answer(dice: tuple[int, ...]) -> tuple[list[float], list[float], list[float]]:
    """One of the 64 equally likely answers of the behaviour policy."""
    last, rows = None, ([], [], [])
    for face in dice:
        letter = BEHAVIOUR[last][face]
        rows[0].append(math.log(CANDIDATE[last]["abe".index(letter)]))
        rows[1].append(math.log(BEHAVIOUR[last].count(letter) / 4))
        rows[2].append(kl(last))
        if letter == "e":
            break
        last = letter
    return rows


def on_policy(last: str | None, left: int) -> tuple[float, float]:
    """Expected sum of divergences and expected length of the candidate's own answers."""
    if left == 0:
        return 0.0, 0.0
    total, length = kl(last), 1.0
    for letter, p in zip("ab", CANDIDATE[last], strict=False):
        more, longer = on_policy(letter, left - 1)
        total, length = total + p * more, length + p * longer
    return total, length


def test_on_all_answers_of_one_policy_the_estimate_is_exact_for_another() -> None:
    """The expectation over the behaviour's answers is the candidate's on-policy divergence."""
    rows = list(zip(*map(answer, product(range(4), repeat=LONGEST)), strict=True))
    total, length = on_policy(None, LONGEST)
    found = {reduce: weighted_kl(*rows, reduce) for reduce in REDUCTIONS}
    assert sum(found["sequence"].per_answer_nats) / 64 == pytest.approx(total, rel=1e-12)
    assert sum(found["token"].per_answer_nats) / 64 == pytest.approx(total / length, rel=1e-12)
    assert mean(found["token"].lengths) == pytest.approx(length, rel=1e-12)
    unweighted = sum(map(sum, rows[2])) / 64
    assert abs(unweighted - total) > 0.05 * total, "so that the weights matter"
