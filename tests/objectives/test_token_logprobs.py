import math

import pytest
import torch
from tests.reference import objectives_twin as twin
from tests.reference.objectives_models import DOUBLE, close
from tests.reference.objectives_storages import Storages
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.objectives import token_log_probs
from effopd.objectives.token_logprobs import _TokenLogProbsFunction


def inputs(
    tokens: int = 7, vocabulary: int = 11, dtype: torch.dtype = DOUBLE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states of width 5, head, bias (all requiring gradients) and targets."""
    rng = torch.Generator().manual_seed(2)
    shapes = [(tokens, 5), (vocabulary, 5), (vocabulary,)]
    hidden, weight, bias = (
        torch.randn(*shape, generator=rng, dtype=DOUBLE).to(dtype).requires_grad_()
        for shape in shapes
    )
    return hidden, weight, bias, torch.randint(vocabulary, (tokens,), generator=rng)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize(("tokens", "chunk"), [(7, 3), (7, 7), (7, 100), (7, None), (1, 1), (8, 4)])
def test_equals_full_logits_element_by_element(
    tokens: int, chunk: int | None, cap: float | None
) -> None:
    hidden, weight, bias, targets = inputs(tokens)
    coefficients = torch.arange(1.0, tokens + 1, dtype=DOUBLE).sin()
    result = token_log_probs(
        hidden, weight, targets, bias=bias, cap=cap, temperature=1.7, chunk_tokens=chunk
    )
    log_p = twin.log_distributions(hidden, weight, bias, 1.7, cap)
    log_probs, entropies = twin.token_log_probs(log_p, targets)
    assert close(result.log_probs_N, log_probs)
    assert close(result.entropies_N, entropies)
    trained = (hidden, weight, bias)
    found = torch.autograd.grad((result.log_probs_N * coefficients).sum(), trained)
    wanted = torch.autograd.grad((log_probs * coefficients).sum(), trained)
    assert all(map(close, found, wanted))


def test_gradcheck() -> None:
    hidden, weight, bias, targets = inputs(5, 6)

    def log_probs(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        settings = {"temperature": 0.8, "chunk_tokens": 2}
        return token_log_probs(hidden, weight, targets, bias=bias, **settings).log_probs_N

    assert torch.autograd.gradcheck(log_probs, (hidden, weight, bias))


def test_entropies_carry_no_gradient() -> None:
    hidden, weight, _, targets = inputs()
    result = token_log_probs(hidden, weight, targets)
    assert result.log_probs_N.requires_grad
    assert not result.entropies_N.requires_grad


def test_uniform_distribution() -> None:
    _, weight, _, targets = inputs()
    result = token_log_probs(torch.zeros(7, 5, dtype=DOUBLE), weight, targets)
    assert close(result.entropies_N, torch.full((7,), math.log(11), dtype=DOUBLE))
    assert close(result.log_probs_N, torch.full((7,), -math.log(11), dtype=DOUBLE))


def test_certain_distribution_has_no_entropy() -> None:
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    result = token_log_probs(hidden, weight, torch.tensor([2]))
    assert result.entropies_N.item() == 0.0
    assert result.log_probs_N.item() == -2000.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulates_in_single_precision(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = inputs(40, 97, dtype)
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight, bias)]
    result = token_log_probs(hidden, weight, targets, bias=bias, chunk_tokens=8)
    log_probs, entropies = twin.token_log_probs(twin.log_distributions(*exact), targets)
    assert result.log_probs_N.dtype == torch.float32
    assert close(result.log_probs_N.double(), log_probs, 1e-6)
    assert close(result.entropies_N.double(), entropies, 1e-6)
    found = torch.autograd.grad(result.log_probs_N.sum(), (hidden, weight, bias))
    wanted = torch.autograd.grad(log_probs.sum(), exact)
    unit = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 1e-6
    for gradient, expected in zip(found, wanted, strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - expected).abs().max() <= unit * expected.abs().max()


def test_only_what_requires_a_gradient_gets_one() -> None:
    hidden, weight, bias, targets = inputs()
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    result = token_log_probs(hidden, weight, targets, bias=bias)
    result.log_probs_N.sum().backward()
    log_p = twin.log_distributions(hidden, weight, bias)
    (wanted,) = torch.autograd.grad(twin.token_log_probs(log_p, targets)[0].sum(), hidden)
    assert close(hidden.grad, wanted)
    assert weight.grad is None


def test_may_be_differentiated_twice_over_the_same_graph() -> None:
    hidden, weight, _, targets = inputs()
    total = token_log_probs(hidden, weight, targets).log_probs_N.sum()
    first = torch.autograd.grad(total, weight, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(total, weight)[0], first)


def test_no_tokens() -> None:
    hidden, weight, _, targets = inputs(tokens=0)
    result = token_log_probs(hidden, weight, targets)
    assert result.log_probs_N.shape == result.entropies_N.shape == (0,)
    result.log_probs_N.sum().backward()
    assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((7,), 11), "11, outside the 11 rows"),
        (torch.full((7,), -100), "Drop masked tokens"),
        (torch.zeros(6, dtype=torch.int64), r"expected int64 of shape \(7,\)"),
        (torch.zeros(7), "expected int64"),
    ],
    ids=["too large", "masked", "too few", "floating"],
)
def test_wrong_targets(targets: Tensor, message: str) -> None:
    hidden, weight, _, _ = inputs()
    with pytest.raises(ParameterMismatchError, match=message):
        token_log_probs(hidden, weight, targets)


def test_wrong_shapes() -> None:
    hidden, weight, bias, targets = inputs()
    with pytest.raises(ParameterMismatchError, match=r"\(11, 4\)"):
        token_log_probs(hidden, weight[:, :4], targets)
    with pytest.raises(ParameterMismatchError, match="11 vocabulary rows"):
        token_log_probs(hidden, weight, targets, bias=bias[:5])


def test_settings_out_of_range() -> None:
    hidden, weight, _, targets = inputs()
    with pytest.raises(ConfigError, match="temperature is -1"):
        token_log_probs(hidden, weight, targets, temperature=-1.0)
    with pytest.raises(ConfigError, match="chunk_tokens is 0"):
        token_log_probs(hidden, weight, targets, chunk_tokens=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_hidden_states(bad: float) -> None:
    hidden, weight, _, targets = inputs()
    hidden.data[3, 1] = bad
    found = token_log_probs(hidden, weight, targets, chunk_tokens=2).log_probs_N
    assert (~found.isfinite()).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("outside", [-100, 11])
def test_targets_that_nobody_looked_at_give_nan(outside: int) -> None:
    """On a GPU, where looking waits and an index outside ends the process."""
    hidden, weight, _, targets = inputs()
    targets[3] = outside
    found, _ = _TokenLogProbsFunction.apply(hidden, weight, None, None, targets, 1.0, 2, None)
    assert (~found.isfinite()).nonzero().flatten().tolist() == [3]
    found.sum().backward()


def test_no_tensor_of_tokens_times_vocabulary() -> None:
    tokens, vocabulary, chunk = 256, 500, 4
    hidden, weight, _, targets = inputs(tokens, vocabulary)
    with Storages() as seen:
        token_log_probs(hidden, weight, targets, chunk_tokens=chunk).log_probs_N.sum().backward()
    assert max(seen.sizes) == max(weight.numel(), chunk * vocabulary)
    assert seen.sizes.count(weight.numel()) == 1
