"""Tokenizers that differ in a few tokens, as one vocabulary."""

from typing import Any

import pytest
from tests.support.chat import SIZE, TEXT_END, TURN_END, chat_tokenizer
from tests.support.segmentations import byte_level
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from effopd.errors import ParameterMismatchError
from effopd.models.token_map import match_vocabularies


def test_equal_vocabularies_have_nothing_to_say() -> None:
    found = match_vocabularies(chat_tokenizer(), chat_tokenizer(), "the teacher")
    assert found.student_ids == found.teacher_ids == tuple(range(SIZE))
    assert not found.lines


def test_tokens_that_one_has_alone_are_left_out_by_name() -> None:
    found = match_vocabularies(chat_tokenizer("<pad>"), chat_tokenizer("<think>", "<x>"), "x")
    assert found.student_ids == found.teacher_ids == tuple(range(SIZE))
    assert found.lines == (
        "student and x share 259 tokens by name, 0 of them with other ids",
        "only the student has '<pad>': left out of every comparison",
        "only x has '<think>', '<x>': left out of every comparison",
    )
    assert found.prompt_tokens((5, 2)) == (5, 2)
    with pytest.raises(ParameterMismatchError, match="token 259 of the student has no counterpart"):
        found.prompt_tokens((5, 259))


def test_special_tokens_of_other_names_and_ids_are_paired_by_role() -> None:
    """As R1-Distill-Qwen beside Qwen2.5: the text tokens are one, the control tokens are not."""
    teacher = renamed(
        {"<|endoftext|>": "<end>", "<|im_start|>": "<user>", "<|im_end|>": "<assistant>"},
        eos="<end>",
    )
    found = match_vocabularies(chat_tokenizer("<think>"), teacher, "R1")
    pairs = dict(zip(found.student_ids, found.teacher_ids, strict=True))
    assert pairs == {TURN_END: TEXT_END} | {i: i for i in range(3, SIZE)}
    assert found.lines == (
        "student and R1 share 256 tokens by name, 0 of them with other ids",
        "'<|im_end|>' (2) of the student is '<end>' (0) of R1: end of the text",
        "only the student has '<|endoftext|>', '<|im_start|>', '<think>': left out of every "
        "comparison",
        "only R1 has '<user>', '<assistant>': left out of every comparison",
    )
    assert found.answer_tokens((7, 8, TURN_END, 259), -1) == (7, 8, TEXT_END, -1)


def renamed(names: dict[str, str], *, eos: str) -> Any:
    """The chat tokenizer with special tokens of other names, and no chat template."""
    listed = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special = [names.get(name, name) for name in listed]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({t: i for i, t in enumerate(special + alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, pad_token=eos)
    found.add_special_tokens({"additional_special_tokens": special})
    return found


def test_the_same_names_with_other_ids_are_the_same_tokens() -> None:
    student, teacher = chat_tokenizer("<a>", "<b>"), chat_tokenizer("<b>", "<a>")
    found = match_vocabularies(student, teacher, "x")
    assert found.prompt_tokens((259, 260, 3)) == (260, 259, 3)
    assert found.lines == ("student and x share 261 tokens by name, 2 of them with other ids",)


def test_ends_without_one_in_common_are_exchanged() -> None:
    """A base student ends with one token, its instruct teacher with another; both have both."""
    base, instruct = chat_tokenizer(eos="<|endoftext|>", chat=None), chat_tokenizer()
    found = match_vocabularies(base, instruct, "x")
    assert found.answer_tokens((5, TEXT_END, TURN_END), -1) == (5, TURN_END, TEXT_END)
    assert found.prompt_tokens((TEXT_END, TURN_END)) == (TEXT_END, TURN_END)
    assert "of x: end of the answer" in found.lines[1]
    assert sorted(found.teacher_ids) == list(range(SIZE))
    # With the template, or with both ends in the teacher's settings, they have one in common.
    for ours, theirs in (((0, 2), (2,)), ((0,), (2, 0))):
        found = match_vocabularies(base, instruct, "x", student_ends=ours, teacher_ends=theirs)
        assert found.student_ids == found.teacher_ids


def test_other_ordinary_tokens_or_many_others_are_refused_with_the_counts() -> None:
    with pytest.raises(ParameterMismatchError) as error:
        match_vocabularies(byte_level(420), byte_level(300, digits=1), "x")
    assert "different tokenizers: of 341 and 303 tokens 303 have one name; 38" in str(error.value)
    assert "38 are the student's alone (38 of them ordinary text) and 0 the" in str(error.value)
    many = chat_tokenizer(*(f"<{i}>" for i in range(5)))
    with pytest.raises(ParameterMismatchError, match=r"5 the teacher's \(0\)\. One vocabulary"):
        match_vocabularies(chat_tokenizer(), many, "x", most_different=4)
    found = match_vocabularies(chat_tokenizer(), many, "x", most_different=5)
    assert found.teacher_ids == tuple(range(SIZE))
