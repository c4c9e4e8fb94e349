"""Figures 6 and 7: how soon each method is near its teacher, from a comparison's runs."""

import math
from collections.abc import Sequence
from pathlib import Path

from studies.paper.quantities import largest_fall
from studies.paper.study import Study

from effopd.comparison.plan import PlannedCell
from effopd.comparison.run import compare
from effopd.errors import EffopdError
from effopd.progress import Terminal
from effopd.records import Row, Run, load_run
from effopd.reports.series import evaluations, teacher_accuracy
from effopd.reports.summary import first_at

PERCENT = 90
MIDDLE_LR = 3e-4

TITLES = {
    "opd": "vanilla OPD, lr 3e-4",
    "opd_best": "vanilla OPD at its best lr",
    "opd_large": "vanilla OPD at the largest lr",
    "exopd": "ExOPD",
    "alphaopd": "AlphaOPD",
    "paper": "EffOPD, the paper's text",
    "release": "EffOPD, the released code",
    "effopd": "EffOPD, effopd's default",
}


def compare_methods(study: Study, workers: int) -> None:
    """Trains what the plan names and is not trained yet, so many runs at a time.

    Raises:
        EffopdError: A run failed, or the comparison was asked to stop.
    """
    out = study.out / "methods"
    compared = compare(
        study.comparison(), out, workers=workers, quick=study.quick, display=Terminal()
    )
    ending = compared.ending
    if ending != "finished":
        raise EffopdError(f"{out}: the comparison {ending}; run the same command to go on")


def methods_record(study: Study, seed: int) -> Row:
    """What each method took to 90% of the teacher; the horizon counts where not reached.

    `accepted` counts searches that moved the weights; `calm` is minus the largest fall below the
    best accuracy so far.
    """
    cells = _cells(study, seed, "sharpen")
    record: Row = {"titles": TITLES}
    for name in ("opd", "exopd", "alphaopd", "paper", "release", "effopd"):
        record[name] = _cost(study, _one(cells, name, MIDDLE_LR))
    vanilla = sorted((cell for cell in cells if cell.method == "opd"), key=lambda cell: cell.lr)
    costs = [_cost(study, cell) for cell in vanilla]
    record["opd_best"] = min(costs, key=lambda cost: (cost["steps"], cost["seconds"]))
    record["opd_large"] = costs[-1]
    return record


def has_difficulty(study: Study, seed: int) -> bool:
    """Whether the plan has both runs of figure 7b with this seed."""
    return len([c for c in _cells(study, seed, "mixed") if c.method.startswith("paper-")]) == 2


def difficulty_record(study: Study, seed: int) -> Row:
    """The same for easy and hard validation sets, in the world whose problems differ."""
    cells = _cells(study, seed, "mixed")
    return {
        name: _cost(study, next(cell for cell in cells if cell.method == f"paper-{name}"))
        for name in ("easy", "hard")
    }


def _cells(study: Study, seed: int, world: str) -> list[PlannedCell]:
    return [cell for cell in study.cells() if cell.seed == seed and cell.world == world]


def _one(cells: Sequence[PlannedCell], method: str, lr: float) -> PlannedCell:
    return next(cell for cell in cells if cell.method == method and math.isclose(cell.lr, lr))


def _cost(study: Study, cell: PlannedCell) -> Row:
    run: Run = load_run(study.out / "methods" / Path(cell.name))
    points = [point for point in evaluations(run) if point.accuracy is not None]
    reached = first_at(points, PERCENT, teacher_accuracy([run]))
    last = reached or points[-1]
    accuracies = [point.accuracy for point in points if point.accuracy is not None]
    scales = [row["accepted_scale"] for row in run.metrics if row["accepted_scale"] is not None]
    return {
        "steps": last.step,
        "seconds": last.elapsed_s,
        "tokens": last.sampled_tokens,
        "reached": reached is not None,
        "accepted": sum(scale != 1.0 for scale in scales),
        "final": accuracies[-1],
        "best": max(accuracies),
        "calm": -largest_fall(accuracies),
    }
