"""The search in TRL's trainers: no trace where it rejects, the ray's points where it accepts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.trl import (
    TRAINERS,
    Killed,
    distillation,
    generators,
    logs,
    reinforcement,
    weights,
)
from torch import Tensor
from torch.testing import assert_close

from effopd import AtLeast, Draw, EveryN, LadderScales, PairedMargin, Search
from effopd.errors import CheckpointError, NonFiniteError
from effopd.integrations.trl import FOLLOWING, EffOPDCallback
from effopd.records import read_jsonl

REJECTS = Search(schedule=EveryN(n=1), accept=PairedMargin(z=1e9), guard=None)
ACCEPTS = Search(
    schedule=EveryN(n=2), scales=LadderScales(scales=(2.0,)), accept=AtLeast(), guard=None
)


def trained(trainer: Any, **search: Any) -> Any:
    """The trainer after its run, with the search if there are settings for it."""
    if search:
        trainer.add_callback(EffOPDCallback(trainer, prompts=8, **search))
    trainer.train()
    return trainer


def trials(output: Path) -> list[dict[str, Any]]:
    return read_jsonl(output / "effopd" / "search.jsonl")


# Nothing accepted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_search_that_rejects_leaves_no_trace(tmp_path: Path, kind: str) -> None:
    plain = trained(TRAINERS[kind](tmp_path / "plain"))
    after_plain = generators()
    searched = trained(TRAINERS[kind](tmp_path / "searched"), search=REJECTS)
    assert generators() == after_plain
    rows = trials(tmp_path / "searched")
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    assert sum(row["scale"] > 1 for row in rows) >= 4
    assert all(row["tokens"] > 0 for row in rows)
    assert logs(searched) == logs(plain)
    assert searched.state.num_input_tokens_seen == plain.state.num_input_tokens_seen
    for name, tensor in weights(plain).items():
        assert torch.equal(weights(searched)[name], tensor), name


def test_an_evaluation_as_a_score_leaves_no_trace(tmp_path: Path) -> None:
    """It clears flags that decide on logs and checkpoints, and appends to the history."""
    plain = trained(evaluated(tmp_path / "plain"))
    searched = evaluated(tmp_path / "searched")
    strict = Search(schedule=EveryN(n=1), scales=LadderScales(scales=(2.0,)), guard=None)
    score = lambda draw: 0.0 * searched.evaluate()["eval_loss"]  # noqa: E731
    searched.add_callback(EffOPDCallback(searched, search=strict, validate=score))
    searched.train()
    assert logs(searched) == logs(plain)
    for name, tensor in weights(plain).items():
        assert torch.equal(weights(searched)[name], tensor), name
    for step in (2, 4):
        checkpoint = tmp_path / "searched" / f"checkpoint-{step}"
        assert (checkpoint / "trainer_state.json").is_file()
        assert (checkpoint / "effopd" / "search-00000-of-00001.safetensors").is_file()
    found = {(row["scale"], row["accepted"]) for row in trials(tmp_path / "searched")}
    assert (2.0, False) in found
    assert (2.0, True) not in found


def evaluated(output: Path) -> Any:
    """A trainer that saves, and can evaluate."""
    trainer = distillation(output, save_strategy="steps", save_steps=2)
    trainer.eval_dataset = trainer.train_dataset.select(range(8))
    return trainer


# Accepted -----------------------------------------------------------------------------------------


class Watched:
    """A score that prefers the later of two points, and what it saw."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.base = weights(trainer)
        self.seen: list[tuple[Draw, dict[str, Tensor]]] = []

    def __call__(self, draw: Draw) -> float:
        self.seen.append((draw, weights(self.trainer)))
        return float(len(self.seen))


@pytest.mark.parametrize("kind", TRAINERS)
def test_candidates_are_the_points_of_the_ray(tmp_path: Path, kind: str) -> None:
    trainer = TRAINERS[kind](tmp_path, max_steps=4)
    score = Watched(trainer)
    trainer.add_callback(EffOPDCallback(trainer, search=ACCEPTS, validate=score))
    trainer.train()
    assert [draw.step for draw, _ in score.seen] == [2, 2, 4, 4]
    anchor = score.base
    for (_, tip), (_, candidate) in zip(score.seen[::2], score.seen[1::2], strict=True):
        for name, tensor in candidate.items():
            moved = "attn" in name or "mlp" in name or "post_attention" in name
            expected = anchor[name] + 2 * (tip[name] - anchor[name]) if moved else tip[name]
            assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
        anchor = candidate
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, anchor[name])


def test_the_score_is_minus_the_divergence_of_what_is_written(tmp_path: Path) -> None:
    """Of its own answers, a model diverges from another, and not from itself."""
    trainer = distillation(tmp_path, max_steps=1, learning_rate=0.0)
    trained(trainer, search=REJECTS)
    (apart, *_) = trials(tmp_path)
    assert apart["score"] < -0.05
    own = distillation(tmp_path / "own", max_steps=1, learning_rate=0.0)
    own.teacher_model.load_state_dict(own.model.state_dict())
    trained(own, search=REJECTS)
    (same, *_) = trials(tmp_path / "own")
    assert same["score"] == pytest.approx(0.0, abs=1e-6)


def test_the_score_of_grpo_is_the_reward(tmp_path: Path) -> None:
    trainer = reinforcement(tmp_path, max_steps=1, learning_rate=0.0, reward_weights=[2.0])
    trainer.reward_funcs[0] = lambda completions, **_: [0.25] * len(completions)
    trained(trainer, search=REJECTS)
    assert {row["score"] for row in trials(tmp_path)} == {0.5}


