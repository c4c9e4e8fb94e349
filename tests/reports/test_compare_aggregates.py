import itertools
import math
import random
from pathlib import Path

import pytest
from tests.reference import compare_twin

from effopd.records import Run
from effopd.reports.series import evaluations
from effopd.reports.style import _METHODS, method_styles
from effopd.reports.summary import (
    FIELD,
    PERCENTS,
    Cell,
    area_under_accuracy,
    baseline_method,
    best_rows,
    comparison_summary,
    median_curve,
    robustness,
    setting_rows,
)

TEACHER = 0.9


def run_of(points, *, method="opd", lr=1e-4, teacher=TEACHER):
    """A run from (step, accuracy); of a step 10 tokens, 11 scored, 60 passes, 2 s, 3 CPU s."""
    evals = [
        {"step": step, "model": "student", "accuracy": accuracy, "sampled_tokens": 10 * step,
         "teacher_tokens": 11 * step, "student_passes": 60 * step}
        for step, accuracy in points
    ]  # fmt: skip
    evals.append({"step": 0, "model": "teacher", "accuracy": teacher})
    timing = [
        {"step": step, "elapsed_s": 2.0 * step, "cpu_s": 3.0 * step} for step, _ in points if step
    ]
    info = {"label": method, "method": method, "lr": lr}
    return Run(directory=Path(method), label=method, info=info, evals=evals, timing=timing)


def cell(points, *, world="one", method="opd", lr=1e-4, seed=0, kind=None, **more):
    run = run_of(points, method=kind or method, lr=lr)
    return Cell(world=world, method=method, lr=lr, seed=seed, run=run, **more)


def seeds(curves, **where):
    return [cell(points, seed=seed, **where) for seed, points in enumerate(curves)]


FAST = [(0, 0.1), (4, 0.81), (8, 0.9)]
SLOW = [(0, 0.1), (4, 0.5), (8, 0.81)]
NEVER = [(0, 0.1), (4, 0.2), (8, 0.3)]


def test_the_second_measure_is_the_share_of_the_divergence_that_is_gone():
    near = cell(FAST)
    for row, nats in zip(near.run.evals, (0.5, 0.051, 0.05), strict=False):
        row["reverse_kl"] = nats
    (row,) = setting_rows([near])
    assert (row["median_tokens_to_90_kl"], row["reached_90_kl"]) == (80, 1)
    assert (row["median_tokens_to_90"], row["median_tokens_at_end"]) == (40, 80)
    (unknown,) = setting_rows([cell(FAST)])
    assert (unknown["median_tokens_to_90_kl"], unknown["reached_90_kl"]) == (None, 0)


def test_tuning_costs_all_other_rates_to_their_own_end():
    swept = [cell(FAST, lr=1e-4), cell(SLOW, lr=1e-3), cell(NEVER[:2], lr=1e-2)]
    rows = comparison_summary([*swept, cell(FAST, method="once")])["rows"]
    found = {(r["method"], r["lr"]): r["tuned_tokens_to_90"] for r in rows}
    assert found == {
        ("opd", 1e-4): 40 + 80 + 40, ("opd", 1e-3): 80 + 80 + 40, ("opd", 1e-2): None,
        ("once", 1e-4): 40,
    }  # fmt: skip
    assert rows[0]["tuned_passes_to_90"] == 6 * 160
    assert rows[0]["tuned_cpu_to_90"] == 3.0 * 16
    del swept[1].run.evals[-2]["student_passes"]  # not recorded
    assert setting_rows(swept)[1]["median_passes_at_end"] is None
    assert comparison_summary(swept)["rows"][0]["tuned_passes_to_90"] is None
    (best,) = [r for r in comparison_summary([*swept, cell(FAST, method="once")])["best"]
               if r["method"] == "once"]  # fmt: skip
    assert (best["ratio_tokens_to_90"], best["ratio_tuned_tokens_to_90"]) == (1.0, 4.0)


