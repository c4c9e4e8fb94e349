"""Why a run ends: the exact conditions of the stop rule."""

from collections.abc import Sequence
from typing import Any

import pytest

from effopd.errors import ConfigError
from effopd.training.settings import StopRule


def rows(
    accuracies: Sequence[float | None], teacher: Sequence[float | None] = ()
) -> list[dict[str, Any]]:
    """Evaluations of a run; the teacher's come first."""
    models = [("teacher", value) for value in teacher] + [("student", v) for v in accuracies]
    return [{"model": model, "accuracy": accuracy} for model, accuracy in models]


@pytest.mark.parametrize(
    ("accuracies", "patience", "ends"),
    [
        ([], 1, False),
        ([0.5], 1, False),
        ([0.5, 0.5], 1, True),  # a new best must be better
        ([0.5, 0.6], 1, False),
        ([0.5, 0.4], 2, False),
        ([0.5, 0.4, 0.3], 2, True),
        ([0.5, 0.4, 0.5], 2, True),
        ([0.5, 0.4, 0.51], 2, False),
        ([0.5, 0.51, 0.4], 2, False),  # the best is one evaluation old
        ([0.5, 0.51, 0.4, 0.51], 2, True),
        ([0.5, 0.4, 0.4, 0.4, 0.4], 5, False),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], 5, True),
        ([0.5] * 99, 0, False),
        ([None, None, None], 1, False),
        ([0.5, None, None], 1, False),  # not measured is not worse
        ([0.5, None, 0.4, None], 1, True),
    ],
)
def test_patience(accuracies: list[float | None], patience: int, ends: bool) -> None:
    reason = StopRule(patience=patience).reason(rows(accuracies, [0.9]))
    assert reason == (f"no better accuracy in {patience} evaluations" if ends else None)


@pytest.mark.parametrize(
    ("accuracies", "teacher", "target", "ends"),
    [
        ([0.81], [0.9], 0.9, True),  # 0.9 * 0.9 is 0.81 and a rounding error
        ([0.8099], [0.9], 0.9, False),
        ([0.9], [0.9], 1.0, True),
        ([0.95], [0.9], 1.1, False),
        ([0.99], [0.9], 1.1, True),
        ([0.9, 0.2], [0.9], 0.9, False),  # now, not ever
        ([0.9], [], 0.9, False),
        ([0.9], [None], 0.9, False),
        ([None], [0.9], 0.9, False),
        ([0.9, None], [0.9], 0.9, True),  # the last that was measured
        ([], [0.9], 0.9, False),
        ([0.9], [0.9], 0.0, False),
        ([0.0], [0.0], 0.9, True),
    ],
)
def test_target(
    accuracies: list[float | None], teacher: list[float | None], target: float, ends: bool
) -> None:
    assert (StopRule(target=target).reason(rows(accuracies, teacher)) is not None) == ends


@pytest.mark.parametrize(
    ("rewards", "patience", "window", "ends"),
    [
        ([], 5, 1, False),
        ([0.5] * 5, 5, 1, False),
        ([0.5] * 6, 5, 1, True),  # a new best must be higher
        ([0.5, 0.1, 0.2, 0.3, 0.4, 0.5], 5, 1, True),
        ([0.5, 0.1, 0.2, 0.3, 0.4, 0.51], 5, 1, False),
        ([0.5, 0.51, 0.1, 0.1, 0.1, 0.1], 5, 1, False),  # the best is four steps old
        ([0.5, 0.51, 0.1, 0.1, 0.1, 0.1, 0.1], 5, 1, True),
        ([0.5, None, 0.4, None], 1, 1, True),  # a skipped step has no reward and is not counted
        ([0.5, None, None], 1, 1, False),
        # Means of two: 0.3, 0.35, 0.35, 0.45; alone the second step would be the best.
        ([0.1, 0.5, 0.2, 0.5, 0.4], 3, 1, True),
        ([0.1, 0.5, 0.2, 0.5, 0.4], 3, 2, False),
        ([0.4, 0.5, 0.2, 0.5, 0.3], 3, 2, True),
        ([0.4, 0.4], 1, 2, False),
        ([0.5] * 99, 0, 1, False),
    ],
)
def test_patience_with_the_rewards_of_steps(
    rewards: list[float | None], patience: int, window: int, ends: bool
) -> None:
    rule = StopRule(reward_patience=patience, reward_window=window)
    each = ", each the mean of 2 steps" if window == 2 else ""
    expected = f"no better reward in {patience} steps{each}" if ends else None
    assert rule.reason([], [{"reward": reward} for reward in rewards]) == expected
    assert rule.reason(rows([0.5] * 99)) is None  # accuracies do not count


def test_the_target_is_named() -> None:
    reason = StopRule(target=0.95, patience=1).reason(rows([0.5, 0.875], [0.9]))
    assert reason == "accuracy 0.875 is 95% of the teacher's"


def test_a_rule_without_numbers_is_not_active() -> None:
    assert not StopRule().is_active
    assert StopRule(patience=1).is_active
    assert StopRule(target=0.5).is_active
    assert StopRule(reward_patience=1).is_active
    assert not StopRule(reward_patience=1).reads_evaluations
    assert StopRule().reason(rows([0.5] * 9, [0.1])) is None


@pytest.mark.parametrize(
    "bad", [{"patience": -1}, {"target": -0.1}, {"target": float("nan")}, {"target": float("inf")}]
)
def test_impossible_rules_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"train.stop needs patience >= 0 and target >= 0"):
        StopRule(**bad)


@pytest.mark.parametrize("bad", [{"reward_patience": -1}, {"reward_window": 0}])
def test_impossible_rules_of_rewards_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"needs reward_patience >= 0 and reward_window >= 1"):
        StopRule(**bad)
