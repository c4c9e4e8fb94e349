"""Learning-rate schedule and due steps against closed forms."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.errors import ConfigError
from effopd.training.config import make_config
from effopd.training.settings import (
    CheckpointSettings,
    EvaluationSettings,
    LoopSettings,
    OptimizerSettings,
    StopRule,
    TrainSettings,
)


def test_linear_decay_and_warm_up() -> None:
    optimizer = OptimizerSettings(lr=1.0, warmup_steps=2, decay="linear")
    assert [optimizer.lr_at(step, 4) for step in (1, 2, 3, 4)] == [0.5, 0.75, 0.5, 0.25]


@given(step=st.integers(1, 50), longer=st.integers(1, 50), warmup=st.integers(0, 60))
def test_without_decay_the_rate_does_not_depend_on_the_number_of_steps(
    step: int, longer: int, warmup: int
) -> None:
    optimizer = OptimizerSettings(lr=0.25, warmup_steps=warmup)
    assert optimizer.lr_at(step, 50) == optimizer.lr_at(step, 50 + longer)
    assert optimizer.lr_at(step, 50) == 0.25 * min(1.0, step / warmup if warmup else 1.0)


def test_evaluations_are_due_at_both_ends_at_first_steps_and_periodically() -> None:
    often = EvaluationSettings(every=4, first=(1, 2))
    assert [s for s in range(11) if often.is_due(s, 10)] == [0, 1, 2, 4, 8, 10]
    sparse = EvaluationSettings(every=0, first=())
    assert [s for s in range(11) if sparse.is_due(s, 10)] == [0, 10]
    off = EvaluationSettings(problems=0)
    assert not any(off.is_due(s, 10) for s in range(11))


@pytest.mark.parametrize("bad", [{"every": 0}, {"keep": 0}])
def test_checkpoint_settings_are_positive(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        CheckpointSettings(**bad)


def test_the_best_checkpoint_needs_evaluations() -> None:
    with pytest.raises(ConfigError, match="keep_best looks at evaluations"):
        LoopSettings(
            checkpoint=CheckpointSettings(keep_best=True), evaluation=EvaluationSettings(problems=0)
        )
    silent = {"type": "dataset", "verifier": "none", "train": {"path": "x"}}
    models = {"student": {"path": "s"}, "teacher": {"path": "t"}, "task": silent}
    kept = models | {"checkpoint": {"keep_best": True}}
    assert make_config(kept).checkpoint.keep_best
    with pytest.raises(ConfigError, match="keep_best looks at accuracies, or at divergences"):
        make_config(kept | {"evaluation": {"divergence": False}})


@pytest.mark.parametrize(
    "name",
    ["steps", "prompts_per_step", "responses_per_prompt", "updates_per_step", "epochs",
     "micro_batch_tokens", "rollout_batch"],
)  # fmt: skip
def test_train_settings_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"train.{name} must be at least 1, got 0"):
        TrainSettings(**{name: 0})


@pytest.mark.parametrize("name", ["lr", "eps", "clip_norm"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_optimizer_settings_are_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.{name} must be positive"):
        OptimizerSettings(**{name: value})


@pytest.mark.parametrize(
    "bad",
    [{"weight_decay": -1e-9}, {"warmup_steps": -1}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)}],
    ids=str,
)
def test_impossible_optimizers_are_refused(bad: dict[str, object]) -> None:
    (name,) = bad
    with pytest.raises(ConfigError, match=f"optimizer.{name}"):
        OptimizerSettings(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["every", "problems", "recorded"])
def test_negative_evaluations_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"evaluation.{name}"):
        EvaluationSettings(**{name: -1})


def test_a_negative_number_of_skipped_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_skipped_steps"):
        TrainSettings(max_skipped_steps=-1)


def test_a_step_has_no_more_updates_than_answers() -> None:
    assert TrainSettings(prompts_per_step=3, responses_per_prompt=2, updates_per_step=6)
    with pytest.raises(ConfigError, match="updates_per_step = 7 is more than a step's 6 answers"):
        TrainSettings(prompts_per_step=3, responses_per_prompt=2, updates_per_step=7)


@pytest.mark.parametrize(
    ("stop", "evaluation", "message"),
    [
        ({"patience": 1}, {"problems": 0}, "set evaluation.problems above 0"),
        ({"target": 0.9}, {"problems": 0}, "set evaluation.problems above 0"),
        ({"target": 0.9}, {"teacher": False}, "set evaluation.teacher"),
    ],
)
def test_a_stop_rule_needs_what_it_looks_at(
    stop: dict[str, Any], evaluation: dict[str, Any], message: str
) -> None:
    train = TrainSettings(stop=StopRule(**stop))
    assert LoopSettings(train=train).train == train
    with pytest.raises(ConfigError, match=message):
        LoopSettings(train=train, evaluation=EvaluationSettings(**evaluation))
    patient = TrainSettings(stop=StopRule(patience=3))
    assert LoopSettings(train=patient, evaluation=EvaluationSettings(teacher=False))
