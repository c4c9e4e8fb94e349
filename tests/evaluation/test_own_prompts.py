"""Teachers that read a prompt of their own before the student's answers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, ids, policy_writer, tiny_policy
from tests.reference.kl_twin import log_probs_TV
from tests.support.learning import assert_same, batch, gradient, precise_policy

from effopd.data.problem import Problem
from effopd.errors import ConfigError
from effopd.evaluation.kept_states import KeptStates, teacher_key
from effopd.evaluation.routing import OwnPrompt, Teachers, routed_log_probs, routed_reverse_kl
from effopd.methods import FullVocabularyKL, Resources
from effopd.methods.objective import Portion
from effopd.models.policy import Policy, Sample
from effopd.rollouts.prompts import Example, PromptTemplate, TeacherPrompt
from effopd.rollouts.rollout import Rollout, total_tokens

STUDENT, TEACHER = tiny_policy(0), tiny_policy(1)
PROBLEMS = [
    Problem(id=f"p-{i}", prompt=f"{i} + 4 =", answer=f"{i + 1}", fields={"hint": f"{i} ;"})
    for i in range(5)
]
ROLLOUTS = policy_writer(STUDENT).answer(PROBLEMS, range(5))
HINTED = TeacherPrompt(system="# ", text="{hint} {prompt}")
V = len(TOKENIZER)


def with_prompt(policy: Policy, template: TeacherPrompt = HINTED, **more: Any) -> Teachers:
    return Teachers(policies={"": policy}, prompts={"": OwnPrompt.of(template, policy)}, **more)


def hinted(i: int) -> Sample:
    """What the teacher reads, put together by hand."""
    prompt = ids(f"<bos> # {i} ; {i} + 4 =")
    return Sample(prompt_ids=prompt, completion_ids=ROLLOUTS[i].completion.token_ids)


def test_a_teacher_reads_its_prompt_and_the_same_answer() -> None:
    teachers = with_prompt(TEACHER)
    assert [teachers.sample_for("", r) for r in ROLLOUTS] == [hinted(i) for i in range(5)]
    assert Teachers.single(TEACHER).sample_for("", ROLLOUTS[0]) == ROLLOUTS[0].sample


@pytest.mark.parametrize("kept", [True, False])
def test_scores_are_those_of_the_twin_after_each_prompt(kept: bool) -> None:
    teachers = with_prompt(TEACHER)
    if kept:
        teachers.hold(ROLLOUTS)
        teachers.read(ROLLOUTS, batch_tokens=24)
    log_probs = routed_log_probs(teachers, ROLLOUTS, batch_tokens=24)
    divergences = routed_reverse_kl(STUDENT, teachers, ROLLOUTS, batch_tokens=24)
    for i, rollout in enumerate(ROLLOUTS):
        p = log_probs_TV(STUDENT.model, rollout.sample, V)
        q = log_probs_TV(TEACHER.model, hinted(i), V)
        tokens = rollout.completion.token_ids
        expected = [q[t][token].item() for t, token in enumerate(tokens)]
        assert log_probs[i] == pytest.approx(expected, abs=1e-5)
        kl = (p.exp() * (p - q)).sum(-1).tolist()
        assert divergences[i] == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert teachers.tokens_read == total_tokens(ROLLOUTS) * (1 if kept else 2)


# The student as its own teacher -------------------------------------------------------------------


def test_the_very_same_model_teaches_by_its_prompt_as_it_was_when_the_batch_was_scored() -> None:
    student = precise_policy(0)
    kept = KeptStates(0.0, moving=[teacher_key("")])
    teachers = with_prompt(student, kept=kept)
    learner = FullVocabularyKL().learner(Resources(student=student, teachers=teachers))
    before = precise_policy(0)
    targets = [log_probs_TV(before.model, hinted(i), V) for i in range(5)]
    assert learner.prepare(batch(ROLLOUTS)) == total_tokens(ROLLOUTS)
    portion = Portion(sequences=5, tokens=total_tokens(ROLLOUTS))
    for _ in range(2):  # the target stays while the student moves
        student.model.zero_grad()
        part = learner.contribution(range(5), portion)
        part.loss.backward()
        found = gradient(student.model.parameters())
        loss = torch.zeros((), dtype=torch.float64)
        for rollout, q in zip(ROLLOUTS, targets, strict=True):
            tokens = torch.tensor([rollout.prompt_ids + rollout.completion.token_ids])
            logits = student.model(tokens).logits[0, len(rollout.prompt_ids) - 1 : -1, :V]
            p = logits.log_softmax(-1)
            loss = loss + (p.exp() * (p - q)).sum() / portion.tokens
        assert part.loss.item() == pytest.approx(loss.item(), rel=1e-6)
        loss.backward()
        assert_same(found, gradient(student.model.parameters()))
        with torch.no_grad():
            for parameter in student.model.parameters():
                parameter.mul_(1.02)
    assert student.model.lm_head.weight.requires_grad


def test_the_student_keeps_its_state_while_its_other_state_teaches() -> None:
    """As with adapters that are on for the student and off for the teacher."""
    student, entered = tiny_policy(0), [0]
    deepest: list[int] = []

    @contextmanager
    def switched() -> Iterator[None]:
        entered[0] += 1
        yield
        entered[0] -= 1

    during: Callable[[], AbstractContextManager[None]] = switched
    other = Policy(student.model, TOKENIZER, during=during)
    hook = student.model.model.register_forward_hook(lambda m, i, o: deepest.append(entered[0]))
    routed_reverse_kl(student, with_prompt(other), ROLLOUTS)
    hook.remove()
    assert sorted(deepest) == [0, 1]


# Prompts ------------------------------------------------------------------------------------------

EXAMPLES = (Example(prompt="1 + 1 =", answer=" # 2 "), Example(prompt="2 + 1 =", answer=" # 3 "))


def test_examples_come_before_the_question() -> None:
    shown = "<bos> 1 + 1 = # 2 2 + 1 = # 3 5 + 4 ="
    problem = Problem(id="p", prompt="5 + 4 =")
    for chat in (True, False):
        template = PromptTemplate(chat=chat, examples=EXAMPLES)
        assert template.encode(TOKENIZER, problem) == ids(shown)
        assert TeacherPrompt(chat=chat, examples=EXAMPLES).encode(TOKENIZER, problem) == ids(shown)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "{solution}"}, "names 'solution', which problem p does not have"),
        ({"text": r"\boxed{}"}, "names no field: double braces"),
        ({"text": "{prompt.id}"}, "names no field: double braces"),
        ({"text": "{prompt"}, "is no template"),
        ({"too_long": "drop"}, "nothing of this one is cut"),
        ({"max_tokens": 3}, r"allowed are 1 to 3 \(teacher_prompt.max_tokens"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TeacherPrompt(**settings).encode(TOKENIZER, Problem(id="p", prompt="5 + 4 ="))


def test_braces_of_its_own_are_doubled() -> None:
    asked: list[str] = []

    def words(text: str) -> dict[str, list[int]]:
        asked.append(text)
        return {"input_ids": [1]}

    template = TeacherPrompt(text=r"\boxed{{{answer}}} {{}} {prompt}", chat=False)
    template.encode(words, Problem(id="p", prompt="5 + 4 =", answer="2"))
    assert asked == [r"\boxed{2} {} 5 + 4 ="]


def test_nothing_is_cut_where_positions_run_out() -> None:
    prompt = OwnPrompt(HINTED, TOKENIZER, 14)
    fits, long = PROBLEMS[0], replace(PROBLEMS[0], id="q", prompt="1 + 2 + 3 =")
    assert len(prompt.ids(fits, 6)) == 8
    for problem in (fits, long):
        with pytest.raises(ConfigError, match="nothing of it is cut: shorten teacher_prompt"):
            prompt.ids(problem, 7)
    with pytest.raises(ConfigError, match="10 tokens before the 6 of an answer to q"):
        prompt.check([fits, long], 6)


def test_an_answer_that_is_too_long_is_refused_when_it_is_scored() -> None:
    rollout: Rollout = max(ROLLOUTS, key=lambda each: len(each.completion.token_ids))
    length = 8 + len(rollout.completion.token_ids)
    assert OwnPrompt(HINTED, TOKENIZER, length).sample(rollout).length == length
    with pytest.raises(ConfigError, match="positions that its model"):
        OwnPrompt(HINTED, TOKENIZER, length - 1).sample(rollout)
