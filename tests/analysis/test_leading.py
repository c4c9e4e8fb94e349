"""Leading values: the stated error holds, and is small where a few directions lead."""

import math

import pytest
import torch
from tests.analysis.test_spectra import randn, spiky
from tests.reference import analysis_twin as twin
from torch import Tensor

from effopd.analysis.leading import LeadingMetrics, leading_metrics
from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError

LEADING = {
    "wide": spiky(150, 400),
    "tall": spiky(400, 150),
    "bf16": spiky(200, 300).bfloat16(),
    "float64": spiky(200, 300).double(),
    "one direction far above": spiky(120, 160) + 0.1 * torch.ones(120, 160),
    "low rank": (randn(150, 4) @ randn(4, 90)).float(),
    "tiny numbers": 1e-25 * spiky(150, 200).double().float(),
    "small": randn(5, 7).float(),
    "one row": randn(1, 70).float(),
}
NOISE = {"noise": randn(200, 400).float(), "square noise": randn(220, 220)}


def errors(update: Tensor, metrics: LeadingMetrics) -> list[float]:
    """Of spectral norm, spectral share and every ratio: found over true, minus 1."""
    values = torch.tensor(twin.singular_values(update), dtype=torch.float64)
    norm = values.norm().item()
    truth = [values[0].item(), values[0].item() / norm]
    found = [metrics.spectral_norm, metrics.spectral_share]
    for share, ratio in metrics.top_ratios.items():
        count = math.ceil(round(share * len(values), 9))
        truth.append(values[:count].norm().item() / norm)
        found.append(ratio)
    assert metrics.frobenius_norm == pytest.approx(norm, rel=1e-9)
    assert metrics.stable_rank == pytest.approx(1 / truth[1] ** 2, rel=3 * metrics.relative_error)
    return [a / b - 1 for a, b in zip(found, truth, strict=True)]


@pytest.mark.parametrize("case", LEADING)
def test_a_few_strong_directions_are_found_to_the_tolerance(case: str) -> None:
    update = LEADING[case]
    before = update.clone()
    metrics = leading_metrics(update, top=[0.01, 0.02], tolerance=1e-5)
    assert metrics.relative_error <= 1e-5
    assert max(map(abs, errors(update, metrics))) <= metrics.relative_error
    assert metrics.shape == tuple(update.shape)
    assert torch.equal(update, before)


@pytest.mark.parametrize("blocks", [2, 3, 4, 6])
@pytest.mark.parametrize("case", [*LEADING, *NOISE])
def test_the_stated_error_holds_wherever_one_stops(case: str, blocks: int) -> None:
    update = (LEADING | NOISE)[case]
    for seed in range(5):
        metrics = leading_metrics(
            update, top=[0.05, 0.1], tolerance=1e-12, max_blocks=blocks, seed=seed
        )
        assert metrics.blocks <= blocks
        assert max(map(abs, errors(update, metrics))) <= metrics.relative_error


def test_noise_is_not_called_accurate() -> None:
    metrics = leading_metrics(NOISE["noise"], top=[0.02], max_blocks=3)
    assert metrics.blocks == 3
    assert metrics.relative_error > 1e-3


def test_it_stops_as_soon_as_it_may() -> None:
    update = LEADING["float64"]
    tolerances = [1e-2, 1e-6, 1e-13]
    results = [leading_metrics(update, tolerance=t, max_blocks=20) for t in tolerances]
    blocks = [result.blocks for result in results]
    assert blocks == sorted(blocks)
    assert blocks[0] < blocks[-1] < 20
    assert all(r.relative_error <= t for r, t in zip(results, tolerances, strict=True))


def test_the_callers_matmul_precision_changes_nothing() -> None:
    update, before = LEADING["wide"], torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        metrics = leading_metrics(update)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert metrics == leading_metrics(update)


def test_a_zero_update_never_moved() -> None:
    metrics = leading_metrics(torch.zeros(20, 30))
    assert metrics.never_moved
    assert (metrics.frobenius_norm, metrics.spectral_norm, metrics.relative_error) == (0, 0, 0)
    assert (metrics.spectral_share, metrics.stable_rank) == (None, None)
    assert metrics.top_ratios == {0.01: None}
    assert not leading_metrics(torch.ones(2, 2)).never_moved


def test_what_cannot_be_asked_is_refused() -> None:
    update = randn(4, 5)
    with pytest.raises(ParameterMismatchError, match=r"expected \[m, n\]"):
        leading_metrics(torch.ones(2, 3, 4))
    for wrong in ({"top": []}, {"max_blocks": 1}, {"tolerance": 0.0}, {"tolerance": math.nan}):
        with pytest.raises(ConfigError, match="a share or more"):
            leading_metrics(update, **wrong)
    with pytest.raises(ConfigError, match="fractions in"):
        leading_metrics(update, top=[1.5])
    update[0, 0] = math.nan
    with pytest.raises(NonFiniteError):
        leading_metrics(update)
