"""Log-probabilities and divergences of completions against float64 twins."""

import pytest
import torch
from tests.fakes import TOKENIZER, ids, tiny_model, tiny_policy
from tests.reference.kl_twin import log_probs_TV, reverse_kl

from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.logprobs import completion_log_probs, completion_reverse_kl
from effopd.models.policy import Policy, Sample

SAMPLES = [
    Sample(prompt_ids=ids("<bos> 3 + 4 ="), completion_ids=ids("3 + 4 = 0 ; # 0 <eos>")),
    Sample(prompt_ids=ids("<bos>"), completion_ids=ids("1")),
    Sample(prompt_ids=ids("<bos> 5 * 2 ="), completion_ids=ids("# 3 <eos>")),
    Sample(prompt_ids=ids("1 2"), completion_ids=ids("2 2 2 <eos>")),
    Sample(prompt_ids=ids("<bos> 6 ="), completion_ids=ids("6 6")),
]
V = len(TOKENIZER)


@pytest.mark.parametrize("batch_sequences", [1, 2, 64])
def test_log_probs_equal_the_twin(batch_sequences: int) -> None:
    policy = tiny_policy()
    found = completion_log_probs(policy, SAMPLES, batch_sequences=batch_sequences)
    for sample, log_probs in zip(SAMPLES, found, strict=True):
        twin = log_probs_TV(policy.model, sample, V)
        expected = [
            row[token].item() for row, token in zip(twin, sample.completion_ids, strict=True)
        ]
        assert log_probs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_log_probs_at_a_temperature_equal_the_twin(temperature: float) -> None:
    policy = tiny_policy()
    found = completion_log_probs(policy, SAMPLES, temperature=temperature)
    for sample, log_probs in zip(SAMPLES, found, strict=True):
        twin = log_probs_TV(policy.model, sample, V, temperature)
        expected = [
            row[token].item() for row, token in zip(twin, sample.completion_ids, strict=True)
        ]
        assert log_probs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_reverse_kl_to_a_teacher_at_a_temperature_equals_the_twin(
    temperature: float, bias: bool
) -> None:
    student, teacher = tiny_policy(0), tiny_policy(1)
    if bias:
        teacher.model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, V))
    found = completion_reverse_kl(student, teacher, SAMPLES, teacher_temperature=temperature)
    for sample, divergences in zip(SAMPLES, found, strict=True):
        expected = reverse_kl(student.model, teacher.model, sample, V, temperature)
        assert divergences == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        completion_log_probs(tiny_policy(), SAMPLES, temperature=temperature)
    with pytest.raises(ConfigError, match="teacher_temperature is"):
        completion_reverse_kl(
            tiny_policy(), tiny_policy(), SAMPLES, teacher_temperature=temperature
        )


@pytest.mark.parametrize(
    ("limit", "widths"),
    [
        ({}, [5]),
        ({"batch_sequences": 2}, [2, 2, 1]),
        ({"batch_tokens": 1}, [1, 1, 1, 1, 1]),
        # padded sizes: 14 and 2 tokens, then 7, 6 and 5
        ({"batch_tokens": 28}, [2, 3]),
        ({"batch_tokens": 27}, [1, 3, 1]),
        ({"batch_tokens": 28, "batch_sequences": 1}, [1, 1, 1, 1, 1]),
    ],
)
def test_batches_are_cut_by_sequences_and_by_padded_tokens(
    limit: dict[str, int], widths: list[int]
) -> None:
    policy = tiny_policy()
    seen: list[int] = []
    policy.model.model.register_forward_hook(lambda m, i, out: seen.append(len(out[0])))
    expected = completion_log_probs(tiny_policy(), SAMPLES, batch_sequences=1)
    found = completion_log_probs(policy, SAMPLES, **limit)  # type: ignore[arg-type]
    assert seen == widths
    for ours, alone in zip(found, expected, strict=True):
        assert ours == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("batch_sequences", [1, 2, 64])
def test_reverse_kl_equals_the_twin(batch_sequences: int) -> None:
    student, teacher = tiny_policy(0), tiny_policy(1, sharpness=3.0)
    found = completion_reverse_kl(student, teacher, SAMPLES, batch_sequences=batch_sequences)
    for sample, divergences in zip(SAMPLES, found, strict=True):
        expected = reverse_kl(student.model, teacher.model, sample, V)
        assert divergences == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert min(expected) > 0.01, "the models differ"


def test_reverse_is_not_forward() -> None:
    one, other = tiny_policy(0), tiny_policy(1)
    assert completion_reverse_kl(one, other, SAMPLES) != completion_reverse_kl(other, one, SAMPLES)


def test_a_model_does_not_diverge_from_itself() -> None:
    found = completion_reverse_kl(tiny_policy(), tiny_policy(), SAMPLES)
    assert found == [(0.0,) * len(sample.completion_ids) for sample in SAMPLES]


def test_trimmed_vocabularies_are_renormalised() -> None:
    padded = tiny_model(1)
    padded.resize_token_embeddings(V + 7, mean_resizing=False)
    student, teacher = tiny_policy(0), Policy(padded, TOKENIZER, vocabulary_size=V)
    found = completion_reverse_kl(student, teacher, SAMPLES[:2])
    for sample, divergences in zip(SAMPLES[:2], found, strict=True):
        expected = reverse_kl(student.model, padded, sample, V)
        assert divergences == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_no_samples_no_numbers() -> None:
    assert completion_log_probs(tiny_policy(), []) == []
    assert completion_reverse_kl(tiny_policy(), tiny_policy(1), []) == []


@pytest.mark.parametrize("broken", ["student", "teacher"])
def test_nan_is_an_error(broken: str) -> None:
    student, teacher = tiny_policy(0), tiny_policy(1)
    policy = student if broken == "student" else teacher
    policy.model.lm_head.weight.data[3, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="finite"):
        completion_reverse_kl(student, teacher, SAMPLES)
    with pytest.raises(NonFiniteError, match="finite"):
        completion_log_probs(policy, SAMPLES)


def with_dropout(policy: Policy) -> Policy:
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    return policy


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    expected = completion_log_probs(tiny_policy(), SAMPLES)
    policy = with_dropout(tiny_policy())
    for training in (True, False):
        policy.model.train(training)
        assert completion_log_probs(policy, SAMPLES) == expected
        assert policy.model.training is training


def test_the_mode_comes_back_after_an_error() -> None:
    policy = tiny_policy()
    policy.model.train()
    policy.model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        completion_log_probs(policy, SAMPLES)
    assert policy.model.training


def test_no_gradient_is_kept() -> None:
    student, teacher = tiny_policy(0), tiny_policy(1)
    completion_reverse_kl(student, teacher, SAMPLES)
    completion_log_probs(student, SAMPLES)
    for policy in (student, teacher):
        assert all(p.grad is None for p in policy.model.parameters())
