"""What `effopd train`, `demo` and `report` do, and the lines a run prints."""

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effopd.config.reading import Raw, merged, to_toml
from effopd.demo.smollm2 import RECORDS, has_bfloat16
from effopd.doctor.smoke import smoke_run
from effopd.errors import ConfigError
from effopd.progress import Display, Terminal
from effopd.records import load_run, write_json_atomic
from effopd.reports.comparison import Comparison, summary_table
from effopd.reports.page import write_report
from effopd.reports.png import write_pngs
from effopd.reports.summary import comparison
from effopd.reports.tables import text_table
from effopd.search.scales import Trial
from effopd.training.config import Config, load_config, make_config
from effopd.training.observer import Observer
from effopd.training.rows import Row
from effopd.training.run import train
from effopd.training.signals import stop_on_signals


def run_recipe(
    recipe: Path, overrides: Sequence[str], out: Path, *, print_config: bool = False
) -> bool:
    """Trains as `recipe` says into `out`, or only prints the resolved settings."""
    config = smoke_run(load_config(recipe, overrides), recipe)
    if print_config:
        print(to_toml(config), end="")
        return True
    command = ["effopd", "train", str(recipe), *overrides, "--out", str(out)]
    return run_config(config, out, resume_hint=shlex.join(command))


def run_config(config: Config, out: Path, *, resume_hint: str) -> bool:
    """Trains with progress on standard output; says how to resume when stopped."""
    with shown(config.name, config.train.steps) as observer, stop_on_signals() as stop:
        finished = train(config, out, callbacks=[observer], stop=stop).finished
    if not finished:
        print(f"stopped and saved; resume with: {resume_hint}")
    return finished


# Reports and the demo -----------------------------------------------------------------------------


def report_runs(directories: Sequence[Path], page: Path) -> None:
    """Writes the page and its PNG copies, and prints the comparison table."""
    runs = [load_run(directory) for directory in directories]
    page.parent.mkdir(parents=True, exist_ok=True)
    write_report(runs, page)
    pictures = write_pngs(runs, page.parent / "figures")
    print(text_table(summary_table(Comparison.of_runs(runs, "report"))))
    print(f"\nreport: {page}\nfigures: {', '.join(str(p) for p in pictures)}")


COMMON: dict[str, Any] = {
    "device": "cpu",
    "objective": {"type": "full_kl"},
    "optimizer": {"lr": 1e-4},
    "train": {"steps": 56},
    "evaluation": {"first": [1, 2, 3, 5, 6, 7]},
    "checkpoint": {"every": 28, "keep": 1},
}
"""The same objective and learning rate for all, so that the search is what differs; models as small
as these are slower on a GPU."""

METHODS: dict[str, dict[str, Any]] = {
    "opd": {"method": "opd"},
    "paper": {"method": "effopd", "preset": "paper", "train": {"steps": 36}},
    "effopd": {"method": "effopd", "train": {"steps": 12}},
    "slope": {"method": "slope", "train": {"steps": 8}},
    "opd_best_lr": {"method": "opd", "optimizer": {"lr": 1e-3}, "train": {"steps": 12}},
    "opd_reuse_best_lr": {
        "method": "opd",
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 6, "epochs": 4},
    },
}
"""The last two keep the rest honest: vanilla OPD where it is fastest in this world (LOG.md), and
the same with four updates on each batch, which the search's default takes too."""


def run_demo(
    out: Path,
    seed: int,
    model: str = "tiny",
    *,
    gguf: Path | None = None,
    student: str | None = None,
    teacher: str | None = None,
) -> bool:
    """Trains every method from the same base with the same seeds and writes the report."""
    given = {"--gguf": gguf, "--student": student, "--teacher": teacher}
    if model == "smollm2":
        common = smollm2_settings(gguf=gguf, student=student, teacher=teacher)
        methods = SMOLLM2_METHODS
    elif model == "tiny":
        common, methods = COMMON, METHODS
        for option in (name for name, value in given.items() if value is not None):
            raise ConfigError(f"{option} is for --model smollm2: the tiny world brings its models")
    else:
        raise ConfigError(f"--model must be tiny or smollm2, got {model!r}")
    options = {"--model": model if model != "tiny" else None, **given}
    words = ["effopd", "demo", "--out", str(out), "--seed", str(seed)]
    words += [w for name, value in options.items() if value is not None for w in (name, str(value))]
    for label, settings in methods.items():
        config = make_config(merged(common, {"label": label, "seed": seed} | settings))
        if not run_config(config, out / label, resume_hint=shlex.join(words)):
            return False
    directories = [out / label for label in methods]
    summary = comparison([load_run(directory) for directory in directories])
    write_json_atomic(out / "summary.json", summary)
    print(
        f"\nbase accuracy {summary['base_accuracy']:.3f}, "
        f"teacher accuracy {summary['teacher_accuracy']:.3f}\n"
    )
    report_runs(directories, out / "report.html")
    return True


