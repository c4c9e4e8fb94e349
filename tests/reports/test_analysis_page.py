"""The page of an analysis: its content is that of the tables, and nothing on it can run."""

import json
import re
from pathlib import Path

import plotly.graph_objects as go
import pytest

from effopd.errors import RecordError
from effopd.records import write_json_atomic
from effopd.reports.analysis import Analysis, load_analysis, numbers
from effopd.reports.analysis_figures import (
    SPECTRA,
    accuracy_figure,
    divergence_figure,
    layer_figure,
    map_figure,
    norm_figure,
    progress_figure,
    shift_figure,
    spectrum_figure,
)
from effopd.reports.analysis_page import (
    analysis_content,
    analysis_figures,
    write_analysis,
    write_analysis_pngs,
)
from effopd.reports.analysis_tables import divergence_cells, norm_cells, table_1_cells, table_1_text
from effopd.reports.table_files import read_table, write_table

STEPS = (4, 8, 16)
LABELS = [f"step-{step:05d}" for step in STEPS]
PROJECTIONS = ("q", "down")
METRICS = (*SPECTRA, "stable_rank")
SUMS = (
    "frobenius_norm", "relative_norm", "bf16_unchanged_share", "step_norm", "step_cosine",
    "path_length", "straightness",
)  # fmt: skip
AGREEMENTS = ("cosine_1", "direction_cosine", "subspace_cosine", "captured_norm")


def value(*parts):
    """A number in (0, 1) that is different everywhere."""
    return (sum(ord(c) * (i + 3) for i, c in enumerate(repr(parts))) % 9973 + 1) / 9975


def tables(labels=LABELS, text="plain"):
    """Small tables of every kind; `text` stands in every cell that may hold text."""
    base = {"layer": None, "block": None, "projection": None}
    sums = [{"grouping": "whole"}, {"grouping": "block", "block": "mlp"}]
    sums += [{"grouping": "layer and block", "layer": i, "block": b}
             for i in (0, 1) for b in ("attention", "mlp")]  # fmt: skip
    found = {name: [] for name in (
        "norm_sums", "table1", "subspace_progress", "divergences", "shifts", "trajectory_points",
    )}  # fmt: skip
    for t, label in enumerate(labels):
        who = {"checkpoint": label, "step": STEPS[t]}
        for where in sums:
            row = {name: value(name, label, str(where)) for name in SUMS}
            row["step_cosine"] = row["step_cosine"] if t else None
            found["norm_sums"].append({**who, "grouping": "", **base, **where, **row})
        row = {n: value(n, label) for name in METRICS for n in (name, f"noise_{name}")}
        found["table1"].append({**who, "matrices": 4, "never_moved": 1, **row})
        row = {f"{end}_{name}": value(end, name, label) if end == "final" or t else None
               for end in ("final", "previous") for name in AGREEMENTS}  # fmt: skip
        found["subspace_progress"].append({**who, "progress": STEPS[t] / STEPS[-1], **row})
        for to in ("teacher", "base"):
            for words in ("base", "own"):
                own = {"accuracy": value(label), "mean_length": 7.0} if words == "own" else {}
                row = {"mean_nats": value(label, to, words), "se_nats": 0.01, "closed_share": 0.25,
                       "accuracy": None, "mean_length": None, **own}  # fmt: skip
                row = {"label": label, "step": STEPS[t], "text": words, "to": to, **row}
                found["divergences"].append(row)
        numbers_ = dict.fromkeys(
            ("mean_cosine", "p05_cosine", "centred_cosine", "unrelated_cosine", "relative_shift"),
            0.5,
        )
        found["shifts"].append({"label": label, "space": text, "tokens": 9, **numbers_})
        for kind in ("pca", "tsne"):
            row = {"place": text, "projection_kind": kind, **who, "x": value(label, kind), "y": t}
            found["trajectory_points"].append(row)
    base_row = {**found["divergences"][0], "label": "base", "step": 0, "text": "base",
                "to": "teacher", "accuracy": 0.125, "mean_length": 5.0}  # fmt: skip
    found["divergences"].insert(0, base_row)
    places = [(layer, projection) for layer in (0, 1) for projection in PROJECTIONS]
    found["directions_map"] = [
        {"layer": i, "projection": p, "places": 1, "final_cosine_1": value("map", i, p)}
        for i, p in places[:3]
    ]
    found["trajectory_map"] = [
        {"layer": i, "projection": p, "places": 1, "explained_variance_ratio": value("evr", i, p)}
        for i, p in places
    ]
    found["trajectories"] = [{"place": text, "layer": 0, "projection": "q"}]
    found["never_moved"] = [{"place": text}]
    found["shift_points"] = [
        {"space": text, "projection": "pca", "kind": "shifts", "label": label, "token": token,
         "x": value(label, token), "y": 0.5}
        for label in ("base", labels[-1]) for token in (0, 1)
    ]  # fmt: skip
    return found


