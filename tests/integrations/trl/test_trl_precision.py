"""TRL's trainers at bf16=True, their default, and what the search scores there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.fakes import TOKENIZER, tiny_model
from tests.support.trl import (
    arguments,
    distillation,
    generators,
    logs,
    prompts,
    weights,
)
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from trl import DistillationConfig, DistillationTrainer

from effopd import Draw, EveryN, LadderScales, PairedMargin, Search
from effopd.errors import ParameterMismatchError
from effopd.evaluation.logprobs import completion_reverse_kl
from effopd.evaluation.statistics import mean
from effopd.integrations.trl import EffOPDCallback, SampledTokenTrainer
from effopd.integrations.trl.validators import TeacherKL
from effopd.models.policy import Policy, Sample
from effopd.records import read_jsonl

KINDS = {"distillation": DistillationTrainer, "sampled tokens": SampledTokenTrainer}
DTYPES = {
    "both fp32": (torch.float32, torch.float32),
    "student bf16": (torch.bfloat16, torch.float32),
    "teacher bf16": (torch.float32, torch.bfloat16),
    "both bf16": (torch.bfloat16, torch.bfloat16),
}
"""Precision of the student's and of the teacher's weights."""
ADAPTERS = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
EVERY = Search(schedule=EveryN(n=1), scales=LadderScales(scales=(2.0,)), guard=None)


def mixed(output: Path, kind: str = "distillation", **changes: Any) -> Any:
    """A trainer at bf16=True."""
    return distillation(output, kind=KINDS[kind], **({"bf16": True, "max_steps": 1} | changes))


def rows(output: Path) -> list[dict[str, Any]]:
    return read_jsonl(output / "effopd" / "search.jsonl")


@pytest.mark.parametrize(
    ("kind", "dtypes", "adapted"),
    [
        ("distillation", "both bf16", True),
        ("sampled tokens", "student bf16", False),
    ],
)
def test_it_trains_and_searches(tmp_path: Path, kind: str, dtypes: str, adapted: bool) -> None:
    trainer = mixed(tmp_path, kind, **({"peft_config": ADAPTERS} if adapted else {}))
    for model, dtype in zip((trainer.model, trainer.teacher_model), DTYPES[dtypes], strict=True):
        model.to(dtype)
    before = weights(trainer)
    trainer.add_callback(EffOPDCallback(trainer, search=EVERY, prompts=4))
    trainer.train()
    tip, candidate, *_ = rows(tmp_path)
    assert (tip["scale"], candidate["scale"]) == (1.0, 2.0)
    assert tip["score"] < 0
    assert candidate["score"] < 0
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(trainer).items())


COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.mark.parametrize(
    "setting",
    [
        {"gradient_checkpointing": True},
        pytest.param(COMPILED, marks=pytest.mark.slow),
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_it_searches_beside_other_settings(tmp_path: Path, setting: dict[str, Any]) -> None:
    found = []
    for name, more in (("plain", {}), ("other", setting)):
        trainer = mixed(tmp_path / name, **more)
        trainer.add_callback(EffOPDCallback(trainer, search=EVERY, prompts=4))
        trainer.train()
        found.append([row["score"] for row in rows(tmp_path / name)])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


# The precision of the score -----------------------------------------------------------------------


@contextmanager
def noted_dtypes(module: nn.Module) -> Iterator[set[torch.dtype]]:
    """What a module returns inside."""
    seen: set[torch.dtype] = set()

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.add(output.dtype)

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def batch_of(sample: Sample) -> dict[str, Tensor]:
    """What the trainer's loss is computed from."""
    return {
        "prompt_ids": torch.tensor([sample.prompt_ids]),
        "completion_ids": torch.tensor([sample.completion_ids]),
        "prompt_mask": torch.ones(1, len(sample.prompt_ids), dtype=torch.long),
        "completion_mask": torch.ones(1, len(sample.completion_ids), dtype=torch.long),
        "num_items_in_batch": torch.tensor(float(len(sample.completion_ids))),
    }


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [
        ("distillation", "both fp32"),
        ("distillation", "student bf16"),
        ("sampled tokens", "teacher bf16"),
        ("distillation", "both bf16"),
    ],
)
def test_the_score_is_computed_as_the_loss_is(tmp_path: Path, kind: str, dtypes: str) -> None:
    """TRL's loss calls the layers past accelerate's autocast."""
    trainer = mixed(tmp_path, kind)
    models = (trainer.model, trainer.teacher_model)
    for model, dtype in zip(models, DTYPES[dtypes], strict=True):
        model.to(dtype)
    trainer.train()
    score = TeacherKL.of(trainer)
    sample = Sample(prompt_ids=(1, 5, 6), completion_ids=(8, 9, 2))
    batch = batch_of(sample)
    for model in models:
        layer = model.model.layers[0].self_attn.q_proj
        with noted_dtypes(layer) as in_loss:
            loss = trainer.compute_loss(trainer.model, batch)
        with noted_dtypes(layer) as in_score:
            values = completion_reverse_kl(score.student, score.teacher, [sample])
        assert in_loss == in_score == {layer.weight.dtype}
    if kind == "distillation":  # beta = 1: the loss is the divergence itself
        # TRL multiplies heads in bf16 where the weights are, the score accumulates in fp32.
        rounding = 1e-5 if dtypes == "both fp32" else 0.05
        assert mean(values[0]) == pytest.approx(loss.item(), rel=rounding)


