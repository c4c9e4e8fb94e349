"""What is run for the stored outcomes, through the commands alone, and what of it is kept."""

import csv
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.support.tiny import WORLD, Raw
from torch import Tensor
from typer.testing import CliRunner

from effopd.cli.main import app
from effopd.records import read_jsonl

STEPS = 4
GROUPS = {"train.prompts_per_step": 8, "train.responses_per_prompt": 3}

RUNS: Mapping[str, Raw] = {
    "opd": {"method": "opd", "objective": {"type": "sampled_token"}},
    "full_kl": {"method": "opd", "objective": {"type": "full_kl"}},
    "effopd": {"validation.prompts": 16},
    "paper": {"preset": "paper", "validation": {"type": "teacher_kl", "prompts": 16}},
    "release": {"preset": "release", "validation": {"type": "teacher_kl", "prompts": 16}},
    "grpo": {"method": "grpo"} | GROUPS,
    "ppo": {"method": "ppo", "objective": {"critic_lr": 1e-2, "critic_warmup_steps": 1}} | GROUPS,
    "lora": {"student.lora": {"r": 2, "alpha": 4.0}, "validation.prompts": 16},
}
"""Name -> settings over those of `recipe`."""


def effopd(*arguments: str | Path) -> None:
    """Runs a command that has to succeed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def recipe(models: Path, settings: Raw) -> list[str]:
    """A run of four steps as `key=value`."""
    world = ("hidden", "layers", "operations", "train_problems", "test_problems")
    whole: Raw = {
        "method": "effopd",
        "seed": 3,
        "device": "cpu",
        "student.path": str(models / "student"),
        "teacher.path": str(models / "teacher"),
        **{f"task.{name}": getattr(WORLD, name) for name in world},
        "sampling.max_new_tokens": 4,
        "train.steps": STEPS,
        "train.prompts_per_step": 16,
        "train.micro_batch_tokens": 96,
        "optimizer.lr": 3e-3,
        "evaluation": {"every": 2, "problems": 4, "recorded": 1},
        "checkpoint": {"every": 2, "keep": 9},
        **settings,
    }
    return [f"{key}={toml(value)}" for key, value in whole.items()]


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def train(name: str, models: Path, out: Path, more: Raw | None = None) -> None:
    """Trains one of `RUNS` into `out`."""
    empty = out.parent / "empty.toml"
    empty.write_text("")
    effopd("train", empty, *recipe(models, RUNS[name] | (more or {})), "--out", out)


def run_outcome(name: str, models: Path, out: Path, more: Raw | None = None) -> Raw:
    """What a run wrote and how far each tensor went: (norm, projection) at the last step."""
    train(name, models, out, more)
    last = out / "checkpoints" / f"step-{STEPS:05d}"
    adapters = last / "adapter_model.safetensors"
    if adapters.exists():
        tuned = load_file(adapters)
        base = {key: torch.zeros_like(value) for key, value in tuned.items()}
    else:
        tuned = load_file(last / "model.safetensors")
        base = load_file(models / "student" / "model.safetensors")
    return {
        "metrics": rows(out / "metrics.jsonl"),
        "evals": rows(out / "evals.jsonl"),
        "search": rows(out / "search.jsonl"),
        "weights": displacement(base, tuned),
    }


def rows(path: Path) -> list[Raw]:
    """Rows of a record without what they cost in time and passes, which other tests count."""
    left_out = ("seconds", "student_passes")
    return [{k: v for k, v in row.items() if not k.endswith(left_out)} for row in read_jsonl(path)]


def displacement(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Name -> norm of the displacement, and its part along a direction of the name's own."""
    found = {}
    for name in sorted(tuned):
        moved = tuned[name].double() - base[name].double()
        rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        line = torch.randn(moved.shape, generator=rng, dtype=torch.float64)
        found[name] = [float(moved.norm()), float((moved * line).sum() / line.norm())]
    return found


def analysis_outcome(run: Path, out: Path) -> Raw:
    """All tables of `effopd analyze RUN` but the points of t-SNE, which rounding moves at will."""
    effopd("analyze", run, "--out", out, "--workers", "1")
    files = sorted((out / "tables").glob("*.csv"))
    return {path.stem: table(path) for path in files if path.stem != "shift_points"}


def table(path: Path) -> list[list[Any]]:
    """Rows of a CSV file, numbers as numbers."""
    return [[cell(text) for text in row] for row in csv.reader(path.open(encoding="utf-8"))]


def cell(text: str) -> Any:
    """A number where it is one."""
    try:
        return float(text)
    except ValueError:
        return text


def evaluation_outcome(run: Path, directory: Path) -> Sequence[Any]:
    """Answers and grades of `effopd eval RUN/checkpoint --bench`."""
    problems = directory / "sums.jsonl"
    sums = [{"problem": f"{i} + 1 =", "answer": str(i + 1)} for i in range(4)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in sums))
    model, out = run / "checkpoints" / f"step-{STEPS:05d}", directory / "evaluation"
    options = ["device=cpu", "sampling.max_new_tokens=6", "batch=4", "prompt.chat=false"]
    bench = ["--bench", "sums", "--data", f"sums={problems}", "-n", "2"]
    effopd("eval", model, *options, *bench, "--out", out)
    return rows(out / "sums" / "samples.jsonl")
