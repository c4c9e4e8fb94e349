"""`effopd eval --bench` as a user meets it: answers on disk, resumed, refused and compared."""

import dataclasses
import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support import architectures, processes
from tests.support.processes import kill_me
from tests.support.tiny import tiny_config, train_tiny, write_models
from typer.testing import CliRunner

from effopd.cli.main import STOPPED, app
from effopd.evaluation.benchmarks import run as benchmarking
from effopd.evaluation.benchmarks.records import EvaluationRecords
from effopd.evaluation.graded import Graded, summarise
from effopd.evaluation.statistics import compare
from effopd.records import read_json, read_jsonl
from effopd.rewards.math import MathVerifier

DATA = Path(__file__).parents[2] / "shared" / "data"
QUICK = ("sampling.max_new_tokens=6", "batch=4")


def effopd(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: str | Path) -> str:
    result = effopd(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    return str(result.stderr.removeprefix("error: ").strip())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures.save(tmp_path_factory.mktemp("model") / "tiny", "qwen3")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sums; as many answers again with two samples make three portions of four."""
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    return architectures.write_problems(path, 5)


def arguments(model: Path, sums: Path, out: Path, *more: str) -> list[str | Path]:
    return ["eval", model, *QUICK, "--bench", "sums", "--data", f"sums={sums}", "--out", out, *more]


@pytest.fixture(scope="module")
def undisturbed(
    model: Path, sums: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The directory of two answers to each sum, and what was printed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    result = effopd(*arguments(model, sums, out, "-n", "2"))
    assert result.exit_code == 0, result.output
    return out, result.stdout


def samples(out: Path) -> list[Graded]:
    return [Graded.from_row(row) for row in read_jsonl(out / "sums" / "samples.jsonl")]


# What is written ----------------------------------------------------------------------------------


def test_every_answer_is_on_disk_and_the_summary_is_theirs(undisturbed: tuple[Path, str]) -> None:
    out, printed = undisturbed
    found = samples(out)
    assert [(each.question, each.sample) for each in found] == [
        (f"sums-{i}", sample) for sample in (0, 1) for i in range(1, 6)
    ]
    assert len({each.seed for each in found}) == 10
    assert len({each.completion for each in found}) > 1
    assert all(1 <= each.tokens <= 6 for each in found)
    summary = read_json(out / "sums" / "summary.json")
    expected = summarise(found, votes=True)
    assert {key: summary[key] for key in expected} == expected
    assert read_json(out / "results.json")["results"]["sums"]["questions"] == 5
    assert "sums: 10 of 10 answers" in printed
    assert printed.splitlines()[-1].split()[:4] == ["sums", "5", "x", "2"]


def test_answers_depend_on_seeds_and_not_on_the_portion(
    model: Path, sums: Path, tmp_path: Path, undisturbed: tuple[Path, str]
) -> None:
    assert effopd(*arguments(model, sums, tmp_path, "-n", "2", "batch=7")).exit_code == 0
    assert samples(tmp_path) == samples(undisturbed[0])
    other = tmp_path / "other"
    assert effopd(*arguments(model, sums, other, "seed=1")).exit_code == 0
    assert [e.completion for e in samples(other)] != [e.completion for e in samples(tmp_path)[:5]]


# Going on -----------------------------------------------------------------------------------------


def no_answers(*_: Any) -> None:
    raise AssertionError("nothing is missing")


def test_a_finished_evaluation_answers_nothing_again(
    model: Path, sums: Path, undisturbed: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = undisturbed
    before = (out / "sums" / "samples.jsonl").read_bytes()
    monkeypatch.setattr(benchmarking, "open_answerer", no_answers)
    result = effopd(*arguments(model, sums, out, "-n", "2"))
    assert result.exit_code == 0, result.output
    assert (out / "sums" / "samples.jsonl").read_bytes() == before


def test_killed_and_resumed_is_as_undisturbed(
    model: Path,
    sums: Path,
    tmp_path: Path,
    undisturbed: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL while the second portion is on its way to the disk; what is there is kept."""
    asked = arguments(model, sums, tmp_path, "-n", "2")
    add = EvaluationRecords.add

    def die_in_the_second(self: EvaluationRecords, graded: Sequence[Graded]) -> None:
        if graded[0].sample == 0 and graded[0].question == "sums-1":
            return add(self, graded)
        self._writer.write(graded[0].row())
        with (tmp_path / "sums" / "samples.jsonl").open("a") as file:
            file.write('{"schema":1,"question":"su')
        return kill_me()

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationRecords, "add", die_in_the_second)
        assert processes.run(lambda: effopd(*asked).exit_code) == -9
    checked: list[int] = []
    verdicts = MathVerifier.verdicts

    def counted(self: MathVerifier, answers: Sequence[Any]) -> Any:
        checked.append(len(answers))
        return verdicts(self, answers)

    monkeypatch.setattr(MathVerifier, "verdicts", counted)
    assert effopd(*asked).exit_code == 0
    assert sum(checked) == 10 - 5
    assert samples(tmp_path) == samples(undisturbed[0])
    assert read_json(tmp_path / "sums" / "summary.json") == read_json(
        undisturbed[0] / "sums" / "summary.json"
    )


