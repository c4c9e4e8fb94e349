"""The loop trains any causal language model that Hugging Face's classes read from a directory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.architectures import (
    ARCHITECTURES,
    ROWS,
    VISION,
    save,
    save_vision,
    write_problems,
)
from tests.support.tiny import Outcome, metrics_of, outcome, search_rows, train_tiny
from transformers import AutoModelForCausalLM

from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.lora import LoraStudent
from effopd.models.names import in_tower
from effopd.models.policy import Policy, Sample
from effopd.models.updates import open_update
from effopd.objectives import token_log_probs
from effopd.records import list_checkpoints
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine
from effopd.search.selection import select_parameters
from effopd.training.config import Config, make_config

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


def settings(directory: Path, method: str, steps: int = 2, **models: Any) -> Config:
    raw: dict[str, Any] = {
        "method": method,
        "student": {"path": str(directory / "student")},
        "teacher": {"path": str(directory / "teacher")},
        "task": {
            "type": "dataset",
            "train": {"path": str(directory / "problems.jsonl")},
            "test_size": 2,
        },
        "sampling": {"max_new_tokens": 6},
        "train": {"steps": steps, "prompts_per_step": 8, "epochs": 1},
        "optimizer": {"lr": 1e-3},
        "evaluation": {"problems": 0},
        "checkpoint": {"every": 1},
    }
    if method == "effopd":
        raw["validation"] = {"type": "importance_kl", "source": "batch", "prompts": 4}
    for name, more in models.items():
        raw[name] = raw.get(name, {}) | more
    return make_config(raw)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    return dict(model.named_parameters())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_two_steps_move_the_weights_towards_a_larger_teacher(kind: str, tmp_path: Path) -> None:
    write_pair(tmp_path, kind)
    finished, _ = train_tiny(settings(tmp_path, "effopd"), tmp_path / "run")
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
    searches = search_rows(tmp_path / "run")
    assert {row["step"] for row in searches} == {2}  # on the batch after the first direction
    assert len(searches) >= 2


@pytest.mark.parametrize("kind", VISION)
def test_a_model_with_a_tower_for_images_is_trained_on_text(kind: str, tmp_path: Path) -> None:
    for seed, name in enumerate(("student", "teacher")):
        save_vision(tmp_path / name, kind, seed=seed)
    write_problems(tmp_path / "problems.jsonl")
    assert train_tiny(settings(tmp_path, "effopd"), tmp_path / "run")[0]
    rows = metrics_of(tmp_path / "run")
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in rows)
    before = load_file(tmp_path / "student" / "model.safetensors")
    checkpoint = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    after = load_file(checkpoint / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    towers = {name for name in before if in_tower(name)}
    assert towers
    assert moved == before.keys() - towers
    assert open_update(tmp_path / "student", checkpoint).left_out == {}
    searched = load_model(ModelSettings(path=str(checkpoint)))
    assert towers.isdisjoint(select_parameters(searched))


@pytest.mark.parametrize("modules", [["all-linear"], ["q_proj", "k_proj"]])
def test_adapters_are_put_into_the_language_model_alone(modules: list[str], tmp_path: Path) -> None:
    directory = save_vision(tmp_path, "gemma3")
    lora = LoraStudent(r=2, target_modules=tuple(modules))
    model = load_model(ModelSettings(path=str(directory), lora=lora))
    adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapted
    assert all("lora_" in name and ".language_model." in name for name in adapted)


@pytest.mark.parametrize("kind", VISION)
def test_with_a_tower_for_images_answers_are_scored_as_they_were_written(
    kind: str, tmp_path: Path
) -> None:
    chosen = ModelSettings(path=str(save_vision(tmp_path, kind)))
    policy = Policy(load_model(chosen), load_tokenizer(chosen))
    requests = [Request(prompt_ids=tuple(range(5, 5 + n)), seed=n) for n in (3, 9, 5)]
    asked = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=8)
    for _ in range(2):  # scoring leaves nothing behind that writing would read, nor the reverse
        written = HFEngine(policy.model, policy.tokenizer).generate(requests, asked)
        states = policy.states(
            [
                Sample(prompt_ids=request.prompt_ids, completion_ids=answer.token_ids)
                for request, answer in zip(requests, written, strict=True)
            ]
        )
        found = token_log_probs(states.hidden_ND, policy.head_weight_VD, states.targets_N)
        expected = torch.tensor([value for answer in written for value in answer.log_probs])
        torch.testing.assert_close(found.log_probs_N, expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("objective", ["sampled_token", "full_kl"])
def test_models_with_capped_logits_train_and_search(objective: str, tmp_path: Path) -> None:
    save(tmp_path / "student", "gemma2", head_dim=8, final_logit_softcapping=0.5)
    save(tmp_path / "teacher", "gemma2", seed=1, head_dim=8)
    write_problems(tmp_path / "problems.jsonl")
    raw = settings(tmp_path, "effopd", objective={"type": objective})
    assert train_tiny(raw, tmp_path / "run")[0]
    rows = metrics_of(tmp_path / "run")
    assert all(row["reverse_kl"] > 0 and row["grad_norm"] > 0 for row in rows)
    assert len(search_rows(tmp_path / "run")) >= 2
