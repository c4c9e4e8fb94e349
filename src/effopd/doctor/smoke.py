"""A smoke test of a recipe for large models on a CPU: `smoke=true`.

The models are tiny untrained ones of the same architecture, the problems are sums; everything else
is as the recipe says, only shorter.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from effopd.config.reading import to_toml
from effopd.demo.cache import cache_directory
from effopd.doctor.sizes import model_config
from effopd.models.architecture import described_by
from effopd.models.checkpoints import write_checkpoint
from effopd.training.config import Config, make_config

SPECIAL = ("<|endoftext|>", "<bos>", "<eos>")  # the first is added to any Qwen2 tokenizer
ROWS = 256 + len(SPECIAL)
TEACHER_ROWS = ROWS + 5
STEPS, PROMPTS, ANSWER_TOKENS = 2, 4, 8
_VERSION = 1
_TEMPLATE = (
    "{% for message in messages %}<bos>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)


def smoke_run(config: Config, recipe: Path | None = None) -> Config:
    """The settings of a smoke test, whose models and problems are made if they are not cached."""
    if not config.smoke:
        return config
    raw = tomllib.loads(to_toml(config)) | {"smoke": False, "device": "cpu", "threads": 1}
    raw.pop("teacher_device", None)
    if raw.pop("teacher_server", None) is not None:
        raw["teacher"] = {"path": raw.get("student", {}).get("path", "")}
        raw.get("alignment", {}).pop("tokenizer", None)
    for section, name in ("student", "student"), ("teacher", "teacher"), ("reference", "student"):
        if section in raw:
            raw[section] = _model(raw[section], recipe, name)
    raw["teachers"] = {
        name: _model(section, recipe, "teacher") for name, section in raw["teachers"].items()
    }
    raw["rollouts"] = {"engine": "hf"}
    raw["task"] = _task(raw["task"])
    # Two steps of a few short answers; a section has some of these settings.
    raw["train"] |= {"steps": STEPS, "prompts_per_step": PROMPTS}
    raw["checkpoint"] |= {"every": 1}
    most: dict[str, dict[str, int]] = {
        "train": {"responses_per_prompt": 2, "updates_per_step": 2, "micro_batch_tokens": 1024},
        "sampling": {"max_new_tokens": ANSWER_TOKENS},
        "objective": {"overlong_buffer": 2},
        "validation": {"prompts": 2},
        "evaluation": {"problems": 2},
    }
    for section, limits in most.items():
        own = raw[section]
        own |= {name: min(own[name], limit) for name, limit in limits.items() if name in own}
    return make_config(raw)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte and three special ones, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos,
        padding_side="left", chat_template=_TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def tiny_config(config: Mapping[str, Any], path: Path, rows: int) -> dict[str, Any]:
    """What config.json says of the architecture, with tiny sizes; others are left out."""
    described = described_by(config, path).get_text_config()
    heads = described.num_attention_heads
    shares = (getattr(described, "num_key_value_heads", None) or heads) < heads
    return {
        "model_type": config["model_type"], "vocab_size": rows, "hidden_size": 32,
        "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2 if shares else 4, "head_dim": 8,
        "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2,
        "max_position_embeddings": 4096, "initializer_range": 0.1,
        "tie_word_embeddings": bool(described.tie_word_embeddings),
        "attention_bias": bool(getattr(described, "attention_bias", False)),
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def _model(section: Mapping[str, Any], recipe: Path | None, name: str) -> dict[str, Any]:
    """A section of settings with the path of a tiny model, which is made if it is not cached."""
    rows = ROWS if name == "student" else TEACHER_ROWS
    config = tiny_config(*model_config(section["path"], recipe), rows)
    kind, seed = config["model_type"], int(name == "teacher")
    key = json.dumps([_VERSION, seed, config], sort_keys=True).encode()
    directory = cache_directory() / f"smoke-{kind}-{hashlib.sha256(key).hexdigest()[:16]}"
    has_experts = kind.endswith(("_moe", "mixtral"))
    left_out = ["model_type", *([] if has_experts else ["expert", "moe"])]
    sizes = {k: v for k, v in config.items() if not any(word in k for word in left_out)}

    def write(to: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
        model.save_pretrained(to)
        byte_tokenizer().save_pretrained(to)

    if not directory.is_dir():
        write_checkpoint(directory, write)
    attention = section.get("attention", "auto")
    return {key: value for key, value in section.items() if key != "revision"} | {
        "path": str(directory),
        "attention": "auto" if attention == "flash_attention_2" else attention,
    }


def _task(task: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sums, asked and checked as the recipe does, but that programs give way to boxed answers."""
    if task["type"] != "dataset":
        return task
    path = cache_directory() / f"smoke-problems-{_VERSION}.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(32)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return {
        "type": "dataset",
        "train": {"path": str(path)},
        "test_size": 4,
        "verifier": "boxed" if task["verifier"] == "code" else task["verifier"],
    }
