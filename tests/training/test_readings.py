"""Teachers with other tokens: under a named mapping, or with another tokenizer altogether."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.fakes import WORLD, policy_writer, tiny_policy
from tests.reference import alignment_twin
from tests.reference.kl_twin import log_probs_TV
from tests.support.chat import SIZE, chat_model, chat_tokenizer
from tests.support.fake_server import serving, settings_of
from tests.support.learning import accumulate, batch, gradient
from torch import Tensor

from effopd.data.problem import Problem
from effopd.data.world import make_model, make_tokenizer
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.evaluation.kept_states import KeptStates
from effopd.evaluation.readings import AlignedReading, MappedReading, span_counts
from effopd.evaluation.routing import OwnPrompt, Teachers, routed_log_probs, routed_reverse_kl
from effopd.evaluation.served_teacher import ServedTeacher
from effopd.methods import FullVocabularyKL, Portion, Resources
from effopd.models.alignment import Aligner, AlignmentSettings
from effopd.models.policy import Policy
from effopd.rollouts.engine import Completion
from effopd.rollouts.prompts import PromptTemplate
from effopd.rollouts.rollout import Rollout
from effopd.training.teachers import align_vocabularies

PROBLEMS = [Problem(id=f"p-{i}", prompt=f"{i} + 4 =") for i in range(5)]
READERS = ("x",)
MERGED = replace(WORLD, teacher_differs_in="tokens")


def answer(prompt: Sequence[int], tokens: Sequence[int]) -> Rollout:
    """Tokens after a prompt, as if they had been written."""
    completion = Completion(
        token_ids=tuple(tokens),
        text="",
        log_probs=(-1.0,) * len(tokens),
        finish_reason="stop",
    )
    return Rollout(problem=PROBLEMS[0], prompt_ids=tuple(prompt), completion=completion)


# One vocabulary under a mapping -------------------------------------------------------------------


def swapped() -> tuple[Policy, Policy]:
    """Two added tokens have each other's ids."""
    student = Policy(chat_model(SIZE + 2), chat_tokenizer("<a>", "<b>"))
    return student, Policy(chat_model(SIZE + 2, seed=1), chat_tokenizer("<b>", "<a>"))


def test_tokens_with_other_ids_are_read_and_compared_by_name() -> None:
    """The teacher reads its own ids; its head's rows are in the student's order."""
    student, teacher = swapped()
    found = align_vocabularies(student, {"x": teacher}, readers=READERS)
    assert found.remarks == ["student and x share 261 tokens by name, 2 of them with other ids"]
    teachers = Teachers(policies={"": teacher}, readings={"": found.readings["x"]})
    rollout = answer((5, 259), (7, 260, 259, 2))
    sample = teachers.sample_for("", rollout)
    assert (sample.prompt_ids, sample.completion_ids) == ((5, 260), (7, 259, 260, 2))
    order = [*range(SIZE), SIZE + 1, SIZE]
    q = log_probs_TV(teacher.model, sample, SIZE + 2)[:, order]
    p = log_probs_TV(student.model, rollout.sample, SIZE + 2)
    (values,) = routed_log_probs(teachers, [rollout])
    assert values == pytest.approx(
        [row[i] for row, i in zip(q.tolist(), (7, 260, 259, 2), strict=True)], abs=1e-5
    )
    (divergence,) = routed_reverse_kl(student, teachers, [rollout])
    assert divergence == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), abs=1e-5)


def test_ends_without_one_in_common_are_exchanged_at_the_end_alone() -> None:
    """A base student writes `<|endoftext|>`; its prompt may hold `<|im_end|>` as it is."""
    bare = chat_tokenizer(eos="<|endoftext|>", chat=None)
    student = Policy(chat_model(eos_token_id=0), bare)
    teacher = Policy(chat_model(seed=1), chat_tokenizer())
    found = align_vocabularies(student, {"x": teacher}, readers=READERS)
    assert found.remarks == [
        "student and x share 259 tokens by name, 1 of them with other ids",
        "'<|endoftext|>' (0) of the student is '<|im_end|>' (2) of x: end of the answer",
    ]
    sample = found.readings["x"].sample(answer((1, 7, 2), (8, 0)), None)
    assert (sample.prompt_ids, sample.completion_ids) == ((1, 7, 2), (8, 2))
    teachers = Teachers(policies={"": teacher}, readings={"": found.readings["x"]})
    q = log_probs_TV(teacher.model, sample, SIZE)
    (values,) = routed_log_probs(teachers, [answer((1, 7, 2), (8, 0))])
    assert values == pytest.approx([q[0, 8].item(), q[1, 2].item()], abs=1e-5)


