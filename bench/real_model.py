"""The study of SmolLM2: every evaluation as a file, the tables of docs/real-model.md, a figure.

    python bench/real_model.py runs/compare-smollm2 runs/compare-smollm2-rivals

reads the runs of `effopd compare` of the two plans into `docs/assets/smollm2.csv`, draws
`docs/assets/smollm2.png` and prints the tables; without directories, those of the file that is
there.
"""

import csv
import json
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FILE, PICTURE = (ROOT / "docs" / "assets" / f"smollm2.{end}" for end in ("csv", "png"))
METHODS = {
    "opd": "opd",
    "slope": "**slope, the default**",
    "mini-batches": "the same updates at a fixed rate",
    "prodigy": "the same updates, Prodigy",
    "opd-short-mean": "opd, a mean over three gradients",
    "opd-batch-4": "opd, 4 prompts a step",
    "opd-batch-8": "opd, 8 prompts a step",
    "opd-batch-16": "opd, 16 prompts a step",
    "slope-batch-8": "slope, 8 prompts a step",
    "slope-batch-16": "slope, 16 prompts a step",
    "slope-once": "slope, 16 updates in one pass",
    "reuse-2": "the same batch twice (`train.epochs = 2`)",
    "reuse-4": "four times",
    "reuse-8": "eight times",
    "schedule-free": "the same updates, schedule-free",
    "muon": "the same updates, Muon",
    "soap": "the same updates, SOAP (sides of at most 1,024)",
    "average": "the same updates, an average of the weights",
    "effopd": 'the search, `method = "effopd"`',
    "paper": 'the paper\'s search, `preset = "paper"`',
    "release": 'the released search, `preset = "release"`',
    "first-update": "the first update times 8",
    "fixed-alpha": "fixed multiples of 3",
    "fixed-negative": "fixed negative advantage",
    "slope-16-prompts": "slope, 16 training prompts in all",
    "slope-1-prompt": "slope, one training prompt",
}  # in the order of the tables
DRAWN = {
    "slope": ("effopd", "#2a6fbb"),
    "mini-batches": ("the same updates at a fixed rate (1e-4, 3e-5)", "#c08a2e"),
    "prodigy": ("the same updates, Prodigy", "#4f9d69"),
    "opd": ("vanilla OPD at its best rate", "#8a8f98"),
}


class Evaluation(NamedTuple):
    """A line of the file: a student after so many steps; a teacher has accuracy alone."""

    plan: str
    task: str
    method: str
    lr: str
    seed: int
    step: int
    accuracy: float
    reverse_kl: float
    sampled_tokens: int
    teacher_tokens: int
    student_passes: int
    cpu_s: float

    @classmethod
    def of(cls, line: dict[str, str]) -> "Evaluation":
        """From the words of a line."""
        return cls(**{name: kind(line[name]) for name, kind in cls.__annotations__.items()})


Run = list[Evaluation]


def collect(directory: Path) -> Iterator[Evaluation]:
    """Every evaluation of a comparison; other rates of a method count as that method."""
    for run in sorted(directory.glob("*/*/lr-*/seed-*")):
        evals, timing = (
            [json.loads(line) for line in (run / name).read_text("utf-8").splitlines()]
            for name in ("evals.jsonl", "timing.jsonl")
        )
        seconds = {0: 0.0} | {row["step"]: row["cpu_s"] for row in timing}
        task, method, lr, seed = run.relative_to(directory).parts
        mantissa, exponent = f"{float(lr.removeprefix('lr-')):.1e}".split("e")
        for row in evals:
            yield Evaluation(
                directory.name.removeprefix("compare-"),
                task,
                "teacher" if row["model"] == "teacher" else re.sub("-(far|rates)$", "", method),
                f"{float(mantissa):g}e{int(exponent)}",
                int(seed.removeprefix("seed-")),
                row["step"],
                round(row["accuracy"], 4),
                round(row["reverse_kl"] or 0.0, 4),
                row["sampled_tokens"],
                row["teacher_tokens"],
                row["student_passes"],
                round(seconds[row["step"]], 1),
            )


def runs_of(evaluations: Sequence[Evaluation]) -> dict[tuple[str, str, str, str], list[Run]]:
    """(plan, task, method, rate) -> its runs in the order of their seeds."""
    found: dict[tuple[str, str, str, str], dict[int, Run]] = {}
    for each in evaluations:
        found.setdefault(each[:4], {}).setdefault(each.seed, []).append(each)
    return {key: [runs[seed] for seed in sorted(runs)] for key, runs in found.items()}


def teachers_accuracy(evaluations: Sequence[Evaluation], task: str) -> float:
    """That of a task's teacher, which every run evaluates alike."""
    return next(e.accuracy for e in evaluations if (e.task, e.method) == (task, "teacher"))


def at_goal(task: str, run: Run, teacher: float) -> Evaluation | None:
    """The first evaluation at 90%: of the teacher's accuracy, on the sums of the divergence."""
    for each in run:
        if each.step and task == "records" and each.accuracy >= 0.9 * teacher:
            return each
        if each.step and task == "sums" and each.reverse_kl <= 0.1 * run[0].reverse_kl:
            return each
    return None


