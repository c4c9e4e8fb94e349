import csv
import io

import pytest

from effopd.reports.comparison import Comparison, csv_table, summary_table
from effopd.reports.summary import COSTS, PERCENTS, method_summary
from effopd.reports.tables import (
    format_cost,
    format_ratio,
    markdown_table,
    text_table,
)

PLAIN = [(0, 0.1, 0, 0.0), (40, 0.9, 655_360, 104.0)]
FAST = [(0, 0.1, 0, 0.0), (6, 0.9, 147_456, 23.54)]


@pytest.fixture
def runs(make_run):
    return [make_run("opd", PLAIN, teacher=0.9), make_run("effopd", FAST)]


def test_rows_hold_the_summary_with_ratios(runs):
    header, plain, ours = summary_table(Comparison.of_runs(runs, ""))
    assert header[2:] == [
        *("steps to 80%", "steps to 90%", "steps to 95%", "steps to 99%"),
        *("tokens to 90%", "seconds to 90%"),
    ]
    assert plain == ["opd", "90.0%", "40", "40", "40", "40", "655 k", "104"]
    assert ours[2:] == [*["6 (6.7×)"] * 4, "147 k (4.4×)", "23.5 (4.4×)"]


def test_text_columns_are_aligned():
    rows = [["run", "steps"], ["opd", "40"], ["effopd", "6 (6.7×)"]]
    assert text_table(rows) == "run        steps\nopd           40\neffopd  6 (6.7×)"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", r"a\|b"),
        ("=1+1", r"\=1+1"),
        ("+1", r"\+1"),
        ("-1", r"\-1"),
        ("@SUM(A1)", r"\@SUM(A1)"),
        ("a\\|b", r"a\\\|b"),
        ("<img src=x>", r"\<img src=x\>"),
        ("[x](javascript:1)", r"\[x\](javascript:1)"),
        ("two\nlines", "two lines"),
        ("\x1b[2J", r"␛\[2J"),
        ("`*_&#", r"\`\*\_\&\#"),
    ],
)
def test_markdown_cells_stay_text(text, cell):
    assert markdown_table([["h"], [text]]).splitlines()[-1] == f"| {cell} |"


@pytest.mark.parametrize("label", ["=cmd|'/C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", " =1"])
def test_csv_text_is_no_formula(make_run, label):
    rows = list(csv.reader(io.StringIO(csv_table([make_run("opd", PLAIN, label=label)]))))
    assert {row[0] for row in rows[1:]} == {"'" + label.strip()}


def test_csv_quotes_commas_quotes_and_lines(make_run):
    text = csv_table([make_run("opd", PLAIN, label='a,"b"\nc')])
    rows = list(csv.reader(io.StringIO(text)))
    assert {row[0] for row in rows[1:]} == {'a,"b" c'}
    assert text.count("\r\n") == 1 + len(PERCENTS)


def test_csv_holds_every_number_in_full(runs):
    rows = list(csv.DictReader(io.StringIO(csv_table(runs))))
    assert len(rows) == len(runs) * len(PERCENTS)
    for run, label in zip(runs, ("opd", "effopd"), strict=True):
        summary = method_summary(run, 0.9)
        plain = method_summary(runs[0], 0.9)
        for percent in PERCENTS:
            (row,) = [
                r for r in rows if (r["run"], r["percent_of_teacher"]) == (label, f"{percent}")
            ]
            for cost in COSTS:
                name = f"{cost}_to_{percent}"
                assert float(row[cost]) == summary[name]
                ratio = "" if run is runs[0] else repr(plain[name] / summary[name])
                assert row[f"{cost}_ratio"] == ratio


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("steps", None, "–"),
        ("steps", 0, "0"),
        ("steps", 9_999, "9,999"),
        ("tokens", 10_000, "10 k"),
        ("tokens", 1_234_567, "1.23 M"),
        ("tokens", 12_345_678_901, "12.3 G"),
        ("seconds", 23.54, "23.5"),
        ("seconds", 12_345.6, "12,346"),
    ],
)
def test_costs_are_short(cost, value, text):
    assert format_cost(cost, value) == text


def test_ratios_below_one_keep_two_digits():
    assert [format_ratio(r) for r in (None, 0.456, 6.04, 1234.5)] == ["", "0.46×", "6.0×", "1,234×"]