def test_candidates_a_hundred_thousandth_apart_are_told_apart(tmp_path: Path) -> None:
    """Far below what autocast rounds away: differences of scores are those in float64."""
    trainer = mixed(tmp_path, learning_rate=0.0)
    trainer.train()
    score = TeacherKL.of(trainer)
    samples = [
        Sample(prompt_ids=(1, 5, 6), completion_ids=tuple(3 + (i * j) % 12 for j in range(12)))
        for i in range(1, 9)
    ]
    generator = torch.Generator().manual_seed(0)
    student = trainer.model
    base = {name: p.detach().clone() for name, p in student.named_parameters()}
    moves = {n: torch.randn(p.shape, generator=generator) * p.std() for n, p in base.items()}

    def scores() -> list[float]:
        found = []
        for scale in (0.0, 1.0, 2.0, 4.0):
            with torch.no_grad():
                for name, parameter in student.named_parameters():
                    parameter.copy_(base[name] + 1e-5 * scale * moves[name])
            values = completion_reverse_kl(score.student, score.teacher, samples)
            found.append(-mean([mean(tokens) for tokens in values]))
        return [value - found[0] for value in found[1:]]

    found = scores()
    student.double(), trainer.teacher_model.double()
    assert found == pytest.approx(scores(), rel=0.02)


# Exactness ----------------------------------------------------------------------------------------

REJECTS = Search(schedule=EveryN(n=1), accept=PairedMargin(z=1e9), guard=None)


def test_a_search_that_rejects_leaves_no_trace(tmp_path: Path) -> None:
    def trained(output: Path, *, searches: bool) -> Any:
        trainer = mixed(output, "sampled tokens", max_steps=2)
        if searches:
            trainer.add_callback(EffOPDCallback(trainer, search=REJECTS, prompts=8))
        trainer.train()
        return trainer

    plain = trained(tmp_path / "plain", searches=False)
    after_plain = generators()
    searched = trained(tmp_path / "searched", searches=True)
    assert generators() == after_plain
    assert {row["step"] for row in rows(tmp_path / "searched")} == {1, 2}
    assert logs(searched) == logs(plain)
    for name, tensor in weights(plain).items():
        assert torch.equal(weights(searched)[name], tensor), name


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def trained(**changes: Any) -> Any:
        saving: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        trainer = mixed(tmp_path, **saving)
        trainer.model.bfloat16()
        trainer.add_callback(EffOPDCallback(trainer, search=EVERY, prompts=4))
        trainer.train(**changes)
        return trainer

    whole, expected = weights(trained()), rows(tmp_path)
    checkpoint = tmp_path / "checkpoint-2"
    assert [path.name for path in checkpoint.glob("*.safetensors")] == ["model.safetensors"]
    again = trained(resume_from_checkpoint=str(checkpoint))
    found = rows(tmp_path)
    assert [r | {"seconds": 0} for r in found] == [r | {"seconds": 0} for r in expected]
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, whole[name]), name


# Heads --------------------------------------------------------------------------------------------

SCALED: dict[str, dict[str, Any]] = {
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.0625},
    "gemma2": {"final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8},
}


def untrained(family: str, **more: Any) -> Any:
    """A tiny model of a family."""
    sizes = {"vocab_size": len(TOKENIZER), "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **sizes, head_dim=8, **ends, **more)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", SCALED)
def test_scaled_logits_are_scored_as_trained(tmp_path: Path, family: str) -> None:
    trainer = DistillationTrainer(
        model=untrained(family, **SCALED[family]),
        teacher_model=tiny_model(1),
        args=DistillationConfig(**arguments(tmp_path, max_steps=1, bf16=True, beta=1.0)),
        train_dataset=prompts(),
        processing_class=TOKENIZER,
    )
    trainer.train()
    score = TeacherKL.of(trainer)
    sample = Sample(prompt_ids=(1, 5, 6), completion_ids=(8, 9, 2))
    loss = trainer.compute_loss(trainer.model, batch_of(sample))
    (values,) = completion_reverse_kl(score.student, score.teacher, [sample])
    assert mean(values) == pytest.approx(loss.item(), rel=1e-5)


def test_heads_that_are_tied_or_have_a_bias_are_scored(tmp_path: Path) -> None:
    student = untrained("llama", tie_word_embeddings=True)
    teacher = untrained("llama")
    teacher.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, len(TOKENIZER)))
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(**arguments(tmp_path, max_steps=1, bf16=True, beta=1.0)),
        train_dataset=prompts(),
        processing_class=TOKENIZER,
    )
    trainer.add_callback(EffOPDCallback(trainer, search=EVERY, prompts=4))
    trainer.train()
    assert rows(tmp_path)[0]["score"] < -0.01


def soft_capped(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """A cap that no configuration tells of."""
    outputs.logits = 50 * torch.tanh(outputs.logits / 50)
    return outputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cap_shows_under_autocast_too(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=dtype):
        Policy(tiny_model(), TOKENIZER)
        capped = tiny_model()
        capped.register_forward_hook(soft_capped)
        with pytest.raises(ParameterMismatchError, match="soft-capped"):
            Policy(capped, TOKENIZER)


def test_a_score_of_your_own_trains_any_head(tmp_path: Path) -> None:
    trainer = DistillationTrainer(
        model=untrained("gemma2", **SCALED["gemma2"]),
        teacher_model=tiny_model(1),
        args=DistillationConfig(**arguments(tmp_path, max_steps=1, bf16=True)),
        train_dataset=prompts(),
        processing_class=TOKENIZER,
    )

    def score(draw: Draw) -> float:
        return -1.0

    trainer.add_callback(EffOPDCallback(trainer, search=EVERY, validate=score))
    trainer.train()
    assert {row["score"] for row in rows(tmp_path)} == {-1.0}
