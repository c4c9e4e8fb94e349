"""The default method learns from rates that are wrong by a factor of ten and more."""

from pathlib import Path

import pytest

from effopd.training.config import load_config
from effopd.training.run import train

RECIPE = Path(__file__).parents[2] / "recipes/tiny-opd.toml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "lr", "steps"),
    [("full_kl", 1e-5, 4), ("full_kl", 1e-1, 4), ("sampled_token", 1e-3, 24)],
)
def test_from_a_wrong_rate_the_student_reaches_its_teacher(
    objective: str, lr: float, steps: int, tmp_path: Path
) -> None:
    """With `rest = 0` sampled tokens raise their rate until nothing is right."""
    changed = [
        "method=slope", f'objective={{type="{objective}"}}', f"optimizer.lr={lr}",
        f"train.steps={steps}", "evaluation.every=0", "evaluation.first=[]",
    ]  # fmt: skip
    found = train(load_config(RECIPE, changed), tmp_path)
    teacher, before, after = (row["accuracy"] for row in found.evals)
    assert before < 0.5 < teacher
    assert after >= 0.85 * teacher
