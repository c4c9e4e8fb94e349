"""What the search in TRL refuses, before the first update."""

from pathlib import Path
from typing import Any

import pytest
from datasets import IterableDataset
from peft import IA3Config, LoraConfig
from tests.support.trl import distillation, prompts, reinforcement
from transformers import TrainingArguments
from transformers.trainer import Trainer

from effopd import AlphaPLS, Search
from effopd.errors import ConfigError
from effopd.integrations.trl import EffOPDCallback
from effopd.integrations.trl import compatibility as versions

CONTINUOUS = "use_transformers_continuous_batching"
SETTINGS = {
    "fp16": ("args", "fp16", True),
    "auto_find_batch_size": ("args", "auto_find_batch_size", True),
    "DeepSpeed": ("", "is_deepspeed_enabled", True),
    "FSDP1": ("_dist", "fsdp_version", 1),
    "images": ("", "_is_vlm", True),
    "quantized": ("model", "quantization_method", "bitsandbytes"),
    "the teacher": ("", "teacher_model", None),
    "state of their own": ("", "rollout_func", [len]),
    "their own": ("", "environment_factories", [len]),
    "casts the model in place": ("", CONTINUOUS, True),
}
"""Word of the reason -> where an attribute of the trainer says so."""


@pytest.mark.parametrize("word", SETTINGS)
def test_a_setting_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    owner, name, value = SETTINGS[word]
    rewarded = name in {"rollout_func", "environment_factories", CONTINUOUS}
    trainer = (reinforcement if rewarded else distillation)(tmp_path)
    EffOPDCallback(trainer)
    monkeypatch.setattr(getattr(trainer, owner) if owner else trainer, name, value, raising=False)
    with pytest.raises(ConfigError, match=word):
        EffOPDCallback(trainer)


def test_a_score_of_your_own_needs_no_teacher(tmp_path: Path) -> None:
    trainer = distillation(tmp_path)
    trainer.teacher_model = None
    EffOPDCallback(trainer, validate=lambda draw: 0.0)


def test_tools_are_for_distillation(tmp_path: Path) -> None:
    trainer = reinforcement(tmp_path)
    trainer.tools = [len]
    with pytest.raises(ConfigError, match="tools of a GRPOTrainer are not called"):
        EffOPDCallback(trainer)


LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "IA3"),
        (LoraConfig(**LORA, use_dora=True), "DoRA"),
        (LoraConfig(**LORA, modules_to_save=["norm"]), "modules_to_save"),
    ],
)
def test_adapters_other_than_two_factors_are_refused(
    tmp_path: Path, settings: Any, word: str
) -> None:
    trainer = distillation(tmp_path, peft_config=settings)
    with pytest.raises(ConfigError, match=word):
        EffOPDCallback(trainer)


def test_other_trainers_are_refused(tmp_path: Path) -> None:
    model = distillation(tmp_path).model
    settings = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ConfigError, match="Trainer is neither"):
        EffOPDCallback(Trainer(model, settings))


def test_a_search_that_asks_for_progress_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TRL does not tell"):
        EffOPDCallback(distillation(tmp_path), search=Search(direction=AlphaPLS()))


def test_all_reasons_are_told_at_once(tmp_path: Path) -> None:
    trainer = distillation(tmp_path)
    trainer.args.auto_find_batch_size = True
    trainer._is_vlm = True
    with pytest.raises(ConfigError, match=r"(?s)auto_find_batch_size.*images"):
        EffOPDCallback(trainer)


def test_a_stream_of_prompts_needs_a_dataset(tmp_path: Path) -> None:
    trainer = distillation(tmp_path)
    trainer.train_dataset = IterableDataset.from_generator(lambda: iter([{"prompt": "1 + 1 ="}]))
    with pytest.raises(ConfigError, match="dataset="):
        EffOPDCallback(trainer)
    EffOPDCallback(trainer, dataset=prompts())


@pytest.mark.parametrize("count", [0, -3])
def test_validation_needs_prompts(tmp_path: Path, count: int) -> None:
    with pytest.raises(ConfigError, match="prompts >= 1"):
        EffOPDCallback(distillation(tmp_path), prompts=count)


def test_sharding_that_did_not_happen_is_refused(tmp_path: Path) -> None:
    trainer = distillation(tmp_path)
    callback = EffOPDCallback(trainer)
    trainer.is_fsdp_enabled = True
    with pytest.raises(ConfigError, match="no parameter is a DTensor"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_the_search_begins_with_the_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.train"):
        _ = EffOPDCallback(distillation(tmp_path)).extrapolator


def test_untested_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.TESTED, "trl", "1.15")
    trainer = distillation(tmp_path)
    with pytest.raises(ConfigError, match=r"trl 1\.16.*'trl==1\.15\.\*'"):
        EffOPDCallback(trainer)
    EffOPDCallback(trainer, allow_untested_versions=True)


def test_weights_in_float16_are_refused(tmp_path: Path) -> None:
    trainer = distillation(tmp_path, bf16=True)
    trainer.model.half()
    with pytest.raises(ConfigError, match=r"float16.*model_init_kwargs"):
        EffOPDCallback(trainer)
    trainer = distillation(tmp_path, bf16=True)
    trainer.teacher_model.half()
    EffOPDCallback(trainer)
