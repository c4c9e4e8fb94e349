"""One answer in two tokenizers: spans, values, vocabularies."""

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.reference import alignment_twin as twin
from tests.support.segmentations import byte_level, pieces, words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.alignment import (
    Aligner,
    Alignment,
    AlignmentSettings,
    Span,
    SpanCounts,
    align,
    transfer,
)
from effopd.models.token_bytes import TokenBytes, token_ends

COARSE, FINE = byte_level(420), byte_level(300, digits=1)
KINDS: dict[str, Any] = {
    "coarse": COARSE,
    "fine": FINE,
    "space before": byte_level(350, prefix_space=True),
    "NFC": byte_level(380, form="NFC", digits=2),
    "NFKC": byte_level(340, form="NFKC", digits=2),
    "pieces": pieces(120),
    "legacy pieces": pieces(90, legacy=True),
    "unigram": pieces(120, kind="unigram"),
}
BYTES = {name: TokenBytes(tokenizer) for name, tokenizer in KINDS.items()}
ALIGNERS = {
    (one, other): Aligner(KINDS[one], KINDS[other])
    for one, other in (
        ("coarse", "fine"), ("fine", "coarse"), ("coarse", "coarse"), ("coarse", "pieces"),
        ("pieces", "coarse"), ("fine", "legacy pieces"), ("legacy pieces", "unigram"),
        ("unigram", "fine"), ("coarse", "space before"), ("fine", "NFC"), ("pieces", "NFKC"),
        ("NFC", "coarse"), ("space before", "pieces"),
    )
}  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(
        ["It is", " 1234", " the sum", "\n\n", "  ", "\u00e9t\u00e9", "e\u0301", "\u4f60\u597d",
         "\U0001f600", "\U0001f468\u200d\U0001f469", "x*2", "\ufb01", "\u2581", "<|im_end|>",
         "\x00", " \u0301"]
    )
    | st.text(max_size=4),
    max_size=7,
).map("".join)  # fmt: skip


def assert_partition(found: Alignment, count: int) -> None:
    """Every token of both is in one span, in order."""
    at_student = at_teacher = 0
    for span in found.spans:
        assert (span.student_start, span.teacher_start) == (at_student, at_teacher)
        at_student, at_teacher = span.student_stop, span.teacher_stop
        assert span.student_stop > span.student_start
    assert (at_student, at_teacher) == (count, len(found.teacher_ids))
    counts = found.counts
    assert counts.equal + counts.run + counts.unscored == count


def text_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


# Bytes --------------------------------------------------------------------------------------------


@given(text=TEXTS)
def test_the_bytes_of_tokens_add_up_to_the_text(text: str) -> None:
    for name in ("coarse", "fine", "pieces", "legacy pieces", "unigram"):
        ids = text_ids(KINDS[name], text)
        found = b"".join(BYTES[name].pieces(ids))
        assert found.decode("utf-8", "replace") == KINDS[name].decode(
            ids, clean_up_tokenization_spaces=False
        )
        if name in {"coarse", "fine"}:
            assert found == text.encode()


def test_the_bytes_of_a_byte_level_token_are_its_own() -> None:
    """Each of the 256 signs, by the tokenizer's own decoder where it can show them."""
    tokens = BYTES["coarse"]
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = COARSE.convert_tokens_to_ids(signs)
    assert sorted(tokens.of(i) for i in ids) == [bytes([byte]) for byte in range(256)]
    for i in ids:
        if (own := tokens.of(i))[0] < 128:
            assert COARSE.decode([i]).encode() == own
    assert tokens.of(COARSE.eos_token_id) == b""
    assert tokens.is_special(COARSE.eos_token_id)


def test_words_have_the_space_before_them() -> None:
    tokens = TokenBytes(words("It", "is", "46"))
    ids = tokens.tokenizer.convert_tokens_to_ids(["It", "is", "46"])
    assert tokens.pieces(ids) == [b"It", b" is", b" 46"]


def test_another_kind_of_tokenizer_is_refused_by_its_decoder() -> None:
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    with pytest.raises(ParameterMismatchError, match=r"its decoder is \['WordPiece'\]. Known are"):
        TokenBytes(tokenizer)


