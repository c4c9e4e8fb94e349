"""The report: one HTML file that holds everything it shows and loads nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effopd.errors import RecordError
from effopd.records import Run
from effopd.reports.embedding import embedded, plotly_source, resource, write_page
from effopd.reports.figures import AXES, accuracy_figure, reverse_kl_figure
from effopd.reports.foresight import foresight_figure
from effopd.reports.headline import headline, highlights
from effopd.reports.rollouts import divergence_limit, rollout_rows
from effopd.reports.series import base_accuracy, plain, teacher_accuracy, trials
from effopd.reports.style import Style, run_styles
from effopd.reports.summary import COSTS, PERCENTS, baseline_of, method_summary, notes, ratios
from effopd.reports.tables import (
    csv_table,
    format_accuracy,
    format_cost,
    format_percent,
    format_ratio,
)
from effopd.reports.timeline import search_figure, search_sentence


def write_report(runs: Sequence[Run], path: Path | str, *, title: str = "effopd report") -> None:
    """Write a report on one or several runs as one HTML file, about 5 MB plus rollouts.

    Text from records is embedded as JSON and placed as text; a content security policy lets no
    script run but the three of this package, and nothing be loaded.

    Args:
        runs: Runs against the same teacher, at least one.
        path: The file to write, replaced in one step.
        title: Line above the headline and title of the window.

    Raises:
        RecordError: If there are no runs.
    """
    if not runs:
        raise RecordError("a report was asked for, but no runs were given; name a run directory.")
    scripts = {
        "plotly": plotly_source(),
        "page": resource("plots.js") + resource("page.js"),
        "viewer": resource("rollouts.js"),
    }
    rollouts = "\n".join(
        f'<script type="application/json" id="rollouts-{index}">{embedded(rollout_rows(run))}'
        "</script>"
        for index, run in enumerate(runs)
    )
    parts = {"data": embedded(page_data(runs, title)), "rollouts": rollouts}
    write_page(path, "page.html", parts, scripts)


def page_data(runs: Sequence[Run], title: str) -> dict[str, Any]:
    """Everything the page shows except rollouts, as JSON values."""
    styles = run_styles(runs)
    limit, negative = divergence_limit(runs)
    return {
        "title": plain(title),
        "headline": headline(runs),
        "highlights": highlights(runs),
        "facts": _facts(runs),
        "accuracy": {axis: accuracy_figure(runs, axis) for axis in AXES},
        "reverse_kl": {axis: reverse_kl_figure(runs, axis) for axis in AXES},
        "table": _table(runs, styles),
        "notes": notes(runs),
        "csv": csv_table(runs),
        "searches": [
            {
                "label": style.label,
                "color": style.color,
                "sentence": search_sentence(run),
                "figure": search_figure(run),
            }
            for run, style in zip(runs, styles, strict=True)
            if any(trials(run))
        ],
        "foresight": foresight_figure(runs) if any(run.monitor for run in runs) else None,
        "runs": [_settings(run, style) for run, style in zip(runs, styles, strict=True)],
        "kl_limit": limit,
        "kl_negative": negative,
    }


def _table(runs: Sequence[Run], styles: Sequence[Style]) -> dict[str, Any]:
    """The table of costs: one group of rows per cost, one column per share of the teacher."""
    teacher = teacher_accuracy(runs)
    titles = {"steps": "Steps", "tokens": "Sampled tokens", "seconds": "Seconds"}
    groups = []
    for cost in COSTS:
        rows = []
        for run, style in zip(runs, styles, strict=True):
            summary, ratio = method_summary(run, teacher), ratios(run, runs)
            names = [f"{cost}_to_{percent}" for percent in PERCENTS]
            cells = [
                {
                    "value": summary[name],
                    "text": format_cost(cost, summary[name]),
                    "ratio": ratio[name],
                    "ratio_text": format_ratio(ratio[name]),
                }
                for name in names
            ]
            rows.append({"label": style.label, "color": style.color, "cells": cells})
        groups.append({"title": titles[cost], "rows": rows})
    return {
        "columns": ["to reach", *(f"{percent} %" for percent in PERCENTS)],
        "groups": groups,
        "ratios": any(baseline_of(run, runs) not in (run, None) for run in runs),
    }


def _facts(runs: Sequence[Run]) -> list[str]:
    teacher, base = teacher_accuracy(runs), base_accuracy(runs)
    presets = list(dict.fromkeys(plain(str(run.info.get("preset") or "")) for run in runs))
    return [
        *([] if teacher is None else [f"teacher {format_percent(teacher)}"]),
        *([] if base is None else [f"student before training {format_percent(base)}"]),
        *(f"preset {preset}" for preset in presets if preset),
        "1 run" if len(runs) == 1 else f"{len(runs)} runs",
    ]


def _settings(run: Run, style: Style) -> dict[str, Any]:
    versions = run.info.get("versions")
    listed = versions.items() if isinstance(versions, dict) else ()
    final = format_accuracy(method_summary(run, None))
    known = [(key, run.info.get(key)) for key in ("method", "lr", "seed")]
    facts = [f"{key} {value}" for key, value in [*known, *listed] if value is not None]
    return {
        "label": style.label,
        "color": style.color,
        "facts": plain(", ".join([f"ended at {final}", *facts])),
        "config": plain(run.config, lines=True),
        "rollouts": len(run.rollouts),
    }
