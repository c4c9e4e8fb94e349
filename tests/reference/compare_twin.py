"""Plain twin of the aggregates over seeds: loops over rows of records, numpy for the rest."""

import numpy as np

FIELDS = {
    "steps": "step", "tokens": "sampled_tokens", "teacher_tokens": "teacher_tokens",
    "passes": "student_passes",
}  # fmt: skip
CLOCKS = {"seconds": "elapsed_s", "cpu": "cpu_s"}


def student_rows(run):
    rows = [row for row in run.evals if row["model"] == "student"]
    return sorted(rows, key=lambda row: row["step"])


def seconds_at(run, step, clock):
    return 0.0 if step == 0 else next(r[clock] for r in run.timing if r["step"] == step)


def costs(run, percent, teacher):
    """Steps, tokens, passes and seconds to a share of the teacher; infinite if never."""
    for row in student_rows(run):
        if row["accuracy"] >= percent / 100 * teacher - 1e-12:
            found = {cost: float(row[field]) for cost, field in FIELDS.items()}
            clocks = {cost: seconds_at(run, row["step"], c) for cost, c in CLOCKS.items()}
            return found | clocks
    return dict.fromkeys([*FIELDS, *CLOCKS], np.inf)


def area(run, horizon):
    """Mean accuracy over a grid of whole steps, between which accuracy is linear."""
    rows = student_rows(run)
    grid = np.arange(horizon + 1, dtype=np.float64)
    known = [row["step"] for row in rows], [row["accuracy"] for row in rows]
    heights = np.interp(grid, *known)  # constant beyond the last evaluation
    return float(np.sum((heights[1:] + heights[:-1]) / 2) / horizon)


def spread(values):
    """Median, smallest and largest, None where infinite."""
    found = (np.median(values), np.min(values), np.max(values))
    return [float(value) if np.isfinite(value) else None for value in found]