def test_a_request_to_stop_is_status_75_and_goes_on(
    model: Path, sums: Path, tmp_path: Path, undisturbed: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = arguments(model, sums, tmp_path, "-n", "2")
    answer = benchmarking.grade

    def stopping(*given: Any) -> Any:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        return answer(*given)

    with monkeypatch.context() as patch:
        patch.setattr(benchmarking, "grade", stopping)
        assert effopd(*asked).exit_code == STOPPED
    assert len(samples(tmp_path)) == 4
    assert not (tmp_path / "sums" / "summary.json").exists()
    assert effopd(*asked).exit_code == 0
    assert samples(tmp_path) == samples(undisturbed[0])


def test_more_samples_keep_those_that_are_there(
    model: Path, sums: Path, tmp_path: Path, undisturbed: tuple[Path, str]
) -> None:
    assert effopd(*arguments(model, sums, tmp_path)).exit_code == 0
    first = samples(tmp_path)
    assert len(first) == 5
    assert effopd(*arguments(model, sums, tmp_path, "-n", "2", "batch=3")).exit_code == 0
    assert samples(tmp_path)[:5] == first
    assert samples(tmp_path) == samples(undisturbed[0])


# Refusals -----------------------------------------------------------------------------------------


def test_answers_of_another_evaluation_are_not_mixed_in(
    model: Path, sums: Path, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = undisturbed
    message = refusal(*arguments(model, sums, out, "sampling.temperature=0.5"))
    assert "sampling.temperature: 1.0 -> 0.5" in message
    assert "choose another directory" in message
    others = architectures.write_problems(tmp_path / "sums.jsonl", 6)
    assert "questions.digest: " in refusal(*arguments(model, others, out))
    copied = architectures.save(tmp_path / "tiny", "qwen3", seed=1)
    message = refusal(*arguments(copied, sums, out))
    assert "model.files: " in message
    assert "model.path: " in message


def test_changed_weights_under_the_old_name(sums: Path, tmp_path: Path) -> None:
    model = architectures.save(tmp_path / "tiny", "qwen3")
    assert effopd(*arguments(model, sums, tmp_path / "out")).exit_code == 0
    architectures.save(model, "qwen3", seed=1)
    message = refusal(*arguments(model, sums, tmp_path / "out"))
    assert message.count(" -> ") == 1
    assert "model.files: " in message


def test_damaged_settings_and_lost_settings(model: Path, sums: Path, tmp_path: Path) -> None:
    asked = arguments(model, sums, tmp_path)
    assert effopd(*asked).exit_code == 0
    settings = tmp_path / "sums" / "settings.toml"
    settings.write_text("= ?")
    assert f"{settings} is damaged" in refusal(*asked)
    settings.unlink()
    assert "holds answers but no settings.toml" in refusal(*asked)


def test_one_process_a_directory(model: Path, sums: Path, tmp_path: Path) -> None:
    (tmp_path / "sums").mkdir()
    with (tmp_path / "sums" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = effopd(*arguments(model, sums, tmp_path))
    assert result.exit_code == 1
    assert "is in use by another process" in result.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--bench", "aime"], "unknown benchmark 'aime'"),
        (["--bench", "../x"], "letters and digits, got '../x'"),
        (["--bench", "taco"], "give its file with --data taco=FILE"),
        (["--bench", "aime24", "--data", "aime24"], "--data must be NAME=FILE, got 'aime24'"),
        (["--bench", "aime24", "--data", "gpqa=x.jsonl"], "--data gpqa=... is of no benchmark"),
        (["--bench", "aime24", "--self-check"], "give one of MODEL, --run and --self-check"),
        (["--bench", "aime24", "sampling.temp=1"], "unknown setting sampling.temp"),
        (["--bench", "aime24", "samples=0"], "samples must be"),
    ],
)
def test_wrong_requests(model: Path, more: list[str], message: str) -> None:
    assert message in refusal("eval", model, *more)


def test_prompts_are_checked_before_any_is_answered(
    model: Path, sums: Path, tmp_path: Path
) -> None:
    message = refusal(*arguments(model, sums, tmp_path, "prompt.max_tokens=8"))
    assert "prompt sums-1 has" in message
    assert samples(tmp_path) == []


# Own solutions, runs, comparisons -----------------------------------------------------------------


def test_own_solutions_show_what_is_not_found_right(tmp_path: Path) -> None:
    path = tmp_path / "math.jsonl"
    rows = [
        {"problem": "p", "solution": rf"so \boxed{{{boxed}}}", "answer": "2"}
        for boxed in ["2", "3"]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = effopd(
        "eval", "--self-check", "--bench", "math500", "--data", f"math500={path}",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "  math500-2: wrong, boxed '3'\n" in result.stdout
    assert "math500-1: " not in result.stdout
    assert read_json(tmp_path / "out" / "math500" / "summary.json")["avg"]["mean"] == 0.5


def test_checkpoints_of_a_run(sums: Path, tmp_path: Path) -> None:
    config = tiny_config(
        write_models(tmp_path / "models"),
        {"train.steps": 4, "checkpoint.every": 1, "checkpoint.keep": 4},
    )
    assert train_tiny(config, tmp_path / "run")[0]
    asked = [
        "eval", *QUICK, "--run", tmp_path / "run", "--every", "2",
        "--bench", "sums", "--data", f"sums={sums}",
    ]  # fmt: skip
    result = effopd(*asked)
    assert result.exit_code == 0, result.output
    out = tmp_path / "run" / "benchmarks"
    assert sorted(path.name for path in out.iterdir()) == ["step-00002", "step-00004"]
    settings = [
        (out / name / "sums" / "settings.toml").read_text() for name in ("step-00002", "step-00004")
    ]
    assert 'checkpoints/step-00002"' in settings[0]
    assert 'checkpoints/step-00004"' in settings[1]
    assert "has no checkpoint at a multiple of 7" in refusal(
        "eval",
        "--run",
        tmp_path / "run",
        "--every",
        "7",
        "--bench",
        "sums",
        "--data",
        f"sums={sums}",
    )


def test_two_models_are_compared_question_by_question(
    model: Path, sums: Path, tmp_path: Path
) -> None:
    """Against an evaluation whose answers are edited to be right where these are wrong."""
    assert effopd(*arguments(model, sums, tmp_path / "a", "-n", "2")).exit_code == 0
    assert effopd(*arguments(model, sums, tmp_path / "b", "-n", "2")).exit_code == 0
    path = tmp_path / "b" / "sums" / "samples.jsonl"
    edited = [dataclasses.replace(g, verdict="correct") for g in samples(tmp_path / "b")[:4]]
    rest = samples(tmp_path / "b")[4:]
    path.write_text(
        "".join(json.dumps({"schema": 1, **each.row()}) + "\n" for each in [*edited, *rest])
    )
    result = effopd(
        *arguments(model, sums, tmp_path / "a", "-n", "2", "--against", str(tmp_path / "b"))
    )
    assert result.exit_code == 0, result.output
    found = read_json(tmp_path / "a" / "against-b.json")["comparisons"]["sums"]
    own = [[0.0, 0.0]] * 5
    other = [[1.0, 0.0]] * 4 + [[0.0, 0.0]]
    expected = compare(own, other)
    assert found["difference"] == pytest.approx(-0.4) == expected.difference
    assert found["p_value"] == pytest.approx(expected.p_value) == pytest.approx(2 / 2**4)
    assert (found["wins"], found["losses"]) == (0, 4)
    assert result.stdout.splitlines()[-1].split()[:2] == ["sums", "-40.0"]


def test_other_questions_are_not_compared(
    model: Path, sums: Path, tmp_path: Path, undisturbed: tuple[Path, str]
) -> None:
    short = arguments(model, sums, tmp_path, "--limit", "2", "--against", str(undisturbed[0]))
    assert "answers other questions" in refusal(*short)
    assert not (tmp_path / "sums").exists()
    nothing = arguments(model, sums, tmp_path / "x", "--against", str(tmp_path / "gone"))
    assert "holds no finished evaluation" in refusal(*nothing)


# References that cannot be read -------------------------------------------------------------------


def references(path: Path, *answers: str) -> Path:
    rows = [{"problem": f"{i}?", "answer": answer} for i, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_unreadable_references_are_left_out_and_named(tmp_path: Path) -> None:
    rows = references(tmp_path / "own.jsonl", "1", r"A \cup B \{", "2", r"\frac{sqrt{7}}{2}")
    result = effopd(
        "eval",
        "--self-check",
        "--bench",
        "own",
        "--data",
        f"own={rows}",
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    assert "own: left out 2 questions" in result.stdout
    assert "own-2, own-4" in result.stdout
    found = read_json(tmp_path / "out" / "results.json")["results"]["own"]
    assert (found["questions"], found["avg"]["mean"]) == (2, 1.0)
    assert found["left_out"] == {"reference that cannot be read as mathematics": 2}
    assert "relative_error" not in found


def test_a_benchmark_of_sentences_is_refused(tmp_path: Path) -> None:
    rows = references(tmp_path / "own.jsonl", "Answer: 1", "The sum is 2")
    message = refusal(
        "eval",
        "--self-check",
        "--bench",
        "own",
        "--data",
        f"own={rows}",
        "--out",
        tmp_path / "out",
    )
    assert "no reference answer of own" in message
    assert r"\boxed{...}" in message


def test_results_name_the_relative_error_of_roundings(tmp_path: Path) -> None:
    rows = references(tmp_path / "minerva.jsonl", "0.5613", "1.39e9")
    result = effopd(
        "eval", "--self-check", "--bench", "minerva", "--data", f"minerva={rows}",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert (
        read_json(tmp_path / "out" / "results.json")["results"]["minerva"]["relative_error"] == 1e-4
    )


# The files of the paper ---------------------------------------------------------------------------

FILES = {
    "aime24": "aime24", "aime25": "aime25", "math500": "math", "minerva": "minerva",
    "gpqa": "gpqa", "gsm8k": "gsm8k",
}  # fmt: skip


def real(*names: str) -> list[str]:
    data = [part for name in names for part in ("--data", f"{name}={DATA / FILES[name]}.jsonl")]
    return ["--bench", ",".join(names), *data]


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not here")
def test_a_tiny_model_on_the_files_of_the_paper(model: Path, tmp_path: Path) -> None:
    result = effopd(
        "eval", model, "sampling.max_new_tokens=4", "prompt.max_tokens=20000", "batch=32",
        *real(*FILES), "--limit", "3", "-n", "2", "--out", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    results = read_json(tmp_path / "results.json")["results"]
    assert list(results) == list(FILES)
    assert all((each["questions"], each["samples"]) == (3, 2) for each in results.values())


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not here")
def test_own_solutions_of_the_files_of_the_paper_are_right(tmp_path: Path) -> None:
    result = effopd("eval", "--self-check", *real(*FILES), "--out", tmp_path)
    assert result.exit_code == 0, result.output
    results = read_json(tmp_path / "results.json")["results"]
    assert {name: each["avg"]["mean"] for name, each in results.items()} == dict.fromkeys(
        FILES, 1.0
    )
