"""Hidden states, targets and the head, against one plain forward pass a sequence."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import TOKENIZER, WORLD, ids, tiny_model, tiny_policy
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from effopd.data.world import make_model
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.evaluation.logprobs import completion_log_probs, completion_reverse_kl
from effopd.models.policy import Offloaded, Policy, Sample, micro_batches, sorted_micro_batches
from effopd.objectives import token_log_probs
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine

SAMPLES = [
    Sample(prompt_ids=ids("<bos> 3 + 4 ="), completion_ids=ids("3 + 4 = 0 ; # 0 <eos>")),
    Sample(prompt_ids=ids("<bos>"), completion_ids=ids("1")),
    Sample(prompt_ids=ids("<bos> 5 * 2 - 6 ="), completion_ids=ids("# 4 <eos>")),
    Sample(prompt_ids=ids("1 2"), completion_ids=ids("2 <pad> 2 <eos>")),
]


def logits_alone(model: Any, sample: Sample) -> Tensor:
    """Logits that predict the completion, from one sequence without padding."""
    sequence = torch.tensor([sample.prompt_ids + sample.completion_ids])
    first = len(sample.prompt_ids) - 1
    return model(sequence).logits[0, first:-1]


def test_padded_batch_equals_one_sequence_at_a_time() -> None:
    policy = tiny_policy()
    states = policy.states(SAMPLES)
    assert states.lengths == (9, 1, 3, 4)
    assert states.targets_N.tolist() == [t for s in SAMPLES for t in s.completion_ids]
    found = states.hidden_ND @ policy.head_weight_VD.T
    expected = torch.cat([logits_alone(policy.model, sample) for sample in SAMPLES])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (1,), (2, 2), (0, 1)], ids=str)
def test_states_follow_the_order_of_the_samples(order: tuple[int, ...]) -> None:
    policy = tiny_policy()
    parts = policy.states(SAMPLES).hidden_ND.split([9, 1, 3, 4])
    found = policy.states([SAMPLES[i] for i in order])
    assert found.lengths == tuple(len(SAMPLES[i].completion_ids) for i in order)
    expected = torch.cat([parts[i] for i in order])
    torch.testing.assert_close(found.hidden_ND, expected, rtol=1e-5, atol=1e-5)


def test_what_stands_behind_the_completion_does_not_matter() -> None:
    policy = tiny_policy()
    short = policy.states([SAMPLES[1]]).hidden_ND
    for longer in SAMPLES:
        beside = policy.states([longer, SAMPLES[1]]).hidden_ND[-1:]
        torch.testing.assert_close(beside, short, rtol=1e-5, atol=1e-5)


def test_an_empty_completion_has_no_states() -> None:
    empty = Sample(prompt_ids=(1, 3), completion_ids=())
    states = tiny_policy().states([SAMPLES[2], empty, SAMPLES[1]])
    assert states.lengths == (3, 0, 1)
    assert len(states.hidden_ND) == len(states.targets_N) == 4


def test_gradient_equals_that_of_plain_cross_entropy() -> None:
    policy, twin = tiny_policy(), tiny_model()
    states = policy.states(SAMPLES)
    scored = token_log_probs(states.hidden_ND, policy.head_weight_VD, states.targets_N)
    scored.log_probs_N.sum().backward()
    for sample in SAMPLES:
        log_probs = logits_alone(twin, sample).log_softmax(-1)
        log_probs.gather(1, torch.tensor(sample.completion_ids)[:, None]).sum().backward()
    for (name, found), expected in zip(
        policy.model.named_parameters(), twin.parameters(), strict=True
    ):
        assert found.grad is not None, name
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4)


# The vocabulary -----------------------------------------------------------------------------------


def padded_head_model(rows: int) -> Any:
    """The tiny model with `rows` padding rows behind its vocabulary."""
    model = tiny_model()
    model.resize_token_embeddings(len(TOKENIZER) + rows, mean_resizing=False)
    return model


def test_trimmed_rows_get_no_gradient_and_no_probability() -> None:
    size = len(TOKENIZER)
    policy = Policy(padded_head_model(5), TOKENIZER, vocabulary_size=size)
    assert policy.head_weight_VD.shape == (size, WORLD.hidden)
    states = policy.states(SAMPLES)
    scored = token_log_probs(states.hidden_ND, policy.head_weight_VD, states.targets_N)
    expected = torch.cat(
        [logits_alone(policy.model, s)[:, :size].log_softmax(-1) for s in SAMPLES]
    ).gather(1, states.targets_N[:, None])[:, 0]
    torch.testing.assert_close(scored.log_probs_N, expected, rtol=1e-5, atol=1e-5)
    scored.log_probs_N.sum().backward()
    gradient = policy.model.lm_head.weight.grad
    assert gradient[size:].abs().max() == 0
    assert (gradient[:size].abs().sum(dim=1) > 0).all()


def test_trimming_after_the_fact() -> None:
    policy = Policy(padded_head_model(5), TOKENIZER)
    assert policy.vocabulary_size == len(policy.head_weight_VD) == len(TOKENIZER) + 5
    assert policy.head_weight_VD is policy.model.lm_head.weight, "no copy of the gradient"
    policy.vocabulary_size = len(TOKENIZER)
    assert len(policy.head_weight_VD) == len(TOKENIZER)


@pytest.mark.parametrize("size", [0, -1, 17])
def test_impossible_vocabulary_sizes(size: int) -> None:
    with pytest.raises(ParameterMismatchError, match=f"must be 1 to 16, got {size}"):
        Policy(tiny_model(), TOKENIZER, vocabulary_size=size)


# The head -----------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 16, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


def gemma(cap: float | None) -> Any:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=cap)).eval()


class ScaledLogits(nn.Module):
    """A model that multiplies its logits, as some families do."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = tiny_model(), factor
        self.base_model = self.inner.base_model

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, **inputs: Tensor) -> Any:
        out = self.inner(**inputs)
        out.logits = out.logits * self.factor
        return out


