"""Who checks the answers of a run: made from a name, asked in batches, ended with the run."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import Raw, metrics_of, tiny_config, train_tiny

from effopd.cli.evaluate import evaluate_checkpoint
from effopd.data.dataset import DatasetSpec, DatasetTask
from effopd.data.problem import Problem, Task
from effopd.data.world import ChainVerifier, TinyWorld
from effopd.errors import ConfigError
from effopd.records import read_jsonl
from effopd.rewards.build import verifier_for, without_unreadable
from effopd.rewards.code import CodeChecking
from effopd.rewards.math import BoxedAnswer, MathVerifier
from effopd.rewards.workers import WorkerSettings
from effopd.training import run as assemble
from effopd.training.build import build_parts

pytest.importorskip("math_verify")

UNREADABLE = r"A \cup B \{"


def problems(*answers: str) -> list[Problem]:
    return [Problem(id=f"p-{i}", prompt="?", answer=answer) for i, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("name", "kind"), [("boxed", BoxedAnswer), ("math", MathVerifier), ("none", type(None))]
)
def test_a_name_becomes_a_verifier(name: Any, kind: type) -> None:
    task = DatasetTask(train=DatasetSpec(path="x.jsonl"), verifier=name)
    assert type(verifier_for(task, CodeChecking())) is kind
    assert type(verifier_for(TinyWorld(), CodeChecking())) is ChainVerifier


def test_unreadable_references_are_left_out_and_said() -> None:
    said: list[str] = []
    task = Task(train=problems("7", UNREADABLE, "C", UNREADABLE), test=problems("1/2"))
    with MathVerifier(WorkerSettings(processes=1, wall_s=60.0)) as verifier:
        found = without_unreadable(task, verifier, said.append)
        assert [problem.id for problem in found.train] == ["p-0", "p-2"]
        assert found.test == task.test
        assert said == [
            "left out 2 of 4 training problems, whose reference answers cannot be read as "
            "mathematics: p-1, p-3"
        ]
        with pytest.raises(ConfigError, match=r"none of the 1 test problems has a reference"):
            without_unreadable(Task(train=task.train, test=problems(UNREADABLE)), verifier, print)
    for other in (None, BoxedAnswer()):
        assert without_unreadable(task, other, said.append) is task
    assert len(said) == 1


def test_sentences_are_refused_without_the_advice_to_compare_texts() -> None:
    with MathVerifier(WorkerSettings(processes=1, wall_s=60.0)) as verifier:
        solved = Task(train=problems(r"We add 1 and 2. It is \boxed{3}."), test=problems("1/2"))
        assert without_unreadable(solved, verifier, print).train == solved.train
        for answers, remedy in (
            (("Answer: 3", "The sum is 4"), r"holds the answer alone, or .*\\boxed\{...\}"),
            ((UNREADABLE,), "use 'boxed', which compares texts"),
        ):
            task = Task(train=problems(*answers), test=problems("1/2"))
            with pytest.raises(ConfigError, match=remedy):
                without_unreadable(task, verifier, print)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[MathVerifier]:
    """The verifiers that were closed."""
    found: list[MathVerifier] = []
    close = MathVerifier.close

    def watched(self: MathVerifier) -> None:
        found.append(self)
        close(self)

    monkeypatch.setattr(MathVerifier, "close", watched)
    return found


def config_of(models: Path, tmp_path: Path, unreadable: str = UNREADABLE) -> Any:
    path = tmp_path / "problems.jsonl"
    answers = ["3", "4", unreadable, "5"] * 6
    rows = [{"question": f"{i % 7} + 1 =", "answer": answer} for i, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: Raw = {
        "method": "grpo",
        "objective": {"type": "policy_gradient"},
        "train.steps": 2,
        "train.prompts_per_step": 4,
        "train.responses_per_prompt": 2,
        "evaluation.every": 1,
        "task": {
            "type": "dataset",
            "train": {"path": str(path)},
            "test_size": 4,
            "filters": {"repeated": "keep"},
        },
    }
    return tiny_config(models, settings)


def test_a_run_with_mathematics_counts_verdicts_and_ends_its_workers(
    models: Path, tmp_path: Path, closed: list[MathVerifier], capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = config_of(models, tmp_path), tmp_path / "run"
    done, messages = train_tiny(config, run)
    assert done
    assert len(closed) == 1
    assert messages[0].startswith("left out 5 of 20 training problems, whose reference answers")
    for row in metrics_of(run):
        assert sum(row["verdicts"].values()) == 8
        assert set(row["verdicts"]) <= {"no_answer", "truncated"}, "an untrained student"
    for row in read_jsonl(run / "evals.jsonl"):
        assert sum(row["verdicts"].values()) == row["n"] == 2
    evaluate_checkpoint(run, None, None)
    assert len(closed) == 2
    said = capsys.readouterr().out
    shown = [line for line in said.splitlines() if line.startswith("  verdicts")]
    assert len(shown) == 1
    assert set(shown[0].split()[1::2]) <= {"no_answer", "truncated"}


def test_a_run_that_fails_ends_them_too(
    models: Path, tmp_path: Path, closed: list[MathVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(assemble, "build_trainer", broken)
    with pytest.raises(RuntimeError):
        train_tiny(config_of(models, tmp_path, unreadable="6"), tmp_path / "run")
    assert len(closed) == 1


def test_a_run_without_verdicts_has_none(models: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(models, {"train.steps": 1}), tmp_path)
    assert [row["verdicts"] for row in metrics_of(tmp_path)] == [None]
    assert {row["verdicts"] for row in read_jsonl(tmp_path / "evals.jsonl")} == {None}
    parts = build_parts(tiny_config(models), print)
    parts.close()