def test_medians_and_extremes_by_hand():
    (row,) = setting_rows(seeds([FAST, SLOW, FAST, FAST, SLOW]))
    assert (row["seeds"], row["steps"], row["horizon"], row["teacher_accuracy"]) == (5, 8, 8, 0.9)
    assert [row[f"{key}_steps_to_90"] for key in ("median", "low", "high")] == [4, 4, 8]
    assert [row[f"{key}_tokens_to_90"] for key in ("median", "low", "high")] == [40, 40, 80]
    assert [row[f"{key}_teacher_tokens_to_90"] for key in ("median", "low", "high")] == [44, 44, 88]
    assert [row[f"{key}_seconds_to_90"] for key in ("median", "low", "high")] == [8.0, 8.0, 16.0]
    assert (row["reached_90"], row["reached_99"]) == (5, 3)
    assert [row[f"{key}_steps_to_99"] for key in ("median", "low", "high")] == [8, 8, None]
    finals = [row[f"{key}_final_accuracy"] for key in ("median", "low", "high")]
    assert finals == [0.9, 0.81, 0.9]


def test_a_seed_that_never_got_there_counts_as_the_slowest():
    two_of_five = setting_rows(seeds([FAST, NEVER, SLOW, NEVER, NEVER]))[0]
    assert (two_of_five["median_steps_to_90"], two_of_five["reached_90"]) == (None, 2)
    assert (two_of_five["low_steps_to_90"], two_of_five["high_steps_to_90"]) == (4, None)
    half = setting_rows(seeds([FAST, NEVER]))[0]
    assert half["median_steps_to_90"] is None


def test_area_by_hand_with_the_last_value_carried_forward():
    points = evaluations(run_of([(0, 0.0), (4, 0.8)]))
    assert area_under_accuracy(points, 4) == pytest.approx(0.4)
    assert area_under_accuracy(points, 16) == pytest.approx((4 * 0.4 + 12 * 0.8) / 16)
    assert area_under_accuracy(points[1:], 16) is None
    assert area_under_accuracy([], 16) is None


def test_the_horizon_is_that_of_the_longest_run_of_the_world():
    short = cell(FAST, method="effopd")
    longer = cell([*NEVER, (40, 0.9)])
    elsewhere = cell(FAST, world="two")
    rows = setting_rows([short, longer, elsewhere])
    assert [(row["steps"], row["horizon"]) for row in rows] == [(8, 40), (40, 40), (8, 8)]
    early = 4 * (0.1 + 0.81) / 2 + 4 * (0.81 + 0.9) / 2
    assert rows[0]["median_area"] == pytest.approx((early + 32 * 0.9) / 40)


def random_cells(rng):
    cells = []
    for world, method, lr in itertools.product(("a", "b"), ("opd", "effopd"), (1e-4, 1e-3)):
        for seed in range(rng.randint(1, 5)):
            steps = rng.sample(range(1, 50), rng.randint(2, 9))
            points = [(step, round(rng.random(), 3)) for step in [0, *steps]]
            cells.append(cell(points, world=world, method=method, lr=lr, seed=seed))
    return cells


@pytest.mark.parametrize("seed", range(20))
def test_every_number_is_that_of_the_twin(seed):
    cells = random_cells(random.Random(seed))
    rows = setting_rows(cells)
    assert len(rows) == 8
    for row in rows:
        world = [each for each in cells if each.world == row["world"]]
        chosen = [
            each.run for each in world if (each.method, each.lr) == (row["method"], row["lr"])
        ]
        horizon = max(compare_twin.student_rows(each.run)[-1]["step"] for each in world)
        for percent in PERCENTS:
            found = [compare_twin.costs(run, percent, TEACHER) for run in chosen]
            reached = sum(math.isfinite(costs["steps"]) for costs in found)
            assert row[f"reached_{percent}"] == reached
            for cost in FIELD:
                name = f"{cost}_to_{percent}"
                expected = compare_twin.spread([costs[cost] for costs in found])
                assert [row[f"{key}_{name}"] for key in ("median", "low", "high")] == expected
        areas = compare_twin.spread([compare_twin.area(run, horizon) for run in chosen])
        found = [row[f"{key}_area"] for key in ("median", "low", "high")]
        assert found == pytest.approx(areas, abs=1e-12)


