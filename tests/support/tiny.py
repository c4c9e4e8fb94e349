"""Runs that take a second: untrained one-layer students and teachers on disk.

The models are passed through `student` and `teacher`, so nothing is pre-trained or cached.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from effopd.config.reading import to_toml
from effopd.data.world import TinyWorld, make_model, make_tokenizer
from effopd.records import list_checkpoints, read_jsonl
from effopd.training.build import build_parts
from effopd.training.config import Config, make_config
from effopd.training.loop import Observer, Trainer
from effopd.training.run import build_trainer, run_info, train
from effopd.training.run_directory import RunDirectory
from effopd.training.signals import StopRequest

WORLD = TinyWorld(hidden=16, layers=1, operations=2, train_problems=40, test_problems=6)
STEPS = 8

Raw = dict[str, Any]

transformers_logging.disable_progress_bar()


def write_models(directory: Path, *, tied: bool = False, dropout: float = 0.0) -> Path:
    """Saves an untrained `student` and `teacher` (another seed, sharper); returns `directory`."""
    for name, seed, sharpness in (("student", 0, 1.0), ("teacher", 1, 2.0)):
        model = make_model(replace(WORLD, seed=seed))
        with torch.no_grad():
            model.lm_head.weight.mul_(sharpness)
            if tied:
                model.get_input_embeddings().weight.copy_(model.lm_head.weight)
        model.config.tie_word_embeddings, model.config.attention_dropout = tied, dropout
        saved = type(model)(model.config)
        saved.load_state_dict(model.state_dict())
        saved.save_pretrained(directory / name)
        make_tokenizer(WORLD).save_pretrained(directory / name)
    return directory


def tiny_config(models: Path, settings: Mapping[str, Any] | None = None) -> Config:
    """A run of 8 steps with searches after 1, 2, 4, 8 and checkpoints after 4 and 8.

    Args:
        models: What `write_models` wrote.
        settings: Merged over it, for example `{"train.steps": 4}`.

    Returns:
        The configuration.
    """
    world = ("type", "hidden", "layers", "operations", "train_problems", "test_problems")
    raw: Raw = {
        "method": "effopd",
        "seed": 3,
        "device": "cpu",
        "student": {"path": str(models / "student")},
        "teacher": {"path": str(models / "teacher")},
        "task": {name: getattr(WORLD, name) for name in world},
        "sampling": {"max_new_tokens": 4},
        "train": {"steps": STEPS, "prompts_per_step": 16, "micro_batch_tokens": 96, "epochs": 1},
        "optimizer": {"lr": 3e-4},
        "evaluation": {"every": 4, "first": [], "problems": 2, "recorded": 1},
        "checkpoint": {"every": 4, "keep": 2},
        "objective": {"type": "sampled_token"},
        "search": {
            "schedule": {"type": "powers_of_two"},
            "scales": {"type": "geometric", "ratio": 8.0, "cap": 512.0, "floor": 1.0},
            "accept": {"type": "strict"},
            "learning_rate": "keep",
        },
        "validation": {"type": "teacher_kl", "prompts": 16},
    }
    for key, value in (settings or {}).items():
        *sections, last = key.split(".")
        section = raw
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    if raw.get("preset") == "paper":
        raw["search"]["scales"] = {"type": "ladder", "scales": [3.0, 5.0, 7.0]}
        raw["validation"].setdefault("type", "teacher_kl")  # an untrained student is never right
    return make_config(raw)


def train_tiny(
    config: Config, out: Path, *, stop_after: int | None = None, **callbacks: Any
) -> tuple[bool, list[str]]:
    """Trains without signal handlers, from fresh objects.

    Args:
        config: Settings.
        out: Run directory.
        stop_after: Step at whose end a stop is requested.
        callbacks: More of the observer.

    Returns:
        Whether the last step was reached, and the messages.
    """
    messages: list[str] = []
    stop = StopRequest()

    def on_step(metrics: Raw, timing: Raw) -> None:
        if metrics["step"] == stop_after:
            stop.signal_number = 15

    callbacks = {"on_step": on_step, "on_message": messages.append} | callbacks
    return train(config, out, callbacks=[Observer(**callbacks)], stop=stop).finished, messages


def trainer_of(
    config: Config, out: Path, on_message: Callable[[str], None] = print
) -> tuple[Trainer, RunDirectory]:
    """A trainer to meddle with before it runs; close the run directory afterwards."""
    run = RunDirectory(out)
    run.describe(to_toml(config), run_info(config))
    return build_trainer(build_parts(config, print), run, Observer(on_message=on_message)), run


@dataclass(frozen=True)
class Outcome:
    """What two runs must have in common to count as the same: everything but wall time."""

    files: Mapping[str, str]
    counters: Mapping[str, Any]
    metrics: bytes
    evals: bytes
    rollouts: bytes
    monitor: bytes
    search: Sequence[Raw]


def outcome(run: Path) -> Outcome:
    """Content of the last checkpoint and of the records."""
    last = list_checkpoints(run / "checkpoints")[0]
    state = json.loads((last / "trainer_state.json").read_text())
    dropped = {"elapsed_s", "cpu_s", "offsets"}
    counters = {k: v for k, v in state["progress"].items() if k not in dropped}
    return Outcome(
        files={path.name: sha256(path) for path in sorted(last.rglob("*.safetensors"))},
        counters=counters | {"search": {**state.get("search", {})}},
        metrics=(run / "metrics.jsonl").read_bytes(),
        evals=(run / "evals.jsonl").read_bytes(),
        rollouts=(run / "rollouts.jsonl").read_bytes(),
        monitor=(run / "monitor.jsonl").read_bytes(),
        search=search_rows(run),
    )


def search_rows(run: Path) -> list[Raw]:
    """Rows of `search.jsonl` without the time they took."""
    rows = read_jsonl(run / "search.jsonl")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def metrics_of(run: Path) -> list[Raw]:
    """Rows of `metrics.jsonl`."""
    return read_jsonl(run / "metrics.jsonl")


def sha256(path: Path) -> str:
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_run(run: Path, to: Path, *, steps: Sequence[int] | None = None) -> Path:
    """Copies a run directory, with all checkpoints or those of `steps` only; returns `to`."""
    kept = None if steps is None else {f"step-{step:05d}" for step in steps}

    def ignored(directory: str, names: list[str]) -> set[str]:
        found = {name for name in names if name.startswith("step-")}
        return set() if kept is None else found - kept

    shutil.copytree(run, to, ignore=ignored)
    return to