def test_tokens_in_the_middle_that_only_the_student_has_are_for_sampled_tokens() -> None:
    student, _ = swapped()
    teacher = Policy(chat_model(SIZE + 1, seed=1), chat_tokenizer("<b>"))
    with pytest.raises(ParameterMismatchError, match=r"only the student has '<a>'.*not its last"):
        align_vocabularies(student, {"x": teacher}, readers=READERS)
    found = align_vocabularies(student, {"x": teacher}, readers=READERS, is_dense=False)
    assert teacher.head_rows is None
    reading = found.readings["x"]
    assert isinstance(reading, MappedReading)
    teachers = Teachers(policies={"": teacher}, readings={"": reading})
    rollout = answer((5, 6), (7, 259, 260, 2))
    sample = teachers.sample_for("", rollout)
    assert sample.completion_ids == (7, 0, 259, 2)
    (values,) = routed_log_probs(teachers, [rollout])
    q = log_probs_TV(teacher.model, sample, SIZE + 1)
    expected = [q[i, token].item() for i, token in enumerate(sample.completion_ids)]
    assert [values[0], *values[2:]] == pytest.approx([expected[0], *expected[2:]], abs=1e-5)
    assert values[1] != values[1]  # NaN: missing
    with pytest.raises(ParameterMismatchError, match=r"\[teacher_prompt\]"):
        teachers.sample_for("", answer((259,), (7,)))


def test_whoever_is_no_reader_keeps_the_student_s_ids() -> None:
    student, teacher = swapped()
    with pytest.raises(ParameterMismatchError, match="2 of 261 tokens have other ids"):
        align_vocabularies(student, {"the reference": teacher}, readers=READERS)


# Another tokenizer --------------------------------------------------------------------------------


def across(least_equal: float = 0.5) -> tuple[Policy, Policy, Teachers]:
    """A student in merged tokens, and a teacher in the world's."""
    student = Policy(make_model(MERGED), make_tokenizer(MERGED))
    teacher = tiny_policy(1)
    found = align_vocabularies(
        student,
        {"x": teacher},
        readers=READERS,
        alignment=AlignmentSettings(least_equal=least_equal),
        is_dense=False,
    )
    assert found.remarks == ["x has another tokenizer: answers are aligned by bytes"]
    own = OwnPrompt.of(PromptTemplate(chat=True), teacher)
    teachers = Teachers(
        policies={"": teacher}, prompts={"": own}, readings={"": found.readings["x"]}
    )
    return student, teacher, teachers


def test_another_tokenizer_is_refused_without_the_section_for_it() -> None:
    student = Policy(make_model(MERGED), make_tokenizer(MERGED))
    with pytest.raises(
        ParameterMismatchError, match=r"To learn across tokenizers set \[alignment\]"
    ):
        align_vocabularies(student, {"x": tiny_policy(1)}, readers=READERS)


