"""The page of a comparison as text and in a real browser; tables in Markdown; PNG files."""

import html.parser
import json
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest

from effopd.errors import RecordError
from effopd.reports.comparison import BEST, Comparison, headline, highlights, markdown_report
from effopd.reports.figures import AXES, accuracy_figure, rates_figure
from effopd.reports.page import cost_table, page_content, write_comparison
from effopd.reports.png import write_comparison_pngs
from effopd.reports.summary import Cell

RATES = (1e-4, 3e-4, 1e-3)
COUNT = "document.querySelectorAll({!r}).length"
SHOWN = ".scroll:not([hidden])"
TEXTS = "[...document.querySelectorAll({!r})].map(n => n.textContent)"


def curve(speed, lr, seed):
    """(step, accuracy, tokens, seconds) of a run that comes to 0.9 at a speed."""
    height = 0.9 * speed * (lr / 1e-4) ** 0.5
    steps = (0, 2, 4, 8, 16, 32)
    return [
        (step, min(0.1 + height * step / 32 + seed / 100, 0.9), 100 * step, 2.0 * step)
        for step in steps
    ]


@pytest.fixture(scope="module")
def comparison(request):
    make = make_run_of
    cells = []
    for world, speed in (("sharpen", 1.0), ("gap", 0.6)):
        for method, factor in (("opd", 1), ("effopd", 4), ("grpo", 0.2)):
            for lr in RATES:
                for seed in range(3):
                    run = make(method, curve(speed * factor, lr, seed), lr=lr, seed=seed)
                    cells.append(Cell(world=world, method=method, lr=lr, seed=seed, run=run))
        run = make("effopd", curve(speed * 2, 1e-4, 0), label="effopd-few", lr=1e-4, seed=0)
        where = {"figure": "prompts", "parent": "effopd"}
        cells.append(Cell(world=world, method="effopd-few", lr=1e-4, seed=0, run=run, **where))
    return Comparison(
        name="tiny", cells=cells, command="effopd compare plan.toml", notes=["One note."], plan="x"
    )


def make_run_of(method, points, **info):
    from effopd.records import Run

    evals = [{"step": 0, "model": "teacher", "accuracy": 0.9}]
    evals += [
        {"step": step, "model": "student", "accuracy": accuracy, "sampled_tokens": tokens,
         "teacher_tokens": tokens}
        for step, accuracy, tokens, _ in points
    ]  # fmt: skip
    timing = [{"step": step, "elapsed_s": seconds} for step, _, _, seconds in points]
    info = {"label": method, "method": method, **info}
    return Run(directory=None, label=info["label"], info=info, evals=evals, timing=timing)


