import json
from dataclasses import replace

import plotly.graph_objects as go
import pytest

from effopd.errors import RecordError
from effopd.reports.page import write_report
from effopd.reports.style import run_styles
from effopd.reports.timeline import foresight_figure

LOST = "foresight is lost: over the last 3 observations"


def row(step, cosine, alarms=()):
    return {
        "step": step, "step_cosine": cosine, "displacement": 2.0, "path_length": 4.0,
        "inertia": 0.125, "straightness": 0.5, "foresight": True, "alarms": list(alarms),
    }  # fmt: skip


@pytest.fixture
def watched(make_run):
    run = make_run("effopd", [(0, 0.1, 0, 0), (9, 0.5, 9, 9)])
    return replace(run, monitor=[row(1, None), row(2, 0.5), row(3, -0.25, [LOST]), row(4, 0.0)])


def test_the_curve_holds_the_numbers_of_the_records(watched, make_run):
    runs = [make_run("opd", [(0, 0.1, 0, 0)]), watched]
    figure = foresight_figure(runs)
    go.Figure(figure)  # raises on an unknown property
    json.dumps(figure, allow_nan=False)
    curve, ring = figure["data"]
    assert (curve["x"], curve["y"]) == ([2, 3, 4], [0.5, -0.25, 0.0])
    assert (ring["x"], ring["y"]) == ([3], [-0.25])
    assert curve["line"]["color"] == ring["marker"]["line"]["color"] == run_styles(runs)[1].color
    assert curve["hovertext"][1].split("<br>") == [
        "<b>effopd</b>, step 3",
        "step cosine -0.250",
        "inertia 0.125",
        "straightness 0.500",
        "foresight is lost",
    ]


def test_a_browser_draws_it(browser, watched, make_run, tmp_path):
    write_report([make_run("opd", [(0, 0.1, 0, 0)]), watched], tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    drawn = "document.getElementById('foresight').data.map(trace => [...trace.y])"
    assert browser.evaluate(drawn) == [[0.5, -0.25, 0], [-0.25]]
    assert browser.problems() == []
    write_report([make_run("opd", [(0, 0.1, 0, 0)])], tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert browser.evaluate("document.getElementById('watched')") is None
    assert browser.problems() == []


def test_a_row_that_is_no_number_is_refused(watched):
    with pytest.raises(RecordError, match="step_cosine at step 5 is 'x', expected a number"):
        foresight_figure([replace(watched, monitor=[row(5, "x")])])
