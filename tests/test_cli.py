"""The commands as a user meets them: help, settings, messages, exit status, progress."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.console import Console
from tests.fakes import TOKENIZER, WORLD, tiny_model
from typer.testing import CliRunner

from effopd.cli.main import app
from effopd.cli.run import shown, step_line
from effopd.config.reading import to_toml
from effopd.data.world import TinyWorld
from effopd.errors import RecordError
from effopd.progress import Terminal
from effopd.search.scales import Trial
from effopd.search.validation import Score
from effopd.training.config import load_config
from effopd.training.rows import EMPTY_METRICS

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;cm0=\x07 \u202egnp.exe [bold red]x[/] :100: \x9b31m"
VISIBLE = "␛[2J␛]0;owned␇␛]52;c;cm0=␇ ⟨202E⟩gnp.exe [bold red]x[/] :100: ⟨9B⟩31m"
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def effopd(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(status: int, *arguments: str | Path) -> str:
    """The one message on standard error."""
    result = effopd(*arguments)
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    return str(result.stderr.removeprefix("error: ").strip())


def write_recipe(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(settings), encoding="utf-8")
    return path


# Help ---------------------------------------------------------------------------------------------


def test_without_arguments_the_commands_are_listed() -> None:
    result = effopd()
    for command in ("demo", "train", "eval", "report", "compare"):
        assert re.search(rf"^\W*{command}\s", result.output, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("demo", ["Train a small student with and without the search", "--out", "--model"]),
        ("train", ["Train as a recipe says", "RUN.toml", "--out", "--print-config"]),
        ("eval", ["Evaluate a model on benchmarks", "MODEL", "--bench", "--step", "--problems"]),
        ("report", ["Draw one or several runs", "RUN...", "--out"]),
    ],
)
def test_help(command: str, words: list[str]) -> None:
    result = effopd(command, "--help")
    assert result.exit_code == 0
    assert [word for word in [*words, "--debug", "--help"] if word not in result.output] == []
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [["trian"], ["train"], ["report"], ["eval"], ["train", "x.toml", "--outt", "y"],
     ["demo", "--seed", "one"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    result = effopd(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.output


# Settings -----------------------------------------------------------------------------------------


def test_print_config_shows_every_setting_and_starts_nothing(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "run.toml", {"method": "opd", "train": {"steps": 5}})
    overrides = ["preset=paper", "optimizer.lr=3e-4", "label=a b"]
    out = tmp_path / "out"
    result = effopd("train", recipe, *overrides, "--out", out, "--print-config")
    assert result.exit_code == 0
    assert result.stdout == to_toml(load_config(recipe, overrides))
    assert not out.exists()
    again = tmp_path / "again.toml"
    again.write_text(result.stdout)
    assert load_config(again) == load_config(recipe, overrides)


def test_wrong_settings_are_status_2(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "run.toml", {"optimizer": {"lrr": 1}})
    message = "unknown setting optimizer.lrr; did you mean 'lr'?"
    assert refusal(2, "train", recipe) == message
    assert refusal(2, "train", tmp_path / "gone.toml") == (
        f"cannot read {tmp_path / 'gone.toml'}: No such file or directory"
    )
    good = write_recipe(tmp_path / "good.toml", {})
    assert refusal(2, "train", good, "train.steps=0") == "train.steps must be at least 1, got 0"
    assert refusal(2, "eval", tmp_path) == f"{tmp_path} is no run directory: config.toml is missing"
    (tmp_path / "config.toml").touch()
    step = tmp_path / "checkpoints" / "step-00002"
    step.mkdir(parents=True)
    assert refusal(2, "eval", step).endswith(f"it is a checkpoint of {tmp_path}: give that")


# Everything else is status 1 ----------------------------------------------------------------------


def test_report_of_what_is_no_run(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert refusal(1, "report", gone).startswith(f"{gone} is not a directory; expected a run")
    assert refusal(1, "report", tmp_path).startswith(f"{tmp_path} has no run.json; expected a run")


def test_debug_raises_the_error_itself(tmp_path: Path) -> None:
    result = effopd("report", tmp_path, "--debug")
    assert isinstance(result.exception, RecordError)


# A whole run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run of three steps with a hostile label and hostile problems, and what it printed."""
    directory = tmp_path_factory.mktemp("cli")
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny_model(seed).save_pretrained(directory / name)
        TOKENIZER.save_pretrained(directory / name)
    task = WORLD.load()
    rows = [{"question": f"{HOSTILE} {p.prompt}", "answer": p.answer} for p in task.train[:20]]
    lines = [json.dumps(row) + "\n" for row in rows]
    (directory / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
    settings = {
        "label": HOSTILE,
        "student": {"path": str(directory / "student")},
        "teacher": {"path": str(directory / "teacher")},
        "task": {
            "type": "dataset",
            "train": {"path": str(directory / "problems.jsonl")},
            "test_size": 4,
        },
        "sampling": {"max_new_tokens": 4},
        "train": {"steps": 3, "prompts_per_step": 4},
        "evaluation": {"every": 3, "first": [], "problems": 2},
        "method": "effopd",
        "search": {"schedule": {"type": "at_steps", "steps": [2]}},
        "validation": {"type": "teacher_kl", "prompts": 4},
    }
    recipe = write_recipe(directory / "hostile.toml", settings)
    return directory, effopd("train", recipe, "--out", directory / "out")


def test_one_plain_line_a_step(run: tuple[Path, Any]) -> None:
    _, result = run
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert all(line.startswith(f"{VISIBLE}: ") for line in lines)
    said = [line.removeprefix(f"{VISIBLE}: ") for line in lines]
    number = r"-?\d+(\.\d+)?"
    step = re.compile(
        rf"step +(\d)/3  loss {number}  KL {number}  length {number}  \d+ tokens/s  {number} s  "
        rf"\d+ s left(?P<search>  search 1:{number}( {number}:{number}[+-])+ -> {number})?"
    )
    found = [match for line in said if (match := step.fullmatch(line))]
    assert [match[1] for match in found] == ["1", "2", "3"]
    assert [match["search"] is not None for match in found] == [False, True, False]
    evaluations = [line for line in said if "evaluation of the" in line]
    assert [re.sub(r"  (KL|accuracy) .*", "", line) for line in evaluations] == [
        "step   0  evaluation of the teacher",
        "step   0  evaluation of the student",
        "step   3  evaluation of the student",
    ]
    alarms = [line for line in said if re.match(r"step \d: ", line)]
    assert said[0].endswith("problems.jsonl: 20 of 20 rows kept")
    assert len(lines) == 1 + len(found) + len(evaluations) + len(alarms)


def test_nothing_printed_steers_the_terminal(run: tuple[Path, Any]) -> None:
    _, result = run
    assert not STEERS.search(result.output)


def test_the_same_command_again_says_so_and_does_nothing(run: tuple[Path, Any]) -> None:
    directory, _ = run
    before = (directory / "out" / "metrics.jsonl").read_bytes()
    result = effopd("train", directory / "hostile.toml", "--out", directory / "out")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert "out is finished (after step 3: last step)" in result.stdout
    assert (directory / "out" / "metrics.jsonl").read_bytes() == before


def test_eval_prints_the_row_of_a_checkpoint(run: tuple[Path, Any]) -> None:
    directory, _ = run
    result = effopd("eval", directory / "out", "--problems", "3")
    assert result.exit_code == 0, result.output
    _, head, *rows = result.stdout.splitlines()
    assert head == str(directory / "out" / "checkpoints" / "step-00003")
    values = dict(row.split(maxsplit=1) for row in rows)
    assert set(values) == {
        "accuracy", "accuracy_se", "reverse_kl", "mean_length", "truncated_share", "n",
        "verdicts",
    }  # fmt: skip
    assert values["n"] == "3"
    assert float(values["reverse_kl"]) > 0


def test_eval_of_a_step_that_was_not_kept(run: tuple[Path, Any]) -> None:
    directory, _ = run
    message = refusal(1, "eval", directory / "out", "--step", "2")
    assert message.startswith(f"{directory / 'out' / 'checkpoints' / 'step-00002'}: ")


def test_report_names_the_page_it_wrote(run: tuple[Path, Any]) -> None:
    directory, _ = run
    page = directory / "page" / "report.html"
    result = effopd("report", directory / "out", "--out", page)
    assert result.exit_code == 0, result.output
    assert f"report: {page}" in result.stdout
    assert page.is_file()
    assert not STEERS.search(result.stdout)


# Progress -----------------------------------------------------------------------------------------


def metrics(step: int, **values: Any) -> dict[str, Any]:
    numbers = {"loss": 0.25, "reverse_kl": 0.125, "mean_length": 7.5, "sampled_tokens": 900}
    return EMPTY_METRICS | numbers | {"step": step, "accepted_scale": None} | values


TIMING = {"step": 1, "elapsed_s": 3.0, "rollout_s": 1.0, "update_s": 0.5, "search_s": 0.25}


def trial(scale: float, value: float | None, accepted: bool | None) -> Trial:
    score = None if value is None else Score(value=value)
    kind: Any = "incumbent" if accepted is None else "candidate"
    return Trial(kind=kind, scale=scale, score=score, accepted=accepted)


def test_step_line() -> None:
    assert step_line(metrics(8), TIMING, 64, 98.4) == (
        "step   8/64  loss 0.2500  KL 0.1250  length 7.5  300 tokens/s  1.75 s  98 s left"
    )


def test_step_line_of_a_skipped_step_and_of_another_divergence() -> None:
    skipped = metrics(8, loss=None, reverse_kl=None, mean_length=None)
    assert step_line(skipped, TIMING, 64, 0.0) == "step   8/64  300 tokens/s  1.75 s  0 s left"
    other = step_line(metrics(8, reverse_kl=None), TIMING, 64, 0.0)
    assert "loss 0.2500  length 7.5" in other


def lines_of(observed: Sequence[tuple[str, tuple[Any, ...]]], name: str = "run") -> list[str]:
    """What a run without a terminal prints for these events."""
    printed = io.StringIO()
    with shown(name, 64, Terminal(Console(file=printed, width=40))) as observer:
        for event, arguments in observed:
            getattr(observer, event)(*arguments)
    return printed.getvalue().splitlines()


def test_a_search_is_shown_in_the_line_of_its_step() -> None:
    trials = [trial(1, -0.5, None), trial(2, -0.25, True), trial(4, None, False)]
    first, second = lines_of(
        [
            *(("on_trial", (8, i, each)) for i, each in enumerate(trials)),
            ("on_step", (metrics(8, accepted_scale=2.0), TIMING)),
            ("on_step", (metrics(9), TIMING)),
        ]
    )
    assert first.endswith(" s left  search 1:-0.5000 2:-0.2500+ 4:unscored- -> 2")
    assert second.endswith(" s left"), "trials of an earlier step are not repeated"


def test_a_search_that_found_nothing_ends_at_the_tip() -> None:
    trials = [trial(1, None, None)]
    events = [("on_trial", (8, 0, trials[0])), ("on_step", (metrics(8), TIMING))]
    assert lines_of(events)[0].endswith("search 1:unscored -> 1")


def test_time_left_counts_from_the_first_step_and_not_from_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    printed = io.StringIO()
    with shown("run", 64, Terminal(Console(file=printed, width=200))) as observer:
        for step, clock[0] in ((5, 1000.0), (6, 1010.0)):  # the first ends 1000 s after the start
            observer.on_step(metrics(step), TIMING)
    left = [re.findall(r"(\d+) s left", line)[0] for line in printed.getvalue().splitlines()]
    assert left == [f"{1.75 * 59:.0f}", f"{(10 + 1.75) / 2 * 58:.0f}"]


def test_evaluation_lines() -> None:
    row = {"step": 4, "model": "student", "accuracy": 0.5, "reverse_kl": 0.0625}
    nothing = {"step": 4, "model": "teacher", "accuracy": None, "reverse_kl": None}
    assert lines_of([("on_evaluation", (row,)), ("on_evaluation", (nothing,))]) == [
        "run: step   4  evaluation of the student  accuracy 0.500  KL to teacher 0.0625 nats",
        "run: step   4  evaluation of the teacher",
    ]


def test_messages_are_plain_text_whatever_they_hold() -> None:
    assert lines_of([("on_message", (HOSTILE,))], name=HOSTILE) == [f"{VISIBLE}: {VISIBLE}"]


def test_no_bar_and_no_colour_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("run", 64) as observer:
        observer.on_step(metrics(1), TIMING)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert not STEERS.search(out)


def test_a_bar_shows_hostile_text_and_obeys_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "400"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR")
    with shown(HOSTILE, 64) as observer:
        observer.on_step(metrics(1), TIMING)
        observer.on_message("between")
    text = capsys.readouterr().out
    assert "\x1b[" in text, "a bar is drawn"
    assert [
        steer for steer in ("\x1b]", "\x1b[2J", "\x07", "\u202e", "\x9b") if steer in text
    ] == []
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert f"{VISIBLE}: between" in drawn
    assert re.search(rf"{re.escape(VISIBLE)} [━╸╺]+ +1/64 +step   1/64  loss 0.2500", drawn)


def test_the_demo_compares_searches_under_one_objective() -> None:
    from effopd.cli.run import COMMON, METHODS
    from effopd.training.config import make_config

    configs = {label: make_config(COMMON | settings) for label, settings in METHODS.items()}
    assert {config.method for config in configs.values()} == {"opd", "effopd", "slope"}
    assert {type(config.task) for config in configs.values()} == {TinyWorld}
    assert {config.objective for config in configs.values()} == {configs["opd"].objective}
