"""Recorded samples in the form that the viewer of the report reads."""

from collections.abc import Sequence
from typing import Any

from effopd.records import Row, Run
from effopd.reports.series import number, plain

_NICE = (1.0, 2.0, 5.0, 10.0)


def rollout_rows(run: Run) -> list[dict[str, Any]]:
    """Samples of a run with printable text, and the divergence per token where it was recorded."""
    return [_rollout_row(row, run) for row in run.rollouts]


def divergence_limit(runs: Sequence[Run]) -> tuple[float, bool]:
    """Where the colour scale of tokens ends, and whether any divergence is below 0.

    The limit is the 98th percentile of the sizes, rounded up to 1, 2 or 5 times a power of ten, and
    the same for all runs and steps so that colours can be compared.

    """
    values = [
        value
        for run in runs
        for row in run.rollouts
        for value in _divergences(row) or ()
        if value is not None
    ]
    sizes = sorted(map(abs, values))
    high = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 1.0
    unit = 10.0 ** (len(str(int(high))) - 1) if high >= 1 else 0.1 if high >= 0.1 else 0.01
    limit = next((n * unit for n in _NICE if n * unit >= high), 10.0 * unit)
    return round(limit, 6), any(value < 0 for value in values)


def _rollout_row(row: Row, run: Run) -> dict[str, Any]:
    shown = {
        "step": number(row, "step", run),
        "problem_id": plain(str(row.get("problem_id"))),
        "prompt": plain(str(row.get("prompt")), lines=True),
        "reward": number(row, "reward", run),
        "finish_reason": plain(str(row.get("finish_reason"))),
    }
    divergences = _divergences(row)
    if divergences is None:
        return shown | {"completion": plain(str(row.get("completion")), lines=True)}
    rounded = [None if value is None else float(f"{value:.6g}") for value in divergences]
    tokens = [plain(str(token), lines=True) for token in row["tokens"]]
    return shown | {"tokens": tokens, "kl": rounded}


def _divergences(row: Row) -> list[float | None] | None:
    """Divergence per token, or None if there is not one number or null for each token."""
    tokens, values = row.get("tokens"), row.get("kl_nats")
    if not isinstance(tokens, list) or not isinstance(values, list):
        return None
    numbers = all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in values
    )
    return values if numbers and tokens and len(tokens) == len(values) else None
