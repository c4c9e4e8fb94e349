"""Controls: jumps taken unseen, and one negative advantage without a teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import tiny_policy
from tests.support.learning import accumulate, batch, rollouts
from tests.support.tiny import metrics_of, search_rows, tiny_config, train_tiny, write_models
from torch import Tensor, nn

from effopd.errors import ConfigError
from effopd.methods import FixedNegative, Resources, policy_log_probs
from effopd.search.extrapolator import Extrapolator, Search
from effopd.training.config import Config


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def walked(search: Search, steps: int) -> list[float]:
    """One number that goes up by 1 a step, after each step and its search."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    extrapolator = Extrapolator({"weight": weight}, search=search)
    found = []
    for step in range(1, steps + 1):
        weight.data.add_(1.0)
        extrapolator.step(step)
        found.append(weight.item())
    return found


def test_first_update_jumps_once() -> None:
    assert walked(Search.first_update(alpha=5.0), 4) == [5.0, 6.0, 7.0, 8.0]


def test_fixed_alpha_jumps_along_what_came_since_the_last_jump() -> None:
    assert walked(Search.fixed_alpha(n=2, alpha=3.0), 5) == [1.0, 6.0, 7.0, 12.0, 13.0]


@pytest.mark.parametrize(("name", "steps"), [("first_update", [1]), ("fixed_alpha", [4, 8])])
def test_the_methods_score_nothing(
    tmp_path: Path, models: Path, name: str, steps: list[int]
) -> None:
    whole = tiny_config(models).model_dump()
    paths = {part: {"path": whole[part]["path"]} for part in ("student", "teacher")}
    kept: dict[str, Any] = {
        part: whole[part] for part in ("task", "sampling", "train", "checkpoint")
    }
    config = Config.of(name, device="cpu", evaluation={"problems": 0}, **paths, **kept)
    train_tiny(config, tmp_path)
    rows = search_rows(tmp_path)
    assert [row["step"] for row in rows] == steps
    assert all(row["accepted"] and row["score"] is None for row in rows)
    assert metrics_of(tmp_path)[-1]["validation_tokens"] == 0


# One negative advantage ---------------------------------------------------------------------------

ANSWERS = rollouts(6, 1)


def plain_gradients(share: float, advantage: float) -> list[Tensor]:
    """Of the mean over the least likely tokens, in one pass."""
    student = tiny_policy(0)
    log_probs_N = policy_log_probs(student, ANSWERS)
    written = torch.tensor([value for r in ANSWERS for value in r.completion.log_probs])
    lowest = written.argsort(stable=True)[: max(1, int(share * len(written)))]
    (-advantage * log_probs_N[lowest].mean()).backward()
    return [p.grad for p in student.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("share", [0.2, 1e-9, 1.0])
def test_fixed_negative_is_the_mean_over_the_least_likely_tokens(share: float) -> None:
    student = tiny_policy(0)
    learner = FixedNegative(share=share, advantage=-0.25).learner(Resources(student=student))
    assert learner.prepare(batch(ANSWERS)) == 0
    accumulate(learner, ANSWERS, [0, 4, 1, 2, 3, 5], cuts=[2])  # micro-batches add up
    found = [p.grad for p in student.model.parameters() if p.grad is not None]
    for ours, theirs in zip(found, plain_gradients(share, -0.25), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_step_makes_the_chosen_tokens_less_likely() -> None:
    student = tiny_policy(0)
    learner = FixedNegative().learner(Resources(student=student))
    learner.prepare(batch(ANSWERS))
    written = torch.tensor([value for r in ANSWERS for value in r.completion.log_probs])
    lowest = written.argsort(stable=True)[: int(0.2 * len(written))]
    before = policy_log_probs(student, ANSWERS).detach()[lowest].mean()
    accumulate(learner, ANSWERS, list(range(6)))
    with torch.no_grad():
        for parameter in student.model.parameters():
            if parameter.grad is not None:
                parameter.sub_(1e-2 * parameter.grad)
    assert policy_log_probs(student, ANSWERS).detach()[lowest].mean() < before


def test_it_runs_without_a_teacher(tmp_path: Path, models: Path) -> None:
    settings = {
        "method": "fixed_negative", "objective": {"type": "fixed_negative"}, "train.steps": 2,
        "evaluation": {"problems": 0},
    }  # fmt: skip
    train_tiny(tiny_config(models, settings), tmp_path)
    last = metrics_of(tmp_path)[-1]
    assert (last["teacher_tokens"], last["reverse_kl"]) == (0, None)
    assert 0 < last["chosen_share"] <= 0.2


@pytest.mark.parametrize("bad", [{"advantage": 0.0}, {"share": 0.0}, {"share": 1.5}], ids=str)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        FixedNegative(**bad)
