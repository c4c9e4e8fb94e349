"""The sampler draws from the softmax, and from nothing else."""

import math
from collections import Counter

import pytest
import torch
from tests.reference.rollout_twin import (
    chi_square,
    chi_square_limit,
    draw,
    log_softmax,
    truncated,
)
from torch import Tensor

from effopd.errors import NonFiniteError
from effopd.rollouts.engine import Sampling
from effopd.rollouts.hf import SeededSampler, _uniforms

LOGITS = [1.0, -0.5, 2.0, 0.3, -3.0, 1.7, -math.log(4), 0.9]
DRAWS = 20_000

SETTINGS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 100},
    {"top_p": 0.01},
    {"top_p": 0.55},
    {"top_p": 0.97},
    {"top_k": 4, "top_p": 0.8},
    {"temperature": 1.6, "top_k": 5, "top_p": 0.6},
]


def sample(
    logits: list[float], seeds: range | list[int], **sampling: float
) -> tuple[list[int], list[float], SeededSampler]:
    """One token per seed, all with the same logits."""
    sampler = SeededSampler(seeds, Sampling(max_new_tokens=4, **sampling), torch.device("cpu"))
    scores = torch.tensor(logits).repeat(len(seeds), 1)
    sampler(torch.zeros(len(seeds), 1, dtype=torch.long), scores)
    return sampler.tokens_BT[:, 0].tolist(), sampler.log_probs_BT[:, 0].tolist(), sampler


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_token_by_token_the_draws_of_the_twin(sampling: dict[str, float]) -> None:
    seeds = range(500)
    probabilities = truncated(LOGITS, **sampling)
    expected = [draw(probabilities, _uniforms(seed, 1).item()) for seed in seeds]
    tokens, log_probs, _ = sample(LOGITS, seeds, **sampling)
    assert tokens == expected
    full = log_softmax(LOGITS, sampling.get("temperature", 1.0))
    assert log_probs == pytest.approx([full[token] for token in expected], abs=1e-6)


@pytest.mark.parametrize("size", [511, 512, 513, 1500])
def test_vocabularies_of_several_blocks_are_drawn_from_like_the_twin(size: int) -> None:
    logits = (3 * torch.randn(size, generator=torch.Generator().manual_seed(size))).tolist()
    seeds = range(100)
    expected = [draw(truncated(logits), _uniforms(seed, 1).item()) for seed in seeds]
    assert sample(logits, seeds)[0] == expected


@pytest.mark.parametrize("sampling", [SETTINGS[0], SETTINGS[1], SETTINGS[-1]], ids=str)
def test_frequencies_are_the_softmax(sampling: dict[str, float]) -> None:
    tokens, _, _ = sample(LOGITS, range(DRAWS), **sampling)
    counts = Counter(tokens)
    probabilities = truncated(LOGITS, **sampling)
    statistic, freedom = chi_square([counts[i] for i in range(len(LOGITS))], probabilities)
    assert statistic < chi_square_limit(freedom)
    assert all(probabilities[token] > 0 for token in counts)


def test_the_chi_square_test_notices_a_wrong_temperature() -> None:
    tokens, _, _ = sample(LOGITS, range(DRAWS), temperature=1.1)
    counts = Counter(tokens)
    statistic, freedom = chi_square([counts[i] for i in range(len(LOGITS))], truncated(LOGITS))
    assert statistic > chi_square_limit(freedom)


def test_consecutive_tokens_of_a_seed_are_independent() -> None:
    seeds, size = range(DRAWS), len(LOGITS)
    sampler = SeededSampler(seeds, Sampling(max_new_tokens=2), torch.device("cpu"))
    for _ in range(2):
        sampler(torch.zeros(DRAWS, 1, dtype=torch.long), torch.tensor(LOGITS).repeat(DRAWS, 1))
    pairs = Counter(map(tuple, sampler.tokens_BT.tolist()))
    p = truncated(LOGITS)
    cells = [(i, j) for i in range(size) for j in range(size)]
    statistic, freedom = chi_square([pairs[c] for c in cells], [p[i] * p[j] for i, j in cells])
    assert statistic < chi_square_limit(freedom)


