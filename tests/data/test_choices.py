"""Options of questions: read from the forms of GPQA, and put into an order of their own."""

from collections import Counter

import pytest

from effopd.data.benchmarks import Choices, choices_in_columns, choices_in_text
from effopd.errors import ConfigError

LISTED = "Which one?\n\n\nA. first\nB. second\nwith a line\nC. third\nD. fourth\n\n"
ASKS = "Please reason step-by-step and put your letter with \\boxed{} in the end."


def question(text: str = "Which one?") -> Choices:
    return Choices(question=text, options=("w", "x", "y", "z"), right=2)


def test_the_right_option_stays_right_in_any_order() -> None:
    for seed in range(40):
        shuffled = question().shuffled(seed)
        assert sorted(shuffled.options) == ["w", "x", "y", "z"]
        assert shuffled.options[shuffled.right] == "y"
        assert shuffled.options["ABCD".index(shuffled.letter)] == "y"


def test_the_order_depends_on_seed_and_question_alone() -> None:
    assert question().shuffled(1) == question().shuffled(1)
    orders = {question().shuffled(seed).options for seed in range(200)}
    assert len(orders) == 24
    assert len({question(f"Q{i}").shuffled(1).options for i in range(200)}) == 24


def test_letters_are_evenly_right() -> None:
    letters = Counter(question(f"Q{i}").shuffled(0).letter for i in range(2000))
    assert sorted(letters) == ["A", "B", "C", "D"]
    assert all(420 < count < 580 for count in letters.values())  # 500 +- 4 standard deviations


def test_the_text_has_one_option_a_line() -> None:
    assert question().text == "Which one?\n\nA. w\nB. x\nC. y\nD. z"


@pytest.mark.parametrize("ending", ["", ASKS])
def test_options_in_the_text(ending: str) -> None:
    found = choices_in_text({"question": LISTED + ending, "answer": "B"})
    assert found == Choices(
        question="Which one?", options=("first", "second\nwith a line", "third", "fourth"), right=1
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "A. x\nB. y", "answer": "A"}, "must end with four options"),
        ({"question": LISTED, "answer": "E"}, "a letter from A to D, got 'E'"),
        ({"answer": "A"}, "no field 'question'"),
    ],
)
def test_what_is_no_question_with_options(row: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choices_in_text(row)


def test_options_in_columns() -> None:
    row = {"Question": "Which?", "Correct Answer": "yes\n"}
    row |= {f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}
    found = choices_in_columns(row)
    assert found == Choices(question="Which?", options=("yes", "no 1", "no 2", "no 3"), right=0)
    with pytest.raises(ConfigError, match="no field 'Incorrect Answer 3'"):
        choices_in_columns({k: v for k, v in row.items() if not k.endswith("3")})