def test_the_teacher_reads_its_own_tokens_after_its_own_prompt() -> None:
    student, teacher, teachers = across()
    own, theirs = student.tokenizer, teacher.tokenizer
    text = "3 ; 6 ; 5"
    tokens = own(text, add_special_tokens=False)["input_ids"] + [own.eos_token_id]
    read = theirs(text, add_special_tokens=False)["input_ids"] + [theirs.eos_token_id]
    assert (len(tokens), len(read)) == (4, 6)
    rollout = answer(PromptTemplate(chat=True).encode(own, PROBLEMS[0]), tokens)
    sample = teachers.sample_for("", rollout)
    assert sample.prompt_ids == PromptTemplate(chat=True).encode(theirs, PROBLEMS[0])
    assert sample.completion_ids == tuple(read)
    q = log_probs_TV(teacher.model, sample, len(theirs))
    scores = [q[i, token].item() for i, token in enumerate(read)]
    runs = [(0, 1, 0, 2), (1, 2, 2, 4), (2, 3, 4, 5), (3, 4, 5, 6)]
    expected = alignment_twin.advantages(runs, [-1.0] * 4, scores)
    expected[2] += expected[3]  # `5` begins `5 ;`: it is judged with what comes behind it
    (values,) = routed_log_probs(teachers, [rollout])
    assert [value + 1.0 for value in values] == pytest.approx(expected, abs=1e-5)
    counts = span_counts(teachers.readings, [("", [rollout])])
    assert counts is not None
    assert counts.shares == {
        "equal_token_share": 0.5, "run_token_share": 0.5, "unscored_token_share": 0.0,
    }  # fmt: skip


def test_too_few_equal_tokens_are_refused_with_the_figures() -> None:
    student, _, teachers = across(least_equal=0.9)
    tokens = student.tokenizer("3 ; 6 ; 5", add_special_tokens=False)["input_ids"]
    with pytest.raises(ParameterMismatchError, match="33% of the student's tokens have a token"):
        span_counts(teachers.readings, [("", [answer((1,), tokens)])])


def test_a_cut_that_the_students_tokenizer_would_not_make_is_worth_little() -> None:
    """`3 ;` is one token of the student; `3` and `;` are the same text a second time."""
    merged = make_tokenizer(MERGED)
    (whole,) = merged("3 ;", add_special_tokens=False)["input_ids"]
    apart = merged.convert_tokens_to_ids(["3", ";"])
    *_, teachers = across()
    reading = teachers.readings[""]
    assert reading.values(answer((1,), (whole,)), [-0.5, -0.25]) == pytest.approx((-0.75,))
    assert reading.values(answer((1,), apart), [-0.5, -0.25]) == pytest.approx((-17.4, -9.2))
    assert reading.values(answer((1,), apart[:1]), [-0.5]) == pytest.approx((-0.5,))


def test_what_an_environment_wrote_is_not_aligned() -> None:
    *_, teachers = across()
    rollout = answer((1,), (5, 6))
    written = replace(rollout.completion, learned=(True, False))
    with pytest.raises(ConfigError, match="that an environment wrote are not aligned"):
        teachers.sample_for("", replace(rollout, completion=written))


def test_distributions_are_compared_over_what_both_can_tell_apart() -> None:
    """`3 ;` has the product of the teacher's `3` and `;`, and `3` what is left of `3`."""
    student, teacher, teachers = across(0.0)
    own, theirs = student.tokenizer, teacher.tokenizer
    text = "3 ; 6 ; 5"
    tokens = own(text, add_special_tokens=False)["input_ids"] + [own.eos_token_id]
    rollout = answer(PromptTemplate(chat=True).encode(own, PROBLEMS[0]), tokens)
    q = log_probs_TV(teacher.model, teachers.sample_for("", rollout), len(theirs)).exp()
    p = log_probs_TV(student.model, rollout.sample, len(own)).exp()
    expected = []
    for place, at, path in ((0, 0, 2), (1, 2, 2), (2, 4, 1), (3, 5, 0)):
        pairs = []
        for name, i in theirs.get_vocab().items():
            same, longer = own.convert_tokens_to_ids(name), f"{name} ;"
            joined = own.get_vocab().get(longer)
            whole = p[place, same] + (0 if joined is None else p[place, joined])
            written = tokens[place] in {same, joined}
            if path and joined is not None and written:
                onward = q[at, i] * q[at + 1, theirs.convert_tokens_to_ids(";")]
                pairs += [(p[place, joined], onward), (p[place, same], q[at, i] - onward)]
            else:
                pairs.append((whole, q[at, i]))
        expected.append(sum((a * (a / b).log()).item() for a, b in pairs))
    (found,) = routed_reverse_kl(student, teachers, [rollout])
    assert found == pytest.approx(expected, rel=1e-3)
    # The loss and its metrics are of the same values.
    learner = FullVocabularyKL().learner(Resources(student=student, teachers=teachers))
    assert learner.prepare(batch([rollout])) == 6
    part = learner.contribution([0], Portion(sequences=1, tokens=4))
    assert part.loss.item() == pytest.approx(sum(expected) / 4, rel=1e-3)
    assert float(part.sums["reverse_kl"]) == pytest.approx(sum(expected), rel=1e-3)
    assert float(part.known["reverse_kl"]) == 4
    assert learner.metrics() == {
        "equal_token_share": 0.5, "run_token_share": 0.5, "unscored_token_share": 0.0,
        "compared_token_share": 1.0, "teacher_covered": pytest.approx(1.0),
    }  # fmt: skip