@pytest.fixture(scope="module")
def report(comparison, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "report.html"
    write_comparison(comparison, path)
    return path


def drawn(comparison, name, **when):
    """The figure at a place of the page when these choices are made."""
    options = page_content(comparison)[1]["figures"][name]
    return next(option["figure"] for option in options if option["when"] == when)


# Figures and words --------------------------------------------------------------------------------


def test_plotly_knows_every_setting_of_the_figures(comparison):
    for cost in AXES:
        figure = accuracy_figure(comparison.sweep_curves("gap"), cost, 0.9)
        go.Figure(figure)
        json.dumps(figure, allow_nan=False)
    rows = comparison.rows("gap")
    go.Figure(rates_figure(rows, [comparison.styles[row["method"]] for row in rows]))


def test_curves_are_the_medians_in_bands(comparison):
    data = drawn(comparison, "accuracy", world=0, choice="1e-4", cost="tokens")["data"]
    bands, lines = data[:3], data[3:]
    assert [line["name"] for line in lines] == ["opd", "effopd", "grpo"]
    middle = curve(1.0, 1e-4, 1)
    assert lines[0]["x"] == [tokens for _, _, tokens, _ in middle]
    assert lines[0]["y"] == [accuracy for _, accuracy, _, _ in middle]
    high, low = curve(1.0, 1e-4, 2), curve(1.0, 1e-4, 0)
    assert bands[0]["y"] == [p[1] for p in high] + [p[1] for p in reversed(low)]


def test_the_sweep_shows_the_baseline_at_every_rate_and_the_search_at_one(comparison):
    assert comparison.shown_lr == 3e-4
    curves = comparison.sweep_curves("sharpen")
    labels = [style.label for style, _ in curves]
    assert labels == ["opd 1e-4", "opd 3e-4", "opd 1e-3", "effopd 3e-4"]
    assert {run.info["lr"] for run in curves[-1][1]} == {3e-4}
    assert len({style.color for style, _ in curves}) == 4


def test_a_rate_that_did_not_get_there_is_an_open_mark_at_what_it_ran(comparison):
    figure = drawn(comparison, "rates", world=0)
    grpo = next(trace for trace in figure["data"] if trace["name"] == "grpo")
    assert grpo["marker"]["symbol"] == ["star-open"] * 3
    assert grpo["y"] == [32.0] * 3
    assert "not in 32 steps<br>0 of 3 seeds" in grpo["hovertext"][0]
    opd = next(trace for trace in figure["data"] if trace["name"] == "opd")
    rows = [r for r in comparison.summary["rows"] if r["world"] == "sharpen"]
    medians = [r["median_steps_to_90"] for r in rows if r["method"] == "opd"]
    assert opd["y"] == medians
    assert [
        (y - down, y + up)
        for y, down, up in zip(
            medians, opd["error_y"]["arrayminus"], opd["error_y"]["array"], strict=True
        )
    ] == [(r["low_steps_to_90"], r["high_steps_to_90"]) for r in rows if r["method"] == "opd"]


def test_variants_stand_after_their_parent_at_the_same_rate(comparison):
    rows = comparison.variant_rows("prompts", "gap")
    assert [(row["method"], row["lr"]) for row in rows] == [("effopd", 1e-4), ("effopd-few", 1e-4)]


def test_the_headline_says_both(comparison):
    assert headline(comparison) == (
        "In sharpen at learning rate 3e-4, effopd reached 90% of the teacher at step 4, opd at "
        "step 16: 4.0× fewer steps, 4.0× fewer sampled tokens, 4.0× less time."
    )
    assert highlights(comparison)[:2] == [
        ("4.0×", "fewer steps at 3e-4, sharpen"),
        ("4.0×", "fewer steps each at its best rate, sharpen"),
    ]


def test_markdown_has_every_table(comparison):
    text = markdown_report(replace(comparison, notes=["A | note."]))
    assert text.count("\n### At learning rate ") == 2 * len(RATES)
    assert text.count("\n### Each at its best learning rate") == 2
    assert "| grpo | 1e-3 | 3 | not in 32 steps (0 of 3) |" in text
    assert re.search(r"^\| effopd \| 3e-4 \| 3 \| .*4 \\\[4, 4\\\] \(4\.0×\)", text, re.MULTILINE)
    assert "| grpo | 1e-4, 3e-4, 1e-3 | 0 of 3 | 1e-3 | never at 90% |" in text
    assert text.endswith("\nA \\| note.\n")


def test_pictures_have_a_panel_per_world(comparison, tmp_path):
    import matplotlib.image

    paths = write_comparison_pngs(comparison, tmp_path)
    sizes = {path.stem: matplotlib.image.imread(path).shape[:2] for path in paths}
    assert sizes == {
        "accuracy_steps": (800, 2560),
        "accuracy_seconds": (800, 2560),
        "variants_prompts": (800, 2560),
        "lr_sweep": (1600, 2560),
    }


def test_nothing_to_compare_is_an_error():
    with pytest.raises(RecordError, match="no run of 'tiny' has finished"):
        Comparison(name="tiny", cells=[], command="")


# The page -----------------------------------------------------------------------------------------


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def saying(texts):
    """A comparison with a world, a method and a figure of each text."""
    cells = []
    for text in texts:
        run = make_run_of(text, curve(1.0, 1e-4, 0), lr=1e-4, seed=0)
        cells.append(Cell(world=text, method=text, lr=1e-4, seed=0, run=run))
        where = {"figure": text, "parent": text}
        cells.append(Cell(world=text, method=f"{text}-x", lr=1e-4, seed=0, run=run, **where))
    return Comparison(
        name=texts[0], cells=cells, command=texts[1], notes=texts, plan="\n".join(texts)
    )


@pytest.fixture(scope="module")
def hostile(payloads):
    return saying(payloads)


def test_hostile_text_changes_no_tag(hostile, payloads, tmp_path):
    write_comparison(hostile, tmp_path / "report.html")
    write_comparison(saying([f"text {i}" for i in range(len(payloads))]), tmp_path / "plain.html")
    pages = [(tmp_path / name).read_text("utf-8") for name in ("plain.html", "report.html")]
    assert Tags(pages[0]).found == Tags(pages[1]).found
    few = replace(hostile, cells=hostile.cells[:4])
    assert len(write_comparison_pngs(few, tmp_path)) == 3 + 2
    assert not re.search(r"(?<!\\)<", markdown_report(hostile))


def test_every_choice_shows_its_numbers(browser, report, comparison):
    browser.open(report)
    assert browser.evaluate(TEXTS.format(f"#costs {SHOWN} .name")) == ["opd", "effopd", "grpo"]
    assert browser.evaluate(TEXTS.format(".command")) == [comparison.command]
    figures = "document.getElementById({!r}).data.map(t => t.y)"
    for world in (0, 1):
        for choice in ("1e-3", BEST):
            for cost in ("steps", "seconds"):
                for name, value in (("world", world), ("choice", choice), ("cost", cost)):
                    browser.evaluate(
                        f"document.querySelector('[data-pick={name}] [value=\"{value}\"]').click()"
                    )
                when = {"world": world, "choice": choice, "cost": cost}
                for plot, picks in (("accuracy", when), ("rates", {"world": world})):
                    expected = [trace["y"] for trace in drawn(comparison, plot, **picks)["data"]]
                    assert browser.evaluate(figures.format(plot)) == expected
                rows = comparison.rows(comparison.worlds[world], BEST if choice == BEST else 1e-3)
                expected = [
                    cell["text"] + cell.get("ratio", "") + cell.get("small", "")
                    for row in cost_table(comparison, rows, cost)["rows"]
                    for cell in row["cells"]
                ]
                assert browser.evaluate(TEXTS.format(f"#costs {SHOWN} td")) == expected
    assert browser.evaluate(TEXTS.format(".variants h2")) == ["prompts"]
    names = browser.evaluate(TEXTS.format(f".variants {SHOWN} .name"))
    assert names == ["effopd", "effopd-few"]
    assert browser.problems() == []


def test_hostile_text_is_shown_and_never_runs(browser, hostile, payloads, tmp_path):
    write_comparison(hostile, tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    for index in range(len(payloads)):
        browser.evaluate(f"document.querySelector('[data-pick=world] [value=\"{index}\"]').click()")
        browser.evaluate(
            "for (const plot of document.querySelectorAll('.js-plotly-plot'))"
            "  plot.data.forEach((trace, n) => (trace.hovertext || []).forEach((_, i) =>"
            "    Plotly.Fx.hover(plot, [{ curveNumber: n, pointNumber: i }])));"
        )
    for kind in ("img", "iframe", "[onload]", "[onerror]", "a", "link", "object", "h1 *", "pre *"):
        assert browser.evaluate(COUNT.format(kind)) == 0, kind
    assert browser.evaluate("document.title") == payloads[0]
    assert browser.evaluate(TEXTS.format("#settings pre")) == ["\n".join(payloads)]
    shown = browser.evaluate(TEXTS.format("[data-pick=world] span"))
    assert shown == [" ".join(text.split()) for text in payloads]
    assert browser.evaluate("document.documentElement.dataset.xss") is None
    assert browser.problems() == []
