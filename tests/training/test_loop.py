"""The loop when numbers, searches or the disk go wrong, and when it is asked to stop."""

import errno
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import disk
from tests.support.tiny import (
    copy_run,
    metrics_of,
    outcome,
    search_rows,
    tiny_config,
    train_tiny,
    trainer_of,
)

from effopd.errors import CheckpointError, ConfigError, NonFiniteError, RecordError
from effopd.methods import Batch, Contribution, Learner, Portion, opd
from effopd.models.checkpoints import verify_checkpoint
from effopd.records import list_checkpoints, read_jsonl
from effopd.rollouts.engine import Completion
from effopd.search.validation import Draw, Score
from effopd.training.loop import Trainer
from effopd.training.signals import StopRequest

NAN = float("nan")


Meddle = Callable[[Trainer], None]


def train_with(
    models: Path, out: Path, meddle: Meddle, settings: dict[str, Any] | None = None
) -> list[str]:
    """Trains after `meddle` changed the trainer; returns the messages."""
    messages: list[str] = []
    trainer, run = trainer_of(tiny_config(models, settings), out, messages.append)
    try:
        meddle(trainer)
        trainer.resume()
        trainer.run(StopRequest())
    finally:
        run.close()
    return messages


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.student.model.named_parameters()}


def assert_only_finite_numbers(out: Path) -> None:
    """`read_jsonl` refuses NaN and infinities; a missing number must be null, not 0."""
    for path in out.glob("*.jsonl"):
        read_jsonl(path)


# Updates that are not finite ----------------------------------------------------------------------


class FaultyLearner(Learner):
    """Passes everything on, but at some steps makes one number of the update not finite."""

    def __init__(self, trainer: Trainer, what: str, steps: Sequence[int]) -> None:
        self._trainer, self._what, self._steps = trainer, what, steps
        self._learner: Learner = trainer.learner
        trainer.learner = trainer.updater._learner = self

    def prepare(self, batch: Batch) -> int:
        if self._is_due() and self._what == "teacher":
            raise NonFiniteError("log-probabilities are not finite")
        return self._learner.prepare(batch)

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        part = self._learner.contribution(indices, portion)
        if not self._is_due() or self._what == "teacher":
            return part
        if self._what == "loss":
            return replace(part, loss=part.loss * NAN)
        # A finite loss with an infinite gradient: the derivative of sqrt at 0.
        zero = (part.loss - part.loss.detach()).square()
        return replace(part, loss=part.loss.detach() + zero.sqrt())

    def _is_due(self) -> bool:
        return self._trainer.progress.step in self._steps


