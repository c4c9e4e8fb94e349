"""The recipe of prompt distillation: the tiny base learns what a prompt makes its copy do."""

from pathlib import Path

import pytest

from effopd.records import read_jsonl
from effopd.training.config import load_config
from effopd.training.run import train

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-prompt-distillation.toml"


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "steps", "share"), [("base", 24, 0.9), ("current", 4, 0.75)])
def test_the_base_learns_to_do_without_the_prompt(
    tmp_path: Path, weights: str, steps: int, share: float
) -> None:
    """From about a quarter right to what the prompted copy gets right, 0.95 and more.

    A teacher that is the student as it is drifts away with it later, see docs/teachers.md.
    """
    measured = ["evaluation.every=0", "evaluation.first=[]", "evaluation.problems=256"]
    own = [f"self_teacher.weights={weights}", f"train.steps={steps}"]
    train(load_config(RECIPE, [*measured, *own]), tmp_path)
    rows = read_jsonl(tmp_path / "evals.jsonl")
    teacher, before, after = (row["accuracy"] for row in rows)
    assert [row["model"] for row in rows] == ["teacher", "student", "student"]
    assert before < 0.4
    assert teacher > 0.9
    assert after >= share * teacher
    metrics = read_jsonl(tmp_path / "metrics.jsonl")
    assert metrics[-1]["reverse_kl"] < 0.3 * metrics[0]["reverse_kl"]
    assert metrics[-1]["teacher_tokens"] == metrics[-1]["train_tokens"]
