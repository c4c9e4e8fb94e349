"""The spectrum of noise against sampled matrices and closed forms of the law."""

import math

import pytest
import torch

from effopd.analysis.spectra import noise_metrics, noise_singular_values, spectral_metrics

SHAPES = [(64, 200), (200, 200), (300, 60), (30, 1000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_matrices_have_these_metrics(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [
        spectral_metrics(torch.randn(shape, generator=generator, dtype=torch.float64))
        for _ in range(8)
    ]

    def mean(name: str) -> float:
        return sum(getattr(sample, name) for sample in samples) / len(samples)

    noise = noise_metrics(*shape, mean("frobenius_norm"))
    assert noise.shape == shape
    assert noise.rank == min(shape)
    assert noise.frobenius_norm == pytest.approx(mean("frobenius_norm"), rel=1e-12)
    assert noise.spectral_norm == pytest.approx(mean("spectral_norm"), rel=0.02)
    assert noise.stable_rank == pytest.approx(mean("stable_rank"), rel=0.04)
    assert noise.effective_rank == pytest.approx(mean("effective_rank"), rel=2e-3)
    ratios = [sample.top_ratios[0.05] for sample in samples]
    assert noise.top_ratios[0.05] == pytest.approx(sum(ratios) / len(ratios), rel=0.01)


def test_a_square_has_the_effective_rank_of_the_quarter_circle() -> None:
    # With s = 2 cos(t) of density 4/pi sin(t)**2: E[s] = 8 / (3 pi), and
    # E[s log s] / E[s] = log 2 + (digamma(1) - digamma(5/2)) / 2.
    digamma = torch.special.digamma(torch.tensor([1.0, 2.5], dtype=torch.float64)).tolist()
    mean_logarithm = math.log(2) + (digamma[0] - digamma[1]) / 2
    share = 8 / (3 * math.pi) * math.exp(-mean_logarithm)
    metrics = noise_metrics(4000, 4000, 1.0)
    assert metrics.effective_rank == pytest.approx(4000 * share, rel=1e-4)


def test_a_single_row_is_a_single_value() -> None:
    assert noise_singular_values(1, 9, 2.5).tolist() == [pytest.approx(2.5, rel=1e-12)]
