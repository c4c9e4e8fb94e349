"""Runs of every kind: interrupted ones equal undisturbed ones, and stop rules end them for good."""

import json
import re
import signal
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from tests.support import processes
from tests.support.tiny import (
    Raw,
    copy_run,
    metrics_of,
    outcome,
    tiny_config,
    train_tiny,
)

from effopd.data.problem import Answer
from effopd.data.world import ChainVerifier
from effopd.errors import ConfigError
from effopd.methods import policy_gradient
from effopd.methods.opd import SampledTokenLearner
from effopd.methods.policy_gradient import Critic
from effopd.records import list_checkpoints, read_jsonl
from effopd.training.build import build_parts
from effopd.training.collect import Collector
from effopd.training.config import Config
from effopd.training.loop import Trainer
from effopd.training.monitor import Monitor
from effopd.training.rows import batch_statistics
from effopd.training.run_directory import LOGS
from effopd.training.teachers import StudentAverage

RECORDS = Path(__file__).parents[2] / "docs" / "records.md"
STEPS = 5


def scripted(self: ChainVerifier, answers: Sequence[Answer]) -> list[float]:
    """An untrained student is never right: a reward that any answer may get."""
    return [float(zlib.crc32(answer.completion.encode()) % 2) for answer in answers]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChainVerifier, "rewards", scripted)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems of two teachers."""
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    names = ("math", "code", "code")
    rows = [{"question": f"{i % 7} + {i // 7} =", "by": names[i % 3]} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Equality -----------------------------------------------------------------------------------------

GROUPS = {"train.prompts_per_step": 8, "train.responses_per_prompt": 3, "optimizer.lr": 3e-3}
PPO = GROUPS | {
    "method": "ppo",
    "objective": {"critic_lr": 1e-2, "critic_warmup_steps": 1},
    "train.updates_per_step": 3,
    "train.epochs": 2,
}
DAPO = GROUPS | {"method": "dapo", "objective": {"overlong_buffer": 2}, "train.epochs": 2}
MIXED = GROUPS | {
    "method": "grpo",
    "objective": {"distillation": 0.5, "kl_coefficient": 0.1},
    "self_teacher": {"decay": 0.8},
}
SELF = {
    "method": "opd",
    "objective": {"type": "full_kl", "teacher_temperature": 0.5},
    "self_teacher": {"decay": 0.8},
}
HORIZON = {
    "search.schedule": {"type": "every_n", "n": 2},
    "train.horizon": {"tokens": 1, "growth": 1.0},
}
SEARCH_FILE = "search-00000-of-00001.safetensors"

BATCH = {
    "objective": {"type": "full_kl"},
    "optimizer.lr": 3e-3,
    "search.schedule": {"type": "every_n", "n": 1},
    "search.scales": {"type": "geometric", "floor": 0.125},
    "search.learning_rate": "follow",
    "validation": {"type": "importance_kl", "source": "batch", "prompts": 8},
    "train.epochs": 2,
}
WATCHED = BATCH | {
    "search.schedule": {"type": "every_n", "n": 2},
    "monitor": {"every": 1, "patience": 1, "bound": 0.05},
}
REMEMBERED = {
    "search.schedule": {"type": "every_n", "n": 2},
    "search.direction": {
        "type": "alpha_pls",
        "every": 1,
        "min_snapshots": 3,
        "keep": 7,
        "min_r2": -1e9,
    },
    "search.parameters": "matrices",
}
ADAPTERS = BATCH | {
    "student.lora": {"r": 2, "alpha": 4.0, "dropout": 0.1},
    "objective": {"type": "full_kl", "reward_scale": 1.25},
}
LOW_PRECISION = BATCH | {
    "student.dtype": "bfloat16",
    "memory": {"master_weights": True, "offload_optimizer": True, "teacher_offload": True},
}
PROMPTED = BATCH | {
    "self_teacher": {"weights": "current"},
    "teacher": None,
    "teacher_prompt": {"system": "# "},
}
SWITCHED = ADAPTERS | {
    "self_teacher": {"weights": "base"},
    "teacher": None,
    "teacher_prompt": {"system": "# "},
    "reference_prompt": {"text": "; {prompt}"},
}
TWO = {
    "method": "exopd",
    "objective": {"type": "exopd"},
    "task": {"type": "dataset", "verifier": "none", "train": {"teacher_field": "by"}},
}


def config_of(name: str, models: Path, problems: Path, settings: Raw | None = None) -> Config:
    own = {
        "train.steps": STEPS,
        "checkpoint.every": 1,
        "checkpoint.keep": 99,
        "evaluation.every": 2,
        **CASES[name][0],
        **(settings or {}),
    }
    if name == "two teachers":
        train = own["task"]["train"] | {"path": str(problems)}
        own["task"] = own["task"] | {"train": train, "test_size": 6}
        own["teachers"] = {"math": {"path": str(models / "teacher")}}
        own["teachers"]["code"] = {"path": str(models / "student")}
    return tiny_config(models, own)


Whole = Callable[[str], Path]
Holds = Callable[[list[Raw], set[str]], bool]


def moves(rows: list[Raw], files: set[str]) -> bool:
    """The search moves, and its teacher teaches something."""
    scales = any(row["accepted_scale"] not in {None, 1.0} for row in rows)
    return scales and all(row["loss"] > 1e-4 for row in rows)


CASES: dict[str, tuple[Raw, Holds]] = {
    "ppo, several updates": (
        PPO,
        lambda rows, files: (
            all(row["explained_variance"] is not None for row in rows)
            and rows[-1]["clipped_share"] > 0
            and "learner.safetensors" in files
        ),
    ),
    "search on the batch, rate follows": (
        BATCH,
        lambda rows, files: (
            rows[-1]["validation_tokens"] == 0
            and len({row["lr"] for row in rows}) > 1
            and any(row["accepted_scale"] not in {None, 1.0} for row in rows)
        ),
    ),
    "search with the monitor": (
        WATCHED,
        lambda rows, files: (
            "monitor.safetensors" in files
            and any(row["accepted_scale"] not in {None, 1.0} for row in rows)
        ),
    ),
    "search along what progress predicts": (
        REMEMBERED,
        lambda rows, files: SEARCH_FILE in files,
    ),
    "dapo, refills": (
        DAPO,
        lambda rows, files: any(row["refills"] > 0 for row in rows),
    ),
    "grpo, distillation, self-teacher": (
        MIXED,
        lambda rows, files: (
            rows[-1]["reference_kl"] > 0
            and rows[-1]["teacher_tokens"] > 0
            and "average.safetensors" in files
        ),
    ),
    "self-teacher": (SELF, lambda rows, files: "average.safetensors" in files),
    "horizon": (
        HORIZON,
        lambda rows, files: [row["horizon"] for row in rows] == [1, 2, 3, None, None],
    ),
    "two teachers": (TWO, lambda rows, files: rows[-1]["reverse_kl"] > 0),
    "adapters": (
        ADAPTERS,
        lambda rows, files: (
            {"adapter_model.safetensors", SEARCH_FILE} < files
            and "model.safetensors" not in files
            and any(row["accepted_scale"] not in {None, 1.0} for row in rows)
        ),
    ),
    "the student itself with a prompt": (PROMPTED, moves),
    "adapters off with a prompt": (SWITCHED, moves),
    "float32 masters on the CPU": (
        LOW_PRECISION,
        lambda rows, files: (
            "masters.safetensors" in files
            and any(row["accepted_scale"] not in {None, 1.0} for row in rows)
        ),
    ),
}
"""Settings, and what rows and checkpoint must show for the case to mean something."""


@pytest.fixture(scope="module")
def whole(models: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Case -> directory of its undisturbed run, which tests copy before they change it."""
    done: dict[str, Path] = {}

    def run(case: str) -> Path:
        if case not in done:
            done[case] = tmp_path_factory.mktemp("whole") / "run"
            assert train_tiny(config_of(case, models, problems), done[case])[0]
            last = list_checkpoints(done[case] / "checkpoints")[0]
            rows, files = (
                metrics_of(done[case]),
                {path.name for path in last.rglob("*.safetensors")},
            )
            assert CASES[case][1](rows, files)
            assert all(row["skipped"] is None for row in rows)
        return done[case]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_resuming_at_any_step_changes_nothing(
    models: Path, problems: Path, whole: Whole, tmp_path: Path, case: str
) -> None:
    config, expected = config_of(case, models, problems), outcome(whole(case))
    for step in range(1, STEPS):
        resumed = copy_run(whole(case), tmp_path / f"from-{step}", steps=[step])
        torch.manual_seed(step)
        done, messages = train_tiny(config, resumed)
        assert done
        assert f"resuming from step-{step:05d}" in messages
        assert outcome(resumed) == expected, f"resumed from step {step}"


