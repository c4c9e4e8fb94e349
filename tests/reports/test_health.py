import json
from dataclasses import replace

import plotly.graph_objects as go
import pytest

from effopd.errors import RecordError
from effopd.reports.page import write_report
from effopd.reports.style import run_styles
from effopd.reports.timeline import step_figure


def row(step, overlap, gap):
    deciles = [overlap, None, *[0.5] * 8]
    gaps = {"entropy_gap": gap, "entropy_gap_by_decile": [gap] * 10}
    return {"step": step, "overlap": overlap, "overlap_by_decile": deciles, **gaps}


@pytest.fixture
def examined(make_run):
    run = make_run("effopd", [(0, 0.1, 0, 0), (3, 0.5, 9, 9)])
    return replace(run, metrics=[row(1, 0.25, 0.5), {"step": 2}, row(3, 0.75, -0.125)])


def test_the_curves_hold_the_numbers_of_the_records(examined, make_run):
    runs = [make_run("opd", [(0, 0.1, 0, 0)]), examined]
    for quantity, heights in {"overlap": [0.25, 0.75], "entropy_gap": [0.5, -0.125]}.items():
        figure = step_figure(runs, quantity)
        go.Figure(figure)  # raises on an unknown property
        json.dumps(figure, allow_nan=False)
        (curve,) = figure["data"]
        assert (curve["x"], curve["y"]) == ([1, 3], heights)
        assert curve["line"]["color"] == run_styles(runs)[1].color
    assert step_figure(runs, "overlap")["data"][0]["hovertext"][1].split("<br>") == [
        "<b>effopd</b>, step 3",
        "overlap 0.75",
        "by tenths 0.75 - 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5",
    ]


def test_a_browser_draws_it(browser, examined, make_run, tmp_path):
    write_report([make_run("opd", [(0, 0.1, 0, 0)]), examined], tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    for name, heights in {"overlap": [0.25, 0.75], "entropy_gap": [0.5, -0.125]}.items():
        drawn = f"document.getElementById('{name}').data.map(trace => [...trace.y])"
        assert browser.evaluate(drawn) == [heights]
    assert browser.problems() == []


def test_a_page_of_runs_without_it_has_no_such_section(make_run, tmp_path):
    write_report([make_run("opd", [(0, 0.1, 0, 0)])], tmp_path / "report.html")
    assert 'id="health"' not in (tmp_path / "report.html").read_text("utf-8")


def test_a_row_that_is_no_number_is_refused(examined):
    with pytest.raises(RecordError, match="overlap at step 5 is 'x', expected a number"):
        step_figure([replace(examined, metrics=[{"step": 5, "overlap": "x"}])], "overlap")
