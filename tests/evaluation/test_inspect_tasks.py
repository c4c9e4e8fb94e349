"""The benchmarks under inspect-ai, with its own mock of a model."""

import json
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")

from inspect_ai import eval as run_inspect
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from effopd.evaluation.inspect_tasks import TASKS, benchmark_task


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inspect-ai depends on
def test_answers_are_scored_by_the_verifier(tmp_path: Path) -> None:
    rows = [{"problem": f"{i} / 2?", "answer": f"\\frac{{{i}}}{{2}}"} for i in (1, 2, 3)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [r"\boxed{0.5}", r"\boxed{1}", r"\boxed{4}"]
    outputs = [ModelOutput.from_content("mockllm/model", text) for text in answers]
    for output in outputs:  # given, so that no tokenizer is downloaded to count them
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    (log,) = run_inspect(
        benchmark_task("halves", str(path)),
        model=get_model("mockllm/model", custom_outputs=outputs),
        max_samples=1,
        max_connections=1,
        display="none",
        log_dir=str(tmp_path / "logs"),
    )
    assert log.status == "success", log.error
    assert log.samples is not None
    scores = [sample.scores["verified"] for sample in log.samples if sample.scores]
    assert [score.value for score in scores] == [1.0, 1.0, 0.0]
    assert [score.explanation for score in scores] == ["correct", "correct", "wrong"]
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == pytest.approx(2 / 3)


def test_every_benchmark_has_a_task() -> None:
    assert "math500" in TASKS
    assert "humaneval+" in TASKS
