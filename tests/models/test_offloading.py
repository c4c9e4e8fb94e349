"""A teacher that is on its device only while it is used."""

import pytest
import torch
from tests.fakes import TOKENIZER, ids, tiny_model, tiny_policy

from effopd.evaluation.logprobs import completion_log_probs, completion_reverse_kl
from effopd.models.offloading import Offloaded
from effopd.models.policy import Policy, Sample
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine

SAMPLES = [
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
    assert completion_log_probs(apart, SAMPLES) == completion_log_probs(plain, SAMPLES)
    assert completion_reverse_kl(student, apart, SAMPLES) == completion_reverse_kl(
        student, plain, SAMPLES
    )
    requests = [Request(prompt_ids=SAMPLES[0].prompt_ids, seed=seed) for seed in range(4)]
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