def test_a_candidate_that_cannot_be_sampled_is_rejected(tmp_path: Path) -> None:
    far = Search(schedule=EveryN(n=1), scales=LadderScales(scales=(1e30,)), guard=None)
    trained(distillation(tmp_path, max_steps=1), search=far)
    tip, candidate = trials(tmp_path)
    assert tip["score"] is not None
    assert candidate["score"] is None
    assert not candidate["accepted"]


def test_rates_follow_for_one_update_and_return_to_the_schedule(tmp_path: Path) -> None:
    follows = Search(
        schedule=EveryN(n=1),
        scales=LadderScales(scales=(3.0,)),
        accept=AtLeast(),
        guard=None,
        learning_rate="follow",
    )
    trainer = distillation(tmp_path, max_steps=3)
    score, used = Watched(trainer), []
    callback = EffOPDCallback(trainer, search=follows, validate=score)
    trainer.add_callback(callback)
    step = torch.optim.AdamW.step

    def noted(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        used.append((optimizer.param_groups[0]["lr"], callback.extrapolator.rate_factor))
        return step(optimizer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noted)
        trainer.train()
    assert used[0] == (3e-3, 1.0)
    assert used[1][1] > 1
    assert [lr for lr, _ in used] == pytest.approx([3e-3 * factor for _, factor in used])
    rows = logs(trainer)[:-1]
    assert [row["learning_rate"] for row in rows] == [3e-3] * 3
    assert [row["effopd/rate_factor"] for row in rows] == [factor for _, factor in used]


def test_the_rate_follows_by_default_where_the_teacher_scores(tmp_path: Path) -> None:
    assert FOLLOWING.learning_rate == "follow"
    assert EffOPDCallback(distillation(tmp_path)).search == FOLLOWING
    assert EffOPDCallback(distillation(tmp_path), validate=lambda draw: 0.0).search == Search()
    assert EffOPDCallback(reinforcement(tmp_path)).search == Search()


# Resumed ------------------------------------------------------------------------------------------

LONG = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
POWERS = Search(scales=LadderScales(scales=(1.5,)), accept=AtLeast(), guard=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A run that was not interrupted."""
    output = tmp_path_factory.mktemp("whole")
    trainer = trained(distillation(output, **LONG), search=POWERS)
    return output, weights(trainer)


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed; tests copy it."""
    output = tmp_path_factory.mktemp("cut")
    killed(output)
    return output


@pytest.fixture
def cut(cut_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cut_run, tmp_path / "cut")


def killed(output: Path, search: Search = POWERS) -> None:
    """A run that ends after step 3, at which it saved and did not search."""
    trainer = distillation(output, **LONG)
    trainer.add_callback(Killed(after=3))
    with pytest.raises(KeyboardInterrupt):
        trained(trainer, search=search)


def resumed(output: Path, search: Search = POWERS, **options: Any) -> Any:
    trainer = distillation(output, **LONG)
    trainer.add_callback(EffOPDCallback(trainer, prompts=8, search=search, **options))
    trainer.train(resume_from_checkpoint=str(output / "checkpoint-3"))
    return trainer


def without_seconds(output: Path) -> list[dict[str, Any]]:
    return [row | {"seconds": 0} for row in trials(output)]


def test_a_resumed_run_is_the_uninterrupted_one(
    cut: Path, whole: tuple[Path, dict[str, Tensor]]
) -> None:
    trainer = resumed(cut)
    assert without_seconds(cut) == without_seconds(whole[0])
    assert {row["step"] for row in trials(cut)} == {1, 2, 4}
    for name, tensor in weights(trainer).items():
        assert torch.equal(tensor, whole[1][name]), name


def test_a_rate_that_follows_is_resumed_too(tmp_path: Path) -> None:
    undisturbed = trained(distillation(tmp_path / "whole", **LONG), search=FOLLOWING)
    killed(tmp_path / "cut", FOLLOWING)
    trainer = resumed(tmp_path / "cut", FOLLOWING)
    assert without_seconds(tmp_path / "cut") == without_seconds(tmp_path / "whole")
    assert logs(trainer)[:6] == logs(undisturbed)[:6]
    assert logs(trainer)[3]["effopd/rate_factor"] != 1
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(weights(trainer)[name], tensor), name


def test_a_state_that_is_of_other_weights_damaged_or_lost_is_refused(
    cut: Path, whole: tuple[Path, dict[str, Tensor]]
) -> None:
    with pytest.raises(CheckpointError, match="resume_from="):
        resumed(cut, resume_from=whole[0] / "checkpoint-6")
    (file,) = (cut / "checkpoint-3" / "effopd").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="earlier checkpoint"):
        resumed(cut)
    file.unlink()
    with pytest.raises(CheckpointError, match="start_anew"):
        resumed(cut)
    trainer = resumed(cut, start_anew=True)
    assert any(not torch.equal(t, whole[1][name]) for name, t in weights(trainer).items())


def test_a_failing_score_leaves_the_weights(tmp_path: Path) -> None:
    trainer = distillation(tmp_path)
    scores = iter([0.0, float("nan")])
    trainer.add_callback(
        EffOPDCallback(trainer, search=REJECTS, validate=lambda draw: next(scores) * float("nan"))
    )
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert trainer.model.training
