"""The report in a real browser: what is on the page, and what must never run."""

import pytest

from effopd.records import Run
from effopd.reports.comparison import Comparison, csv_table
from effopd.reports.page import cost_table, write_report

COUNT = "document.querySelectorAll({!r}).length"
TEXT = "document.querySelector({!r}).textContent"
TEXTS = "[...document.querySelectorAll({!r})].map(n => n.textContent)"


@pytest.fixture(scope="module")
def report(sample_runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(sample_runs, path, title="Three ways")
    return path


@pytest.fixture
def page(browser, report):
    if browser.evaluate("location.href") != report.resolve().as_uri():
        browser.open(report)
    return browser


def pick(browser, name, value):
    browser.evaluate(
        f"(() => {{ const s = document.getElementById({name!r}); s.value = {str(value)!r}; "
        "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def test_it_opens_without_a_complaint_and_asks_for_nothing(page, report):
    assert page.problems() == []
    assert {address for address in page.addresses() if not address.startswith("data:")} == {
        report.resolve().as_uri()
    }
    assert page.evaluate("document.title") == "Three ways"
    assert "effopd reached 90% of the teacher" in page.evaluate(
        "document.querySelector('h1').textContent.replaceAll('\\u00a0', ' ')"
    )


def test_figures_are_drawn_from_the_records(page, sample_runs):
    for axis, field in (("steps", "step"), ("tokens", "sampled_tokens"), ("steps", "step")):
        page.evaluate(f"document.querySelector('[data-pick=cost] input[value={axis}]').click()")
        curves = "document.getElementById({!r}).data.filter(t => t.name).map(t => [t.x, t.y])"
        for plot, quantity in (("accuracy", "accuracy"), ("reverse_kl", "reverse_kl")):
            rows = [[r for r in run.evals if r["model"] == "student"] for run in sample_runs]
            assert page.evaluate(curves.format(plot)) == [
                [[row[field] for row in each], [row[quantity] for row in each]] for each in rows
            ]
        # Three curves, three bands and three rings; three curves.
        assert page.evaluate(COUNT.format("#accuracy svg .scatterlayer .trace")) == 9
        assert page.evaluate(COUNT.format("#reverse_kl svg .scatterlayer .trace path.point")) == 75
    assert page.evaluate(COUNT.format(".plot.search svg .scatterlayer")) == 2
    assert page.problems() == []


def test_the_table_holds_the_numbers_of_the_summary(page, sample_runs):
    comparison = Comparison.of_runs(sample_runs, "")
    shown = "#costs .scroll:not([hidden]) "
    for cost in ("tokens", "teacher_tokens", "seconds", "steps"):
        page.evaluate(f"document.querySelector('[data-pick=cost] input[value={cost}]').click()")
        rows = cost_table(comparison, comparison.rows(""), cost)["rows"]
        cells = [cell for row in rows for cell in row["cells"]]
        assert page.evaluate(TEXTS.format(f"{shown}td")) == [
            cell["text"] + cell.get("ratio", "") + cell["small"]
            if "small" in cell
            else cell["text"]
            for cell in cells
        ]
        assert page.evaluate(TEXTS.format(f"{shown}.name")) == ["opd", "paper", "effopd"]


def test_the_viewer_shows_the_chosen_sample(page, sample_runs):
    pick(page, "pick-run", 1)
    pick(page, "pick-step", 32)
    rows = [row for row in sample_runs[1].rollouts if row["step"] == 32]
    page.evaluate("document.querySelectorAll('#samples button')[3].click()")
    spans = "[...document.querySelectorAll('.tokens span')].map(s => [s.textContent, s.title])"
    assert page.evaluate(spans) == [
        [token.replace("\n", "↵\n"), f"{value:.4f} nats"]
        for token, value in zip(rows[3]["tokens"], rows[3]["kl_nats"], strict=True)
    ]
    colours = page.evaluate(
        "[...document.querySelectorAll('.tokens span')].map(s => s.style.background)"
    )
    assert [bool(colour) for colour in colours] == [value > 0 for value in rows[3]["kl_nats"]]
    assert rows[3]["problem_id"] in page.evaluate(TEXT.format("#sample .chips"))
    pick(page, "pick-order", "divergence")
    sides = "[...document.querySelectorAll('#samples button')].map(b => b.lastChild.textContent)"
    means = [float(side.split()[-1]) for side in page.evaluate(sides)]
    assert means == sorted(means, reverse=True)
    pick(page, "pick-filter", "unfinished")
    unfinished = sum(row["finish_reason"] == "length" for row in rows)
    assert page.evaluate(COUNT.format("#samples button")) == unfinished


def test_the_keyboard_reaches_list_and_tokens(page, sample_runs):
    def press(key, code):
        for kind in ("keyDown", "keyUp"):
            page.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    pick(page, "pick-filter", "all")
    pick(page, "pick-order", "recorded")
    pick(page, "pick-run", 2)
    page.evaluate("document.querySelector('#samples button').focus()")
    press("ArrowDown", 40)
    chosen = (
        "[...document.querySelectorAll('#samples button')].findIndex(b => b.ariaCurrent == 'true')"
    )
    assert page.evaluate(chosen) == 1
    page.evaluate("document.querySelector('.tokens').focus()")
    press("ArrowRight", 39)
    press("ArrowRight", 39)
    row = [row for row in sample_runs[2].rollouts if row["step"] == 0][1]
    assert page.evaluate(TEXT.format(".readout")) == (
        f"Token 2 of {len(row['tokens'])}: “{row['tokens'][1]}”, {row['kl_nats'][1]:.4f} nats"
    )
    page.evaluate("document.querySelector('[data-pick=cost] input').focus()")
    press("ArrowRight", 39)
    assert (
        page.evaluate("document.querySelector('[data-pick=cost] input:checked').value") == "tokens"
    )


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_at_any_width(page, width, scheme):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.call("Emulation.setEmulatedMedia", features=features)
    try:
        page.wait_for(f"document.documentElement.scrollWidth <= {width}")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(251, 250, 247)", "dark": "rgb(19, 20, 22)"}[scheme]
        assert page.problems() == []
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")
        page.call("Emulation.setEmulatedMedia", features=[])


def test_the_table_can_be_downloaded(page, sample_runs):
    assert page.evaluate("data.csv") == csv_table(sample_runs)
    page.evaluate("document.getElementById('csv').click()")
    assert page.problems() == []


def test_printing_fits_the_paper_and_leaves_no_trace(page):
    widths = "[...document.querySelectorAll('.plot')].map(p => p._fullLayout.width)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert set(page.evaluate(widths)) == {680}
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert set(page.evaluate(widths)) == {
        page.evaluate("document.getElementById('accuracy').clientWidth")
    }
    assert page.problems() == []


def test_hostile_text_is_shown_and_never_runs(browser, hostile_runs, payloads, tmp_path):
    write_report(hostile_runs, tmp_path / "report.html", title=payloads[0])
    browser.open(tmp_path / "report.html")
    assert browser.evaluate("document.title") == payloads[0]
    # Look at every sample, and point at every point of the figures.
    browser.evaluate(
        "for (const plot of document.querySelectorAll('.js-plotly-plot'))"
        "  plot.data.forEach((trace, n) => (trace.hovertext || []).forEach((_, i) =>"
        "    Plotly.Fx.hover(plot, [{ curveNumber: n, pointNumber: i }])));"
    )
    for index, payload in enumerate(payloads):
        pick(browser, "pick-run", index)
        assert browser.evaluate(TEXT.format("#sample pre")) == payload
        assert browser.evaluate(TEXT.format(".tokens")) == payload
    for kind in ("img", "iframe", "[onload]", "[onerror]", "a", "link", "object", "h1 *", "pre *"):
        assert browser.evaluate(COUNT.format(kind)) == 0, kind
    assert browser.evaluate(COUNT.format("script")) == 4 + len(payloads)
    shown = browser.evaluate(TEXTS.format("#costs .scroll:not([hidden]) .name"))
    short = [" ".join(p.split()) for p in payloads]
    assert shown == [p if len(p) <= 60 else p[:59] + "…" for p in short]
    legend = "[...document.querySelectorAll('#accuracy .legendtext')].map(n => n.textContent)"
    assert browser.evaluate(legend) == shown[: len(payloads)]
    for index, payload in enumerate(payloads):
        config = f"[...document.querySelectorAll('#settings pre')][{index}].textContent"
        assert browser.evaluate(config) == payload
    assert browser.evaluate("document.documentElement.dataset.xss") is None
    assert browser.problems() == []


@pytest.mark.parametrize("points", [None, [(0, None, None, None)], [(0, 0.5, 10, 1.0)]])
def test_little_or_nothing_recorded_still_opens(browser, make_run, tmp_path, points):
    runs = [Run(directory=None, label="empty", info={})]
    if points is not None:
        runs.append(make_run("opd", points, teacher=0.9))
    write_report(runs, tmp_path / "report.html")
    browser.open(tmp_path / "report.html")
    assert browser.problems() == []
    assert browser.evaluate("document.getElementById('viewer')") is None
    assert browser.evaluate(TEXT.format("#reverse_kl")) == "Nothing recorded yet."
