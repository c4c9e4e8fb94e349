"""The page of runs: one HTML file that holds everything it shows and loads nothing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effopd.records import Run, write_text_atomic
from effopd.reports.comparison import (
    BEST,
    METHOD_NOTES,
    Comparison,
    cost_text,
    csv_table,
    final_text,
    headline,
    highlights,
    robustness_text,
    share_text,
)
from effopd.reports.embedding import rendered_page
from effopd.reports.figures import AXES, Figure, accuracy_figure, rates_figure, reverse_kl_figure
from effopd.reports.rollouts import divergence_limit, rollout_rows
from effopd.reports.series import base_accuracy, plain, trials
from effopd.reports.summary import PERCENTS, SettingRow, notes, teacher_of, unique
from effopd.reports.tables import format_lr, format_percent, format_ratio
from effopd.reports.timeline import (
    HEALTH_AXES,
    MOST_ALARMS,
    STEP_AXES,
    alarms,
    foresight_figure,
    search_figure,
    search_sentence,
    step_figure,
)

Json = dict[str, Any]


def write_report(runs: Sequence[Run], path: Path | str, *, title: str = "effopd report") -> None:
    """Writes a report on one or several runs as one HTML file, about 5 MB plus rollouts."""
    write_comparison(Comparison.of_runs(runs, title), path)


def write_comparison(comparison: Comparison, path: Path | str) -> None:
    """Writes the page of a comparison as one HTML file, about 5 MB, replaced in one step."""
    values, data = page_content(comparison)
    rollouts = {
        f"rollouts-{each['index']}": rollout_rows(comparison.runs[each["index"]])
        for each in data["samples"]
    }
    scripts = ["page.js", *(["rollouts.js"] if rollouts else [])]
    text = rendered_page("runs.html", values, {"data": data, **rollouts}, scripts)
    write_text_atomic(path, text)


def page_content(comparison: Comparison) -> tuple[Json, Json]:
    """What the template puts in, and what scripts draw.

    A figure or a table is shown when the picks are those of its `when`.
    """
    figures: dict[str, list[Json]] = {}
    tables: list[tuple[Json, Json]] = []
    spreads: list[tuple[Json, Json]] = []

    def add(name: str, when: Json, figure: Figure) -> None:
        figures.setdefault(name, []).append({"when": when, "figure": figure})

    choices = {format_lr(rate): rate for rate in comparison.rates} | {BEST: BEST}
    for number, world in enumerate(comparison.worlds):
        for name, choice in (choices if comparison.is_plan else {BEST: None}).items():
            rows = comparison.rows(world, choice)
            for cost in AXES:
                when = {"world": number, "choice": name, "cost": cost}
                curves = comparison.curves(rows)
                add("accuracy", when, accuracy_figure(curves, cost, teacher_of(rows)))
                add("reverse_kl", when, reverse_kl_figure(curves, cost))
                tables.append((when, cost_table(comparison, rows, cost)))
        if comparison.rates:
            rows, when = comparison.rows(world), {"world": number}
            sweep = accuracy_figure(comparison.sweep_curves(world), "steps", teacher_of(rows))
            add("sweep", when, sweep)
            styles = [comparison.styles[row["method"]] for row in rows]
            add("rates", when, rates_figure(rows, styles))
            spreads.append((when, spread_table(comparison, world)))
    variants = []
    for place, figure in enumerate(comparison.figures):
        variant: Json = {"name": figure, "id": f"variant-{place}", "tables": []}
        for number, world in enumerate(comparison.worlds):
            rows = comparison.variant_rows(figure, world)
            for cost in AXES:
                when = {"world": number, "cost": cost}
                drawn = accuracy_figure(comparison.curves(rows), cost, teacher_of(rows))
                add(variant["id"], when, drawn)
                variant["tables"].append((when, cost_table(comparison, rows, cost)))
        variants.append(variant)
    shown = format_lr(comparison.shown_lr) if comparison.rates else BEST
    values: Json = {
        "title": plain(comparison.name),
        # A number stays on the line of its noun and its unit.
        "headline": re.sub("(?<=step|rate) |(?<=×) ", "\u00a0", headline(comparison)).replace(
            "e-", "e\u2011"
        ),
        "highlights": highlights(comparison), "facts": _facts(comparison),
        "command": comparison.command, "chosen": shown,
        "worlds": [(str(i), plain(world)) for i, world in enumerate(comparison.worlds)],
        "choices": [(n, "each at its best" if n == BEST else n) for n in choices],
        "costs": [(cost, cost.replace("_", " ")) for cost in AXES],
        "accuracy_caption": _CAPTIONS[comparison.is_plan],
        "tables": tables, "spreads": spreads, "variants": variants,
        "notes": [*METHOD_NOTES, *comparison.notes] if comparison.is_plan else [],
    }  # fmt: skip
    details, data = _plan(comparison) if comparison.is_plan else _run_by_run(comparison, figures)
    return values | details, {"figures": figures, "csv": csv_table(comparison.runs), **data}


_CAPTIONS = {
    False: "Accuracy on held-out problems. Bands are one standard error to either side; a ring "
    "marks the first evaluation at 90% of the teacher. Tokens and seconds include validation.",
    True: "Accuracy on held-out problems: median over seeds, banded from the smallest to the "
    "largest. A run that ended early stays at its last value.",
}


def _plan(comparison: Comparison) -> tuple[Json, Json]:
    """What the page of a plan has instead of the details of each run."""
    base = comparison.summary["baseline"]
    against = (
        "No factors: no method of the main table trains as plain distillation does."
        if base is None
        else f"Factors say how many times less than {base} was needed, in the same choice."
    )
    plan = {"label": "Plan", "color": "", "facts": "", "text": comparison.plan}
    values = {"table_notes": [against], "searches": [], "watched": False, "kl_limit": 0}
    values |= {"examined": False, "quantities": [], "alarms": []}
    return values | {"runs": [plan]}, {"samples": []}


def _run_by_run(comparison: Comparison, figures: dict[str, list[Json]]) -> tuple[Json, Json]:
    """Searches, foresight, samples and settings of each run; adds their figures."""
    runs, styles = comparison.runs, list(comparison.styles.values())
    searches = []
    for index, (run, style) in enumerate(zip(runs, styles, strict=True)):
        if any(trials(run)):
            name = f"search-{index}"
            figures[name] = [{"when": {}, "figure": search_figure(run)}]
            look = {"id": name, "label": style.label, "color": style.color}
            searches.append(look | {"sentence": search_sentence(run)})
    watched = any(run.monitor for run in runs)
    if watched:
        figures["foresight"] = [{"when": {}, "figure": foresight_figure(runs)}]
    examined = any(row.get("overlap") is not None for run in runs for row in run.metrics)
    if examined:
        for quantity in HEALTH_AXES:
            figures[quantity] = [{"when": {}, "figure": step_figure(runs, quantity)}]
    quantities = [
        name
        for name in STEP_AXES
        if any(row.get(name) is not None for r in runs for row in r.metrics)
    ]
    if quantities:
        figures["quantity"] = [
            {"when": {"quantity": name}, "figure": step_figure(runs, name)} for name in quantities
        ]
    said = alarms(runs)
    limit, negative = divergence_limit(runs)
    samples, settings = list[Json](), list[Json]()
    for index, (run, style) in enumerate(zip(runs, styles, strict=True)):
        samples += [{"index": index, "label": style.label}] if run.rollouts else []
        versions = run.info.get("versions")
        listed = versions.items() if isinstance(versions, dict) else ()
        final = final_text(run)
        known = [(key, run.info.get(key)) for key in ("method", "lr", "seed")]
        facts = [f"{key} {value}" for key, value in [*known, *listed] if value is not None]
        text = run.config or "This run recorded no settings."
        shown = {"facts": ", ".join([f"accuracy {final}", *facts]), "text": text}
        settings.append({"label": style.label, "color": style.color, **shown})
    values: Json = {"table_notes": notes(runs), "searches": searches, "watched": watched}
    values |= {"runs": settings, "kl_limit": limit if samples else 0}
    values |= {"examined": examined, "quantities": [(n, STEP_AXES[n][0]) for n in quantities]}
    values |= {"alarms": said[:MOST_ALARMS], "alarms_left_out": max(0, len(said) - MOST_ALARMS)}
    return values, {"samples": samples, "kl_limit": limit, "kl_negative": negative}


def cost_table(comparison: Comparison, rows: Sequence[SettingRow], cost: str) -> Json:
    """Methods down; shares of the teacher, final accuracy and area across."""
    lines = []
    for row in rows:
        cells: list[Json] = [{"text": format_lr(row["lr"])}]
        for percent in PERCENTS:
            ratio, (text, small) = row[f"ratio_{cost}_to_{percent}"], cost_text(row, cost, percent)
            cells.append({
                "text": text, "small": small, "ratio": format_ratio(ratio),
                "gain": ratio is not None and ratio > 1,
                "missing": row[f"median_{cost}_to_{percent}"] is None,
            })  # fmt: skip
        shares = (share_text(row, name) for name in ("final_accuracy", "area"))
        cells += [{"text": text, "small": interval} for text, interval in shares]
        lines.append(_line(comparison, row["method"], cells))
    columns = ["to reach", "rate", *(f"{percent}%" for percent in PERCENTS), "final", "area"]
    return {"columns": columns, "rows": lines}


def spread_table(comparison: Comparison, world: str) -> Json:
    """Methods down, learning rates across: steps to 90%, and worst over best."""
    rows, rates, lines = comparison.rows(world), comparison.rates, []
    spreads = {r["method"]: r for r in comparison.summary["robustness"] if r["world"] == world}
    for method in unique(row["method"] for row in rows):
        at = {row["lr"]: row for row in rows if row["method"] == method}
        cells: list[Json] = []
        for rate in rates:
            cells.append({"text": "–"})
            if row := at.get(rate):
                text, small = cost_text(row, "steps", 90)
                missing = row["median_steps_to_90"] is None
                cells[-1] = {"text": text, "small": small, "missing": missing}
        known = spreads.get(method)
        cells.append({"text": robustness_text(known) if known else "–"})
        lines.append(_line(comparison, method, cells))
    return {"columns": ["steps to 90%", *map(format_lr, rates), "worst / best"], "rows": lines}


def _line(comparison: Comparison, method: str, cells: list[Json]) -> Json:
    style = comparison.styles[method]
    return {"label": style.label, "color": style.color, "cells": cells}


def _facts(comparison: Comparison) -> list[str]:
    levels = {row["world"]: row["teacher_accuracy"] for row in comparison.summary["rows"]}
    facts = [
        f"teacher{f' of {plain(world)}' if comparison.is_plan else ''} {format_percent(level)}"
        for world, level in levels.items()
        if level is not None
    ]
    counted: list[tuple[int, str]] = [(len(comparison.cells), "run")]
    if comparison.is_plan:
        counted.insert(0, (len({cell.seed for cell in comparison.cells}), "seed"))
        counted.insert(0, (len({cell.method for cell in comparison.cells}), "method"))
    else:
        base = base_accuracy(comparison.runs)
        facts += [] if base is None else [f"student before training {format_percent(base)}"]
        presets = unique(plain(str(run.info.get("preset") or "")) for run in comparison.runs)
        facts += [f"preset {preset}" for preset in presets if preset]
    return [*facts, *(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counted)]
