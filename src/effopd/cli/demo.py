"""What `effopd demo` does: one world, five ways to distil its teacher, one report."""

import shlex
from pathlib import Path
from typing import Any

from effopd.cli.report import report_runs
from effopd.cli.run import run_config
from effopd.records import load_run, write_json_atomic
from effopd.reports.summary import comparison
from effopd.training.config import make_config

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
    "opd_best_lr": {"method": "opd", "optimizer": {"lr": 1e-3}, "train": {"steps": 12}},
    "opd_reuse_best_lr": {
        "method": "opd",
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 6, "epochs": 4},
    },
}
"""The last two keep the rest honest: vanilla OPD where it is fastest in this world (LOG.md), and
the same with four updates on each batch, which the search's default takes too."""


def run_demo(out: Path, seed: int) -> bool:
    """Trains every method from the same base with the same seeds and writes the report."""
    for label, settings in METHODS.items():
        config = make_config(COMMON | {"label": label, "seed": seed} | settings)
        hint = f"effopd demo --out {shlex.quote(str(out))} --seed {seed}"
        if not run_config(config, out / label, resume_hint=hint):
            return False
    directories = [out / label for label in METHODS]
    summary = comparison([load_run(directory) for directory in directories])
    write_json_atomic(out / "summary.json", summary)
    print(
        f"\nbase accuracy {summary['base_accuracy']:.3f}, "
        f"teacher accuracy {summary['teacher_accuracy']:.3f}\n"
    )
    report_runs(directories, out / "report.html")
    return True
