"""Overlap with benchmarks: closed cases, and an obvious twin."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.data.filters import Overlap, benchmark_questions, words
from effopd.errors import ConfigError

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def overlaps(text: str, *benchmark: str, ngram: int = 13) -> bool:
    return text in Overlap(benchmark, ngram)


def twin(text: str, benchmark: list[str], ngram: int) -> bool:
    """Every stretch of every benchmark question against every stretch of the text."""
    own = words(text)
    for question in benchmark:
        theirs = words(question)
        if len(theirs) < ngram:
            if own == theirs:
                return True
            continue
        for i in range(len(theirs) - ngram + 1):
            for j in range(len(own) - ngram + 1):
                if theirs[i : i + ngram] == own[j : j + ngram]:
                    return True
    return False


WORDS = [
    ("", []),
    ("$$ .. !", []),
    (r"\frac{1}{2} x_1^{2}", ["frac", "1", "2", "x", "1", "2"]),
    ("Straße ﬁnd ＡＢ１ ½", ["strasse", "find", "ab1", "1", "2"]),
    ("don't\u200bstop", ["don", "t", "stop"]),
    ("snake_case", ["snake", "case"]),
    ("求和 x", ["求和", "x"]),
]


@pytest.mark.parametrize(("text", "expected"), WORDS)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_a_short_question_is_found_as_a_whole() -> None:
    assert overlaps(r"compute $\TAN{60}^\circ$!", r"Compute \[\tan 60^\circ.\]")
    assert not overlaps(r"Please compute $\tan 60^\circ$.", r"Compute $\tan 60^\circ$.")
    assert not overlaps(r"Compute $\tan 30^\circ$.", r"Compute $\tan 60^\circ$.")


TEXTS = st.lists(st.sampled_from("abA."), max_size=12).map(" ".join)


@given(TEXTS, st.lists(TEXTS, max_size=4), st.integers(1, 5))
def test_equal_to_the_twin(text: str, benchmark: list[str], ngram: int) -> None:
    assert overlaps(text, *benchmark, ngram=ngram) == twin(text, benchmark, ngram)


@given(st.text(), st.text(), st.text(), st.integers(1, 4))
def test_a_quoted_question_is_always_found(
    before: str, question: str, after: str, ngram: int
) -> None:
    quoted = f"{before} {question} {after}"
    assert overlaps(quoted, question, ngram=ngram) or len(words(question)) < ngram


def test_questions_of_benchmark_files(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "problem": "b"},
        {"prompt": [{"role": "user", "content": "c"}], "answer": "z"},
        {"question_content": "d"},
    ]
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps(row))
    assert list(benchmark_questions(f"{tmp_path}/*.jsonl")) == ["b", "c", "d"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "a benchmark needs one of the fields problem, question, prompt, question_"),
        ({"problem": None}, "field 'problem' must be text or a number, got None"),
    ],
)
def test_benchmarks_that_cannot_be_read(tmp_path: Path, row: object, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ConfigError) as error:
        list(benchmark_questions(str(path)))
    assert str(error.value).startswith(f"{path} line 1: {message}")


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark files beside the repository")
def test_real_benchmarks_contain_themselves_and_not_one_another() -> None:
    aime, gsm8k = (
        list(benchmark_questions(str(DATA / f"{name}.jsonl"))) for name in ("aime24", "gsm8k")
    )
    contaminated = Overlap(aime, 13)
    assert [question in contaminated for question in aime] == [True] * 30
    assert not any(question in contaminated for question in gsm8k)
