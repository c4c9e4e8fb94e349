"""The live page over real HTTP while records grow, and in a browser."""

import http.client
import json
import shutil
import socket
from urllib.parse import urlsplit

import pytest
from tests.reports.conftest import write_rows, write_sample_run

from effopd.errors import ConfigError, RecordError
from effopd.records import JsonlWriter, load_run, read_json, write_json_atomic
from effopd.reports.comparison import Comparison
from effopd.reports.live import MOST_SAMPLES, JsonlFollower, LivePage, RunFollower, WatchServer
from effopd.reports.page import page_content, write_report
from effopd.reports.rollouts import rollout_rows
from effopd.reports.timeline import MOST_POINTS, alarms, step_figure

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture
def run(tmp_path):
    """A run of which half is written: a directory, and the rest of its rows by file."""
    directory = tmp_path / "runs" / "effopd"
    write_sample_run(directory, "effopd")
    rest = {}
    for path in directory.glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 2]))
        rest[path] = b"".join(lines[len(lines) // 2 :])
    return directory, rest


def grow(rest):
    for path, data in rest.items():
        with open(path, "ab") as file:
            file.write(data)


@pytest.fixture
def server(run):
    with WatchServer([run[0]], every_s=0.02) as server:
        yield server


def get(server, path, **headers):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port, timeout=60)
    connection.request(
        "GET", path, headers={key.replace("_", "-"): v for key, v in headers.items()}
    )
    answer = connection.getresponse()
    return answer.status, dict(answer.headers), answer.read().decode()


def data_of(directory):
    """What the page of a report draws of a run."""
    return json.loads(json.dumps(page_content(Comparison.of_runs([load_run(directory)], ""))[1]))


# Over HTTP ----------------------------------------------------------------------------------------


def test_what_is_new_is_what_a_report_draws(server, run):
    status, _, text = get(server, "/now")
    first = json.loads(text)
    assert status == 200
    assert first["data"]["figures"] == data_of(run[0])["figures"]
    tag = first["data"]["live"]["tag"]
    assert get(server, "/now", If_None_Match=tag)[::2] == (304, "")
    grow(run[1])
    status, _, text = get(server, "/now", If_None_Match=tag)
    second = json.loads(text)
    assert status == 200
    assert second["data"]["live"]["tag"] != tag
    assert second["data"]["figures"] == data_of(run[0])["figures"] != first["data"]["figures"]
    assert "step 48" in second["page"]
    assert json.loads(get(server, "/rollouts/0")[2]) == rollout_rows(load_run(run[0]))


def test_the_page_itself(server):
    status, headers, text = get(server, "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"
    assert "form-action 'none'; connect-src 'self'" in text.replace("&#39;", "'")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "["])
def test_a_name_that_was_led_here_is_refused(server, host):
    for path in ("/", "/now", "/rollouts/0"):
        status, _, text = get(server, path, Host=host)
        assert (status, text) == (403, "Host is not a name of this machine")


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1", "[::1]:80"])
def test_the_names_of_this_machine_are_answered(server, host):
    assert get(server, "/now", Host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/run.json", "/../run.json", "/rollouts/7", "/rollouts/-1", "/rollouts/", "/now/"],
)
def test_nothing_else_is_served(server, path):
    assert get(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_reads(server, run, method):
    before = {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(server.url).port, timeout=60)
    connection.request(method, "/now", body=b"{}")
    assert connection.getresponse().status == 501
    assert before == {path: path.read_bytes() for path in run[0].rglob("*") if path.is_file()}


def test_a_damaged_record_is_said_and_not_the_end(server, run):
    path = run[0] / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"{}\n" + whole)
    status, _, text = get(server, "/now")
    assert status == 503
    assert "metrics.jsonl, line 1: schema None, expected 1" in text
    path.write_bytes(whole)
    assert get(server, "/now")[0] == 200
    (run[0] / "config.toml").unlink(missing_ok=True)
    (run[0] / "config.toml").mkdir()  # what nobody foresees is said too
    status, _, text = get(server, "/now")
    assert status == 500
    assert text.startswith("IsADirectoryError: ")


