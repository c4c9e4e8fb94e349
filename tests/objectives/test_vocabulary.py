import pytest
import torch
from tests.reference import objectives_twin as twin

from effopd.errors import ParameterMismatchError
from effopd.objectives import aligned_vocabulary_size, fused_divergence


@pytest.mark.parametrize(
    ("student", "teacher", "tokenizer", "size"),
    [
        (151936, 152064, 151669, 151936),
        (152064, 151936, 151669, 151936),
        (151936, 151936, 151669, 151936),
        (10, 12, 10, 10),
        (10, 10, 10, 10),
    ],
)
def test_padding_rows_are_trimmed(student: int, teacher: int, tokenizer: int, size: int) -> None:
    assert aligned_vocabulary_size(student, teacher, tokenizer) == size


@pytest.mark.parametrize(("student", "teacher"), [(10, 12), (12, 10), (10, 10)])
def test_rows_of_real_tokens_are_never_trimmed(student: int, teacher: int) -> None:
    with pytest.raises(ParameterMismatchError, match=f"{student} .*{teacher} .*11 ids.*Resize"):
        aligned_vocabulary_size(student, teacher, 11)


def test_trimmed_head_equals_logits_without_the_padding() -> None:
    rng = torch.Generator().manual_seed(0)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(*shape, generator=rng, dtype=torch.float64)
        for shape in [(4, 3), (8, 3), (4, 5), (6, 5)]
    )
    weight.requires_grad_()
    size = aligned_vocabulary_size(8, 6, 6)
    result = fused_divergence(hidden, weight[:size], teacher_hidden, teacher_weight)
    log_p = (hidden @ weight.T)[:, :6].log_softmax(-1)
    expected = twin.kl(log_p, twin.log_distributions(teacher_hidden, teacher_weight))
    assert torch.allclose(result.per_token_N, expected, atol=1e-12)
    found, wanted = (
        torch.autograd.grad(loss, weight)[0] for loss in (result.loss, expected.mean())
    )
    assert torch.allclose(found, wanted, atol=1e-12)
    assert found[6:].abs().max() == 0