def test_one_finite_score_a_row_and_it_is_the_drawn_token() -> None:
    sampler = SeededSampler([1, 2, 3], Sampling(), torch.device("cpu"))
    masked = sampler(torch.zeros(3, 1, dtype=torch.long), torch.tensor(LOGITS).repeat(3, 1))
    assert torch.isfinite(masked).sum(dim=1).tolist() == [1, 1, 1]
    assert masked.argmax(dim=1).tolist() == sampler.tokens_BT[:, 0].tolist()


def with_uniforms(values: list[float], logits: list[float]) -> list[int]:
    """Tokens drawn at given uniform numbers."""
    sampler = SeededSampler([0] * len(values), Sampling(max_new_tokens=1), torch.device("cpu"))
    sampler._uniforms_BT = torch.tensor(values, dtype=torch.float64)[:, None]
    sampler(
        torch.zeros(len(values), 1, dtype=torch.long), torch.tensor(logits).repeat(len(values), 1)
    )
    return sampler.tokens_BT[:, 0].tolist()


def test_tokens_without_probability_are_not_drawn_even_at_the_ends() -> None:
    impossible = -200.0  # exp(-200) is 0 in float32
    logits = [impossible, impossible, 0.0, impossible, 0.5, impossible]
    smallest, largest = 0.0, 1.0 - 2.0**-53
    assert with_uniforms([smallest, largest], logits) == [2, 4]
    assert set(with_uniforms(torch.rand(2000).tolist(), logits)) == {2, 4}


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_uniform_number_draws_a_token(seed: int) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)).tolist()
    assert with_uniforms([1.0 - 2.0**-53], logits) == [49]


def test_uniform_numbers_depend_on_the_seed_alone_and_are_a_prefix_of_longer_draws() -> None:
    long = _uniforms(11, 300)
    for count in (1, 5, 16, 17, 64, 299):
        assert torch.equal(_uniforms(11, count), long[:count])
    assert not torch.equal(_uniforms(12, 300), long)
    assert 0 <= long.min().item() < long.max().item() < 1
    assert long.dtype == torch.float64


def test_rows_use_their_own_numbers_whatever_the_batch() -> None:
    tokens, _, _ = sample(LOGITS, [3, 1, 2])
    alone = [sample(LOGITS, [seed])[0][0] for seed in (3, 1, 2)]
    assert tokens == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_logit_is_an_error(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="not finite"):
        sample([0.0, bad, 1.0], [1, 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_keep_log_probs_normalised(dtype: torch.dtype) -> None:
    sampler = SeededSampler([5], Sampling(), torch.device("cpu"))
    scores: Tensor = torch.tensor([LOGITS], dtype=torch.float32).to(dtype).float()
    sampler(torch.zeros(1, 1, dtype=torch.long), scores)
    expected = log_softmax(scores[0].tolist())[sampler.tokens_BT[:, 0].item()]
    assert sampler.log_probs_BT[:, 0].item() == pytest.approx(expected, abs=1e-6)


def test_rows_beyond_the_vocabulary_are_never_sampled() -> None:
    padded = [*LOGITS, 50.0, math.nan]
    seeds = list(range(200))
    sampler = SeededSampler(
        seeds, Sampling(max_new_tokens=1), torch.device("cpu"), vocabulary_size=len(LOGITS)
    )
    scores = sampler(torch.zeros(len(seeds), 1), torch.tensor([padded] * len(seeds)))
    plain = SeededSampler(seeds, Sampling(max_new_tokens=1), torch.device("cpu"))
    plain(torch.zeros(len(seeds), 1), torch.tensor([LOGITS] * len(seeds)))
    assert sampler.tokens_BT[:, 0].tolist() == plain.tokens_BT[:, 0].tolist()
    assert sampler.log_probs_BT[:, 0].tolist() == plain.log_probs_BT[:, 0].tolist()
    assert scores.argmax(dim=1).tolist() == plain.tokens_BT[:, 0].tolist()
