"""Rewards by a function of one's own, handed over or named in a recipe."""

import re
from pathlib import Path
from typing import Any

import pytest

from effopd.data.dataset import DatasetSpec, DatasetTask
from effopd.data.problem import Answer, Problem
from effopd.errors import ConfigError
from effopd.rewards.build import verifier_for
from effopd.rewards.code import CodeChecking
from effopd.rewards.functions import FunctionVerifier, as_verifier, imported_verifier
from effopd.rewards.math import BoxedAnswer

ANSWERS = [
    Answer(problem=Problem(id=f"p-{n}", prompt="?", answer="ab"), completion="ab" * n)
    for n in range(3)
]

MODULE = """
from effopd.rewards.math import BoxedAnswer
def share(problem, text): return text.count(problem.answer) / 4
class Own:
    def rewards(self, answers): return [1.0 for _ in answers]
    @staticmethod
    def nested(problem, text): return bool(text)
own, number = Own(), 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_function_is_asked_about_each_answer() -> None:
    verifier = as_verifier(lambda problem, text: len(text) / 4 if problem.id != "p-0" else False)
    assert isinstance(verifier, FunctionVerifier)
    assert verifier.rewards(ANSWERS) == [0.0, 0.5, 1.0]


def test_a_verifier_stays_what_it_is() -> None:
    boxed = BoxedAnswer()
    assert as_verifier(boxed) is boxed


@pytest.mark.parametrize(
    ("name", "rewards"),
    [
        ("share", [0.0, 0.25, 0.5]), ("Own.nested", [0.0, 1.0, 1.0]), ("Own", [1.0] * 3),
        ("own", [1.0] * 3), ("BoxedAnswer", [0.0] * 3),
    ],
)  # fmt: skip
def test_a_recipe_names_one(module: None, name: str, rewards: list[float]) -> None:
    task = DatasetTask(train=DatasetSpec(path="x", answer_field=""), verifier=f"own_rewards:{name}")
    verifier = verifier_for(task, CodeChecking())
    assert verifier is not None
    assert verifier.rewards(ANSWERS) == rewards


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_rewards:f", "No module named 'no_such_rewards'. Install .* on PYTHONPATH"),
        ("own_rewards:f", "own_rewards has no 'f': name a function"),
        ("own_rewards:number", r"a reward must be a function .*got 3"),
        ("broken_rewards:f", "importing broken_rewards failed with ZeroDivisionError"),
    ],
)
def test_what_is_no_reward_is_refused(module: None, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        imported_verifier(path)


@pytest.mark.parametrize("verifier", ["maths", "", "a:b:c", "a.b", ":f", "a:", "os;x:f"])
def test_a_name_that_is_none_is_refused(verifier: str) -> None:
    with pytest.raises(ConfigError, match="verifier must be one of boxed, math, code, none, or"):
        DatasetTask(train=DatasetSpec(path="x"), verifier=verifier)


@pytest.mark.parametrize("reward", [float("nan"), 1.5, -0.5, None, "good"])
def test_a_reward_that_is_no_share_is_refused(reward: Any) -> None:
    def own(problem: Problem, text: str) -> Any:
        return reward

    message = rf"own gave {re.escape(repr(reward))} for an answer to problem 'p-0'"
    with pytest.raises(ConfigError, match=message):
        as_verifier(own).rewards(ANSWERS)
