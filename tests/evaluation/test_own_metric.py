"""A metric of the user: one number for all answers, which ends runs and chooses checkpoints."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import WORLD, FakeEngine, script, writer
from tests.support.tiny import tiny_config, train_tiny

from effopd.data.problem import Answer, Problem
from effopd.errors import ConfigError
from effopd.evaluation.evaluator import Evaluator, Metric, imported_metric, joined
from effopd.records import best_step, list_checkpoints, load_run
from effopd.training.settings import EvaluationSettings, StopRule

PROBLEMS = [Problem(id=f"p-{i}", prompt="3 + 4 =", answer=str(i)) for i in range(4)]


def threes(answers: Sequence[Answer]) -> int:
    """How often a 3 was written, less the largest reference."""
    written = sum(answer.completion.count("3") for answer in answers)
    return written - max(int(answer.problem.answer) for answer in answers)


def evaluated(metric: Metric | None) -> dict[str, Any]:
    evaluator = Evaluator(problems=PROBLEMS, verifier=WORLD.verifier, seed=5, metric=metric)
    found = evaluator.evaluate(writer(FakeEngine(script("# 3"))))
    assert joined([found, found], metric).row().get("metric") == (5 if metric else None)
    return found.row()


def test_it_sees_all_answers_and_their_problems() -> None:
    plain, row = evaluated(None), evaluated(threes)
    assert row == plain | {"metric": 1.0}


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "much", [1.0]])
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.metric gave .* answers: return one finite"):
        evaluated(lambda answers: value)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_module:f", "put the directory of 'no_such_module' on PYTHONPATH"),
        ("json:loss", "json has no 'loss': name a function (answers) -> number"),
        ("math:pi", "is 3.14"),
    ],
)
def test_a_name_that_is_no_function_is_refused(path: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        imported_metric(path)
    assert said in str(error.value)
    with pytest.raises(ConfigError, match=r"must name a 'package.module:function'"):
        EvaluationSettings(metric=path.partition(":")[0])


def row(step: int, metric: float, accuracy: float | None = None) -> dict[str, Any]:
    return {"step": step, "model": "student", "accuracy": accuracy} | {
        "reverse_kl": None, "metric": metric,
    }  # fmt: skip


def test_it_decides_before_accuracy() -> None:
    rows = [row(1, -2.0, 0.9), row(2, -1.0, 0.1), row(3, -1.0, 0.5)]
    assert best_step(rows) == 2
    assert StopRule(patience=1).reason(rows) == "no better metric in 1 evaluations"
    assert StopRule(patience=2).reason(rows) is None
    without = [{**each, "accuracy": None} for each in rows]
    assert best_step(without) == 2
    assert StopRule(patience=1).reason(without) == "no better metric in 1 evaluations"


def test_a_run_ends_by_it_and_keeps_the_best(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "falling.py").write_text(
        "calls = []\n\n\ndef metric(answers):\n    calls.append(len(answers))\n"
        "    return -len(calls)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = {
        "evaluation.metric": "falling:metric", "evaluation.every": 1, "train.stop.patience": 2,
        "checkpoint.keep_best": True, "checkpoint.keep": 1,
    }  # fmt: skip
    finished, _ = train_tiny(tiny_config(models, settings), tmp_path / "run")
    assert finished
    run = load_run(tmp_path / "run")
    # The teacher is asked first, then the student before training, and twice without a better one.
    assert [(r["model"], r["step"], r["metric"]) for r in run.evals] == [
        ("teacher", 0, -1.0), ("student", 0, -2.0), ("student", 1, -3.0), ("student", 2, -4.0),
    ]  # fmt: skip
    assert sys.modules["falling"].calls == [2, 2, 2, 2]
    assert run.info["finished"]["reason"] == "no better metric in 2 evaluations"
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step-00002", "step-00001",
    ]  # fmt: skip
    assert run.best_checkpoint is not None