def test_the_best_rate_is_the_fastest_then_the_cheapest_then_the_highest():
    fast = [(0, 0.1), (4, 0.9), (8, 0.9)]
    rows = setting_rows([cell(SLOW, lr=1e-4), cell(fast, lr=1e-3)])
    assert [row["lr"] for row in best_rows(rows)] == [1e-3]
    cheap = cell(fast, lr=1e-2)
    cheap.run.evals[1]["sampled_tokens"] = 39
    assert best_rows(setting_rows([cell(fast, lr=1e-3), cheap]))[0]["lr"] == 1e-2
    low = [(0, 0.1), (8, 0.2)]
    assert best_rows(setting_rows([cell(low, lr=1e-4), cell(NEVER, lr=1e-3)]))[0]["lr"] == 1e-3


def test_ratios_are_at_the_same_rate_and_each_at_its_best():
    cells = [
        cell(SLOW, lr=1e-4),
        cell(FAST, lr=1e-3),
        cell([(0, 0.1), (2, 0.9), (8, 0.9)], method="effopd", lr=1e-4),
    ]
    summary = comparison_summary(cells)
    assert summary["baseline"] == "opd"
    assert [row["ratio_steps_to_90"] for row in summary["rows"]] == [None, None, 8 / 2]
    assert [row["ratio_steps_to_90"] for row in summary["best"]] == [None, 4 / 2]
    assert summary["best"][1]["ratio_teacher_tokens_to_90"] == 44 / 22


def test_robustness_over_the_learning_rates():
    rows = setting_rows([cell(SLOW, lr=1e-4), cell(FAST, lr=1e-3), cell(FAST, method="effopd")])
    (found,) = robustness(rows)
    assert found == {
        "world": "one", "method": "opd", "lrs": [1e-4, 1e-3], "lrs_at_90": 2, "best_lr": 1e-3,
        "ratio": 2.0, "ratio_at_least": 2.0,
    }  # fmt: skip
    (found,) = robustness(setting_rows([cell(NEVER, lr=1e-4), cell(FAST, lr=1e-3)]))
    assert (found["ratio"], found["ratio_at_least"], found["lrs_at_90"]) == (None, 2.0, 1)
    (found,) = robustness(setting_rows([cell(NEVER, lr=1e-4), cell(NEVER, lr=1e-3)]))
    assert (found["ratio"], found["ratio_at_least"], found["lrs_at_90"]) == (None, None, 0)


def test_variants_are_rows_but_neither_best_nor_baseline():
    variant = cell(FAST, method="opd-x", kind="opd", figure="prompts", parent="plain")
    summary = comparison_summary([variant, cell(SLOW, method="plain", kind="opd")])
    assert [row["figure"] for row in summary["rows"]] == ["prompts", None]
    assert [row["method"] for row in summary["best"]] == ["plain"]
    assert summary["baseline"] == "plain"
    assert baseline_method([cell(SLOW, method="grpo")]) is None


def test_curves_carry_the_last_value_and_skip_steps_not_known_of_all():
    found = seeds([[(0, 0.1), (4, 0.6)], [(0, 0.2), (2, 0.3), (4, 0.4), (8, 0.8)]])
    points = median_curve([cell.run for cell in found], "tokens")
    found = [(p.step, p.place, p.low, p.high) for p in points]
    assert found == [(0, 0, 0.1, 0.2), (4, 40, 0.4, 0.6), (8, (40 + 80) / 2, 0.6, 0.8)]
    assert [p.middle for p in points] == pytest.approx([0.15, 0.5, 0.7])
    assert median_curve([], "steps") == []
    assert median_curve([cell([]).run], "steps") == []


# Looks --------------------------------------------------------------------------------------------


XYZ = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8729]]
"""Linear RGB to XYZ relative to the white point D65."""


def test_no_two_methods_of_a_comparison_look_alike():
    names = ["opd", "mine", "effopd-a", "effopd-b", "grpo", *(f"v{i}" for i in range(9))]
    methods = ["opd", "effopd", "effopd", "effopd", "grpo", *["effopd"] * 9]
    styles = method_styles(names, methods)
    assert [style.label for style in styles] == names
    assert len({(style.color, style.symbol, style.dash) for style in styles}) == len(names)
    assert styles[1].color == _METHODS["effopd"][0]
    assert method_styles(["x-effopd", "effopd"], ["effopd", "effopd"])[1].symbol == "diamond"