SMOLLM2_METHODS: dict[str, dict[str, Any]] = {
    "opd": {"method": "opd", "train": {"steps": 16}, "evaluation": {"every": 2}},
    "slope": {"method": "slope", "train": {"steps": 5}, "evaluation": {"first": [1, 2, 3]}},
}
"""At the learning rate at which vanilla OPD is fast in this task (docs/real-model.md)."""


def smollm2_settings(*, gguf: Path | None, student: str | None, teacher: str | None) -> Raw:
    """Prompt distillation of SmolLM2, or of another student or teacher, as fast as this CPU can."""
    dtype = "bfloat16" if has_bfloat16() else "float32"
    task = {"dtype": dtype} | ({"gguf": str(gguf)} if gguf else {})
    found = merged(RECORDS, {"task": task, "memory": {"master_weights": dtype == "bfloat16"}})
    found |= {"threads": min(8, len(os.sched_getaffinity(0)))}
    if student is not None:
        found |= {"student": {"path": student, "dtype": dtype}}
    if teacher is not None:
        del found["self_teacher"]
        found |= {"teacher": {"path": teacher, "dtype": dtype}}
    return found


# The lines of a run -------------------------------------------------------------------------------


@contextmanager
def shown(name: str, steps: int, display: Display | None = None) -> Iterator[Observer]:
    """Shows a run of so many steps on standard output: lines, and a bar in a terminal."""
    display = display or Terminal()
    first, started, trials = 0, 0.0, list[str]()
    with display.progress(name, steps) as progress:

        def say(text: str) -> None:
            display.say(f"{name}: {text}")

        def on_step(metrics: Row, timing: Row) -> None:
            nonlocal first, started
            step, now = metrics["step"], time.monotonic()
            if not first:  # loading and the first evaluation say nothing about the rest
                first, started = step, now - step_seconds(timing)
            left_s = (now - started) / (step - first + 1) * (steps - step)
            line = step_line(metrics, timing, steps, left_s)
            if trials:
                line += f"  search {' '.join(trials)} -> {metrics['accepted_scale'] or 1:g}"
            progress.done = step
            progress.refresh(line)
            if trials or not progress.is_live:
                say(line)
            trials.clear()

        def on_trial(step: int, index: int, trial: Trial) -> None:
            score = "unscored" if trial.score is None else f"{trial.score.value:.4f}"
            mark = {True: "+", False: "-", None: ""}[trial.accepted]
            trials.append(f"{trial.scale:g}:{score}{mark}")

        def on_evaluation(row: Row) -> None:
            line = f"step {row['step']:>3}  evaluation of the {row['model']}"
            if row["accuracy"] is not None:
                line += f"  accuracy {row['accuracy']:.3f}"
            if "metric" in row:
                line += f"  metric {row['metric']:.4g}"
            if row["reverse_kl"] is not None:
                line += f"  KL to teacher {row['reverse_kl']:.4f} nats"
            say(line)

        yield Observer(
            on_step=on_step, on_evaluation=on_evaluation, on_trial=on_trial, on_message=say
        )


def step_line(metrics: Row, timing: Row, steps: int, left_s: float) -> str:
    """One step in one line."""
    keys = {"loss": "loss", "KL": "reverse_kl", "length": "mean_length"}
    known = {name: metrics[key] for name, key in keys.items() if metrics[key] is not None}
    parts = [f"{name} {value:.{1 if name == 'length' else 4}f}" for name, value in known.items()]
    rate = metrics["sampled_tokens"] / max(timing["elapsed_s"], 1e-9)
    parts += [f"{rate:.0f} tokens/s", f"{step_seconds(timing):.2f} s", f"{left_s:.0f} s left"]
    return "  ".join([f"step {metrics['step']:>3}/{steps}", *parts])


def step_seconds(timing: Row) -> float:
    """Wall time of one step, evaluation and checkpoint excluded."""
    return sum(v for k, v in timing.items() if k.endswith("_s") and k not in {"elapsed_s", "cpu_s"})
