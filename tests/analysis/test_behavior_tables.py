"""The behavior of real checkpoints of a tiny model, against float64 twins and closed forms."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.reference import behavior_twin as twin
from tests.reference.kl_twin import reverse_kl
from tests.support.tiny import tiny_config, write_models

from effopd.analysis.behavior_study import (
    TABLES,
    Behavior,
    behavior_tables,
    most_informative_question,
)
from effopd.analysis.series import Checkpoint, Inputs
from effopd.errors import ConfigError
from effopd.models.loading import ModelSettings, load_model
from effopd.models.policy import Sample
from effopd.progress import Display
from effopd.training.build import build_parts
from effopd.training.config import Config, make_config

PROBLEMS = 6


def quiet(message: str) -> None:
    """Says nothing."""


def model_of(directory: Path) -> Any:
    return load_model(ModelSettings(path=str(directory)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`student`, `teacher`, and on the way between: `same` (the student), `half` and `final`."""
    directory = write_models(tmp_path_factory.mktemp("models"))
    teacher = model_of(directory / "teacher").state_dict()
    for name, share in (("same", 0.0), ("half", 0.5), ("final", 1.0)):
        model = model_of(directory / "student")
        for key, tensor in model.state_dict().items():
            tensor.lerp_(teacher[key], share)
        model.save_pretrained(directory / name)
    return directory


def inputs(models: Path, *names: str, final: str | None = None) -> Inputs:
    def checkpoint(step: int, name: str) -> Checkpoint:
        return Checkpoint(label=name, step=step, directory=models / name)

    series = tuple(checkpoint(4 * i, name) for i, name in enumerate(names, 1))
    last = series[-1] if final is None else checkpoint(4 * len(names), final)
    return Inputs(base=models / "student", checkpoints=series, final=last)


def recipe(models: Path, **settings: Any) -> Config:
    return tiny_config(models, {"evaluation.problems": PROBLEMS, **settings})


@pytest.fixture(scope="module")
def found(models: Path) -> Behavior:
    series = inputs(models, "half", "same", "final")
    return behavior_tables(series, recipe(models), picture_tokens=5)


def row(found: Behavior, table: str, **keys: Any) -> dict[str, Any]:
    (only,) = [row for row in found.tables[table] if all(row[name] == keys[name] for name in keys)]
    return only


@pytest.fixture(scope="module")
def base_text(models: Path) -> list[Sample]:
    parts = build_parts(recipe(models), quiet)
    return [rollout.sample for rollout in parts.evaluate_student().rollouts]


def test_tables_have_the_same_columns_in_every_row_and_finite_values(found: Behavior) -> None:
    assert set(found.tables) == set(TABLES)
    for rows in found.tables.values():
        assert len({tuple(row) for row in rows}) == 1
    json.dumps(found.tables, allow_nan=False)


def test_every_checkpoint_is_measured_on_both_texts_against_both_models(found: Behavior) -> None:
    cases = [(r["label"], r["step"], r["text"], r["to"]) for r in found.tables["divergences"]]
    pairs = [("base", "teacher"), ("base", "base"), ("own", "teacher"), ("own", "base")]
    series = [("half", 4), ("same", 8), ("final", 12)]
    assert cases == [
        ("base", 0, "base", "teacher"),
        *((label, step, text, to) for label, step in series for text, to in pairs),
    ]


@pytest.mark.parametrize(("label", "directory"), [("base", "student"), ("half", "half")])
def test_divergence_on_the_base_text_equals_the_twin(
    found: Behavior, models: Path, base_text: list[Sample], label: str, directory: str
) -> None:
    model, teacher = model_of(models / directory), model_of(models / "teacher")
    vocabulary = teacher.lm_head.weight.shape[0]
    answers = [reverse_kl(model, teacher, sample, vocabulary) for sample in base_text]
    tokens = [value for answer in answers for value in answer]
    summary = row(found, "divergences", label=label, text="base", to="teacher")
    assert (summary["answers"], summary["tokens"]) == (PROBLEMS, len(tokens))
    assert summary["mean_nats"] == pytest.approx(twin.mean(tokens), rel=1e-4)
    assert summary["se_nats"] == pytest.approx(twin.clustered_error(answers), rel=1e-3)
    assert summary["max_nats"] == pytest.approx(max(tokens), rel=1e-4)
    first = row(found, "positions", label=label, text="base", to="teacher", first=1)
    assert first["mean_nats"] == pytest.approx(twin.mean([a[0] for a in answers]), rel=1e-4)


def test_a_checkpoint_that_did_not_move_is_the_base(found: Behavior) -> None:
    base = row(found, "divergences", label="base")
    same = row(found, "divergences", label="same", text="own", to="teacher")
    columns = ("mean_nats", "tokens", "accuracy", "mean_length", "truncated_share")
    assert [same[name] for name in columns] == [base[name] for name in columns]
    for text in ("base", "own"):
        assert row(found, "divergences", label="same", text=text, to="base")["max_nats"] == 0.0
    for shift in (r for r in found.tables["shifts"] if r["label"] == "same"):
        assert shift["mean_cosine"] == pytest.approx(1.0, abs=1e-12)
        assert shift["relative_shift"] == 0.0
    assert row(found, "divergences", label="same", text="base", to="teacher")["closed_share"] == 0.0


