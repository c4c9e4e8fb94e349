"""The exact conditions of each alarm."""

from typing import Any

import pytest

from effopd.training.rows import EARLY_STEPS, absorption, alarms

HEALTHY: dict[str, Any] = {
    "truncated_share": 0.5,
    "entropy": 1.0,
    "reverse_kl": 0.5,
    "mean_length": 12.0,
    "horizon": None,
}
EARLY = [HEALTHY] * EARLY_STEPS


def about(row: dict[str, Any], history: list[dict[str, Any]] | None = None) -> list[str]:
    """First word of each alarm about a healthy row changed by `row`."""
    found = alarms(HEALTHY | row, EARLY if history is None else history)
    return [alarm.split()[0] for alarm in found]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, []),
        ({"truncated_share": 0.51}, ["51%"]),
        ({"entropy": 0.1}, []),
        ({"entropy": 0.0999}, ["entropy"]),
        ({"entropy": -0.1}, ["entropy"]),
        ({"entropy": 0.0, "reverse_kl": 0.4999}, []),  # sharpening towards the teacher
        ({"entropy": 0.0, "reverse_kl": None}, ["entropy"]),
        ({"reverse_kl": 2.5}, []),
        ({"reverse_kl": 2.51}, ["reverse"]),
        ({"reverse_kl": -3.0}, []),
        ({"reverse_kl": None}, []),
        ({"mean_length": 36.0}, []),
        ({"mean_length": 36.1}, ["mean"]),
        ({"mean_length": 4.0}, []),
        ({"mean_length": 3.9}, ["mean"]),
        (
            {"truncated_share": 1.0, "entropy": 0.0, "reverse_kl": 9.0, "mean_length": 99.0},
            ["100%", "entropy", "reverse", "mean"],
        ),
    ],
)
def test_thresholds(row: dict[str, Any], expected: list[str]) -> None:
    assert about(row) == expected


def test_only_truncation_is_judged_before_the_early_steps_are_over() -> None:
    bad = {"truncated_share": 1.0, "entropy": 0.0, "reverse_kl": 9.0, "mean_length": 99.0}
    assert about(bad, EARLY[:-1]) == ["100%"]
    assert len(about(bad, EARLY)) == 4


def test_the_comparison_is_with_the_first_steps_not_the_last() -> None:
    later = [HEALTHY | {"entropy": 100.0, "mean_length": 100.0}] * 20
    assert about({}, EARLY + later) == []
    assert about({}, later + EARLY) == ["entropy", "mean"]


def test_steps_without_numbers_do_not_count() -> None:
    unknown = dict.fromkeys(HEALTHY)
    three = [unknown, HEALTHY, unknown, HEALTHY]
    assert about({"entropy": 0.09, "mean_length": 37.0}, three) == ["entropy", "mean"]
    assert about({"entropy": 0.0, "reverse_kl": 9.0}, [unknown] * EARLY_STEPS) == []


def test_a_divergence_that_starts_at_zero_never_alarms() -> None:
    start = [HEALTHY | {"reverse_kl": 0.0}] * EARLY_STEPS
    assert about({"reverse_kl": 5.0}, start) == []


def test_alarms_name_the_numbers() -> None:
    found = alarms(HEALTHY | {"entropy": 0.05, "reverse_kl": 3.0, "mean_length": 50.0}, EARLY)
    assert found == [
        "entropy collapsed from 1 to 0.05 nats per token",
        "reverse KL rose from 0.5 to 3 nats per token",
        "mean length went from 12.0 to 50.0 tokens",
    ]


# Answers cut by a horizon -------------------------------------------------------------------------