@pytest.mark.parametrize(
    ("ours", "written", "expected"),
    [
        ([b"ab", b"c"], b"abc", [2, 3]),
        ([b"a", b" e", b"\xcc\x81", b" b"], "a \u00e9 b".encode(), [1, None, 4, 6]),
        ([b" \xef\xac", b"\x81", b"x"], b" fix", [None, None, 4]),  # NFKC of a ligature
        ([b"ab", b"c", b"d", b"ef"], b"abXYZef", [2, None, 5, 7]),  # no normal form
    ],
)
def test_ends_in_a_text_that_was_normalised(
    ours: list[bytes], written: bytes, expected: list[int | None]
) -> None:
    assert token_ends(ours, written) == expected


# Spans --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ALIGNERS, ids="-".join)
@given(text=TEXTS)
def test_spans_partition_the_answer_and_are_those_of_the_twin(
    pair: tuple[str, str], text: str
) -> None:
    aligner = ALIGNERS[pair]
    ids = text_ids(aligner.student.tokenizer, text)
    end = aligner.student_ends[0]
    found = aligner.align((*ids, end))
    assert_partition(found, len(ids) + 1)
    assert found.teacher_ids[-1] == aligner.teacher_ends[0]
    assert found.spans[-1].is_equal
    ours = aligner.student.pieces(ids)
    theirs = aligner.teacher.pieces(found.teacher_ids[:-1])
    answer = b"".join(ours)
    if b"".join(theirs) not in {answer, b" " + answer}:
        return  # the teacher normalises text; where tokens end in it is tested apart
    if b"".join(theirs) != answer:
        first = next(i for i, piece in enumerate(theirs) if piece)
        theirs[first] = theirs[first][1:]
    spans = found.spans[:-1]
    if answer:
        assert [tuple(span[:4]) for span in spans] == twin.spans(ours, theirs)
    for span in spans:
        left = ours[span.student_start : span.student_stop]
        right = theirs[span.teacher_start : span.teacher_stop]
        assert b"".join(left) == b"".join(right)
        assert span.is_equal == (len(left) == len(right) == 1)


@given(ids=st.lists(st.integers(0, len(COARSE) - 1), max_size=12))
def test_any_tokens_are_partitioned(ids: list[int]) -> None:
    """Halves of characters, special tokens inside, and cuts that the tokenizer would not make."""
    for other in ("fine", "pieces", "NFC", "unigram", "space before"):
        found = Aligner(COARSE, KINDS[other]).align(ids)
        assert_partition(found, len(ids))
    same = ALIGNERS["coarse", "coarse"].align(ids)
    assert same.teacher_ids == tuple(ids)
    assert same.counts == SpanCounts(equal=len(ids))


def test_equal_tokenizers_align_token_by_token() -> None:
    ids = (*text_ids(COARSE, "It is 12 + 34 = 46 \U0001f600"), COARSE.eos_token_id)
    found = align(COARSE, COARSE, ids)
    assert found.teacher_ids == ids
    assert found.spans == tuple(Span(i, i + 1, i, i + 1, True) for i in range(len(ids)))


def test_a_known_answer() -> None:
    student, teacher = words("=", "3 ;", "x"), words("=", "3", ";", "x")
    ids = (*student.convert_tokens_to_ids(["=", "3 ;", "x"]), student.eos_token_id)
    found = align(student, teacher, ids)
    names = teacher.convert_ids_to_tokens(found.teacher_ids)
    assert names == ["=", "3", ";", "x", "<eos>"]
    assert [tuple(span) for span in found.spans] == [
        (0, 1, 0, 1, True), (1, 2, 1, 3, False), (2, 3, 3, 4, True), (3, 4, 4, 5, True),
    ]  # fmt: skip
    assert found.counts == SpanCounts(equal=3, run=1)
    assert found.counts.shares == {
        "equal_token_share": 0.75, "run_token_share": 0.25, "unscored_token_share": 0.0,
    }  # fmt: skip


