import json

import plotly.graph_objects as go
import pytest

from effopd.records import Run
from effopd.reports import figures
from effopd.reports.figures import AXES, decade_ticks, plotly_text
from effopd.reports.series import Trial, teacher_accuracy
from effopd.reports.style import run_styles
from effopd.reports.timeline import (
    scale_ticks,
    search_figure,
    search_sentence,
)


def curves(runs):
    return [(style, [run]) for style, run in zip(run_styles(runs), runs, strict=True)]


def accuracy_figure(runs, axis):
    return figures.accuracy_figure(curves(runs), axis, teacher_accuracy(runs))


def reverse_kl_figure(runs, axis):
    return figures.reverse_kl_figure(curves(runs), axis)


EMPTY = Run(directory=None, label="empty", info={})


def trial(scale=2.0, advantage=0.0, **changes):
    known = {
        "step": 8, "kind": "candidate", "scale": scale, "score": 0.5, "score_se": None,
        "advantage": advantage, "accepted": False, "reason": "", "tokens": None, "seconds": None,
    }  # fmt: skip
    return Trial(**{**known, **changes})


@pytest.mark.parametrize("axis", AXES)
def test_plotly_knows_every_setting_of_the_curves(sample_runs, axis):
    for figure in (accuracy_figure(sample_runs, axis), reverse_kl_figure(sample_runs, axis)):
        go.Figure(figure)  # raises on an unknown property
        json.dumps(figure, allow_nan=False)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("runs", [[], [EMPTY], [EMPTY, EMPTY]])
def test_nothing_recorded_draws_no_point(runs, axis):
    for figure in (accuracy_figure(runs, axis), reverse_kl_figure(runs, axis)):
        go.Figure(figure)
        assert sum(len(trace["x"]) for trace in figure["data"]) == 0
    assert search_figure(EMPTY)["data"] == []


def test_curves_hold_the_numbers_of_the_records(sample_runs):
    for axis, field in (("steps", "step"), ("tokens", "sampled_tokens")):
        curves = [t for t in accuracy_figure(sample_runs, axis)["data"] if "name" in t]
        for run, curve in zip(sample_runs, curves, strict=True):
            rows = [row for row in run.evals if row["model"] == "student"]
            assert curve["x"] == [row[field] for row in rows]
            assert curve["y"] == [row["accuracy"] for row in rows]
            assert curve["name"] == run.label


def test_seconds_are_those_of_the_step(make_run):
    run = make_run("opd", [(8, 0.5, 10, 12.5), (16, 0.6, 20, 31.0)])
    assert accuracy_figure([run], "seconds")["data"][0]["x"] == [12.5, 31.0]


def test_the_band_is_one_standard_error_and_closed(make_run):
    run = make_run("opd", [(0, 0.25, 0, 0.0), (8, 0.5, 1, 1.0)])
    for row in run.evals:
        row["accuracy_se"] = 0.125
    band = accuracy_figure([run], "steps")["data"][0]
    assert (band["x"], band["y"]) == ([0, 8, 8, 0], [0.375, 0.625, 0.375, 0.125])


def test_the_ring_is_at_the_first_evaluation_at_90_percent(make_run):
    points = [(0, 0.1, 0, 0.0), (8, 0.72, 1, 1.0), (16, 0.73, 2, 2.0)]
    figure = accuracy_figure([make_run("opd", points, teacher=0.8)], "steps")
    (ring,) = [trace for trace in figure["data"] if trace["mode"] == "markers"]
    assert (ring["x"], ring["y"]) == ([8], [0.72])
    assert [shape["y0"] for shape in figure["layout"]["shapes"]] == [0.8, 0.9 * 0.8]


def test_divergences_that_a_logarithm_cannot_show_are_left_out(make_run):
    run = make_run("opd", [(step, 0.5, step, 1.0) for step in range(4)])
    for row, value in zip(run.evals, (0.5, 0.0, -0.01, None), strict=True):
        row["reverse_kl"] = value
    assert reverse_kl_figure([run], "steps")["data"][0]["x"] == [0]