def info_of(labels=LABELS, text="plain"):
    series = [{"label": label, "step": STEPS[t], "path": text} for t, label in enumerate(labels)]
    return {
        "schema": 1, "base": {"path": text}, "checkpoints": series, "final": series[-1],
        "what": ["norms"], "command": f"effopd analyze {text}", "versions": {"effopd": text},
    }  # fmt: skip


def example_of(text):
    answer = {"writer": text, "text": text, "tokens": [text], "finish_reason": text, "reward": 1.0,
              "kl_nats": {text: [0.5]}}  # fmt: skip
    return {"schema": 1, "problem_id": text, "prompt": text, "questions": 1, "telling": 1,
            "writers": [{"writer": text, "accuracy": 1.0, "mean_tokens": 1.0}],
            "answers": [answer]}  # fmt: skip


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    """Through the disk, as the command does it."""
    directory = tmp_path_factory.mktemp("analysis")
    for name, rows in tables().items():
        write_table(directory / "tables", name, rows)
    write_json_atomic(directory / "analysis.json", info_of())
    write_json_atomic(directory / "example.json", example_of("plain"))
    return load_analysis(directory)


def column(analysis, table, name, **equal):
    return [row[name] for row in analysis.rows(table, **equal)]


# Tables on disk -----------------------------------------------------------------------------------


TEXTS = ["=1+2", "+a", "-b", "@c", "'d", "''", "8", "1e5", "nan", "inf", " 7", "a,b", 'say "x"',
         "two\nlines", "\ttab", "é漢", "x"]  # fmt: skip


def test_a_table_comes_back_as_it_was_written(tmp_path):
    rows = [
        {"text": text, "whole": index - 5, "number": (index - 5) / 3, "none": None, "big": 1e-300}
        for index, text in enumerate(TEXTS)
    ]
    write_table(tmp_path, "t", rows)
    back = read_table(tmp_path / "t.csv")
    assert back == rows
    assert [type(cell) for cell in back[0].values()] == [str, int, float, type(None), float]
    write_table(tmp_path, "empty", [])
    assert read_table(tmp_path / "empty.csv") == []


def test_no_text_starts_a_formula_and_negative_numbers_stay_numbers(tmp_path):
    write_table(tmp_path, "t", [{"text": text, "number": -1.5} for text in TEXTS])
    lines = (tmp_path / "t.csv").read_text(encoding="utf-8").split("\n")
    assert not [line for line in lines if re.match(r'"?[=+@\t-]', line)]
    assert lines[1].rstrip("\r") == "'=1+2,-1.5"


def test_parquet_columns_have_one_type(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"a": 1, "b": 1, "c": "x", "d": None}, {"a": 2.5, "b": None, "c": None, "d": None}]
    write_table(tmp_path, "t", rows)
    stored = parquet.read_table(tmp_path / "t.parquet")
    assert [str(kind) for kind in stored.schema.types] == ["double", "int64", "string", "double"]
    assert stored.to_pylist() == rows


