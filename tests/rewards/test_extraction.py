"""Which box of a completion is its answer, and which letter an answer names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.growth import grows_linearly

from effopd.data.problem import Answer, Problem
from effopd.rewards.extraction import choice_letter, final_answer, last_box
from effopd.rewards.math import BoxedAnswer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"It is \boxed{5}.", "5"), (r"\boxed{5}, no: \boxed{6}", "6"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{x = \boxed{5}}", "x = {5}"), (r"\boxed {7}", "7"), (r"\boxed 7", "7"),
        (r"\fbox{7}", "7"), (r"\boxed{a}} \boxed{b}", "b"), (r"\boxed{ 3 }", "3"),
        (r"\boxed{5\\}", r"5\\"),
        (r"\boxed{\begin{pmatrix}{1}\\{2}\end{pmatrix}}", r"\begin{pmatrix}{1}\\{2}\end{pmatrix}"),
        (r"\boxed{}", ""), ("", None), ("The answer is 5.", None), (r"\boxed", None),
        (r"\boxed{5", None), (r"\boxed{5} and then \boxed{6", None), (r"\boxed{\frac{1}{2}", None),
        (r"<think>\boxed{3}</think> \boxed{4}", "4"), (r"\boxed{3}</think> \boxed{4}", "4"),
        (r"\boxed{4} <think> or \boxed{3}", "4"), (r"<think>\boxed{3}</think> It is 3.", None),
        (r"<think>\boxed{3}", None), (r"<think>a</think>\boxed{1}<think>b</think>\boxed{2}", "2"),
    ],
)  # fmt: skip
def test_last_box_outside_the_thinking(completion: str, answer: str | None) -> None:
    assert final_answer(completion) == answer


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("b", "B"), ("**B**", "B"), (r"\text{(B)}", "B"),
        (r"\textbf{B}", "B"), ("B) 12 m", "B"), ("(B) 12 m", "B"), ("B: 12 m", "B"),
        ("answer is B", "B"), ("The answer is (B).", "B"), ("Answer: B", "B"), ("option B", "B"),
        ("B) the distance from A to C.", "B"), ("A good look shows that the answer is B", "B"),
        ("A or choice B", None), ("choice A or choice B", None), ("not C but option B", None),
        ("A) 5 B) 6 C) 7 D) 8", None), ("A. 5, B. 6", None), ("(A) 5 or (B) 6", None),
        ("B or C", None), ("B) or C)", None), ("A, B", None), ("A B", None), ("B. C", None),
        ("(A) and (B)", None), ("Because A is large", None), ("A good answer", None), ("AB", None),
        ("K", None), ("12 m", None), ("", None),
    ],
)  # fmt: skip
def test_letter_of_a_choice(answer: str, letter: str | None) -> None:
    assert choice_letter(answer) == letter


@settings(deadline=None)
@given(st.text(alphabet=r"\{}boxed<think>/ 5.ABx", max_size=200))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or answer.strip() == answer
    assert choice_letter(text) in {None, *"ABCDEFGHIJ"}


@settings(deadline=None)
@given(st.text(alphabet="ab {}", max_size=40), st.text(alphabet="xy \n", max_size=40))
def test_a_closed_box_after_any_text_is_the_answer(before: str, after: str) -> None:
    assert final_answer(before + r"\boxed{7 + 1}" + after) == "7 + 1"


@pytest.mark.parametrize("repeated", [r"\boxed{", "{", "\\", r"\boxed{1} ", "{}"])
def test_hostile_completions_take_linear_time(repeated: str) -> None:
    assert grows_linearly(lambda size: final_answer(repeated * size + r"\boxed{1}"), 3000)
    assert grows_linearly(lambda size: last_box(repeated * size), 3000)


# The box that closes last ------------------------------------------------------------------------

BOXES = [
    (r"\boxed{4}", "4"), (r"\boxed{1} and then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{1} \boxed{\frac{\sqrt{2}}{3}}", r"\frac{\sqrt{2}}{3}"),
    (r"\boxed{a{b{c{d{e}}}}}", "a{b{c{d{e}}}}"), (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{x\right.}", r"\left\{x\right."), (r"\boxed {5}", "5"),
    (r"\boxed{7} \boxed{8", "7"), (r"\boxed{a \boxed{b} c}", r"a \boxed{b} c"),
    (r"} \boxed{3} {", "3"), (r"{ \boxed{3}", "3"), (r"\\boxed{6}", "6"), (r"\boxed{}", ""),
    ("\\boxed{two\nlines}", "two\nlines"), (r"\fbox{3}", None), (r"boxed{3}", None),
    (r"\boxed 3", None), (r"\boxed{3", None), ("", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "box"), BOXES, ids=lambda text: str(text))
def test_last_box(text: str, box: str | None) -> None:
    assert last_box(text) == box


balanced = st.recursive(
    st.text(alphabet="ab1 .+", max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)


@given(content=balanced, before=st.text(max_size=20), after=st.text(alphabet="ab1 .{", max_size=9))
def test_any_balanced_content_is_found(content: str, before: str, after: str) -> None:
    assert last_box(f"{before} \\boxed{{{content}}}{after}") == content


# The boxed answer, by its text --------------------------------------------------------------------

REWARDS = [
    ("4", r"The answer is $\boxed{4}$.", 1.0), ("4", r"\boxed{4} no, \boxed{5}", 0.0),
    ("5", r"\boxed{4} no, \boxed{5}", 1.0), ("4", "the answer is 4", 0.0),
    (r"\frac{1}{2}", r"\boxed{ \frac{1} {2} }", 1.0),
    (r"\frac{\sqrt{2}}{3}", r"\boxed{\frac{\sqrt{2}}{3}}", 1.0), ("1/2", r"\boxed{0.5}", 0.0),
    (r"We add: 1 + 2 = 3. The sum is \boxed{3}.", r"\boxed{3}", 1.0),
    (r"We add: 1 + 2 = 3. The sum is \boxed{3}.", r"\boxed{1}", 0.0), ("04", r"\boxed{4}", 0.0),
    ("x y", "\\boxed{x\ty}", 1.0), ("a", r"\boxed{A}", 0.0), ("4", r"\boxed{4} or \boxed{5", 0.0),
    ("4", r"<think>\boxed{4}</think> It is 4.", 0.0),
    ("4", r"<think>\boxed{5}</think> \boxed{4}", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "completion", "reward"), REWARDS, ids=str)
def test_rewards(answer: str, completion: str, reward: float) -> None:
    asked = Problem(id="p", prompt="?", answer=answer)
    whole, cut = (
        Answer(problem=asked, completion=completion, is_truncated=cut) for cut in (False, True)
    )
    assert BoxedAnswer().rewards([whole, cut]) == [reward, 0.0]


@given(text=st.text(alphabet="\\boxed{} 1", max_size=60))
def test_any_text_has_a_reward(text: str) -> None:
    asked = Problem(id="p", prompt="?", answer="1")
    assert BoxedAnswer().rewards([Answer(problem=asked, completion=text)])[0] in {0.0, 1.0}