def test_ticks_follow_the_data():
    assert decade_ticks([0.03, 0.4]) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    assert decade_ticks([1e-5, 1.0]) == pytest.approx([10.0**power for power in range(-5, 2)])
    assert scale_ticks([trial(s) for s in (9.0, 3.0, 3.0, 0.0)]) == [3.0, 9.0]
    assert scale_ticks([trial(1.1**n) for n in range(9)]) == [1.0, 2.0, 4.0]


def test_every_trial_is_in_the_timeline_once(sample_runs):
    for run in sample_runs[1:]:
        figure = search_figure(run)
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)
        places = [
            place
            for trace in figure["data"]
            if "name" in trace
            for place in zip(trace["x"], trace["y"], strict=True)
        ]
        assert sorted(places) == sorted((row["step"], row["scale"]) for row in run.search)
        stars = [trace for trace in figure["data"] if trace.get("name") == "accepted"]
        accepted = [(row["step"], row["scale"]) for row in run.search if row["accepted"]]
        assert list(zip(stars[0]["x"], stars[0]["y"], strict=True)) == accepted


def test_a_scale_of_zero_is_drawn_at_the_bottom():
    rows = [
        {"step": 8, "kind": "incumbent", "scale": 0.0, "score": 0.5},
        {"step": 8, "kind": "candidate", "scale": 2.0, "score": 0.5, "accepted": False},
    ]
    figure = search_figure(Run(directory=None, label="x", info={}, search=rows))
    assert [trace["y"] for trace in figure["data"][:2]] == [[1.0], [2.0]]
    assert "scale 0" in figure["data"][0]["hovertext"][0]


def test_the_search_sentence_counts(make_run):
    run = make_run("effopd", [(8, 0.5, 1000, 20.0)])
    for scale, accepted in ((1.0, None), (2.0, False), (4.0, True)):
        kind = "incumbent" if accepted is None else "candidate"
        row = {"step": 8, "kind": kind, "scale": scale, "score": 0.5, "accepted": accepted}
        run.search.append({**row, "tokens": 100, "seconds": 1.0})
    assert search_sentence(run) == (
        "1 search, 3 trials; accepted scales: 4 at step 8. "
        "Searching took 30% of the sampled tokens and 15% of the time."
    )
    assert search_sentence(EMPTY) == "This run did not search."


def test_many_jumps_are_summed_up(make_run):
    run = make_run("effopd", [])
    for step in range(1, 10):
        for scale in (2.0, 4.0 * step):
            row = {"step": step, "kind": "candidate", "scale": scale, "score": 0.5}
            run.search.append({**row, "accepted": True})
    assert search_sentence(run) == (
        "9 searches, 18 trials; 9 ended beyond the tip, at scales 4 to 36 (median 20)."
    )


def test_a_method_looks_the_same_in_every_comparison(make_run):
    methods = ["paper", "opd", "opd", "effopd", "other", "other"]
    styles = run_styles([make_run(method, []) for method in methods])
    alone = run_styles([make_run("effopd", [])])[0]
    ours = [run_styles([make_run(method, []) for method in order])[-1] for order in (
        ["slope"], ["other", "slope"],
    )]  # fmt: skip
    assert ours[0] == ours[1]
    assert (styles[3].color, styles[3].symbol) == (alone.color, alone.symbol)
    assert styles[1].color == styles[2].color
    assert styles[1].dash != styles[2].dash
    looks = {(style.color, style.symbol, style.dash) for style in styles}
    assert len(looks) == len(methods)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"),
        ("&lt;", "&amp;lt;"),
        ("a\nb\x1b", "a b␛"),
        ("plain 'quotes\"", "plain 'quotes\""),
    ],
)
def test_text_for_plotly_is_no_markup(text, shown):
    assert plotly_text(text) == shown


def test_hover_text_names_what_was_measured(sample_runs):
    run = sample_runs[2]
    curve = next(t for t in accuracy_figure([run], "steps")["data"] if "name" in t)
    row = [row for row in run.evals if row["model"] == "student"][3]
    assert f"accuracy {row['accuracy'] * 100:.2f}%" in curve["hovertext"][3]
    divergence = reverse_kl_figure([run], "steps")["data"][0]
    assert f"reverse KL {row['reverse_kl']:.4g} nats" in divergence["hovertext"][3]
