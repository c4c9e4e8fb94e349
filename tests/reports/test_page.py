"""The text of the report: what a record can and cannot put into it."""

import base64
import hashlib
import html.parser
import json
import re
import subprocess
import sys

import pytest

import effopd
from effopd.errors import MissingExtraError, RecordError
from effopd.records import Run
from effopd.reports.comparison import Comparison
from effopd.reports.embedding import embedded
from effopd.reports.page import page_content, write_report
from effopd.reports.rollouts import divergence_limit, rollout_rows


class Outline(html.parser.HTMLParser):
    """Tags in order, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        if self.inside:
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)

    def handle_endtag(self, tag):
        self.inside = False


def outline(runs, path):
    write_report(runs, path)
    return Outline(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(sample_runs, tmp_path_factory):
    return outline(sample_runs, tmp_path_factory.mktemp("report") / "report.html")


def test_the_policy_names_exactly_the_scripts_of_the_package(page):
    policy = next(
        dict(attrs)["content"]
        for tag, attrs in page.tags
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attrs
    )
    code = [text for attrs, text in page.scripts if "type" not in attrs]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert len(code) == 3
    assert policy == (
        "default-src 'none'; script-src "
        + " ".join(f"'sha256-{each}'" for each in hashes)
        + "; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def test_nothing_is_loaded_from_anywhere(page):
    loading = {"src", "href", "srcset", "action", "data", "poster", "background"}
    assert not [name for _, attrs in page.tags for name, _ in attrs if name in loading]
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}


def test_the_data_in_the_page_is_that_of_the_runs(page, sample_runs):
    blocks = {attrs["id"]: json.loads(text) for attrs, text in page.scripts if "id" in attrs}
    assert blocks["data"] == json.loads(
        json.dumps(page_content(Comparison.of_runs(sample_runs, ""))[1])
    )
    for index, run in enumerate(sample_runs):
        assert blocks[f"rollouts-{index}"] == rollout_rows(run)


def test_hostile_text_changes_no_tag(runs_saying, payloads, tmp_path):
    found = outline(runs_saying(payloads), tmp_path / "hostile.html")
    plain = outline(
        runs_saying([f"run {i}" for i in range(len(payloads))]), tmp_path / "plain.html"
    )
    assert [(tag, [name for name, _ in attrs]) for tag, attrs in found.tags] == [
        (tag, [name for name, _ in attrs]) for tag, attrs in plain.tags
    ]
    for attrs, text in found.scripts:
        if "id" in attrs:
            assert not re.search("[<>&\u2028\u2029]", text)


@pytest.mark.parametrize(
    "text", ["</script>", "<!--", "&amp;", "\u2028\u2029", "é \ud800", "{{page}}"]
)
def test_embedded_json_is_plain_and_comes_back(text):
    shown = embedded({"text": text})
    assert not set(shown) & set("<>&")
    assert shown.isascii()
    assert json.loads(shown) == {"text": text}


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="no runs were given"):
        write_report([], tmp_path / "report.html")


def test_plotly_missing_names_the_extra(sample_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'effopd\[report\]'"):
        write_report(sample_runs, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_report_needs_no_torch_and_figures_no_plotly():
    # The public API of effopd needs torch; an empty package stands in for it.
    code = (
        "import sys, types; package = types.ModuleType('effopd'); "
        f"package.__path__ = {effopd.__path__!r}; sys.modules['effopd'] = package; "
        "import effopd.reports.page, effopd.reports.png; "
        "print([m for m in ('torch', 'plotly', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def rollout(**row):
    return Run(directory=None, label="x", info={}, rollouts=[{"step": 0, **row}])


def test_tokens_are_shown_only_with_a_divergence_for_each():
    whole = rollout(tokens=["a", "\x1b"], kl_nats=[0.1234567, None], completion="ab")
    (row,) = rollout_rows(whole)
    assert (row["tokens"], row["kl"]) == (["a", "␛"], [0.123457, None])
    for tokens, values in ((["a"], [0.1, 0.2]), (None, None), (["a"], ["<b>"]), ([], [])):
        (row,) = rollout_rows(rollout(tokens=tokens, kl_nats=values, completion="ab"))
        assert (row["completion"], "tokens" in row) == ("ab", False)


@pytest.mark.parametrize(
    ("values", "limit", "negative"),
    [
        ([], 1.0, False),
        ([0.0, 0.0], 0.01, False),
        ([0.03, 0.04], 0.05, False),
        ([0.1, 0.15], 0.1, False),
        ([0.3, 0.3, 0.3], 0.5, False),
        ([-1.2, 1.2, 1.2], 2.0, True),
        ([6.0] * 9, 10.0, False),
        ([60.0] * 9, 100.0, False),
    ],
)
def test_the_colour_scale_of_tokens_ends_at_a_round_number(values, limit, negative):
    run = rollout(tokens=["t"] * len(values), kl_nats=values)
    assert divergence_limit([run]) == (limit, negative)
