"""The boxed answer, by its text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.data.problem import Answer, Problem
from effopd.rewards.math import BoxedAnswer

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
    given = [
        Answer(problem=asked, completion=completion),
        Answer(problem=asked, completion=completion, is_truncated=True),
    ]
    assert BoxedAnswer().rewards(given) == [reward, 0.0]


@given(text=st.text(alphabet="\\boxed{} 1", max_size=60))
def test_any_text_has_a_reward(text: str) -> None:
    asked = Problem(id="p", prompt="?", answer="1")
    assert BoxedAnswer().rewards([Answer(problem=asked, completion=text)])[0] in {0.0, 1.0}
