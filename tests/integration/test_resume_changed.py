"""A run goes on with settings that do not change it, and says which ones they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import Raw, copy_run, outcome, tiny_config, train_tiny

from effopd.config.reading import to_toml
from effopd.errors import ConfigError
from effopd.records import read_jsonl

ADAPTERS: Raw = {"student.lora": {"r": 2, "alpha": 4.0}, "search.parameters": "all"}


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_tiny(tiny_config(models), out)
    return out


@pytest.fixture(scope="module")
def half(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped after step 3; copy it before going on."""
    out = tmp_path_factory.mktemp("half") / "run"
    train_tiny(tiny_config(models), out, stop_after=3)
    return out


def resumed_in(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "run.json").read_text()).get("resumed", [])
    return found


EXACT: Raw = {
    "student.gradient_checkpointing": True,
    "teacher.gradient_checkpointing": True,
    "memory": {"teacher_offload": True, "anchor_device": "student"},
    "checkpoint": {"every": 4, "keep": 5},
    "train.max_skipped_steps": 7,
    "label": "again",
}


def test_what_changes_no_number_changes_none(
    models: Path, whole: Path, half: Path, tmp_path: Path
) -> None:
    run = copy_run(half, tmp_path / "run")
    config = tiny_config(models, EXACT)
    done, messages = train_tiny(config, run)
    assert done
    assert outcome(run) == outcome(whole)
    changes = [
        "checkpoint.keep: 2 -> 5 (changes no number)",
        "label:  -> again (changes what is measured and recorded)",
        "memory.anchor_device: cpu -> student (changes no number)",
        "memory.teacher_offload: False -> True (changes no number)",
        "student.gradient_checkpointing: False -> True (changes no number)",
        "teacher.gradient_checkpointing: False -> True (changes no number)",
        "train.max_skipped_steps: 3 -> 7 (changes no number)",
    ]
    assert [m for m in messages if "goes on" in m] == [f"goes on with {line}" for line in changes]
    assert resumed_in(run) == [{"step": 3, "changes": changes}]
    assert (run / "config.toml").read_text() == to_toml(config)


ROUNDING: Raw = {
    "train.micro_batch_tokens": 48,
    "train.rollout_batch": 4,
    "memory": {"scoring_tokens": 64, "generation_tokens": 32},
    "student.attention": "eager",
}


@pytest.mark.parametrize("kind", ["weights", "adapters"])
def test_what_changes_rounding_goes_on_and_says_so(
    models: Path, half: Path, tmp_path: Path, kind: str
) -> None:
    own = ADAPTERS if kind == "adapters" else {}
    run = tmp_path / "run"
    if own:
        train_tiny(tiny_config(models, own), run, stop_after=1)
    else:
        copy_run(half, run)
    done, messages = train_tiny(tiny_config(models, own | ROUNDING | {"train.steps": 4}), run)
    assert done
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4]
    said = [m for m in messages if m.endswith("(changes rounding only)")]
    assert "goes on with memory.scoring_tokens: 32768 -> 64 (changes rounding only)" in said
    assert len(said) == 5
    assert "goes on with train.steps: 8 -> 4 (changes no number)" in messages


def test_a_run_without_a_checkpoint_may_save_more_often(models: Path, tmp_path: Path) -> None:
    """Three steps are more than the two between checkpoints now, and none is missing."""
    train_tiny(tiny_config(models), tmp_path, stop_after=3)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00003")
    config = tiny_config(models, {"checkpoint.every": 2, "train.steps": 4})
    done, messages = train_tiny(config, tmp_path)
    assert done
    assert "no checkpoint yet: starting again from step 0" in messages
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_each_change_is_kept(models: Path, half: Path, tmp_path: Path) -> None:
    run = copy_run(half, tmp_path / "run")
    for step, problems in ((4, 1), (5, 3)):
        settings = {"evaluation.problems": problems, "evaluation.every": 1}
        train_tiny(tiny_config(models, settings), run, stop_after=step)
    every = "evaluation.every: 4 -> 1 (changes what is measured and recorded)"
    number = "evaluation.problems: {} -> {} (changes what is measured and recorded)"
    assert resumed_in(run) == [
        {"step": 3, "changes": [every, number.format(2, 1)]},
        {"step": 4, "changes": [number.format(1, 3)]},
    ]
    evaluated = [(row["step"], row["n"]) for row in read_jsonl(run / "evals.jsonl")][2:]
    assert evaluated == [(4, 1), (5, 3)]


def test_both_kinds_of_differences_are_shown(models: Path, half: Path, tmp_path: Path) -> None:
    run = copy_run(half, tmp_path / "run")
    before = (run / "run.json").read_bytes(), (run / "config.toml").read_bytes()
    with pytest.raises(ConfigError) as caught:
        train_tiny(tiny_config(models, {"optimizer.lr": 1e-3, "memory.scoring_tokens": 64}), run)
    assert str(caught.value) == (
        f"{run} holds the run of other settings:\n"
        "  optimizer.lr: 0.0003 -> 0.001\n"
        "Go on with the old settings, or choose another directory (--out).\n"
        "These may change:\n"
        "  memory.scoring_tokens: 32768 -> 64 (changes rounding only)"
    )
    assert ((run / "run.json").read_bytes(), (run / "config.toml").read_bytes()) == before


@pytest.mark.parametrize(
    ("settings", "changed", "why"),
    [
        ({}, {"train.steps": 2}, "3 steps are done: train.steps cannot be less"),
        (
            {"optimizer.decay": "linear"},
            {"train.steps": 9},
            "With optimizer.decay = 'linear' the learning rate of every step depends on",
        ),
        (
            {"train.stop": {"patience": 3}},
            {"evaluation.problems": 3},
            "train.stop ends this run by its evaluations",
        ),
    ],
)
def test_why_is_said_where_the_name_does_not(
    models: Path, tmp_path: Path, settings: Raw, changed: Raw, why: str
) -> None:
    settings = settings | {"train.steps": 5, "method": "opd"}
    train_tiny(tiny_config(models, settings), tmp_path, stop_after=3)
    with pytest.raises(ConfigError, match=why):
        train_tiny(tiny_config(models, settings | changed), tmp_path)


def test_a_path_may_be_spelled_in_another_way(
    models: Path, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_run(half, tmp_path / "run")
    (tmp_path / "link").symlink_to(models / "student")
    monkeypatch.chdir(models)
    for path in ("student", str(tmp_path / "link")):
        paths = {"student.path": path, "train.steps": 4}
        assert train_tiny(tiny_config(models, paths), run)[0]
    assert [entry["changes"] for entry in resumed_in(run)] == [
        ["train.steps: 8 -> 4 (changes no number)"]
    ]
    other = tiny_config(models, {"student.path": "teacher"})
    with pytest.raises(ConfigError, match=r"student.path: .*student -> teacher"):
        train_tiny(other, run)


def test_settings_that_a_version_did_not_have_are_their_defaults(
    models: Path, half: Path, tmp_path: Path
) -> None:
    run = copy_run(half, tmp_path / "run")
    text = (run / "config.toml").read_text()
    assert "generation_tokens = 0\n" in text
    (run / "config.toml").write_text(text.replace("generation_tokens = 0\n", ""))
    assert train_tiny(tiny_config(models, {"train.steps": 4}), run)[0]
    assert "generation_tokens = 0\n" in (run / "config.toml").read_text()
    assert [entry["changes"] for entry in resumed_in(run)] == [
        ["train.steps: 8 -> 4 (changes no number)"]
    ]
