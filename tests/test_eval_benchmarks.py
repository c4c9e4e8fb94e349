"""`effopd.evaluate`: answers on disk, resumed, refused and compared; and `effopd eval --bench`."""

import dataclasses
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model
from tests.support import architectures, processes
from tests.support.processes import kill_me
from tests.support.tiny import tiny_config, train_tiny, write_models
from typer.testing import CliRunner

import effopd
from effopd.cli.main import STOPPED, app
from effopd.data.problem import Problem
from effopd.errors import ConfigError, RunLockedError
from effopd.evaluation.benchmarks import run as benchmarking
from effopd.evaluation.benchmarks.results import Evaluation
from effopd.evaluation.grading import summarise
from effopd.evaluation.statistics import compare
from effopd.models.loading import load_model, load_tokenizer
from effopd.progress import Display, Progress
from effopd.records import read_json
from effopd.training.signals import StopRequest
from effopd.workspace import Workspace

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
QUICK = {"sampling": {"max_new_tokens": 6}, "batch": 4, "device": "cpu"}
SUMS = [{"problem": f"{i} + {i} =", "answer": str(2 * i)} for i in range(1, 6)]


class Listener(Display):
    """Hears all lines, and does something after each portion of answers."""

    def __init__(self, after: Any = lambda progress: None) -> None:
        self.lines: list[str] = []
        self.after = after

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def progress(self, name: str, total: int, **more: Any) -> Iterator[Progress]:
        with super().progress(name, total, **more) as progress:
            advance = progress.advance

            def advanced(*given: Any, **named: Any) -> None:
                advance(*given, **named)
                self.after(progress)

            progress.advance = advanced  # type: ignore[method-assign]
            yield progress


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures.save(tmp_path_factory.mktemp("model") / "tiny", "qwen3")


def evaluate(model: Any, out: Path | None = None, n: int = 2, **more: Any) -> Evaluation:
    """Answers to five sums; with two samples they are three portions of four."""
    settings = QUICK | more.pop("settings", {})
    asked: dict[str, Any] = {"data": {"sums": SUMS}} | more
    return effopd.evaluate(model, "sums", n, out=out, settings=settings, **asked)


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluate(model, tmp_path_factory.mktemp("undisturbed") / "out")


# What comes back, and what is written -------------------------------------------------------------


