"""Classes of tokens of two tokenizers, and where answers can be compared."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import WORLD
from tests.models.test_alignment import KINDS, TEXTS
from tests.reference import common_twin
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from effopd.data.world import make_tokenizer
from effopd.models.alignment import Aligner, Alignment
from effopd.models.common_vocabulary import compared_places, vocabulary_classes
from effopd.objectives.common_vocabulary import Classes, Ragged


def lists(found: Ragged, count: int) -> list[list[int]]:
    return [found.of_rows(torch.tensor([i]))[1].tolist() for i in range(count)]


def classes_of(student: Any, teacher: Any, extra: int = 0) -> tuple[Aligner, Classes]:
    aligner = Aligner(student, teacher)
    return aligner, vocabulary_classes(aligner, len(student) + extra, len(teacher) + extra)


def longest_first(*texts: str) -> Any:
    """Every sign a token, and these texts; the longest that fits is cut first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<eos>", *alphabet, *texts]
    inner = Tokenizer(
        models.WordPiece(
            {name: i for i, name in enumerate(names)},
            unk_token="<pad>",
            continuing_subword_prefix="",
        )
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")


PARTS = st.lists(st.text("abc", min_size=2, max_size=4), max_size=6, unique=True)


@settings(max_examples=10, deadline=None)
@given(ours=PARTS, theirs=PARTS)
def test_classes_are_those_of_the_twin(ours: list[str], theirs: list[str]) -> None:
    """Of any two vocabularies that are cut longest first."""
    student, teacher = longest_first(*ours), longest_first(*theirs)
    _, found = classes_of(student, teacher)
    names = [["a", "b", "c", *tokens] for tokens in (ours, theirs)]
    expected = {(frozenset(a), frozenset(b)) for a, b in common_twin.classes(*names)}
    ids = [student.convert_tokens_to_ids(names[0]), teacher.convert_tokens_to_ids(names[1])]
    of = [dict(zip(names[0], found.student_V[ids[0]].tolist(), strict=True)),
          dict(zip(names[1], found.teacher_W[ids[1]].tolist(), strict=True))]  # fmt: skip
    assert {
        tuple(frozenset(t for t, own in side.items() if own == i) for side in of)
        for i in set(of[0].values())
    } == expected
    for token, more, longer, onward in zip(
        range(len(student)),
        *(lists(each, len(student)) for each in (found.one_more, found.longer, found.next_tokens)),
        strict=True,
    ):
        name = student.convert_ids_to_tokens(token)
        begin = common_twin.cut(names[1], name) if name in names[0] else []
        rests = {
            t: common_twin.cut(names[1], t)[len(begin) :]
            for t in names[0]
            if begin and t != name and common_twin.cut(names[1], t)[: len(begin)] == begin
        }
        assert {*student.convert_ids_to_tokens(more)} == {t for t in rests if len(rests[t]) == 1}
        assert {*student.convert_ids_to_tokens(longer)} == {t for t in rests if len(rests[t]) > 1}
        assert {*teacher.convert_ids_to_tokens(onward)} == {
            rest[0] for rest in rests.values() if len(rest) == 1
        }


@pytest.mark.parametrize("name", ["coarse", "pieces", "legacy pieces", "unigram"])
def test_one_tokenizer_has_a_class_for_every_text(name: str) -> None:
    aligner, found = classes_of(KINDS[name], KINDS[name], extra=3)
    assert found.student_V.tolist() == found.teacher_W.tolist()
    assert found.student_V[-3:].tolist() == [found.size - 1] * 3  # rows without a token
    assert not found.one_more.values.numel()
    assert not found.longer.values.numel()
    texts = {aligner.student.of(i) for i in KINDS[name].get_vocab().values()} - {b""}
    assert found.size == len(texts) + len(aligner.special) + 1


@pytest.mark.parametrize(
    "pair", [("coarse", "fine"), ("fine", "coarse"), ("pieces", "coarse"), ("coarse", "unigram")]
)
def test_a_class_holds_equal_bytes_and_what_begins_with_them(pair: tuple[str, str]) -> None:
    aligner, found = classes_of(KINDS[pair[0]], KINDS[pair[1]])
    ours, theirs = aligner.student, aligner.teacher
    known = {theirs.of(j): j for j in theirs.tokenizer.get_vocab().values()}
    classes = found.student_V.tolist(), found.teacher_W.tolist()
    for i in ours.tokenizer.get_vocab().values():
        if ours.of(i) and (j := known.get(ours.of(i))) is not None:
            assert classes[0][i] == classes[1][j] < found.size - 1
    for i, more in enumerate(lists(found.one_more, len(classes[0]))):
        for other in more:
            assert ours.of(other).startswith(ours.of(i))
            assert classes[0][other] == classes[0][i]
    assert classes[0][aligner.student_ends[0]] == classes[1][aligner.teacher_ends[0]]


def read(aligner: Aligner, own: Aligner, ids: Sequence[int]) -> tuple[Alignment, Alignment]:
    return aligner.align(ids), own.align(ids)


PAIRS = [("coarse", "fine"), ("fine", "coarse"), ("pieces", "coarse"), ("coarse", "coarse")]
ALIGNED = {
    pair: (*classes_of(KINDS[pair[0]], KINDS[pair[1]]),
           Aligner(KINDS[pair[0]], KINDS[pair[0]], recuts=True))
    for pair in PAIRS
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
@settings(max_examples=20, deadline=None)
@given(text=TEXTS, more=TEXTS)
def test_both_have_read_the_same_bytes_at_every_place(
    pair: tuple[str, str], text: str, more: str
) -> None:
    aligner, classes, own = ALIGNED[pair]
    answers = []
    for each in (text, more):
        ids = aligner.student.tokenizer(each, add_special_tokens=False)["input_ids"]
        answers.append((tuple(ids), *read(aligner, own, ids)))
    found = compared_places(classes, answers)
    ours = [token for ids, _, _ in answers for token in ids]
    theirs = [token for _, alignment, _ in answers for token in alignment.teacher_ids]
    assert found.teacher_ids_M.tolist() == theirs
    rows = found.student_N.tolist()
    assert rows == sorted({*rows})
    for row, begin, token, path in zip(*(part.tolist() for part in found[:4]), strict=True):
        assert ours[row] == token
        spans = [
            (span.student_start + sum(len(a[0]) for a in answers[:i]),
             span.teacher_start + sum(len(a[1].teacher_ids) for a in answers[:i]),
             span.teacher_stop - span.teacher_start)
            for i, (_, alignment, _) in enumerate(answers)
            for span in alignment.spans
        ]  # fmt: skip
        assert (row, begin) in {each[:2] for each in spans}
        assert path in {0, *(length for *place, length in spans if place == [row, begin])}
    if pair == ("coarse", "coarse"):
        assert len(rows) == sum(s.is_scored for _, a, _ in answers for s in a.spans)


def test_a_number_that_may_become_a_longer_token_is_split() -> None:
    """`3` of an answer is `3`, or the `3 ;` that the teacher writes as two tokens."""
    world = make_tokenizer(WORLD)
    merged = make_tokenizer(replace(WORLD, teacher_differs_in="tokens"))
    aligner, classes = classes_of(merged, world)
    own = Aligner(merged, merged, recuts=True)
    three, joined, six = merged.convert_tokens_to_ids(["3", "3 ;", "6"])
    end = merged.eos_token_id
    assert classes.student_V[three] == classes.student_V[joined]
    assert lists(classes.one_more, len(merged))[three] == [joined]
    assert lists(classes.next_tokens, len(merged))[three] == [world.convert_tokens_to_ids(";")]

    def places(ids: list[int]) -> list[tuple[int, int, int, int]]:
        found = compared_places(classes, [(tuple(ids), *read(aligner, own, ids))])
        return [*zip(*(part.tolist() for part in found[:4]), strict=True)]

    assert places([joined, six, end]) == [(0, 0, joined, 2), (1, 2, six, 1), (2, 3, end, 0)]
    # A cut that the student's tokenizer would not make is compared too.
    apart = [three, merged.convert_tokens_to_ids(";"), six, end]
    assert places(apart)[0] == (0, 0, three, 1)
    # Nothing tells what the last token of a truncated answer would have become.
    assert places([joined, six])[1] == (1, 2, six, 0)