@pytest.mark.parametrize("cap", [0.01, 0.5, 30.0, 50.0])
def test_a_soft_cap_is_told_even_where_logits_are_small(cap: float) -> None:
    model = gemma(cap)
    policy = Policy(model, TOKENIZER)
    assert (policy.logit_factor, policy.head_cap) == (1.0, cap)


def test_a_cap_that_no_setting_names_is_refused() -> None:
    model = tiny_model()

    def cap(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        outputs.logits = 30 * torch.tanh(outputs.logits / 30)
        return outputs

    model.register_forward_hook(cap)
    with pytest.raises(ParameterMismatchError, match="soft-capped by a setting"):
        Policy(model, TOKENIZER)


def test_the_same_family_without_the_cap_is_fine() -> None:
    policy = Policy(gemma(None), TOKENIZER)
    found = policy.states(SAMPLES[:1]).hidden_ND @ policy.head_weight_VD.T
    expected = logits_alone(policy.model, SAMPLES[0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_scale_that_no_setting_names_is_refused() -> None:
    Policy(ScaledLogits(1.0), TOKENIZER)
    with pytest.raises(ParameterMismatchError, match="nor that times or soft-capped by a setting"):
        Policy(ScaledLogits(0.5), TOKENIZER)


def test_a_bias_is_part_of_the_head() -> None:
    model = tiny_model()
    model.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, len(TOKENIZER)))
    policy = Policy(model, TOKENIZER, vocabulary_size=12)
    assert policy.head_bias_V is not None
    assert torch.equal(policy.head_bias_V, model.lm_head.bias[:12])
    assert tiny_policy().head_bias_V is None


def test_tied_embeddings_and_other_families() -> None:
    config = LlamaConfig(**SIZES, tie_word_embeddings=True)
    policy = Policy(LlamaForCausalLM(config).eval(), TOKENIZER)
    found = policy.states(SAMPLES).hidden_ND @ policy.head_weight_VD.T
    expected = torch.cat([logits_alone(policy.model, sample) for sample in SAMPLES])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_heads_pass_the_probe(dtype: torch.dtype) -> None:
    policy = Policy(make_model(replace(WORLD, seed=3)).to(dtype), TOKENIZER)
    assert policy.states(SAMPLES).hidden_ND.dtype == dtype


def test_the_probe_leaves_no_trace() -> None:
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    state = torch.get_rng_state()
    Policy(model, TOKENIZER)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert not model.lm_head._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


# Portions of sequences ----------------------------------------------------------------------------


lengths = st.lists(st.integers(1, 40), max_size=30)
limits = st.integers(1, 120)
counts = st.one_of(st.none(), st.integers(1, 5))


@given(lengths=lengths, tokens=limits, sequences=counts)
def test_a_partition_in_order_within_the_limits_and_none_of_them_wasted(
    lengths: list[int], tokens: int, sequences: int | None
) -> None:
    found = list(micro_batches(lengths, tokens=tokens, sequences=sequences))
    assert [i for portion in found for i in portion] == list(range(len(lengths)))
    assert all(found)

    def fits(indices: list[int]) -> bool:
        padded = max(lengths[i] for i in indices) * len(indices)
        return padded <= tokens and (sequences is None or len(indices) <= sequences)

    assert all(fits(portion) or len(portion) == 1 for portion in found)
    assert not any(fits([*portion, after[0]]) for portion, after in pairwise(found))


@given(lengths=st.lists(st.integers(1, 900), max_size=30), tokens=limits, sequences=counts)
def test_sorted_portions_are_a_partition_with_little_padding(
    lengths: list[int], tokens: int, sequences: int | None
) -> None:
    found = list(sorted_micro_batches(lengths, tokens=10 * tokens, sequences=sequences))
    order = [i for portion in found for i in portion]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths)
    for portion in found:
        held = [lengths[i] for i in portion]
        padded = max(held) * len(held)
        assert len(held) == 1 or padded <= 10 * tokens
        assert sequences is None or len(held) <= sequences
        assert padded - sum(held) <= max(512, padded // 10)


def test_known_portions() -> None:
    assert list(micro_batches([3, 3, 4, 9, 1], tokens=9)) == [[0, 1], [2], [3], [4]]
    assert list(micro_batches([3, 3, 3, 20, 1, 1], tokens=9)) == [[0, 1, 2], [3], [4, 5]]
    assert list(micro_batches([1, 1, 1], tokens=9, sequences=2)) == [[0, 1], [2]]
    assert list(micro_batches([], tokens=9)) == []
    assert list(sorted_micro_batches([600, 30, 700, 20], tokens=5000)) == [[3, 1], [0, 2]]
    assert list(sorted_micro_batches([], tokens=9)) == []


@pytest.mark.parametrize("limit", [{"tokens": 0}, {"tokens": 5, "sequences": 0}])
def test_limits_below_one_are_refused(limit: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one token and one sequence"):
        list(micro_batches([1], **limit))  # type: ignore[arg-type]


# A teacher that is on its device only while it is used --------------------------------------------


PAIR = [
    Sample(prompt_ids=ids("<bos> 3 + 4 ="), completion_ids=ids("# 0 <eos>")),
    Sample(prompt_ids=ids("<bos> 1"), completion_ids=ids("+ 1 = 2")),
]


def offloaded(seed: int = 1) -> Policy:
    model = tiny_model(seed).requires_grad_(False)
    return Policy(model, TOKENIZER, during=Offloaded(model, "cpu"))


def places(policy: Policy) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in policy.model.named_parameters()}


def test_scores_and_answers_are_the_same_bit_for_bit() -> None:
    plain, apart, student = tiny_policy(1), offloaded(), tiny_policy(0)
    plain.model.requires_grad_(False)
    assert completion_log_probs(apart, PAIR) == completion_log_probs(plain, PAIR)
    assert completion_reverse_kl(student, apart, PAIR) == completion_reverse_kl(
        student, plain, PAIR
    )
    requests = [Request(prompt_ids=PAIR[0].prompt_ids, seed=seed) for seed in range(4)]
    sampling = Sampling(max_new_tokens=5)
    answers = [
        HFEngine(policy.model, TOKENIZER, during=policy.during).generate(requests, sampling)
        for policy in (plain, apart)
    ]
    assert answers[0] == answers[1]


def test_everything_but_the_head_moves_in_and_out() -> None:
    policy = offloaded()
    home = places(policy)
    with policy.during():
        inside = places(policy)
        with policy.during():
            assert places(policy) == inside, "entered twice, moved once"
        assert places(policy) == inside
    assert places(policy) == home
    assert {name for name in home if home[name] == inside[name]} == {"lm_head.weight"}
    with pytest.raises(RuntimeError), policy.during():
        raise RuntimeError
    assert places(policy) == home


def test_a_tied_embedding_stays_with_the_head() -> None:
    model = tiny_model(1)
    model.model.embed_tokens.weight = model.lm_head.weight
    apart = Offloaded(model, "cpu")
    home = model.model.embed_tokens.weight.data_ptr()
    with apart():
        assert model.model.embed_tokens.weight.data_ptr() == home
        assert torch.equal(model.model.embed_tokens.weight, model.lm_head.weight)


# A start that prompts share -----------------------------------------------------------------------

SHARED = ids("<bos> " + "3 + 4 = 0 ; " * 20)


def beginning_alike(count: int) -> list[Sample]:
    """Answers after prompts with one start; one of these prompts is nothing but that start."""
    ends = ["", "5 * 2 =", "1", "6 - 2 - 2 =", "5 * 3 ="]
    answers = ["# 4 <eos>", "1", "3 + 4 = 0 ; # 0 <eos>"]
    return [
        Sample(
            prompt_ids=SHARED + ids(ends[i % len(ends)]),
            completion_ids=ids(answers[i % len(answers)]),
            learned=(True, False, True) if i == 0 else None,
        )
        for i in range(count)
    ]


def test_a_shared_start_is_read_once_and_changes_nothing() -> None:
    policy, samples = tiny_policy(), beginning_alike(12)
    read: list[tuple[int, ...]] = []

    def note(module: Any, given: Any, kwargs: Any) -> None:
        read.append(tuple(kwargs["input_ids"].shape))

    policy.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    expected = policy.states(samples)  # with gradients every prompt is read whole
    with torch.no_grad():
        found = policy.states(samples)
        few = policy.states(samples[:2])
    shared = len(SHARED) - 1  # the shortest prompt keeps its last token
    width = max(sample.length for sample in samples)
    assert read == [(12, width), (1, shared), (12, width - shared), (2, few_width(samples))]
    assert expected.hidden_ND.requires_grad
    torch.testing.assert_close(found.hidden_ND, expected.hidden_ND, rtol=1e-4, atol=1e-5)
    assert found.targets_N.equal(expected.targets_N)
    assert found.lengths == expected.lengths
    torch.testing.assert_close(few.hidden_ND, expected.hidden_ND[: sum(few.lengths)])


def few_width(samples: list[Sample]) -> int:
    return max(sample.length for sample in samples[:2])


def test_a_window_that_forgets_is_read_whole() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Gemma2Config(
            vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, sliding_window=8,
        )  # fmt: skip
        policy = Policy(Gemma2ForCausalLM(config).eval(), TOKENIZER)
    samples = beginning_alike(12)
    expected = policy.states(samples).hidden_ND
    with torch.no_grad():
        found = [policy.states(samples).hidden_ND for _ in range(2)]
    for hidden in found:
        torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