def test_every_answer_is_there_and_the_summary_is_theirs(
    model: Path, undisturbed: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    found = undisturbed.answers["sums"]
    assert [(each.question, each.sample) for each in found] == [
        (f"sums-{i}", sample) for i in range(1, 6) for sample in (0, 1)
    ]
    assert len({each.seed for each in found}) == 10
    assert len({each.completion for each in found}) > 1
    assert all(1 <= each.tokens <= 6 for each in found)
    expected = summarise(found, votes=True)
    assert {key: undisturbed.summary["sums"][key] for key in expected} == expected
    rows = undisturbed.rows("sums")
    frame = undisturbed.to_pandas()
    assert list(frame["benchmark"]) == ["sums"] * 10
    assert list(frame["seed"]) == [row["seed"] for row in rows] == [each.seed for each in found]
    written = read_json(undisturbed.directory / "results.json")["results"]["sums"]
    assert written == undisturbed.summary["sums"]
    assert undisturbed.text().splitlines()[-1].split()[:4] == ["sums", "5", "x", "2"]
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    again = evaluate(model, settings={"threads": threads + 1})  # in a temporary directory
    assert again.answers == undisturbed.answers
    assert (torch.get_num_threads(), signal.getsignal(signal.SIGTERM)) == (threads, handler)
    assert capsys.readouterr().out == ""


def test_answers_depend_on_seeds_and_not_on_the_portion(
    model: Path, undisturbed: Evaluation
) -> None:
    assert evaluate(model, settings={"batch": 7}).answers == undisturbed.answers
    other = evaluate(model, settings={"seed": 1}).answers["sums"]
    assert [e.completion for e in other] != [e.completion for e in undisturbed.answers["sums"]]


def test_a_model_in_memory_answers_as_its_directory(
    model: Path, tmp_path: Path, undisturbed: Evaluation
) -> None:
    loaded = load_model(str(model)).train()
    assert evaluate(loaded, tmp_path).answers == undisturbed.answers
    assert loaded.training
    evaluate((loaded, load_tokenizer(str(model))), tmp_path)
    with torch.no_grad():
        next(loaded.parameters()).mul_(2)
    with pytest.raises(ConfigError, match=r"(?s)other settings:\n  model\.files: \w+ -> \w+\nGo"):
        evaluate(loaded, tmp_path)
    with pytest.raises(ConfigError, match="a model must be a directory"):
        evaluate(7)


def test_checkpoints_of_a_run_answer_with_its_prompt(tmp_path: Path) -> None:
    config = tiny_config(
        write_models(tmp_path / "models"),
        {"train.steps": 4, "checkpoint.every": 1, "checkpoint.keep": 4, "prompt.chat": False},
    )
    run, sums = tmp_path / "run", tmp_path / "sums.jsonl"
    assert train_tiny(config, run)[0]
    sums.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    asked = ["sampling.max_new_tokens=4", "--bench", "sums", "--data", f"sums={sums}"]
    result = effopd_command("eval", *asked, "--run", run, "--every", "2")
    assert result.exit_code == 0, result.output
    out = run / "benchmarks"
    assert sorted(path.name for path in out.iterdir()) == ["step-00002", "step-00004"]
    checkpoint = run / "checkpoints" / "step-00002"
    settings = (out / checkpoint.name / "sums" / "settings.toml").read_text()
    assert f'path = "{checkpoint}"' in settings
    assert "chat = false" in settings
    more = {"sampling": {"max_new_tokens": 4}}
    again = effopd.evaluate(checkpoint, "sums", data={"sums": sums}, settings=more)
    (written,) = effopd.evaluate(
        checkpoint, "sums", data={"sums": sums}, settings=more, out=out / checkpoint.name
    ).answers.values()
    assert again.answers["sums"] == written
    assert "no checkpoint at a multiple of 7" in refusal(
        "eval", *asked, "--run", run, "--every", "7"
    )


# Going on -----------------------------------------------------------------------------------------


def going_on(problem: Problem, answer: str) -> str | None:
    """Replies twice."""
    return "1 ;" if len(problem.after) < 4 else None


def test_an_environment_replies_and_the_last_turn_is_checked(tmp_path: Path) -> None:
    """`environment.name`, or that of the run; turns of one answer are in its row."""
    environment = {"name": "tests.test_eval_benchmarks:going_on", "role": "user"}
    settings = QUICK | {"sampling": {"max_new_tokens": 64}}
    asked: dict[str, Any] = {"data": {"chains": [{"problem": "3 + 4 =", "answer": "0"}]}}
    pair = tiny_model(), TOKENIZER
    alone, talked = (
        effopd.evaluate(pair, "chains", 8, out=tmp_path / name, settings=settings | more, **asked)
        for name, more in (("alone", {}), ("talked", {"environment": environment}))
    )
    assert not any("said" in row for row in alone.rows("chains"))
    for one, several in zip(alone.rows("chains"), talked.rows("chains"), strict=True):
        roles = [each["role"] for each in several.get("said", ())]
        if not one["truncated"]:
            assert several["said"][0]["content"] == one["completion"]
            assert several["said"][1] == {"role": "user", "content": "1 ;"}
            assert several["tokens"] > one["tokens"]  # what it wrote, without the replies
        assert roles == ["assistant", "user"] * (len(roles) // 2)
        assert several["truncated"] or len(roles) == 4
    assert any(not each["truncated"] for each in talked.rows("chains"))
    changed = settings | {"environment": environment | {"max_turns": 2}}
    with pytest.raises(ConfigError, match=r"environment\.max_turns"):
        effopd.evaluate(pair, "chains", 8, out=tmp_path / "talked", settings=changed, **asked)


def test_a_checkpoint_answers_in_the_environment_of_its_run(tmp_path: Path) -> None:
    named = {"environment.name": f"{__name__}:going_on", "environment.role": "user"}
    config = tiny_config(
        write_models(tmp_path / "models"), {"train.steps": 1, "checkpoint.every": 1} | named
    )
    assert train_tiny(config, tmp_path / "run")[0]
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00001"
    out = evaluate(checkpoint, tmp_path / "out").directory
    settings = (out / "sums" / "settings.toml").read_text()
    assert f'[environment]\nname = "{__name__}:going_on"' in settings


def no_model(*_: Any) -> None:
    raise AssertionError("nothing is missing")


def test_a_finished_evaluation_answers_nothing_again(
    model: Path, undisturbed: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = undisturbed.directory / "sums" / "samples.jsonl"
    before = path.read_bytes()
    monkeypatch.setattr(benchmarking, "load_model", no_model)
    assert evaluate(model, undisturbed.directory) == undisturbed
    assert path.read_bytes() == before


def test_killed_and_resumed_is_as_undisturbed(
    model: Path, tmp_path: Path, undisturbed: Evaluation
) -> None:
    """SIGKILL after the second portion, and a line that was on its way to the disk."""

    def die(progress: Progress) -> None:
        if progress.done == 8:
            with (tmp_path / "sums" / "samples.jsonl").open("a") as file:
                file.write('{"schema":1,"question":"su')
            kill_me()

    killed = Listener(die)
    assert processes.run(lambda: len(evaluate(model, tmp_path, display=killed).answers)) == -9
    missing: list[int] = []
    listener = Listener(lambda progress: missing.append(progress.done))
    found = evaluate(model, tmp_path, display=listener)
    assert missing == [10]
    assert (found.answers, found.summary) == (undisturbed.answers, undisturbed.summary)


def test_a_request_to_stop_keeps_what_is_there(
    model: Path, tmp_path: Path, undisturbed: Evaluation
) -> None:
    stop = StopRequest()
    asking = Listener(lambda progress: setattr(stop, "signal_number", 15))
    found = evaluate(model, tmp_path, display=asking, stop=stop)
    assert (found.finished, found.summary, found.answers) == (False, {}, {})
    assert len((tmp_path / "sums" / "samples.jsonl").read_text().splitlines()) == 4
    assert not (tmp_path / "sums" / "summary.json").exists()
    assert evaluate(model, tmp_path).answers == undisturbed.answers


def test_more_samples_keep_those_that_are_there(
    model: Path, tmp_path: Path, undisturbed: Evaluation
) -> None:
    first = evaluate(model, tmp_path, n=1).answers["sums"]
    lines = (tmp_path / "sums" / "samples.jsonl").read_text()
    assert len(first) == 5
    assert evaluate(model, tmp_path, settings={"batch": 3}).answers == undisturbed.answers
    assert (tmp_path / "sums" / "samples.jsonl").read_text().startswith(lines)


# Refusals -----------------------------------------------------------------------------------------


def test_answers_of_another_evaluation_are_not_mixed_in(
    model: Path, undisturbed: Evaluation, tmp_path: Path
) -> None:
    out = undisturbed.directory
    with pytest.raises(ConfigError, match=r"sampling\.temperature: 1\.0 -> 0\.5\n.*directory"):
        evaluate(model, out, settings={"sampling": {"temperature": 0.5, "max_new_tokens": 6}})
    with pytest.raises(ConfigError, match=r"questions\.digest: "):
        evaluate(model, out, data={"sums": SUMS[:3]})
    copied = architectures.save(tmp_path / "tiny", "qwen3", seed=1)
    with pytest.raises(ConfigError, match=r"(?s)model\.files: .*model\.path: "):
        evaluate(copied, out)
    # Changed weights under the old name.
    evaluate(copied, tmp_path / "out", n=1)
    architectures.save(copied, "qwen3", seed=2)
    with pytest.raises(ConfigError, match=r"model\.files: ") as refused:
        evaluate(copied, tmp_path / "out", n=1)
    assert str(refused.value).count(" -> ") == 1


def test_damaged_settings_lost_settings_and_another_process(model: Path, tmp_path: Path) -> None:
    evaluate(model, tmp_path, n=1)
    settings = tmp_path / "sums" / "settings.toml"
    settings.write_text("= ?")
    with pytest.raises(ConfigError, match=re.escape(f"{settings} is damaged")):
        evaluate(model, tmp_path, n=1)
    settings.unlink()
    with pytest.raises(ConfigError, match=r"holds answers but no settings\.toml"):
        evaluate(model, tmp_path, n=1)
    with (
        Workspace(tmp_path / "sums", "evaluation"),
        pytest.raises(RunLockedError, match="in use by another process"),
    ):
        evaluate(model, tmp_path, n=1)


def test_prompts_are_checked_before_any_is_answered(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt sums-1 has"):
        evaluate(model, tmp_path, settings={"prompt": {"max_tokens": 8}})
    assert (tmp_path / "sums" / "samples.jsonl").read_text() == ""


# Own solutions and comparisons --------------------------------------------------------------------


def self_check(name: str, *rows: dict[str, str]) -> tuple[Evaluation, str]:
    listener = Listener()
    found = effopd.evaluate(None, name, data={name: rows}, display=listener)
    return found, "\n".join(listener.lines)


def test_own_solutions_show_what_is_not_found_right() -> None:
    found, said = self_check("math500", *(
        {"problem": "p", "solution": rf"so \boxed{{{boxed}}}", "answer": "2"}
        for boxed in ("2", "3")
    ))  # fmt: skip
    assert "\n  math500-2: wrong, boxed '3'" in said
    assert "math500-1: " not in said
    assert found.summary["math500"]["avg"]["mean"] == 0.5


def references(*answers: str) -> list[dict[str, str]]:
    return [{"problem": f"{i}?", "answer": answer} for i, answer in enumerate(answers)]


def test_unreadable_references_are_left_out_and_named() -> None:
    rows = references("1", r"A \cup B \{", "2", r"\frac{sqrt{7}}{2}")
    found, said = self_check("own", *rows)
    assert "own: left out 2 questions" in said
    assert "own-2, own-4" in said
    row = found.summary["own"]
    assert (row["questions"], row["avg"]["mean"]) == (2, 1.0)
    assert row["left_out"] == {"reference that cannot be read as mathematics": 2}
    assert "relative_error" not in row
    with pytest.raises(ConfigError, match=r"(?s)no reference answer of own.*\\boxed\{\.\.\.\}"):
        self_check("own", *references("Answer: 1", "The sum is 2"))
    found, _ = self_check("minerva", *references("0.5613", "1.39e9"))
    assert found.summary["minerva"]["relative_error"] == 1e-4


def test_two_models_are_compared_question_by_question(model: Path, tmp_path: Path) -> None:
    """Against an evaluation whose answers are edited to be right where these are wrong."""
    first, second = evaluate(model, tmp_path / "a"), evaluate(model, tmp_path / "b")
    edited = [
        dataclasses.replace(each, verdict="correct")
        if each.sample == 0 and each.question != "sums-5"
        else each
        for each in second.answers["sums"]
    ]
    (found,) = first.compare(dataclasses.replace(second, answers={"sums": edited})).values()
    expected = compare([[0.0, 0.0]] * 5, [[1.0, 0.0]] * 4 + [[0.0, 0.0]])
    assert found == expected
    assert found.difference == pytest.approx(-0.4)
    assert found.p_value == pytest.approx(2 / 2**4)
    assert (found.wins, found.losses) == (0, 4)
    (same,) = first.compare(tmp_path / "b").values()
    assert (same.difference, same.p_value) == (0, 1)


def test_other_questions_are_not_compared(
    model: Path, tmp_path: Path, undisturbed: Evaluation
) -> None:
    for other in (undisturbed, undisturbed.directory):
        with pytest.raises(ConfigError, match="answers other questions"):
            evaluate(model, tmp_path, limit=2, against=other)
    with pytest.raises(ConfigError, match="holds no finished evaluation"):
        evaluate(model, tmp_path, against=tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []


# The command --------------------------------------------------------------------------------------


def effopd_command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path) -> str:
    result = effopd_command(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    return str(result.stderr.removeprefix("error: ").strip())


def test_the_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sums = architectures.write_problems(tmp_path / "sums.jsonl", 5)
    asked: list[str | Path] = [
        "eval", model, "sampling.max_new_tokens=6", "batch=4", "--bench", "sums", "-n", "2",
        "--data", f"sums={sums}", "--out", tmp_path / "a",
    ]  # fmt: skip
    grade = benchmarking.grade

    def stopping(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return grade(*given)

    with monkeypatch.context() as patch:
        patch.setattr(benchmarking, "grade", stopping)
        assert effopd_command(*asked).exit_code == STOPPED
    result = effopd_command(*asked)
    assert result.exit_code == 0, result.output
    assert "sums: 10/10" in result.stdout
    result = effopd_command(*asked, "--against", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].split()[:2] == ["sums", "+0.0"]
    found = read_json(tmp_path / "a" / "against-a.json")["comparisons"]["sums"]
    assert (found["difference"], found["wins"]) == (0, 0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--bench", "aime"], "unknown benchmark 'aime'"),
        (["--bench", "../x"], "letters and digits, got '../x'"),
        (["--bench", "taco"], "give its file with --data taco=FILE"),
        (["--bench", "aime24", "--data", "aime24"], "--data must be NAME=FILE, got 'aime24'"),
        (["--bench", "aime24", "--data", "gpqa=x.jsonl"], "data for gpqa is of no benchmark"),
        (["--bench", "aime24", "--self-check"], "give one of MODEL, --run and --self-check"),
        (["--bench", "aime24", "sampling.temp=1"], "unknown setting sampling.temp"),
        (["--bench", "aime24", "samples=0"], "samples must be"),
    ],
)
def test_wrong_requests(model: Path, more: list[str], message: str) -> None:
    assert message in refusal("eval", model, *more)


def test_the_page_evaluates_from_python(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "student").symlink_to(model)
    (tmp_path / "teacher").symlink_to(architectures.save(tmp_path / "other", "qwen3", seed=1))
    exec(source, {})
    assert "0.0 +- " in capsys.readouterr().out


# The files of the paper ---------------------------------------------------------------------------

FILES = {
    "aime24": "aime24", "aime25": "aime25", "math500": "math", "minerva": "minerva",
    "gpqa": "gpqa", "gsm8k": "gsm8k",
}  # fmt: skip
PATHS = {name: DATA / f"{file}.jsonl" for name, file in FILES.items()}


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not here")
def test_a_tiny_model_on_the_files_of_the_paper(model: Path) -> None:
    settings = {"sampling": {"max_new_tokens": 4}, "prompt": {"max_tokens": 20000}, "batch": 32}
    found = effopd.evaluate(model, list(FILES), 2, data=PATHS, limit=3, settings=settings)
    assert list(found.summary) == list(FILES)
    assert all((e["questions"], e["samples"]) == (3, 2) for e in found.summary.values())


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not here")
def test_own_solutions_of_the_files_of_the_paper_are_right() -> None:
    found = effopd.evaluate("self-check", list(FILES), data=PATHS)
    means = {name: each["avg"]["mean"] for name, each in found.summary.items()}
    assert means == dict.fromkeys(FILES, 1.0)
