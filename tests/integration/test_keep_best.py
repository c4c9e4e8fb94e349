"""The checkpoint of the best evaluation stays besides the newest, and changes nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import outcome, tiny_config, train_tiny

from effopd.evaluation.evaluator import EvaluationResult
from effopd.records import Row, best_step, list_checkpoints, load_run

ACCURACIES = {0: 0.9, 2: 0.25, 3: 0.75, 4: 0.5, 6: 0.75}
KEEP: dict[str, Any] = {
    "train.steps": 6, "checkpoint.every": 5, "checkpoint.keep": 1, "evaluation.every": 2,
    "evaluation.first": [3], "checkpoint.keep_best": True, "evaluation.divergence": False,
}  # fmt: skip


def row(step: int, accuracy: float | None, kl: float | None, model: str = "student") -> Row:
    return {"step": step, "model": model, "accuracy": accuracy, "reverse_kl": kl}


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([], None),
        ([row(0, 1.0, 0.1), row(0, 1.0, None, "teacher")], None),
        ([row(0, 1.0, 0.1), row(2, 0.5, 0.3), row(4, 0.75, 0.4), row(6, 0.75, 0.4)], 4),
        ([row(2, 0.75, 0.4), row(4, 0.75, 0.2), row(6, 0.5, 0.1)], 4),
        ([row(2, None, 0.4), row(4, None, 0.2), row(6, None, 0.3)], 4),
        ([row(2, None, None), row(4, None, None)], None),
        ([row(2, 0.0, None), row(4, 0.5, None)], 4),
    ],
)
def test_best_step(rows: Sequence[Row], best: int | None) -> None:
    assert best_step(rows) == best


@pytest.fixture(autouse=True)
def _accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations have the accuracies above, in their order."""
    real = EvaluationResult.row

    def changed(result: EvaluationResult) -> Row:
        return real(result) | {"accuracy": 0.0, "n": 4}

    monkeypatch.setattr(EvaluationResult, "row", changed)
    from effopd.training import loop

    write = loop.Trainer._write_evaluation

    def writing(trainer: Any, model: str, evaluation: EvaluationResult) -> None:
        step = trainer.progress.step
        monkeypatch.setattr(
            EvaluationResult, "row", lambda result: changed(result) | {"accuracy": ACCURACIES[step]}
        )
        write(trainer, model, evaluation)

    monkeypatch.setattr(loop.Trainer, "_write_evaluation", writing)


def kept(out: Path) -> list[str]:
    return [path.name for path in list_checkpoints(out / "checkpoints")]


def test_the_best_stays_and_a_resumed_run_is_the_same(models: Path, tmp_path: Path) -> None:
    config = tiny_config(models, KEEP)
    assert train_tiny(config, tmp_path / "whole")[0]
    assert kept(tmp_path / "whole") == ["step-00006", "step-00003"]
    run = load_run(tmp_path / "whole")
    assert run.best_checkpoint == tmp_path / "whole" / "checkpoints" / "step-00003"
    plain = tiny_config(models, KEEP | {"checkpoint.keep_best": False})
    assert train_tiny(plain, tmp_path / "plain")[0]
    assert kept(tmp_path / "plain") == ["step-00006"]
    assert load_run(tmp_path / "plain").best_checkpoint is None
    assert outcome(tmp_path / "plain") == outcome(tmp_path / "whole")
    # Killed after the best was saved; the run goes on from it.
    with pytest.MonkeyPatch.context() as patch:
        from effopd.training.loop import Trainer

        real = Trainer._step

        def dying(trainer: Trainer) -> None:
            if trainer.progress.step == 4:
                raise KeyboardInterrupt
            real(trainer)

        patch.setattr(Trainer, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(config, tmp_path / "parts")
    assert kept(tmp_path / "parts") == ["step-00003"]
    finished, messages = train_tiny(config, tmp_path / "parts")
    assert finished
    assert "resuming from step-00003" in messages
    assert kept(tmp_path / "parts") == ["step-00006", "step-00003"]
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
