"""`effopd.figures`, as docs/figures.md shows it."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from effopd import figures
from effopd.errors import RecordError

PAGE = Path(__file__).parents[2] / "docs" / "figures.md"


def test_the_documented_snippet_runs(sample_runs, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    for name, run in (("opd", 0), ("opd-1", 0), ("effopd", 2)):
        (tmp_path / "runs" / name).symlink_to(sample_runs[run].directory)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[1], names)
    shapes = [matplotlib.image.imread(f"{name}.png").shape[:2] for name in ("accuracy", "sheet")]
    assert shapes == [(800, 1280), (1600, 2560)]
    assert "plotly" in (tmp_path / "accuracy.html").read_text("utf-8")
    ours = [row for row in sample_runs[2].evals if row["model"] == "student"]
    curve = next(t for t in names["figure"]["data"] if t.get("name") == "effopd")
    assert curve["x"] == [row["sampled_tokens"] for row in ours]
    # The median of two equal seeds is each of them.
    plain = [row for row in sample_runs[0].evals if row["model"] == "student"]
    assert names["median"]["data"][0]["y"] == [row["reverse_kl"] for row in plain]
    trials = [t for t in names["timeline"]["data"] if "name" in t]
    assert sum(len(trace["x"]) for trace in trials) == len(sample_runs[2].search)


def test_a_benchmark_takes_the_place_of_the_test_problems(sample_runs, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(sample_runs[0].directory, directory)
    known = [row for row in sample_runs[0].evals if row["model"] == "student"][-1]
    for step, mean in ((known["step"], 0.75), (999, 0.5)):
        path = directory / "benchmarks" / f"step-{step:05}" / "aime24" / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"schema": 1, "avg": {"mean": mean, "standard_error": 0.25}}))
    (line,) = (t for t in figures.accuracy([directory], benchmark="aime24")["data"] if "name" in t)
    assert (line["x"], line["y"]) == ([known["step"], 999], [0.75, 0.5])
    # What a checkpoint had cost is known where the run was evaluated at that step.
    data = figures.accuracy({"a": [directory]}, against="tokens", benchmark="aime24")["data"]
    assert [t["x"] for t in data if "name" in t] == [[known["sampled_tokens"]]]
    with pytest.raises(RecordError, match="was not evaluated on math500: run effopd eval --run"):
        figures.accuracy([directory], benchmark="math500")


def test_what_cannot_be_drawn_is_named(sample_runs, tmp_path):
    with pytest.raises(RecordError, match="against must be one of steps, tokens"):
        figures.accuracy(sample_runs, against="hours")
    with pytest.raises(RecordError, match=r"has no run\.json"):
        figures.search(tmp_path)
    with pytest.raises(RecordError, match="has no analysis"):
        figures.analysis(tmp_path)
    with pytest.raises(RecordError, match="no runs were given"):
        figures.accuracy([])
    with pytest.raises(RecordError, match="no run"):
        figures.accuracy({})