def test_a_port_that_is_taken_is_refused(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* give another, or 0"):
            WatchServer([run[0]], port=port)


# Following ----------------------------------------------------------------------------------------


def test_rows_are_read_once_they_are_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    follower = JsonlFollower(path, most=2)
    assert not follower.read()
    line = b'{"schema":1,"step":1}\n'
    path.write_bytes(line[:9])
    assert (follower.read(), follower.rows) == (False, [])
    path.write_bytes(line)
    assert (follower.read(), [row["step"] for row in follower.rows]) == (True, [1])
    assert not follower.read()
    path.write_bytes(line + line.replace(b":1}", b":2}") + line.replace(b":1}", b":3}"))
    assert (follower.read(), [row["step"] for row in follower.rows]) == (True, [2, 3])
    path.write_bytes(line)  # cut back, as a run does that resumes
    assert (follower.read(), [row["step"] for row in follower.rows]) == (True, [1])
    path.write_bytes(line.replace(b":1}", b":4}") + line)  # longer, and another
    assert (follower.read(), [row["step"] for row in follower.rows]) == (True, [4, 1])
    path.unlink()
    assert (follower.read(), follower.rows) == (True, [])
    path.write_bytes(line + b"{}\n")
    with pytest.raises(RecordError, match="line 2"):
        follower.read()


def test_a_run_followed_to_its_end_is_the_run_that_is_loaded(run):
    directory, rest = run
    follower = RunFollower(directory)
    assert follower.read()
    grow(rest)
    assert follower.read()
    assert follower.run == load_run(directory)
    assert not follower.read()


def test_progress_is_what_the_records_say(run):
    directory, rest = run
    grow(rest)
    (directory / "config.toml").write_text("[train]\nsteps = 50\n")
    rows = [{"step": step, "elapsed_s": 3.0 * step} for step in range(1, 49)]
    (directory / "timing.jsonl").unlink()
    write_rows(directory / "timing.jsonl", rows)
    follower = RunFollower(directory)
    follower.read()
    text = "step 48 of 50, 3 s a step, about 6 s left"
    assert follower.progress() == {"step": 48, "steps": 50, "text": text}
    info = read_json(directory / "run.json") | {"finished": {"step": 48, "reason": "last step"}}
    write_json_atomic(directory / "run.json", info)
    follower.read()
    assert follower.progress()["text"] == "step 48 of 50, finished: last step"
    for broken in ("train = 3", "train.steps = 'x'", "[[["):
        (directory / "config.toml").write_text(broken)
        follower.read()
        assert follower.progress()["steps"] is None


def test_runs_of_a_directory_are_found_as_they_start(run):
    parent = run[0].parent
    page = LivePage([parent, parent / "later"], 1.0)
    tag = page.look()
    assert "waiting for the run to start" in (page.news("") or "")
    shutil.copytree(run[0], parent / "another")
    assert page.look() != tag
    data = json.loads(page.news("") or "")["data"]
    assert [each["index"] for each in data["samples"]] == [0, 1]
    assert page.rollouts(3) is None


def test_the_last_samples_are_kept(run):
    with JsonlWriter(run[0] / "rollouts.jsonl") as writer:
        for step in range(MOST_SAMPLES):
            writer.write({"step": step, "completion": "x"})
    follower = RunFollower(run[0])
    follower.read()
    assert [row["step"] for row in follower.run.rollouts] == list(range(MOST_SAMPLES))


# What the page of runs gained ---------------------------------------------------------------------


def test_alarms_of_metrics_and_monitor_the_latest_first(make_run):
    run = make_run("opd", [(0, 0.1, 0, 0)])
    run.metrics[:] = [
        {"step": 1, "alarms": ["long answers"], "skipped": None},
        {"step": 3, "alarms": [], "skipped": "the gradient is not finite"},
    ]
    run.monitor[:] = [{"step": 2, "alarms": ["foresight is lost"]}]
    assert [(each["step"], each["text"]) for each in alarms([run])] == [
        ("3", "update skipped: the gradient is not finite"),
        ("2", "foresight is lost"),
        ("1", "long answers"),
    ]


def test_a_long_run_is_thinned_evenly_and_ends_at_its_end(make_run):
    run = make_run("opd", [(0, 0.1, 0, 0)])
    run.metrics[:] = [{"step": step, "loss": 0.5 * step} for step in range(1, 2 * MOST_POINTS + 2)]
    (curve,) = step_figure([run], "loss")["data"]
    assert len(curve["x"]) <= MOST_POINTS
    assert {b - a for a, b in zip(curve["x"], curve["x"][1:], strict=False)} == {3}
    assert (curve["x"][-1], curve["y"][-1]) == (2 * MOST_POINTS + 1, MOST_POINTS + 0.5)


# In a browser -------------------------------------------------------------------------------------

DRAWN = "document.getElementById('accuracy')?.data?.[1]?.x.length"


def go(browser, address):
    browser.call("Page.navigate", url=address)
    while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
        browser.events.append(browser.receive())


@pytest.fixture
def visit(browser):
    """Opens the page of a server; leaves it at the end, since it would go on asking."""

    def opened(server):
        browser.events.clear()
        go(browser, server.url)

    browser.events.clear()
    go(browser, "about:blank")
    yield opened
    browser.events.clear()
    go(browser, "about:blank")


def test_a_browser_follows_a_run_and_keeps_what_the_reader_chose(browser, visit, server, run):
    directory, rest = run
    visit(server)
    browser.wait_for("document.querySelectorAll('.tokens span').length > 0")
    browser.evaluate("document.querySelector('[data-pick=cost] input[value=tokens]').click()")
    browser.evaluate(
        "(() => { const s = document.querySelector('[data-pick=quantity]'); s.value = 'reverse_kl';"
        "s.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    browser.evaluate("document.querySelector('#settings details').open = true")
    browser.evaluate("Plotly.relayout('accuracy', { 'xaxis.range': [0, 1000] }).then(() => 0)")
    browser.evaluate("void (window.plot = document.getElementById('accuracy'))")
    grow(rest)
    rows = [row for row in load_run(directory).evals if row["model"] == "student"]
    browser.wait_for(f"{DRAWN} == {len(rows)}")
    tokens = browser.evaluate("document.getElementById('accuracy').data[1].x")
    assert tokens == [row["sampled_tokens"] for row in rows]
    assert browser.evaluate("document.getElementById('accuracy') === window.plot")
    assert browser.evaluate("window.plot.layout.xaxis.range") == [0, 1000]
    assert browser.evaluate("document.querySelector('#settings details').open")
    browser.wait_for("document.getElementById('pick-step').value == '48'")
    assert "step 48" in browser.evaluate("document.getElementById('progress').textContent")
    # Chosen steps stay chosen, and a part that appears later finds its place.
    browser.evaluate(
        "(() => { const s = document.getElementById('pick-step'); s.value = '16';"
        "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    with JsonlWriter(directory / "rollouts.jsonl") as writer:
        writer.write({"step": 49, "completion": "x", "prompt": "y"})
    with JsonlWriter(directory / "metrics.jsonl") as writer:
        writer.write({"step": 49, "alarms": ["<b>long</b> answers"]})
    browser.wait_for("[...document.getElementById('pick-step').options].at(-1).value == '49'")
    assert browser.evaluate("document.getElementById('pick-step').value") == "16"
    browser.wait_for("document.getElementById('alarms')")
    parts = browser.evaluate(
        "[...document.querySelector('main').children].map(n => n.getAttribute('aria-label'))"
    )
    assert parts[:4] == ["Progress", "Alarms", "What is shown", "Curves"]
    assert browser.evaluate("document.querySelector('#alarms small').textContent") == (
        "<b>long</b> answers"
    )
    assert browser.problems() == []
    addresses = {urlsplit(url).netloc for url in browser.addresses() if url.startswith("http")}
    assert addresses == {urlsplit(server.url).netloc}


def test_a_page_whose_server_ended_says_so(browser, visit, run):
    with WatchServer([run[0]], every_s=0.02) as server:
        visit(server)
        browser.wait_for("document.getElementById('pulse').textContent.startsWith('Following')")
    browser.wait_for("document.getElementById('pulse').textContent.includes('does not answer')")
    assert browser.evaluate(DRAWN) > 0


def test_hostile_text_that_arrives_later_never_runs(browser, visit, payloads, tmp_path):
    directory = tmp_path / payloads[0].replace("/", "_")
    write_sample_run(directory, "opd")
    with WatchServer([directory], every_s=0.02) as server:
        visit(server)
        browser.wait_for("document.querySelectorAll('.tokens span').length > 0")
        for text in payloads:
            info = read_json(directory / "run.json")
            write_json_atomic(directory / "run.json", info | {"label": text, "method": text})
            (directory / "config.toml").write_text(text)
            with JsonlWriter(directory / "metrics.jsonl") as writer:
                writer.write({"step": 49, "alarms": [text], "skipped": text})
            with JsonlWriter(directory / "rollouts.jsonl") as writer:
                writer.write({"step": 50, "prompt": text, "completion": text, "problem_id": text})
        shown = f"[...document.querySelectorAll('#alarms small')].length == {2 * len(payloads)}"
        browser.wait_for(f"{shown} || document.querySelectorAll('#alarms small').length == 20")
        browser.wait_for("document.getElementById('pick-step').value == '50'")
        browser.evaluate("document.querySelectorAll('#samples button').forEach(b => b.click())")
        assert browser.evaluate("document.querySelector('#sample pre').textContent") == payloads[-1]
        for kind in ("img", "iframe", "[onload]", "[onerror]", "a", "object", "h1 *", "pre *"):
            assert browser.evaluate(f"document.querySelectorAll({kind!r}).length") == 0, kind
        assert browser.evaluate("document.documentElement.dataset.xss") is None
        assert browser.problems() == []


def test_the_report_of_the_same_run_has_no_live_part(run, tmp_path):
    write_report([load_run(run[0])], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    assert 'id="pulse"' not in text
    assert "connect-src" not in text
