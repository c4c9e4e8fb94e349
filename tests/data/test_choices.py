"""Options of questions: read from the forms of GPQA, and put into an order of their own."""

import pytest

from effopd.data.benchmarks import with_options
from effopd.errors import ConfigError

LISTED = "Which one?\n\n\nA. first\nB. second\nwith a line\nC. third\nD. fourth\n\n"
ASKS = "Please reason step-by-step and put your letter with \\boxed{} in the end."


def asked(question: str, seed: int) -> tuple[str, list[str], str]:
    """The question, its options in order, and the letter of the right one, y."""
    text = f"{question}\n\nA. w\nB. x\nC. y\nD. z"
    shown, letter = with_options({"question": text, "answer": "C"}, "text", seed)
    above, empty, *lines = shown.split("\n")
    assert not empty
    assert [line[:3] for line in lines] == ["A. ", "B. ", "C. ", "D. "]
    return above, [line[3:] for line in lines], letter


def test_the_right_option_stays_right_in_any_order() -> None:
    for seed in range(40):
        above, options, letter = asked("Which one?", seed)
        assert (above, sorted(options)) == ("Which one?", ["w", "x", "y", "z"])
        assert options["ABCD".index(letter)] == "y"


def test_the_order_depends_on_seed_and_question_alone() -> None:
    assert asked("Which one?", 1) == asked("Which one?", 1)
    assert len({tuple(asked("Which one?", seed)[1]) for seed in range(200)}) == 24
    assert len({tuple(asked(f"Q{i}", 1)[1]) for i in range(200)}) == 24


@pytest.mark.parametrize("ending", ["", ASKS])
def test_both_forms_give_one_question(ending: str) -> None:
    options = ["second\nwith a line", "first", "third", "fourth"]
    columns = {"Question": "Which one?\n", "Correct Answer": options[0] + "\n"}
    columns |= {f"Incorrect Answer {i}": text for i, text in enumerate(options[1:], start=1)}
    for seed in range(40):
        row = {"question": LISTED + ending, "answer": "B"}
        for form, given in (("text", row), ("columns", columns)):
            shown, letter = with_options(given, form, seed)  # type: ignore[arg-type]
            assert shown.startswith("Which one?\n\nA. ")
            assert f"\n{letter}. second\nwith a line" in shown
            assert all(f". {option}" in shown for option in options)
            assert "boxed" not in shown


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
        with_options(row, "text", 0)


def test_a_missing_column() -> None:
    row = {"Question": "Which?", "Correct Answer": "yes"}
    row |= {f"Incorrect Answer {i}": f"no {i}" for i in (1, 2)}
    with pytest.raises(ConfigError, match="no field 'Incorrect Answer 3'"):
        with_options(row, "columns", 0)