@pytest.mark.parametrize("cell", [float("nan"), float("inf"), True, [1]])
def test_what_is_no_cell_is_refused(tmp_path, cell):
    with pytest.raises(RecordError, match="table t, column a"):
        write_table(tmp_path, "t", [{"a": cell}])
    with pytest.raises(RecordError, match="a row has columns"):
        write_table(tmp_path, "t", [{"a": 1}, {"b": 1}])
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1\n")
    with pytest.raises(RecordError, match="row 2 has 1 cells, the first 2"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(RecordError, match="holds 'x', expected numbers"):
        numbers([{"a": "x"}], "a")


# Figures ------------------------------------------------------------------------------------------


def test_norms_are_drawn_from_the_sums(analysis):
    figure = norm_figure(analysis, "frobenius_norm", "norm")
    whole, mlp = figure["data"]
    assert whole["x"] == mlp["x"] == list(STEPS)
    for trace, where in ((whole, {"grouping": "whole"}), (mlp, {"grouping": "block"})):
        assert trace["y"] == column(analysis, "norm_sums", "frobenius_norm", **where)
    cosines = norm_figure(analysis, "step_cosine", "cosine")["data"][0]
    assert cosines["x"] == list(STEPS[1:])
    bars = layer_figure(analysis, LABELS[1])["data"]
    for bar, block in zip(bars, ("attention", "mlp"), strict=True):
        where = {"grouping": "layer and block", "block": block, "checkpoint": LABELS[1]}
        assert bar["x"] == [0, 1]
        assert bar["y"] == column(analysis, "norm_sums", "frobenius_norm", **where)


def test_spectra_and_their_noise_are_those_of_table_1(analysis):
    for name in SPECTRA:
        own, noise = spectrum_figure(analysis, name)["data"]
        assert own["y"] == column(analysis, "table1", name)
        assert noise["y"] == column(analysis, "table1", f"noise_{name}")


def test_agreement_is_drawn_over_the_share_of_training(analysis):
    curves = progress_figure(analysis, "final")["data"]
    names = ("subspace_cosine", "direction_cosine", "cosine_1", "captured_norm")
    for trace, name in zip(curves, names, strict=True):
        assert trace["x"] == [0.25, 0.5, 1.0]
        assert trace["y"] == column(analysis, "subspace_progress", f"final_{name}")
    previous = progress_figure(analysis, "previous")["data"][0]
    assert previous["x"] == [0.5, 1.0]


def test_heat_maps_leave_blank_what_is_missing(analysis):
    rows = analysis.rows("directions_map")
    (trace,) = map_figure(rows, "final_cosine_1", "cosine")["data"]
    assert (trace["x"], trace["y"]) == ([0, 1], list(PROJECTIONS))
    known = {(row["layer"], row["projection"]): row["final_cosine_1"] for row in rows}
    assert trace["z"] == [[known.get((i, p)) for i in (0, 1)] for p in PROJECTIONS]
    assert trace["z"][1][1] is None


def test_accuracy_stands_over_the_norm_of_the_update(analysis):
    (trace,) = accuracy_figure(analysis)["data"]
    norms = column(analysis, "norm_sums", "frobenius_norm", grouping="whole")
    assert trace["x"] == [0.0, *norms]
    assert trace["y"] == [0.125, *(value(label) for label in LABELS)]


def test_divergences_start_at_the_base(analysis):
    curves = divergence_figure(analysis)["data"]
    assert curves[0]["x"] == [0.0, *STEPS]
    own = column(analysis, "divergences", "mean_nats", text="own", to="teacher")
    assert curves[1]["y"] == own
    points = shift_figure(analysis, "plain", "pca", "shifts")["data"]
    assert [trace["x"] for trace in points] == [
        column(analysis, "shift_points", "x", label=label) for label in ("base", LABELS[-1])
    ]


def test_plotly_knows_every_setting_and_pictures_are_written(analysis, tmp_path):
    for options in analysis_content(analysis)[1].values():
        for option in options:
            go.Figure(option["figure"])
            json.dumps(option["figure"], allow_nan=False)
    written = write_analysis_pngs(analysis, tmp_path)
    assert {path.stem for path in written} == set(analysis_figures(analysis))
    assert len(written) == 15
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


# Tables and page ----------------------------------------------------------------------------------


def test_table_1_has_the_noise_below_each_number(analysis):
    cells = table_1_cells(analysis)
    assert [row["label"] for row in cells["rows"]] == LABELS
    count, norm, share, *_ = cells["rows"][0]["cells"]
    assert count == {"text": "4", "small": "1 never moved"}
    row = analysis.rows("table1")[0]
    small = f"noise {row['noise_spectral_norm']:.4g}"
    assert norm == {"text": f"{row['spectral_norm']:.4g}", "small": small}
    assert share["text"] == f"{100 * row['spectral_share']:.1f}%"
    lines = table_1_text(analysis).splitlines()
    assert len(lines) == 1 + 2 * len(STEPS)
    assert f"{row['spectral_norm']:.4g}" in lines[1]
    assert f"{row['noise_spectral_norm']:.4g}" in lines[2]


def test_models_have_one_row_of_divergences(analysis):
    cells = divergence_cells(analysis)
    assert [row["label"] for row in cells["rows"]] == ["base", *LABELS]
    base, first = cells["rows"][0]["cells"], cells["rows"][1]["cells"]
    assert [cell["text"] for cell in base[:2]] == ["12.5%", "5.0"]
    assert [cell["text"] for cell in base[4:]] == ["–"] * 3
    texts = [("teacher", "base"), ("teacher", "own"), ("base", "base"), ("base", "own")]
    assert [cell["text"] for cell in first[3:]] == [
        f"{value(LABELS[0], to, words):.4g}" for to, words in texts
    ]
    assert norm_cells(analysis)["rows"][0]["cells"][4]["text"] == "–"  # no step before the first


def test_only_what_was_measured_has_a_section(analysis):
    data, _ = analysis_content(analysis)
    assert len(data["sections"]) == 7
    (norms,) = column(
        analysis, "norm_sums", "relative_norm", grouping="whole", checkpoint=LABELS[2]
    )
    assert f"{100 * norms:.3f}%" in data["headline"]
    few = {"table1": analysis.tables["table1"]}
    less = Analysis(directory=analysis.directory, info=analysis.info, tables=few)
    keys = [section["key"] for section in analysis_content(less)[0]["sections"]]
    assert keys == ["table1", "spectra"]
    assert analysis_content(less)[0]["headline"] == "3 checkpoints of one base"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "schema None, expected 1"),
        ('{"schema": 99}', "schema 99, expected 1"),
        ('{"schema": 1}', "is damaged"),
    ],
)
def test_a_damaged_analysis_is_refused(tmp_path, content, message):
    (tmp_path / "analysis.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        load_analysis(tmp_path)
    with pytest.raises(RecordError, match="effopd analyze"):
        load_analysis(tmp_path / "nowhere")


# In a browser -------------------------------------------------------------------------------------

CELLS = (
    "[...document.querySelectorAll('table')].map(t => [...t.querySelectorAll('tbody tr')]"
    ".map(r => [...r.querySelectorAll('td')].map(c => c.firstChild.textContent)))"
)
DRAWN = "[...document.querySelectorAll('.plot')].map(n => n.data.map(t => t.y))"


@pytest.fixture(scope="module")
def page(browser, analysis, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_analysis(analysis, path)
    browser.open(path)
    return browser


def test_the_page_opens_without_a_complaint_and_shows_the_tables(page, analysis):
    assert page.problems() == []
    assert len({a for a in page.addresses() if not a.startswith("data:")}) == 1
    expected = [
        [[cell["text"] for cell in row["cells"]] for row in section["table"]["rows"]]
        for section in analysis_content(analysis)[0]["sections"]
        if "table" in section
    ]
    assert page.evaluate(CELLS) == expected
    panels = analysis_content(analysis)[1].values()
    first = [[trace["y"] for trace in options[0]["figure"]["data"]] for options in panels]
    assert page.evaluate(DRAWN) == first
    still = "[...document.querySelectorAll('#settings pre')].at(-1).textContent"
    assert page.evaluate(still) == "plain"
    assert page.evaluate("document.querySelectorAll('#example article').length") == 1


def test_another_choice_draws_another_figure(page, analysis):
    page.evaluate(
        "(() => { const s = document.querySelector('select'); s.value = '3';"
        " s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    cosines = norm_figure(analysis, "step_cosine", "")["data"]
    assert page.evaluate(DRAWN)[0] == [trace["y"] for trace in cosines]


@pytest.mark.parametrize("chosen", [slice(1, 3), pytest.param(slice(None), marks=pytest.mark.slow)])
def test_no_text_of_the_tables_runs(browser, payloads, tmp_path, chosen):
    for index, text in enumerate(payloads[chosen]):
        labels = [text, f"{text} 2", f"{text} 3"]
        hostile = Analysis(
            directory=Path("hostile"),
            info=info_of(labels, text),
            tables=tables(labels, text),
            example=example_of(text),
        )
        path = tmp_path / f"{index}.html"
        write_analysis(hostile, path)
        browser.open(path)
        assert browser.evaluate("document.documentElement.dataset.xss") is None
        assert browser.problems() == []
        assert browser.evaluate("document.querySelectorAll('.plot').length") == 11