def test_half_a_character_goes_to_byte_tokens() -> None:
    smile = "\U0001f600".encode()
    ids = [COARSE.convert_tokens_to_ids(COARSE.tokenize("It"))[0]]
    by_byte = {BYTES["coarse"].of(i): i for i in range(len(COARSE))}
    ids += [by_byte[bytes([byte])] for byte in smile[:2]]
    found = align(COARSE, KINDS["pieces"], ids)
    names = KINDS["pieces"].convert_ids_to_tokens(found.teacher_ids)
    assert names[-2:] == ["<0xF0>", "<0x9F>"]
    assert found.counts.equal >= 2
    # A teacher that has no such tokens scores the text around it.
    without = pieces(120)
    tokens = Aligner(COARSE, without)
    tokens.teacher._byte_tokens.clear()
    assert_partition(tokens.align(ids), 3)


def test_special_tokens_inside_an_answer_are_paired_by_name_or_not_scored() -> None:
    ids = text_ids(COARSE, "It is")
    start = COARSE.convert_tokens_to_ids("<|im_start|>")
    answer = (*ids, start, *ids)
    same = align(COARSE, FINE, answer)
    assert FINE.convert_tokens_to_ids("<|im_start|>") in same.teacher_ids
    assert same.counts.unscored == 0
    none = align(COARSE, KINDS["pieces"], answer)
    assert none.counts.unscored == 1
    assert none.spans[len(none.spans) // 2].is_scored is False


def test_an_answer_of_an_end_alone_and_of_nothing() -> None:
    found = align(COARSE, KINDS["pieces"], [COARSE.eos_token_id])
    assert found.teacher_ids == (KINDS["pieces"].eos_token_id,)
    assert align(COARSE, FINE, []) == Alignment(teacher_ids=(), spans=())


# Values -------------------------------------------------------------------------------------------


@given(text=TEXTS, seed=st.integers(0, 2**31))
@example(text="\u2581", seed=0)  # sentencepiece's space alone: an empty text for the teacher
def test_values_are_those_of_the_twin_and_add_up(text: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for pair in (("coarse", "fine"), ("pieces", "coarse"), ("fine", "NFC")):
        aligner = ALIGNERS[pair]
        ids = (*text_ids(aligner.student.tokenizer, text), aligner.student_ends[0])
        found = aligner.align(ids)
        ours = -torch.rand(len(ids), generator=generator, dtype=torch.float64)
        theirs = -torch.rand(len(found.teacher_ids), generator=generator, dtype=torch.float64)
        values = transfer(found, ours, theirs)
        runs = [tuple(span[:4]) for span in found.spans]
        expected = twin.advantages(runs, ours.tolist(), theirs.tolist())  # type: ignore[arg-type]
        assert (values - ours).tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
        scored = ~values.isnan()
        total = (theirs.sum() - ours[scored].sum()).item()
        assert (values - ours)[scored].sum().item() == pytest.approx(total, abs=1e-9)


def test_equal_tokenizers_give_the_teachers_values_bit_for_bit() -> None:
    ids = (*text_ids(COARSE, "the sum of 12 + 34"), COARSE.eos_token_id)
    ours, theirs = -torch.rand(len(ids)), -torch.rand(len(ids))
    assert torch.equal(transfer(align(COARSE, COARSE, ids), ours, theirs), theirs)


def test_tokens_without_a_counterpart_are_nan() -> None:
    start = COARSE.convert_tokens_to_ids("<|im_start|>")
    found = align(COARSE, KINDS["pieces"], [start, COARSE.eos_token_id])
    values = transfer(found, torch.tensor([-1.0, -2.0]), torch.tensor([-0.5]))
    assert torch.isnan(values).tolist() == [True, False]
    assert values[1] == -0.5


def test_too_few_equal_tokens_are_refused_with_the_figures() -> None:
    counts = SpanCounts(equal=2, run=5) + SpanCounts(run=2, unscored=1)
    with pytest.raises(ParameterMismatchError) as error:
        AlignmentSettings(least_equal=0.3).check(counts, "the teacher")
    assert "20% of the student's tokens have a token of the same bytes, 70% are in runs" in str(
        error.value
    )
    assert "10% have no counterpart; least_equal = 0.3" in str(error.value)
    AlignmentSettings(least_equal=0.2).check(counts, "the teacher")
    with pytest.raises(ConfigError, match=r"least_equal must be in \[0, 1\], got 1.5"):
        AlignmentSettings(least_equal=1.5)