def test_the_teacher_has_closed_the_whole_divergence(found: Behavior) -> None:
    reached = row(found, "divergences", label="final", text="base", to="teacher")
    half = row(found, "divergences", label="half", text="base", to="teacher")
    assert (reached["max_nats"], reached["closed_share"]) == (0.0, 1.0)
    assert 0.1 < half["closed_share"] < 0.95
    back = row(found, "divergences", label="final", text="base", to="base")
    assert back["mean_nats"] > 0.1


def test_pictures_show_the_base_and_the_last_checkpoint(
    found: Behavior, base_text: list[Sample]
) -> None:
    rows = found.tables["shift_points"]
    pictures = {(r["space"], r["projection"], r["kind"]) for r in rows}
    assert len(pictures) == 2 * 2 * 2
    assert {r["label"] for r in rows} == {"base", "final"}
    tokens = [token for sample in base_text for token in sample.completion_ids]
    shown = [
        r["token_id"]
        for r in rows
        if (r["space"], r["projection"], r["kind"], r["label"])
        == ("embedding", "pca", "positions", "final")
    ]
    assert shown == sorted(set(tokens), key=lambda t: (-tokens.count(t), t))[:5]
    still = [r for r in rows if (r["kind"], r["label"]) == ("shifts", "base")]
    assert [(r["token"], r["token_id"]) for r in still] == [(None, None)] * 4


def test_half_of_an_update_at_the_norms_of_the_whole_is_the_whole(found: Behavior) -> None:
    example = found.example
    assert example is not None
    names = [answer["writer"] for answer in example["answers"]]
    assert names == ["half", "half at the norms of final", "teacher"]
    assert example["answers"][1]["tokens"] == example["answers"][2]["tokens"]
    for answer in example["answers"]:
        early, rescaled = (answer["kl_nats"][name] for name in names[:2])
        assert len(early) == len(answer["tokens"]) == len(rescaled)
        assert max(map(abs, rescaled)) < 1e-6, "but for fp32"
        assert min(early) > 1e-4
    assert [w["writer"] for w in example["writers"]] == names
    assert example["questions"] == PROBLEMS


@pytest.mark.parametrize(
    ("early", "rescaled", "teacher", "expected"),
    [
        ([0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], (1, 2)),
        ([1, 0, 0, 0], [1, 1, 0, 1], [1, 0, 1, 1], (3, 1)),
        ([1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], (0, 0)),
        ([0, 0, 0, 0], [0.5, 0, 0, 0], [1, 1, 1, 1], (0, 0)),
        ([0.5, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], (0, 1)),
        ([None] * 4, [None] * 4, [None] * 4, (0, 0)),
    ],
)
def test_the_question_shown_is_one_that_only_the_early_writer_gets_wrong(
    early: list[float], rescaled: list[float], teacher: list[float], expected: tuple[int, int]
) -> None:
    rewards = {"early": early, "rescaled": rescaled, "teacher": teacher}
    assert most_informative_question(rewards, "early") == expected


def test_the_norms_may_be_those_of_a_model_outside_the_series(models: Path) -> None:
    found = behavior_tables(
        inputs(models, "half", final="final"),
        recipe(models, **{"evaluation.problems": 1}),
        projections=(),
    )
    assert {row["label"] for row in found.tables["shifts"]} == {"half"}
    assert found.example is not None
    rescaled = found.example["answers"][0]["kl_nats"]["half at the norms of final"]
    assert max(map(abs, rescaled)) < 1e-6


def test_one_checkpoint_makes_no_example(models: Path) -> None:
    messages: list[str] = []

    class Heard(Display):
        def say(self, text: str) -> None:
            messages.append(text)

    found = behavior_tables(
        inputs(models, "half"),
        recipe(models, **{"evaluation.problems": 1}),
        projections=(),
        display=Heard(),
    )
    assert found.example is None
    assert found.tables["shift_points"] == []
    (progress, reason) = messages
    assert progress.startswith("behavior: 1/1  half  ")
    assert reason == "no example: it takes a teacher and two checkpoints"


def test_without_a_teacher_checkpoints_are_compared_with_the_base(
    models: Path, tmp_path: Path
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        '{"question": "0 =", "answer": "0"}\n'
        '{"question": "1 + 2 =", "answer": "3"}\n{"question": "2 =", "answer": "2"}\n'
    )
    config = make_config(
        {
            "method": "grpo",
            "student": {"path": str(models / "student")},
            "task": {"type": "dataset", "train": {"path": str(problems)}, "test_size": 2},
            "prompt": {"chat": False},
            "sampling": {"max_new_tokens": 4},
            "evaluation": {"problems": 2},
        }
    )
    found = behavior_tables(
        inputs(models, "half", "final"),
        config,
        projections=(),
    )
    cases = [(r["label"], r["text"], r["to"]) for r in found.tables["divergences"]]
    assert cases == [
        (label, text, "base") for label in ("half", "final") for text in ("base", "own")
    ]
    assert found.example is None


def test_a_recipe_without_problems_is_refused(models: Path) -> None:
    with pytest.raises(ConfigError, match=r"set evaluation.problems to at least 1"):
        behavior_tables(
            inputs(models, "half"),
            recipe(models, **{"evaluation.problems": 0}),
        )
