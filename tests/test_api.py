"""The library from Python: train, evaluate, analyze and compare as a user calls them."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import write_models

import effopd
from effopd.data.problem import Problem
from effopd.training.observer import Observer

SMALL: dict[str, Any] = {
    "train": {"steps": 2, "prompts_per_step": 2},
    "sampling": {"max_new_tokens": 4},
    "prompt": {"chat": False},
    "evaluation": {"problems": 2, "every": 2},
    "checkpoint": {"every": 2},
}
ROWS = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def reward(problem: Problem, answer: str) -> float:
    return float(answer.startswith(problem.answer))


def test_train_from_python(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []
    run = effopd.train(
        effopd.Config.of("opd", **SMALL),
        tmp_path / "run",
        model=models / "student",
        teacher=str(models / "teacher"),
        problems=ROWS,
        reward=reward,
        callbacks=[Observer(on_step=lambda metrics, timing: steps.append(metrics["step"]))],
    )
    assert run.finished
    assert steps == [1, 2]
    assert len(run.to_pandas("metrics")) == 2
    assert run.checkpoint == tmp_path / "run" / "checkpoints" / "step-00002"
    assert capsys.readouterr().out == ""