def test_equal_tokenizers_have_the_same_scores_and_divergence_when_aligned() -> None:
    student, teacher = tiny_policy(0), tiny_policy(1)
    rollouts = policy_writer(student).answer(PROBLEMS, range(5))
    reading = AlignedReading(
        aligner=Aligner(student.tokenizer, teacher.tokenizer),
        settings=AlignmentSettings(least_equal=1.0),
        name="x",
        own=Aligner(student.tokenizer, student.tokenizer, recuts=True),
    )
    own = OwnPrompt.of(policy_writer(student).template, teacher)
    aligned = Teachers(policies={"": teacher}, prompts={"": own}, readings={"": reading})
    whole = Teachers.single(teacher)
    assert routed_log_probs(aligned, rollouts) == routed_log_probs(whole, rollouts)
    counts = span_counts(aligned.readings, [("", rollouts)])
    assert counts is not None
    assert counts.run == counts.unscored == 0
    kl, expected = (routed_reverse_kl(student, each, rollouts) for each in (aligned, whole))
    for row, wanted in zip(kl, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_hidden_states_of_a_server_are_compared_like_those_of_the_local_teacher() -> None:
    student, teacher, local = across(0.0)
    own, theirs = student.tokenizer, teacher.tokenizer
    prompt = PromptTemplate(chat=True).encode(own, PROBLEMS[0])
    texts = ("3 ; 6 ; 5", "1 + 2 = 3 ;", "# 4")
    cut = [own(text, add_special_tokens=False)["input_ids"] for text in texts]
    rollouts = [answer(prompt, [*tokens, own.eos_token_id]) for tokens in cut]

    def learned(teachers: Teachers) -> tuple[list[float], Tensor]:
        learner = FullVocabularyKL().learner(Resources(student=student, teachers=teachers))
        learner.prepare(batch(rollouts))
        parts = accumulate(learner, rollouts, range(3))
        return [part.loss.item() for part in parts], gradient(student.model.parameters())

    losses, slope = learned(local)
    nats = routed_reverse_kl(student, local, rollouts)
    with serving(teacher.model, theirs, flavor="effopd") as server:
        server.only_one_at_a_time()
        settings = settings_of(server, concurrency=1, missing_retries=0, missing_share=0.9)
        served = ServedTeacher(settings, theirs, vocabulary_size=len(theirs), longest=64)
        remote = replace(local, policies={"": served}, kept=KeptStates())
        again, other = learned(remote)
        assert again == pytest.approx(losses, rel=1e-4)
        assert (other - slope).norm() <= 1e-4 * slope.norm()
        found = routed_reverse_kl(student, replace(remote, kept=KeptStates()), rollouts)
        for row, wanted in zip(found, nats, strict=True):
            assert row == pytest.approx(wanted, rel=1e-4)
        # Without the state behind `5`, neither `5` nor what follows can be compared.
        server.strike({1: "nan"})
        found = routed_reverse_kl(student, replace(remote, kept=KeptStates()), rollouts)
        lost = pytest.approx([*nats[0][:2], math.nan, math.nan], rel=1e-4, nan_ok=True)
        assert found[0] == lost