def table(evaluations: Sequence[Evaluation], plan: str, task: str) -> list[str]:
    """The rows of a table: what each method took to 90%, a number a seed."""
    teacher = teachers_accuracy(evaluations, task)
    order = list(METHODS)
    found = runs_of(
        [e for e in evaluations if (e.plan, e.task) == (plan, task) and e.method != "teacher"]
    )
    rows = []
    for key in sorted(found, key=lambda key: (order.index(key[2]), float(key[3]))):
        (_, _, method, rate), runs = key, found[key]
        goals = [at_goal(task, run, teacher) for run in runs]
        there = [goal for goal in goals if goal is not None]
        ends = [
            goal if task == "records" and goal is not None else run[-1]
            for goal, run in zip(goals, runs, strict=True)
        ]
        cells = [
            METHODS[method],
            "" if method == "prodigy" else rate,
            ", ".join(
                f"not in {run[-1].step}" if goal is None else f"{goal.step}"
                for goal, run in zip(goals, runs, strict=True)
            ),
            ", ".join(f"{goal.sampled_tokens / 1e3:.1f}" for goal in there),
            ", ".join(f"{goal.student_passes / 1e3:.0f}" for goal in there),
            ", ".join(f"{goal.cpu_s:.0f}" for goal in there),
        ]
        if task == "sums":
            cells.append(", ".join(f"{end.step}" for end in ends))
            cells.append(", ".join(f"{end.cpu_s:.0f}" for end in ends))
        cells.append("; ".join(f"{end.accuracy:.2f}, {end.reverse_kl:.2f}" for end in ends))
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def ratio(evaluations: Sequence[Evaluation], task: str, cost: str) -> float:
    """What the default takes to 90% of what vanilla at 1e-4 does, by medians over the seeds."""
    teacher = teachers_accuracy(evaluations, task)
    found = runs_of(evaluations)
    slope, opd = (
        statistics.median(
            getattr(goal, cost)
            for run in found["smollm2", task, method, "1e-4"]
            if (goal := at_goal(task, run, teacher)) is not None
        )
        for method in ("slope", "opd")
    )
    return float(slope / opd)


def draw(evaluations: Sequence[Evaluation], path: Path) -> None:
    """Accuracy of every run against tokens and seconds; a row a task."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(9.6, 5.8), sharey=True, layout="constrained")
    titles = {"records": "records, prompt distillation", "sums": "sums, a teacher that was trained"}
    for row, task in zip(panels, titles, strict=True):
        teacher = teachers_accuracy(evaluations, task)
        found = runs_of([e for e in evaluations if (e.plan, e.task) == ("smollm2", task)])
        for panel, cost, unit, label in zip(
            row,
            ("sampled_tokens", "cpu_s"),
            (1e3, 1),
            ("thousand sampled tokens", "CPU seconds, evaluations left out"),
            strict=True,
        ):
            for (_, _, method, rate), runs in found.items():
                fixed = method == "mini-batches"
                if method not in DRAWN or not (fixed or rate in ("1e-4", "1e0")):
                    continue
                for i, run in enumerate(runs):
                    costs = [getattr(each, cost) / unit for each in run]
                    panel.plot(
                        costs, [each.accuracy for each in run],
                        color=DRAWN[method][1], label=None if i else DRAWN[method][0],
                        linewidth=2 if method == "slope" else 1.4, marker="o", markersize=3,
                        zorder=3 if method == "slope" else 2,
                    )  # fmt: skip
                    if fixed and task == "sums":
                        panel.annotate(
                            rate, (costs[-1], run[-1].accuracy), (4, -4), fontsize=8,
                            textcoords="offset points", color=DRAWN[method][1],
                        )  # fmt: skip
            panel.axhline(teacher, color="0.4", linestyle=":", linewidth=1)
            panel.text(
                0.01, teacher + 0.015, "teacher", fontsize=9, color="0.4",
                transform=panel.get_yaxis_transform(),
            )  # fmt: skip
            panel.set(xlabel=label, title=titles[task])
            panel.set_xlim(left=0)
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("answers that are right")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    lines = dict(zip(labels, handles, strict=True))
    figure.legend(
        [lines[label] for label, _ in DRAWN.values()], [label for label, _ in DRAWN.values()],
        loc="outside lower center", ncols=4, fontsize=9, frameon=False,
    )  # fmt: skip
    figure.savefig(path, dpi=150, metadata={"Software": None})


def read() -> list[Evaluation]:
    """The file that is there."""
    with FILE.open(encoding="utf-8", newline="") as source:
        return [Evaluation.of(line) for line in csv.DictReader(source)]


if __name__ == "__main__":
    if sys.argv[1:]:
        lines = dict.fromkeys(each for name in sys.argv[1:] for each in collect(Path(name)))
        with FILE.open("w", encoding="utf-8", newline="") as target:
            writer = csv.writer(target, lineterminator="\n")
            writer.writerow(Evaluation._fields)
            writer.writerows(lines)
    measured = read()
    draw(measured, PICTURE)
    for plan, task in (("smollm2", "records"), ("smollm2", "sums"), ("smollm2-rivals", "records")):
        print(f"{plan}, {task}", *table(measured, plan, task), "", sep="\n")
    for task in ("records", "sums"):
        print(task, *(f"{ratio(measured, task, c):.2f}" for c in ("sampled_tokens", "cpu_s")))
