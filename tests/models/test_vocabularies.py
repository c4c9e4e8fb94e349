"""Which tokens student and teacher share."""

from typing import Any

import pytest
from tests.support.chat import SIZE, chat_tokenizer

from effopd.errors import ParameterMismatchError
from effopd.models.vocabularies import SharedVocabulary, shared_vocabulary

PLAIN = chat_tokenizer()


def test_the_same_tokens_share_every_row() -> None:
    assert shared_vocabulary(PLAIN, chat_tokenizer(), "x") == SharedVocabulary()


@pytest.mark.parametrize(
    ("student", "teacher", "lists"),
    [
        (chat_tokenizer("<pad>"), PLAIN, "student has '<pad>' (259), only the teacher has none"),
        (
            PLAIN,
            chat_tokenizer("<think>"),
            "student has none, only the teacher has '<think>' (259)",
        ),
        (
            PLAIN,
            chat_tokenizer(*(f"<{i}>" for i in range(6))),
            "has '<0>' (259), '<1>' (260), '<2>' (261), '<3>' (262) and 2 more",
        ),
    ],
)
def test_added_tokens_of_one_side_are_left_out_by_name(
    student: Any, teacher: Any, lists: str
) -> None:
    found = shared_vocabulary(student, teacher, "the teacher")
    assert found.size == SIZE
    assert lists in found.remark
    assert "the student cannot write them; the 259 tokens that both have agree" in found.remark


def test_an_id_with_two_meanings_is_refused_by_name() -> None:
    with pytest.raises(ParameterMismatchError) as error:
        shared_vocabulary(chat_tokenizer("<pad>"), chat_tokenizer("<think>"), "the teacher")
    assert str(error.value).startswith(
        "student and the teacher have different tokenizers: 1 of 260 tokens have other ids "
        "(id 259 is '<pad>' for the student and '<think>' for the teacher)"
    )
    assert "Leave these added tokens out of one of the two tokenizers" in str(error.value)


def test_a_token_with_two_ids_is_refused() -> None:
    teacher = without(chat_tokenizer("<a>", "<b>"), "<a>")
    message = r"1 of 260 tokens have other ids \(id 259 is '<b>' for the student and unknown to the"
    with pytest.raises(ParameterMismatchError, match=message):
        shared_vocabulary(chat_tokenizer("<b>"), teacher, "the teacher")


def without(tokenizer: Any, token: str) -> Any:
    """The same tokenizer, which does not know a token of its vocabulary."""
    vocabulary = {t: i for t, i in tokenizer.get_vocab().items() if t != token}
    tokenizer.get_vocab = lambda: vocabulary
    return tokenizer


@pytest.mark.parametrize("missing", ["A", "\u0120", "<|im_start|>"])
def test_a_hole_among_shared_tokens_is_another_tokenizer(missing: str) -> None:
    for student, teacher in (
        (PLAIN, without(chat_tokenizer(), missing)),
        (without(chat_tokenizer(), missing), PLAIN),
    ):
        with pytest.raises(ParameterMismatchError, match="only added tokens behind all shared"):
            shared_vocabulary(student, teacher, "the teacher")


def test_ordinary_tokens_at_the_end_are_another_tokenizer() -> None:
    last = PLAIN.convert_ids_to_tokens(SIZE - 1)
    with pytest.raises(ParameterMismatchError, match="have different tokenizers, though shared"):
        shared_vocabulary(PLAIN, without(chat_tokenizer(), last), "the teacher")


def test_an_end_token_that_the_teacher_does_not_know_is_refused() -> None:
    student = chat_tokenizer("<end>", eos="<end>")
    assert student.eos_token_id >= SIZE
    with pytest.raises(ParameterMismatchError, match="the teacher does not know '<end>', with"):
        shared_vocabulary(student, PLAIN, "the teacher")
