"""Numbers against records made by hand, where each can be read off."""

import dataclasses

import pytest

from effopd.errors import RecordError
from effopd.records import Run
from effopd.reports import comparison as words
from effopd.reports.comparison import Comparison
from effopd.reports.series import trials, unique_labels
from effopd.reports.summary import (
    PERCENTS,
    baseline_of,
    comparison,
    method_summary,
    notes,
)


def headline(runs):
    return words.headline(Comparison.of_runs(runs, ""))


def ratios(run, runs):
    rows = zip(runs, Comparison.of_runs(runs, "").summary["rows"], strict=True)
    row = next(row for each, row in rows if each is run)
    return {name[6:]: value for name, value in row.items() if name.startswith("ratio_")}


def highlights(runs):
    return words.highlights(Comparison.of_runs(runs, ""))


# (step, accuracy, sampled tokens, elapsed seconds); the teacher is at 0.9, so 90% is 0.81.
PLAIN = [
    (0, 0.10, 0, 0.0),
    (8, 0.50, 800, 16.0),
    (16, 0.72, 1600, 32.0),
    (24, 0.80, 2400, 48.0),
    (48, 0.81, 4800, 96.0),
]
FAST = [(0, 0.10, 0, 0.0), (4, 0.72, 600, 10.0), (8, 0.81, 1500, 40.0), (12, 0.895, 1900, 50.0)]


@pytest.fixture
def plain(make_run):
    return make_run("opd", PLAIN, teacher=0.9)


@pytest.fixture
def fast(make_run):
    return make_run("effopd", FAST, teacher=0.9)


def test_costs_are_those_of_the_first_evaluation_at_the_share(plain):
    summary = method_summary(plain, 0.9)
    assert [summary[f"steps_to_{p}"] for p in PERCENTS] == [16, 48, None, None]
    assert [summary[f"tokens_to_{p}"] for p in PERCENTS] == [1600, 4800, None, None]
    assert [summary[f"seconds_to_{p}"] for p in PERCENTS] == [32.0, 96.0, None, None]
    assert summary["final_accuracy"] == 0.81


def test_rounding_does_not_hide_a_share_that_is_just_reached(make_run):
    # 0.9 * 0.3 is 0.27000000000000002 in binary.
    run = make_run("opd", [(5, 0.27, 10, 1.0)])
    assert method_summary(run, 0.3)["steps_to_90"] == 5


def test_no_teacher_no_shares(plain):
    summary = method_summary(plain, None)
    assert {summary[f"steps_to_{p}"] for p in PERCENTS} == {None}
    assert summary["final_accuracy"] == 0.81


def test_an_empty_run_is_all_null():
    run = Run(directory=None, label="opd", info={})
    assert set(method_summary(run, 0.9).values()) == {None}
    assert comparison([run])["teacher_accuracy"] is None


def test_comparison_is_what_the_summary_file_holds(plain, fast):
    found = comparison([plain, fast])
    assert found.keys() == {"base_accuracy", "teacher_accuracy", "methods"}
    assert (found["base_accuracy"], found["teacher_accuracy"]) == (0.1, 0.9)
    assert list(found["methods"]) == ["opd", "effopd"]
    assert found["methods"]["effopd"]["tokens_to_90"] == 1500


def test_ratios_say_how_many_times_less(plain, fast):
    ratio = ratios(fast, [plain, fast])
    assert (ratio["steps_to_80"], ratio["steps_to_90"]) == (4.0, 6.0)
    assert (ratio["tokens_to_90"], ratio["seconds_to_90"]) == (3.2, 2.4)
    assert ratio["steps_to_95"] is None
    assert set(ratios(plain, [plain, fast]).values()) == {None}


def test_the_baseline_has_the_same_learning_rate_if_there_is_one(make_run):
    low, high = make_run("opd", PLAIN, lr=1e-5), make_run("opd", PLAIN, lr=3e-4)
    runs = [low, high, make_run("effopd", FAST, lr=3e-4), make_run("paper", FAST, lr=1e-3)]
    assert [baseline_of(run, runs) for run in runs] == [low, high, high, low]
    assert notes(runs)[:2] == [
        "Ratios of effopd are against opd (2) (lr 0.0003): how many times less was needed.",
        "Ratios of paper are against opd (lr 1e-05): how many times less was needed.",
    ]


def test_the_baseline_has_the_same_seed_if_the_rates_agree(make_run):
    runs = [make_run("opd", PLAIN, lr=lr, seed=seed) for lr in (1e-4, 3e-4) for seed in (0, 1)]
    for lr, seed, index in ((1e-4, 1, 1), (3e-4, 0, 2), (3e-4, 7, 2), (1.0, 1, 1), (1.0, 7, 0)):
        assert baseline_of(make_run("effopd", FAST, lr=lr, seed=seed), runs) is runs[index]


