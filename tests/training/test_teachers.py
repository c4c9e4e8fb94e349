"""Teachers that stand still, and one that follows the student."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_policy
from tests.reference.kl_twin import reverse_kl
from tests.support.chat import SIZE, chat_model, chat_tokenizer
from tests.support.learning import moved

from effopd.errors import CheckpointError, ConfigError, ParameterMismatchError
from effopd.evaluation.logprobs import completion_reverse_kl
from effopd.models.policy import Policy, Sample
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine
from effopd.training.config import Config
from effopd.training.engines import own_teacher
from effopd.training.teachers import (
    MOVES_WITH_STUDENT,
    SelfTeacher,
    StudentAverage,
    align_vocabularies,
    frozen,
    frozen_copy,
)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {n: p.detach().double() for n, p in policy.model.named_parameters()}


@settings(deadline=None, max_examples=8)
@given(decay=st.floats(0.0, 0.999))
def test_the_average_follows_its_recurrence(decay: float) -> None:
    """`a_t = decay a_(t-1) + (1 - decay) w_t`, which starts where the teacher is."""
    student = tiny_policy(0)
    teacher = frozen_copy(tiny_policy(1))
    expected = weights(teacher)
    average = StudentAverage(teacher, student, decay)
    for step in range(4):
        moved(student, step, 0.1)
        average.update_()
        now = weights(student)
        expected = {n: decay * expected[n] + (1 - decay) * now[n] for n in now}
        for name, found in weights(teacher).items():
            torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)


def test_small_steps_add_up_in_bfloat16() -> None:
    """200 steps of a thousandth: 18% of the way, where bfloat16 alone would stand still."""
    student, teacher = tiny_policy(0), frozen_copy(tiny_policy(0))
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(0.1)
    teacher.model.to(torch.bfloat16)
    start = weights(teacher)
    average = StudentAverage(teacher, student, 0.999)
    for _ in range(200):
        average.update_()
    aim, found = weights(student), weights(teacher)
    for name, begin in start.items():
        expected = aim[name] + (begin - aim[name]) * 0.999**200
        torch.testing.assert_close(found[name], expected, rtol=2**-8, atol=1e-4)


def test_without_decay_the_teacher_is_the_student_bit_for_bit() -> None:
    student, teacher = tiny_policy(0), frozen_copy(tiny_policy(1))
    StudentAverage(teacher, student, 0.0).update_()
    assert all(torch.equal(weights(student)[n], w) for n, w in weights(teacher).items())


def test_a_student_that_stands_still_keeps_its_average_bit_for_bit() -> None:
    student = tiny_policy(0)
    average = StudentAverage(frozen_copy(student), student, 0.9)
    for _ in range(3):
        average.update_()
    assert all(torch.equal(weights(student)[n], w) for n, w in weights(average.teacher).items())


def test_the_average_is_no_part_of_the_student() -> None:
    student = tiny_policy(0)
    before = weights(student)
    average = StudentAverage(frozen_copy(student), student, 0.5)
    moved(average.teacher, 3, 0.1)
    average.update_()
    assert all(torch.equal(before[n], w) for n, w in weights(student).items())
    assert not any(p.requires_grad for p in average.teacher.model.parameters())
    assert all(p.requires_grad for p in student.model.parameters())


def test_a_restored_average_goes_on_bit_for_bit() -> None:
    student = tiny_policy(0)
    old, new = (StudentAverage(frozen_copy(tiny_policy(s)), student, 0.7) for s in (1, 2))
    new.load_state({name: tensor.clone() for name, tensor in old.state().items()})
    for average in (old, new):
        average.update_()
    ours, theirs = weights(old.teacher), weights(new.teacher)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_average_of_another_model_is_refused_by_name() -> None:
    student = tiny_policy(0)
    average = StudentAverage(frozen_copy(student), student, 0.7)
    state = average.state()
    state["lm_head.weight"] = state["lm_head.weight"][:3]
    with pytest.raises(CheckpointError, match=r"does not fit this model: lm_head.weight"):
        average.load_state(state)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_impossible_decays_are_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"decay must be in \[0, 1\)"):
        SelfTeacher(decay=decay)


# Vocabularies -------------------------------------------------------------------------------------


def chat_policy(*more: str, rows: int, seed: int = 0) -> Policy:
    return Policy(chat_model(rows, seed=seed), chat_tokenizer(*more))


def test_student_and_teachers_are_compared_on_the_tokens_that_all_share() -> None:
    student = chat_policy("<pad>", rows=260)
    teachers = {"a": chat_policy("<pad>", "<think>", rows=320), "b": chat_policy(rows=300)}
    remarks = align_vocabularies(student, teachers | {"c": frozen_copy(student)}).remarks
    assert [policy.vocabulary_size for policy in (student, *teachers.values())] == [SIZE] * 3
    assert [remark.partition(":")[0] for remark in remarks] == [
        "only the student has none, only a has '<think>' (260)",
        "only the student has '<pad>' (259), only b has none",
    ]


def test_padding_rows_are_trimmed_to_the_fewer() -> None:
    student, teacher = chat_policy(rows=300), chat_policy(rows=280)
    assert align_vocabularies(student, {"the teacher": teacher}) == ([], {})
    assert student.vocabulary_size == teacher.vocabulary_size == 280


def test_a_teacher_with_other_ends_is_told_by_name() -> None:
    student = Policy(chat_model(eos_token_id=0), chat_tokenizer(eos="<|endoftext|>"))
    bare = chat_tokenizer(eos="<|endoftext|>", chat=None)
    teacher = Policy(chat_model(), chat_tokenizer())
    assert align_vocabularies(student, {"x": teacher}).remarks == [
        "answers of the student end with '<|endoftext|>' and '<|im_end|>', those of x with "
        "'<|im_end|>': '<|im_end|>' ends both"
    ]
    base = Policy(chat_model(eos_token_id=0), bare)
    assert align_vocabularies(base, {"x": teacher}).remarks == [
        "answers of the student end with '<|endoftext|>', those of x with '<|im_end|>': none ends "
        "both, so that x expects no answer to end where the student's do; add 2 ('<|im_end|>') to "
        "eos_token_id in the student's generation_config.json (see "
        "docs/troubleshooting.md#end-tokens)"
    ]


def test_a_head_without_rows_for_its_own_tokens_is_refused() -> None:
    student, teacher = chat_policy("<a>", "<b>", rows=260), chat_policy("<a>", rows=320)
    with pytest.raises(
        ParameterMismatchError, match="lm_head of the student has 260 rows, its tok"
    ):
        align_vocabularies(student, {"the teacher": teacher})


def test_a_token_that_is_not_shared_is_not_written_and_not_scored() -> None:
    student, teacher = chat_policy("<pad>", rows=260), chat_policy(rows=320, seed=1)
    with torch.no_grad():
        student.model.lm_head.weight[259] = 50 * student.model.lm_head.weight[100]
    requests = [Request(prompt_ids=(5, 6), seed=i) for i in range(8)]

    def written() -> set[int]:
        size = student.vocabulary_size
        engine = HFEngine(student.model, student.tokenizer, vocabulary_size=size)
        found = engine.generate(requests, Sampling(max_new_tokens=20))
        return {token for completion in found for token in completion.token_ids}

    assert 259 in written()
    align_vocabularies(student, {"the teacher": teacher})
    assert max(written()) < SIZE
    for policy in (student, teacher):
        with pytest.raises(ParameterMismatchError, match="token 259, which is not among the 259"):
            policy.states([Sample(prompt_ids=(5, 259), completion_ids=(6,))])


def test_the_divergence_is_that_of_the_distributions_over_shared_tokens() -> None:
    student, teacher = chat_policy("<pad>", rows=264), chat_policy(rows=320, seed=1)
    align_vocabularies(student, {"the teacher": teacher})
    sample = Sample(prompt_ids=(5, 6), completion_ids=(7, 8, 2))
    (found,) = completion_reverse_kl(student, teacher, [sample])
    assert found == pytest.approx(reverse_kl(student.model, teacher.model, sample, SIZE), abs=1e-5)


def test_a_frozen_policy_learns_nothing_and_a_copy_leaves_the_original_alone() -> None:
    student = tiny_policy(0)
    student.model.train()
    student.vocabulary_size -= 1
    copied = frozen_copy(student)
    assert student.model.training
    assert not copied.model.training
    assert copied.vocabulary_size == student.vocabulary_size
    assert not any(p.requires_grad for p in frozen(student).model.parameters())


def test_a_teacher_that_is_the_student_is_warned_of() -> None:
    student, said = tiny_policy(), list[str]()
    config = Config.of(
        "opd", self_teacher={"weights": "current"}, teacher_prompt={"text": "# {prompt}"}
    )
    for own in (SelfTeacher(weights="current"), SelfTeacher(weights="base")):
        found = own_teacher(config, own, student, said.append)
        assert (found.model is student.model) == (own.weights == "current")
    assert said == [f"warning: {MOVES_WITH_STUDENT}"]
