"""Methods that learn from rewards raise the tiny base; the critic learns what can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from effopd.data.problem import Answer
from effopd.evaluation.statistics import mean
from effopd.records import read_jsonl
from effopd.training.build import build_parts
from effopd.training.config import make_config
from effopd.training.run import train
from effopd.training.update import Updater

PROBLEMS = 256
MEASURED = {
    "optimizer": {"lr": 3e-4},
    "evaluation": {
        "every": 0,
        "first": [],
        "problems": PROBLEMS,
        "teacher": False,
        "divergence": False,
    },
    "checkpoint": {"every": 100},
}
LEARNS: dict[str, dict[str, Any]] = {
    "grpo": {"train": {"steps": 36}},
    "dapo": {"train": {"steps": 24}},
    "dr_grpo": {"train": {"steps": 30}},
    "ppo": {
        "train": {"steps": 20, "updates_per_step": 4},
        "optimizer": {"lr": 2e-4},
        "objective": {"critic_lr": 3e-3, "gae_lambda": 1.0, "value_clip": 10.0},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("method", LEARNS)
def test_every_method_raises_the_base(tmp_path: Path, method: str) -> None:
    """From about 0.3 to at least 0.8, sampled, on problems that were held out."""
    config = make_config(MEASURED | {"method": method} | LEARNS[method])
    assert train(config, tmp_path).finished
    before, after = read_jsonl(tmp_path / "evals.jsonl")
    assert before["n"] == after["n"] == PROBLEMS
    assert 0.2 < before["accuracy"] < 0.4
    assert after["accuracy"] >= 0.8
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert mean([row["reward"] for row in rows[-4:]]) > mean([row["reward"] for row in rows[:4]])
    assert all(row["skipped"] is None for row in rows)


@dataclass(frozen=True)
class Visible:
    """Rewards answers that write their steps down: a critic can see that as they are written."""

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """1.0 for more than 16 words; the base often answers at once."""
        return [float(len(answer.completion.split()) > 16) for answer in answers]


@pytest.mark.slow
def test_the_critic_explains_what_can_be_seen() -> None:
    """While it warms up, so that the student and its answers stay what they are.

    Whether an answer is right, in contrast, it would have to calculate.
    """
    steps = 16
    config = make_config(
        {
            "method": "ppo",
            "objective": {"critic_lr": 1e-3, "gae_lambda": 1.0, "critic_warmup_steps": steps},
            "train": {"steps": steps, "updates_per_step": 4},
        }
    )
    parts = build_parts(config, print)
    before = {n: p.detach().clone() for n, p in parts.student.model.named_parameters()}
    learner, collector = parts.learner(), replace(parts.collector(), verifier=Visible())
    updater, explained = Updater(parts.student, learner, config.loop), []
    for step in range(1, steps + 1):
        batch = collector.collect(step)
        learner.prepare(batch)
        updater.set_lr_(step)
        updater.update_(batch.rollouts, step)
        explained.append(learner.metrics()["explained_variance"])
        assert batch.reward is not None
        assert 0.3 < batch.reward < 0.9
    assert explained[0] == pytest.approx(0.0, abs=1e-6)
    assert mean(explained[-4:]) > 0.5, explained
    now = dict(parts.student.model.named_parameters())
    assert all(torch.equal(before[name], now[name]) for name in before)
