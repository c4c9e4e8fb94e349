"""The loop trains any causal language model that Hugging Face's classes read from a directory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import ARCHITECTURES, ROWS, save, write_problems
from tests.support.tiny import Outcome, metrics_of, outcome, search_rows, train_tiny
from transformers import AutoModelForCausalLM

from effopd.config import RunConfig, make_config
from effopd.errors import ParameterMismatchError
from effopd.models.checkpoints import list_checkpoints

TIED = {"gemma", "qwen2"}


def write_pair(directory: Path, kind: str) -> None:
    """A student, and a teacher that is wider, deeper, and padded to another length."""
    tied = kind in TIED
    save(directory / "student", kind, tie_word_embeddings=tied)
    save(
        directory / "teacher",
        kind,
        seed=1,
        rows=ROWS + 13,
        hidden_size=24,
        num_hidden_layers=3,
        tie_word_embeddings=not tied,
    )
    write_problems(directory / "problems.jsonl")


def settings(directory: Path, method: str, steps: int = 2, **models: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "method": method,
        "student": {"path": str(directory / "student")},
        "teacher": {"path": str(directory / "teacher")},
        "task": {
            "type": "jsonl",
            "train_path": str(directory / "problems.jsonl"),
            "test_size": 2,
        },
        "sampling": {"max_new_tokens": 6},
        "train": {"steps": steps, "prompts_per_step": 8, "epochs": 1},
        "optimizer": {"lr": 1e-3},
        "evaluation": {"problems": 0},
        "checkpoint": {"every": 1},
    }
    if method == "effopd":
        raw["validation"] = {"type": "cached_kl", "source": "batch", "prompts": 4}
        raw["search"] = {"retest": False}
    for name, more in models.items():
        raw[name] |= more
    return make_config(raw)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    return dict(model.named_parameters())


@pytest.mark.parametrize("method", ["opd", "effopd"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_two_steps_move_the_weights_towards_a_larger_teacher(
    kind: str, method: str, tmp_path: Path
) -> None:
    write_pair(tmp_path, kind)
    finished, _ = train_tiny(settings(tmp_path, method), tmp_path / "run")
    assert finished
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in rows)
    before = weights(tmp_path / "student")
    after = weights(list_checkpoints(tmp_path / "run" / "checkpoints")[0])
    assert before.keys() == after.keys()
    assert all(tensor.isfinite().all() for tensor in after.values())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == len(before), sorted(before.keys() - moved)
    if method == "effopd":
        searches = search_rows(tmp_path / "run")
        assert {row["step"] for row in searches} == {2}  # on the batch after the first direction
        assert len(searches) >= 2


def test_an_interrupted_run_of_experts_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    write_pair(tmp_path, "mixtral")
    config = settings(tmp_path, "effopd", steps=3)
    train_tiny(config, tmp_path / "whole")
    assert not train_tiny(config, tmp_path / "halves", stop_after=1)[0]
    assert train_tiny(config, tmp_path / "halves")[0]
    whole, halves = outcome_of(tmp_path / "whole"), outcome_of(tmp_path / "halves")
    assert halves == whole


def outcome_of(run: Path) -> Outcome:
    """As the tests of resuming compare them; the files that these runs do not write are empty."""
    for name in ("evals", "rollouts", "monitor"):
        (run / f"{name}.jsonl").touch()
    return outcome(run)


def test_capped_logits_are_refused(tmp_path: Path) -> None:
    for name in ("student", "teacher"):
        save(tmp_path / name, "gemma2", head_dim=8)
    write_problems(tmp_path / "problems.jsonl")
    with pytest.raises(ParameterMismatchError, match="final_logit_softcapping = 30.0"):
        train_tiny(settings(tmp_path, "opd"), tmp_path / "run")