@pytest.mark.parametrize("case", CASES)
def test_a_run_cut_into_pieces_is_the_same_run(
    models: Path, problems: Path, whole: Whole, tmp_path: Path, case: str
) -> None:
    config = config_of(case, models, problems)
    for stop_after in (2, 4):
        torch.manual_seed(stop_after)
        assert not train_tiny(config, tmp_path, stop_after=stop_after)[0]
    done, messages = train_tiny(config, tmp_path)
    assert done
    assert "resuming from step-00004" in messages
    assert outcome(tmp_path) == outcome(whole(case))


KILLS: list[tuple[str, Any, str, int]] = [
    ("ppo, several updates", Critic, "update_", 15),  # between two mini-batches of step 3
    ("ppo, several updates", policy_gradient.nn.utils, "clip_grad_norm_", 40),
    ("dapo, refills", Collector, "_portion", 4),
    ("self-teacher", StudentAverage, "update_", 4),
    ("two teachers", SampledTokenLearner, "prepare", 4),
    ("search with the monitor", Monitor, "observe", 4),  # between the update and its row
    ("search with the monitor", Monitor, "on_extrapolation", 1),  # between a jump and its note
]
"""A case, and the call before which its process is killed."""


@pytest.mark.parametrize("kill", range(len(KILLS)))
def test_a_killed_run_ends_like_an_undisturbed_one(
    models: Path, problems: Path, whole: Whole, tmp_path: Path, kill: int
) -> None:
    case, owner, name, call = KILLS[kill]
    config = config_of(case, models, problems, {"checkpoint.every": 2})
    real, calls = getattr(owner, name), [0]

    def killing(*arguments: Any, **keywords: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            processes.kill_me()
        return real(*arguments, **keywords)

    def body() -> None:
        pytest.MonkeyPatch().setattr(owner, name, killing)
        train_tiny(config, tmp_path / "killed")

    assert processes.run(body) == -signal.SIGKILL
    assert 0 < len(metrics_of(tmp_path / "killed")) < STEPS
    assert train_tiny(config, tmp_path / "killed")[0]
    assert outcome(tmp_path / "killed") == outcome(whole(case))


def test_a_longer_run_continues_a_finished_one(
    models: Path, problems: Path, whole: Whole, tmp_path: Path
) -> None:
    case = "ppo, several updates"
    grown, at_once = copy_run(whole(case), tmp_path / "grown"), tmp_path / "at-once"
    longer = config_of(case, models, problems, {"train.steps": STEPS + 2})
    assert finished(grown) == {"step": STEPS, "reason": "last step"}
    assert train_tiny(longer, grown)[0]
    assert train_tiny(longer, at_once)[0]
    assert metrics_of(grown) == metrics_of(at_once)
    assert outcome(grown).files == outcome(at_once).files
    assert finished(grown) == {"step": STEPS + 2, "reason": "last step"}


def finished(run: Path) -> Any:
    return json.loads((run / "run.json").read_text()).get("finished")


# What the runs are --------------------------------------------------------------------------------


def test_updates_of_a_step_are_as_many_as_asked_for(models: Path, whole: Whole) -> None:
    """Counted by the optimizers themselves; the student's rests while the critic warms up."""
    last = list_checkpoints(whole("ppo, several updates") / "checkpoints")[0]
    counts = {
        name: {value.item()
               for key, value in load_file(last / "trainer" / f"{name}.safetensors").items()
               if key.endswith("/step")}
        for name in ("optimizer", "learner")
    }  # fmt: skip
    assert counts == {"optimizer": {6.0 * (STEPS - 1)}, "learner": {6.0 * STEPS}}
    first = [directory / "model.safetensors" for directory in list_checkpoints(last.parent)][-1]
    before = load_file(models / "student" / "model.safetensors")
    assert all(torch.equal(before[name], value) for name, value in load_file(first).items())


def test_the_self_teacher_is_the_average_of_the_weights_it_saw(models: Path, whole: Whole) -> None:
    """From the checkpoints of every step; it starts as the teacher that is named."""
    expected = load_file(models / "teacher" / "model.safetensors")
    for directory in list_checkpoints(whole("self-teacher") / "checkpoints")[::-1]:
        weights = load_file(directory / "model.safetensors")
        expected = {n: 0.8 * expected[n] + 0.2 * weights[n] for n in expected}
        found = load_file(directory / "trainer" / "average.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_a_self_teacher_starts_as_the_untrained_student_when_none_is_named(models: Path) -> None:
    config = tiny_config(models, {"method": "opd", "self_teacher": {}})
    parts = build_parts(config.model_copy(update={"teacher": None}), print)
    assert parts.teachers is not None
    (teacher,) = parts.teachers.policies.values()
    ours, theirs = parts.student.model.state_dict(), teacher.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert parts.average is not None
    assert parts.average.teacher is teacher


def test_each_teacher_is_evaluated_on_its_own_problems(
    models: Path, problems: Path, tmp_path: Path
) -> None:
    settings = {"evaluation.problems": 6, "train.steps": 1}
    train_tiny(config_of("two teachers", models, problems, settings), tmp_path)
    rows = [row for row in read_jsonl(tmp_path / "evals.jsonl") if row["model"] == "teacher"]
    assert [(row["n"], row["accuracy"]) for row in rows] == [(6, None)]


def test_a_problem_of_an_unknown_teacher_is_refused_before_the_first_step(
    models: Path, problems: Path, tmp_path: Path
) -> None:
    config = config_of("two teachers", models, problems)
    fewer = {name: value for name, value in config.teachers.items() if name != "code"}
    with pytest.raises(ConfigError, match="problem problems-2 names the teacher 'code'; known"):
        train_tiny(config.model_copy(update={"teachers": fewer}), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("case", ["ppo, several updates", "horizon", "search with the monitor"])
def test_every_field_and_file_of_a_run_is_documented(whole: Whole, case: str) -> None:
    run = whole(case)
    names = re.split(r"[^\w.-]+", RECORDS.read_text(encoding="utf-8"))
    for log in LOGS:
        fields = {field for row in read_jsonl(run / f"{log}.jsonl") for field in row}
        assert fields <= set(names), log
    (last, *_) = list_checkpoints(run / "checkpoints")
    parts = {path.name for path in last.rglob("*.safetensors")} - {"model.safetensors"}
    own = {path.name for path in run.iterdir()} - {"checkpoints", "run.lock"}
    assert parts | own <= set(names)
    assert json.loads((run / "run.json").read_text()).keys() <= set(names)


def test_every_method_is_documented() -> None:
    methods = get_args(Config.model_fields["method"].annotation)
    text = RECORDS.read_text(encoding="utf-8")
    assert [name for name in methods if f'"{name}"' not in text] == []


# Stop rules ---------------------------------------------------------------------------------------


def with_accuracies(
    monkeypatch: pytest.MonkeyPatch, student: list[float], teacher: float = 1.0
) -> None:
    """Evaluations of a run find these accuracies, whatever was written."""
    write = Trainer._write_evaluation
    found = iter(student)

    def written(self: Trainer, model: str, evaluation: Any) -> None:
        row = evaluation.row()
        row["accuracy"] = teacher if model == "teacher" else next(found)

        class Scripted:
            rollouts, rewards, kl_nats = evaluation.rollouts, evaluation.rewards, evaluation.kl_nats

            def row(self) -> Raw:
                return row

        write(self, model, Scripted())  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_write_evaluation", written)


ENDED = {"method": "opd", "evaluation.every": 1, "checkpoint.every": 4}


@pytest.mark.parametrize(
    ("rule", "accuracies", "step", "reason"),
    [
        ({"patience": 2}, [0.1, 0.3, 0.2, 0.3], 3, "no better accuracy in 2 evaluations"),
        ({"target": 0.9}, [0.1, 0.3, 0.91], 2, "accuracy 0.910 is 90% of the teacher's"),
        ({"target": 0.9}, [0.95], 0, "accuracy 0.950 is 90% of the teacher's"),
        ({"patience": 9, "target": 0.9}, [0.1] * 9, 8, "last step"),
    ],
)
def test_a_run_that_ended_is_not_continued(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    rule: Raw, accuracies: list[float], step: int, reason: str,
) -> None:  # fmt: skip
    with_accuracies(monkeypatch, accuracies)
    config = tiny_config(models, ENDED | {"train.stop": rule})
    assert train_tiny(config, tmp_path)[0]
    assert finished(tmp_path) == {"step": step, "reason": reason}
    if step:
        assert len(metrics_of(tmp_path)) == step
        assert list_checkpoints(tmp_path / "checkpoints")[0].name == f"step-{step:05d}"

    def never(*arguments: object) -> None:
        raise AssertionError("a finished run needs no trainer")

    monkeypatch.setattr(Trainer, "__init__", never)
    longer = tiny_config(models, ENDED | {"train.stop": rule, "train.steps": 20})
    for again in [config] if reason == "last step" else [config, longer]:
        done, messages = train_tiny(again, tmp_path)
        assert done
        assert messages == [
            f"{tmp_path} is finished (after step {step}: {reason}), nothing was changed. Raise "
            "train.steps to go on after the last step, or choose another directory (--out)."
        ]


def test_a_run_killed_between_its_last_save_and_its_end_is_over(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule is a function of the records: resuming finds the end without another step."""
    with_accuracies(monkeypatch, [0.1, 0.3, 0.95])
    config = tiny_config(models, ENDED | {"train.stop": {"target": 0.9}})
    train_tiny(config, tmp_path)
    info = json.loads((tmp_path / "run.json").read_text())
    del info["finished"]
    (tmp_path / "run.json").write_text(json.dumps(info))
    before = outcome(tmp_path)
    done, messages = train_tiny(config, tmp_path)
    assert (done, messages) == (True, ["resuming from step-00002"])
    assert finished(tmp_path) == {"step": 2, "reason": "accuracy 0.950 is 90% of the teacher's"}
    assert outcome(tmp_path) == before


@pytest.mark.parametrize("every", [0, 2, 4])
def test_a_run_that_its_rewards_end_is_evaluated_where_it_ends(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    rewards = iter([0.1, 0.4, 0.2, 0.3, 0.4, 0.9])
    scripted = lambda batch: {**batch_statistics(batch), "reward": next(rewards)}  # noqa: E731
    monkeypatch.setattr("effopd.training.loop.batch_statistics", scripted)
    settings = GROUPS | {"method": "grpo", "objective": {}, "checkpoint.every": 99}
    settings |= {"evaluation.every": every, "evaluation.first": []}
    config = tiny_config(models, settings | {"train.stop": {"reward_patience": 3}})
    assert train_tiny(config, tmp_path)[0]
    assert finished(tmp_path) == {"step": 5, "reason": "no better reward in 3 steps"}
    evaluated = [r["step"] for r in read_jsonl(tmp_path / "evals.jsonl") if r["model"] == "student"]
    assert evaluated == {0: [0, 5], 2: [0, 2, 4, 5], 4: [0, 4, 5]}[every]
    assert list_checkpoints(tmp_path / "checkpoints")[0].name == "step-00005"


def test_a_stopped_run_is_not_finished(models: Path, tmp_path: Path) -> None:
    config = tiny_config(models, {"method": "opd"})
    assert not train_tiny(config, tmp_path, stop_after=3)[0]
    assert finished(tmp_path) is None