def test_notes_name_what_is_missing(make_run):
    one, two = make_run("effopd", FAST, teacher=0.9), make_run("paper", FAST, teacher=0.8)
    assert notes([make_run("effopd", FAST)]) == [
        'No ratios: none of the runs has the method "opd".',
        "The teacher was not evaluated, so no share of its accuracy can be named.",
    ]
    assert notes([one, two])[-1] == (
        "The runs measured different teacher accuracies (0.8000, 0.9000); 0.9000 is used."
    )


def test_a_text_where_a_number_belongs_is_named(make_run):
    run = make_run("opd", [(3, "<b>0.5</b>", 1, 1.0)])
    with pytest.raises(RecordError, match=r"accuracy at step 3 is '<b>0.5</b>', expected a number"):
        method_summary(run, 0.9)


def test_labels_are_made_unique_and_printable(make_run):
    labels = ["opd", "opd", "opd (2)", "a\x1b[2J\nb", "", "x" * 90]
    runs = [make_run("opd", [], label=label) for label in labels]
    assert unique_labels(runs) == [
        "opd",
        "opd (2)",
        "opd (2) (2)",
        "a␛[2J b",
        "run",
        "x" * 59 + "…",
    ]


def test_the_headline_is_computed(plain, fast):
    assert headline([plain, fast]) == (
        "effopd reached 90% of the teacher at step 8, opd at step 48: "
        "6.0× fewer steps, 3.2× fewer sampled tokens, 2.4× less time."
    )
    assert highlights([plain, fast]) == [
        ("6.0×", "fewer steps"),
        ("3.2×", "fewer sampled tokens"),
        ("2.4×", "less time"),
    ]
    default = dataclasses.replace(fast, label="mine", info=fast.info | {"method": "slope"})
    assert headline([plain, fast, default]).startswith("mine reached 90% of the teacher at step 8")


def test_the_headline_admits_a_loss(make_run):
    worse = make_run("effopd", [(0, 0.1, 0, 0.0), (96, 0.9, 2400, 96.0)], teacher=0.9)
    assert headline([make_run("opd", PLAIN), worse]).endswith(
        "2.0× more steps, 2.0× fewer sampled tokens, 1.0× as much time."
    )


def test_the_headline_when_one_does_not_get_there(make_run, fast):
    never = make_run("opd", [(0, 0.1, 0, 0.0), (48, 0.2, 1, 1.0)])
    expected = "effopd reached 90% of the teacher at step 8; opd did not in 48 steps."
    assert headline([never, fast]) == expected
    lost = make_run("effopd", [(0, 0.1, 0, 0.0), (12, 0.2, 1, 1.0)], teacher=0.9)
    expected = "opd reached 90% of the teacher at step 48; effopd did not in 12 steps."
    assert headline([make_run("opd", PLAIN), lost]) == expected


def test_the_headline_of_one_run(make_run, fast):
    assert headline([fast]) == (
        "effopd reached 90% of the teacher at step 8, after 1,500 sampled tokens."
    )
    low = make_run("effopd", [(4, 0.25, 1, 1.0)], teacher=0.9)
    assert headline([low]) == "effopd is at an accuracy of 25.0%; the teacher is at 90.0%."
    blind = make_run("effopd", [(4, 0.25, 1, 1.0)])
    assert headline([blind]).endswith("25.0%; the teacher was not evaluated.")
    assert headline([make_run("effopd", [])]) == "effopd has not been evaluated yet."


def test_a_trial_is_measured_against_the_latest_incumbent_of_its_search():
    rows = [
        {"step": 8, "kind": "incumbent", "scale": 1.0, "score": 0.50},
        {"step": 8, "kind": "candidate", "scale": 4.0, "score": 0.75, "accepted": False},
        {"step": 8, "kind": "candidate", "scale": 8.0, "score": None, "accepted": False},
        {"step": 8, "kind": "incumbent", "scale": 1.0, "score": 0.25},
        {"step": 8, "kind": "candidate", "scale": 4.0, "score": 0.75, "accepted": True},
        {"step": 16, "kind": "candidate", "scale": 4.0, "score": 0.75, "accepted": False},
    ]
    run = Run(directory=None, label="effopd", info={}, search=rows)
    assert [trial.advantage for trial in trials(run)] == [0.0, 0.25, None, 0.0, 0.5, None]