@pytest.mark.parametrize("what", ["teacher", "loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(
    models: Path, tmp_path: Path, what: str
) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def meddle(trainer: Trainer) -> None:
        FaultyLearner(trainer, what, [3, 5])
        finish = trainer._finish

        def remembering(row: dict[str, Any]) -> None:
            seen[row["step"]] = weights(trainer)
            finish(row)

        trainer._finish = remembering  # type: ignore[method-assign]

    messages = train_with(models, tmp_path, meddle, {"method": "opd", "train.steps": 6})
    rows = metrics_of(tmp_path)
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert [row["skipped"] is None for row in rows] == [True, True, False, True, False, True]
    for row in rows:
        for name in ("loss", "reverse_kl", "grad_norm", "importance_mean"):
            assert (row[name] is None) == (row["step"] in {3, 5}), name
        assert row["entropy"] > 0
    assert_only_finite_numbers(tmp_path)
    assert all(torch.equal(seen[2][n], seen[3][n]) for n in seen[2])
    assert not all(torch.equal(seen[3][n], seen[4][n]) for n in seen[3])
    assert [m.split(",")[0] for m in messages if "skipped" in m] == [
        "step 3: update skipped",
        "step 5: update skipped",
    ]
    timing = read_jsonl(tmp_path / "timing.jsonl")
    assert {"rollout_s", "teacher_s", "update_s", "search_s"} <= timing[2].keys()


def test_a_skipped_update_leaves_no_trace_in_the_optimizer(models: Path, tmp_path: Path) -> None:
    """One step on, all moments are those of a run that never saw the bad gradient."""

    def bad_third(trainer: Trainer) -> None:
        FaultyLearner(trainer, "loss", [3])

    settings = {"method": "opd", "train.steps": 3, "checkpoint.every": 1, "checkpoint.keep": 9}
    train_with(models, tmp_path, bad_third, settings)
    second, third = (tmp_path / "checkpoints" / f"step-0000{n}" for n in (2, 3))
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert (second / name).read_bytes() == (third / name).read_bytes()


def at_scoring(trainer: Trainer, step: int, before: Callable[[], Any], after: Any) -> None:
    """Has the learner's scoring in one step of a run between two calls."""
    prepare = trainer.learner.prepare

    def meddled(batch: Batch) -> int:
        if trainer.progress.step != step:
            return prepare(batch)
        kept = before()
        try:
            return prepare(batch)
        finally:
            after(kept)

    trainer.learner.prepare = meddled  # type: ignore[method-assign]


def test_nan_from_a_real_teacher_is_skipped(models: Path, tmp_path: Path) -> None:
    """One NaN weight in the teacher at one step, put right before the next."""

    def meddle(trainer: Trainer) -> None:
        teachers = trainer.learner._teachers  # type: ignore[attr-defined]
        head = teachers.policies[""].model.lm_head.weight

        @torch.no_grad()
        def spoil() -> torch.Tensor:
            good: torch.Tensor = head[5].clone()
            head[5] = NAN
            return good

        @torch.no_grad()
        def repair(good: torch.Tensor) -> None:
            head[5] = good

        at_scoring(trainer, 3, spoil, repair)

    messages = train_with(models, tmp_path, meddle)
    rows = metrics_of(tmp_path)
    assert [row["step"] for row in rows if row["skipped"]] == [3]
    assert rows[2]["loss"] is None
    assert rows[-1]["skipped_steps"] == 1
    assert [m for m in messages if m.startswith("step 3: update skipped, ")]
    assert "finite" in rows[2]["skipped"]


def test_a_nan_in_the_teachers_answer_costs_one_token(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A remote teacher may return NaN without an error."""
    score = opd.routed_log_probs
    trainers: list[Trainer] = []

    def scored(*arguments: Any, **keywords: Any) -> list[tuple[float, ...]]:
        first, *rest = score(*arguments, **keywords)
        is_due = trainers[0].progress.step == 2
        return [(NAN, *first[1:]), *rest] if is_due else [first, *rest]

    monkeypatch.setattr(opd, "routed_log_probs", scored)
    train_with(models, tmp_path, trainers.append, {"train.steps": 3})
    rows = metrics_of(tmp_path)
    assert [row.get("teacher_missing") for row in rows] == [None, 1.0, None]
    assert [row["skipped"] for row in rows] == [None, None, None]


def test_an_engine_without_numbers_is_skipped(models: Path, tmp_path: Path) -> None:
    """Engines that filter tokens may report -inf, broken ones NaN: null in the records."""

    def meddle(trainer: Trainer) -> None:
        engine: Any = trainer.engine
        generate = engine.generate

        def filtered(requests: Any, sampling: Any) -> list[Completion]:
            found: list[Completion] = generate(requests, sampling)
            value = {2: NAN, 3: -math.inf}.get(trainer.progress.step)
            if value is None:
                return found
            return [replace(c, log_probs=(value, *c.log_probs[1:])) for c in found]

        engine.generate = filtered

    train_with(models, tmp_path, meddle, {"method": "opd", "train.steps": 4})
    rows = metrics_of(tmp_path)
    assert [row["entropy"] is None for row in rows] == [False, True, True, False]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 2, 2]
    assert all(row["mean_length"] > 0 for row in rows)


def test_too_many_skips_in_a_row_stop_the_run_with_good_checkpoints(
    models: Path, tmp_path: Path
) -> None:
    def meddle(trainer: Trainer) -> None:
        FaultyLearner(trainer, "teacher", range(4, 99))

    settings = {"train.max_skipped_steps": 2, "checkpoint.every": 2}
    with pytest.raises(NonFiniteError, match=r"3 updates in a row.*check the teacher and resume"):
        train_with(models, tmp_path, meddle, settings)
    assert [row["step"] for row in metrics_of(tmp_path)] == [1, 2, 3, 4, 5]
    assert_only_finite_numbers(tmp_path)
    for directory in list_checkpoints(tmp_path / "checkpoints"):
        verify_checkpoint(directory)
    assert list_checkpoints(tmp_path / "checkpoints")[0].name == "step-00004"
    # With the teacher repaired the same directory goes on.
    finished, messages = train_tiny(tiny_config(models, settings), tmp_path)
    assert finished
    assert "resuming from step-00004" in messages
    rows = metrics_of(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["skipped_steps"] for row in rows] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_exactly_as_many_skips_as_allowed_do_not_stop_the_run(models: Path, tmp_path: Path) -> None:
    def meddle(trainer: Trainer) -> None:
        FaultyLearner(trainer, "loss", [2, 3, 5, 6])

    train_with(models, tmp_path, meddle, {"method": "opd", "train.max_skipped_steps": 2})
    assert metrics_of(tmp_path)[-1]["skipped_steps"] == 4


def test_a_student_with_nan_weights_is_never_saved(models: Path, tmp_path: Path) -> None:
    def meddle(trainer: Trainer) -> None:
        finish = trainer._finish

        def poison(row: dict[str, Any]) -> None:
            finish(row)
            if row["step"] == 6:
                with torch.no_grad():
                    trainer.student.model.model.norm.weight[0] = NAN

        trainer._finish = poison  # type: ignore[method-assign]

    with pytest.raises(NonFiniteError):
        train_with(models, tmp_path, meddle, {"checkpoint.every": 2})
    assert list_checkpoints(tmp_path / "checkpoints")[0].name == "step-00004"
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(saved) == ["step-00002", "step-00004"]
    assert_only_finite_numbers(tmp_path)


# Searches that are not finite ---------------------------------------------------------------------


def test_a_candidate_that_overflows_is_rejected_and_recorded(models: Path, tmp_path: Path) -> None:
    """Scale 1e38 makes real infinities in real weights; scale 2 before it is scored as usual."""
    plain, overflowing = tmp_path / "plain", tmp_path / "overflowing"
    ladder = {"type": "ladder", "scales": [2.0]}
    settings = {"search.scales": ladder, "search.accept": {"type": "at_least"}}
    train_tiny(tiny_config(models, settings), plain)
    ladder["scales"] = [2.0, 1e38]
    train_tiny(tiny_config(models, settings), overflowing)
    found = search_rows(overflowing)
    beyond = [row for row in found if row["scale"] == 1e38]
    assert beyond
    for row in beyond:
        assert row["score"] is None
        assert row["accepted"] is False
        assert row["reason"] == "score is not finite"
    assert [row for row in found if row["scale"] != 1e38] == search_rows(plain)
    files = [outcome(run).files for run in (overflowing, plain)]
    for each in files:
        each.pop("search-00000-of-00001.safetensors")  # names the scales
    assert files[0] == files[1]
    assert_only_finite_numbers(overflowing)


def with_score(trainer: Trainer, change: Callable[[int, int, Score], Score]) -> None:
    """Passes each score through `change(step, index of the trial, score)`."""
    assert trainer.extrapolator is not None
    validate = trainer.extrapolator._validate
    trials: dict[int, int] = {}

    def changed(draw: Draw) -> Score:
        score = validate(draw)
        assert isinstance(score, Score)
        trials[draw.step] = trials.get(draw.step, -1) + 1
        return change(draw.step, trials[draw.step], score)

    trainer.extrapolator._validate = changed


@pytest.mark.parametrize("where", ["value", "per_prompt"])
def test_a_score_that_is_not_finite_rejects_the_candidate(
    models: Path, tmp_path: Path, where: str
) -> None:
    """Candidates beyond scale 8 have no score: 8 is the best that can be accepted."""

    def change(step: int, trial: int, score: Score) -> Score:
        better = replace(score, value=float(trial), truncated_share=0.0, mean_length=None)
        if trial < 2:
            return better
        return replace(better, **{where: NAN if where == "value" else (NAN, 0.0)})

    train_with(models, tmp_path, lambda trainer: with_score(trainer, change))
    rows = search_rows(tmp_path)
    assert [(r["scale"], r["accepted"], r["score"]) for r in rows[:3]] == [
        (1.0, None, 0.0),
        (8.0, True, 1.0),
        (64.0, False, None),
    ]
    assert [row["accepted_scale"] for row in metrics_of(tmp_path)] == [
        8.0, 8.0, None, 8.0, None, None, None, 8.0,
    ]  # fmt: skip


def test_a_tip_without_a_score_skips_the_search_and_says_so(models: Path, tmp_path: Path) -> None:
    plain, faulty = tmp_path / "plain", tmp_path / "faulty"

    def change(step: int, trial: int, score: Score) -> Score:
        return replace(score, value=NAN) if step == 4 else score

    settings = {"search.schedule": {"type": "at_steps", "steps": [1, 2, 8]}}
    train_tiny(tiny_config(models, settings), plain)
    settings["search.schedule"] = {"type": "at_steps", "steps": [1, 2, 4, 8]}
    messages = train_with(models, faulty, lambda t: with_score(t, change), settings)
    assert [m for m in messages if m.startswith("step 4: search skipped, ")]
    row = metrics_of(faulty)[3]
    assert (row["accepted_scale"], row["skipped"]) == (None, None)
    incumbent = [r for r in search_rows(faulty) if r["step"] == 4]
    assert [(r["kind"], r["score"], r["reason"]) for r in incumbent] == [
        ("incumbent", None, "score is not finite")
    ]
    # The next search runs from the same anchor as if this one had not been due.
    assert [r for r in search_rows(faulty) if r["step"] != 4] == search_rows(plain)


def test_a_search_without_a_validator_is_refused(models: Path, tmp_path: Path) -> None:
    trainer, run = trainer_of(tiny_config(models), tmp_path)
    with pytest.raises(ConfigError, match="a search needs a validator"):
        Trainer(
            trainer.student, trainer.learner, trainer.collector, run,
            settings=trainer.settings, search=tiny_config(models).search,
        )  # fmt: skip
    run.close()


# Stopping -----------------------------------------------------------------------------------------


class LateRequest(StopRequest):
    """A signal that arrives just after the `late`-th look at the request."""

    def __init__(self, late: int) -> None:
        super().__init__()
        self.looks, self.late = 0, late

    def __bool__(self) -> bool:
        self.looks += 1
        return self.looks > self.late


@pytest.mark.parametrize("late", range(8))
def test_a_stopped_run_has_always_saved_its_last_step(
    models: Path, tmp_path: Path, late: int
) -> None:
    """Whenever the signal comes, `run` returns False only with the newest step on disk."""
    settings = {"method": "opd", "evaluation.problems": 0, "checkpoint.every": 2}
    trainer, run = trainer_of(tiny_config(models, settings), tmp_path)
    assert not trainer.run(LateRequest(late))
    run.close()
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    assert newest.name == f"step-{metrics_of(tmp_path)[-1]['step']:05d}"
    state = json.loads((newest / "trainer_state.json").read_text())
    assert state["progress"]["step"] == metrics_of(tmp_path)[-1]["step"] == trainer.progress.step


def test_a_stop_in_the_last_step_counts_as_finished(models: Path, tmp_path: Path) -> None:
    finished, _ = train_tiny(tiny_config(models), tmp_path, stop_after=8)
    assert finished


# Disks --------------------------------------------------------------------------------------------

SHORT = {"method": "opd", "train.steps": 4, "checkpoint.every": 2}


def test_a_full_disk_at_a_save_stops_the_run_and_keeps_the_last_checkpoint(
    models: Path, tmp_path: Path
) -> None:
    reference, full = tmp_path / "reference", tmp_path / "full"
    config = tiny_config(models, SHORT)
    train_tiny(config, reference)
    assert not train_tiny(config, full, stop_after=2)[0]
    with (
        disk.largest_file(6000),  # records fit, weights do not
        pytest.raises(CheckpointError, match=r"step-00004: .*too large.*free space"),
    ):
        train_tiny(config, full)
    assert os.listdir(full / "checkpoints") == ["step-00002"]
    assert train_tiny(config, full)[0]
    assert outcome(full) == outcome(reference)


def test_a_full_disk_in_a_record_stops_the_run_and_resumes(models: Path, tmp_path: Path) -> None:
    reference, full = tmp_path / "reference", tmp_path / "full"
    config = tiny_config(models, SHORT | {"train.steps": 8})
    train_tiny(config, reference)
    train_tiny(config, full, stop_after=6)  # the log is larger than any other file but weights
    size = (full / "metrics.jsonl").stat().st_size
    with disk.largest_file(size + 900), pytest.raises(RecordError, match=r"cannot write .*metrics"):
        train_tiny(config, full)
    assert train_tiny(config, full)[0]
    assert outcome(full) == outcome(reference)


def test_any_refused_operation_leaves_a_run_that_can_be_resumed(
    models: Path, tmp_path: Path
) -> None:
    """A sample of the operations of steps 3 and 4, each refused once."""
    config = tiny_config(models, SHORT)
    reference, half = tmp_path / "reference", tmp_path / "half"
    train_tiny(config, reference)
    train_tiny(config, half, stop_after=2)
    operations: list[str] = []
    with disk.watching(operations.append):
        train_tiny(config, copy_run(half, tmp_path / "counted"))
    errors: set[bool] = set()
    for number in range(3, len(operations), len(operations) // 5):
        run = copy_run(half, tmp_path / f"refused-{number}")
        try:
            with disk.refuse_at(number, errno.ENOSPC):
                train_tiny(config, run)
        except (OSError, RecordError, ConfigError) as error:
            errors.add(os.strerror(errno.ENOSPC) in str(error))
        assert train_tiny(config, run)[0]
        assert outcome(run) == outcome(reference), operations[number - 1]
    assert errors == {True}


# Numbers ------------------------------------------------------------------------------------------


def test_student_passes_are_what_it_reads_in_updates(models: Path, tmp_path: Path) -> None:
    """Three times prompt and answer in each of two epochs; evaluations and writing are free."""
    settings = {"method": "opd", "train.epochs": 2, "train.steps": 3}
    config = tiny_config(models, settings)
    trainer, run = trainer_of(config, tmp_path)
    seen = []
    collect = trainer.collector.collect

    class Collector:
        writer = trainer.collector.writer

        def collect(self, step: int) -> Batch:
            batch = collect(step)
            seen.append(sum(rollout.sample.length for rollout in batch.rollouts))
            return batch

    trainer.collector = Collector()  # type: ignore[assignment]
    trainer.run(StopRequest())
    run.close()
    counted = [row["student_passes"] for row in metrics_of(tmp_path)]
    assert counted == [3 * 2 * sum(seen[: i + 1]) for i in range(3)]
    evaluations = {r["step"]: r["student_passes"] for r in read_jsonl(tmp_path / "evals.jsonl")}
    assert (evaluations[0], evaluations[3]) == (0, counted[-1])


def test_counters_add_up(models: Path, tmp_path: Path) -> None:
    train_tiny(tiny_config(models), tmp_path)
    rows, trials = metrics_of(tmp_path), search_rows(tmp_path)
    for row in rows:
        tokens = sum(t["tokens"] for t in trials if t["step"] <= row["step"])
        assert row["validation_tokens"] == tokens
        assert row["sampled_tokens"] == row["train_tokens"] + tokens
        assert row["teacher_tokens"] == row["sampled_tokens"]  # it scores every token once
    sampled = [row["mean_length"] * 16 for row in rows]
    assert [row["train_tokens"] for row in rows] == [sum(sampled[: i + 1]) for i in range(8)]
    timing = read_jsonl(tmp_path / "timing.jsonl")
    clocks = {"elapsed_s", "cpu_s"}
    spent = [sum(v for k, v in r.items() if k.endswith("_s") and k not in clocks) for r in timing]
    assert timing[0]["cpu_s"] > 0
    assert [r["cpu_s"] for r in timing] == sorted(r["cpu_s"] for r in timing)
    for i, row in enumerate(timing):
        assert math.isclose(row["elapsed_s"], sum(spent[: i + 1]), rel_tol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "opd", "train.epochs": 3, "train.updates_per_step": 2},
        {"validation": {"type": "importance_kl", "source": "batch", "prompts": 8}},
        {"method": "opd", "self_teacher": {"decay": 0.5}},
        {"method": "exopd"},
        {
            "method": "opd",
            "self_teacher": {"weights": "current"},
            "teacher": None,
            "teacher_prompt": {"system": "# "},
            "train.epochs": 2,
        },
    ],
)
def test_a_batch_costs_its_teachers_one_pass(
    models: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    full = {"objective.type": "full_kl"} if settings.get("method") != "exopd" else {}
    train_tiny(tiny_config(models, settings | full), tmp_path)
    for row in metrics_of(tmp_path):
        assert row["teacher_tokens"] == row["train_tokens"] == row["sampled_tokens"]


def test_elapsed_time_goes_on_from_the_checkpoint(models: Path, tmp_path: Path) -> None:
    config = tiny_config(models, {"method": "opd", "evaluation.problems": 0})
    train_tiny(config, tmp_path, stop_after=6)
    before = [row["elapsed_s"] for row in read_jsonl(tmp_path / "timing.jsonl")]
    train_tiny(config, tmp_path)
    after = [row["elapsed_s"] for row in read_jsonl(tmp_path / "timing.jsonl")]
    assert after[:6] == before
    assert after == sorted(after)
    assert len(after) == 8


@pytest.mark.parametrize("objective", ["sampled_token", "exopd", "full_kl"])
def test_the_size_of_micro_batches_does_not_change_the_update(
    models: Path, tmp_path: Path, objective: str
) -> None:
    """The gradient of the whole batch, however it is cut, up to rounding."""
    results = []
    for tokens in (1, 32, 10_000):
        settings = {"method": "opd", "train.steps": 1, "objective.type": objective}
        settings |= {"train.micro_batch_tokens": tokens, "evaluation.problems": 0}
        trainer, run = trainer_of(tiny_config(models, settings), tmp_path / str(tokens))
        trainer.run(StopRequest())
        run.close()
        gradients = [p.grad.flatten() for p in trainer.student.model.parameters()]
        results.append((metrics_of(tmp_path / str(tokens))[0], torch.cat(gradients)))
    (expected, gradient), *others = results
    assert gradient.norm() > 0.1
    for row, other in others:
        torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6)
        for name in ("loss", "reverse_kl", "grad_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4)


def test_evaluations_without_the_divergence_are_the_same_but_for_it(
    models: Path, tmp_path: Path
) -> None:
    rows = {}
    for measured in (True, False):
        settings = {"method": "opd", "train.steps": 2, "evaluation.divergence": measured}
        train_tiny(tiny_config(models, settings), tmp_path / str(measured))
        rows[measured] = read_jsonl(tmp_path / str(measured) / "evals.jsonl")
    students = [row for row in rows[True] if row["model"] == "student"]
    assert students
    assert all(row["reverse_kl"] > 0 for row in students)
    assert rows[False] == [row | {"reverse_kl": None} for row in rows[True]]