def test_answers_that_a_horizon_cuts_do_not_alarm_by_their_length() -> None:
    """Their mean length grows with the horizon, by design."""
    cut = [HEALTHY | {"mean_length": 2.0, "horizon": 2}] * EARLY_STEPS
    assert about({"mean_length": 99.0, "horizon": 99}, cut) == []
    assert about({"mean_length": 99.0, "horizon": 99}, EARLY) == []
    assert about({"mean_length": 99.0}, cut) == []  # the first whole answers
    assert about({"entropy": 0.0, "reverse_kl": 9.0, "horizon": 99}, cut) == ["entropy", "reverse"]


def test_whole_answers_are_compared_with_the_first_whole_ones() -> None:
    cut = [HEALTHY | {"mean_length": 2.0, "horizon": 2}] * 9
    assert about({"mean_length": 37.0}, cut + EARLY[:-1]) == []
    assert about({"mean_length": 36.0}, cut + EARLY) == []
    assert about({"mean_length": 36.1}, cut + EARLY) == ["mean"]


# Health of a distillation -------------------------------------------------------------------------


def test_absorption_is_the_share_of_the_divergence_that_a_step_took() -> None:
    assert absorption({"reverse_kl": 0.2}, [{"reverse_kl": 9.0}, {"reverse_kl": 0.5}]) == {
        "absorption_rate": pytest.approx(0.6)
    }
    grown = absorption({"divergence": 0.75}, [{"reverse_kl": None, "divergence": 0.5}])
    assert grown == {"absorption_rate": -0.5}


def test_no_absorption_without_divergences() -> None:
    assert absorption({"reverse_kl": None}, [HEALTHY]) == {}
    for history in ([], [{"reverse_kl": None}], [{"reverse_kl": 0.0}], [{"reverse_kl": -0.1}]):
        assert absorption({"reverse_kl": 0.2}, history) == {"absorption_rate": None}


def test_a_teacher_that_is_the_student_is_noticed_at_the_first_step() -> None:
    (alarm,) = alarms(HEALTHY | {"reverse_kl": 1e-6}, [])
    assert alarm.startswith("the teacher teaches nothing, the divergence is 1e-06 nats per token")
    assert "check that teacher.path is another model" in alarm
    assert alarms(HEALTHY | {"reverse_kl": 1.1e-6}, []) == []
    assert alarms(HEALTHY | {"reverse_kl": None, "divergence": 0.0}, [])
    assert alarms(HEALTHY | {"reverse_kl": None}, []) == []


def test_each_alarm_about_health_is_said_once() -> None:
    same = HEALTHY | {"reverse_kl": 0.0}
    assert alarms(same, [same | {"alarms": alarms(same, [])}]) == []
    (late,) = alarms(same, EARLY)
    assert "the student has come to it: end the run" in late
    low = HEALTHY | {"overlap": 0.1}
    history = [HEALTHY | {"overlap": 0.8}] * EARLY_STEPS + [low] * 2
    (found,) = alarms(low, history)
    assert alarms(low, [*history, low | {"alarms": [found]}]) == []


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ([0.39, 0.39, 0.39], ["overlap"]),
        ([0.39, 0.39], []),  # not for three steps yet
        ([0.39, 0.39, None], []),
        ([0.39, None, 0.39, 0.39], ["overlap"]),
        ([0.39, 0.4, 0.39], []),
        ([0.1, 0.1, 0.1, 0.8], []),
    ],
)
def test_overlap_collapses(last: list[float | None], expected: list[str]) -> None:
    """Below half of the first four steps, 0.8, in the last three that know it."""
    *before, now = last
    history = [HEALTHY | {"overlap": value} for value in [0.7, 0.9, 0.8, 0.8, *before]]
    assert about({"overlap": now}, history) == expected


def test_an_alarm_about_overlap_names_the_numbers() -> None:
    history = [HEALTHY | {"overlap": value} for value in [0.8] * 4 + [0.1, 0.2]]
    assert alarms(HEALTHY | {"overlap": 0.25}, history)[0].startswith(
        "overlap collapses, student and teacher share 25% of their likeliest tokens where they "
        "shared 80%: go back to an earlier checkpoint with a lower optimizer.lr"
    )
