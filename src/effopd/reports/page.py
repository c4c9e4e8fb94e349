"""The report: one HTML file that holds everything it shows and loads nothing."""

import base64
import hashlib
import importlib.resources
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effopd.errors import MissingExtraError, RecordError
from effopd.records import Run, write_text_atomic
from effopd.reports.figures import AXES, accuracy_figure, reverse_kl_figure
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
        "plotly": _plotly_source(),
        "page": _resource("page.js"),
        "viewer": _resource("rollouts.js"),
    }
    rollouts = "\n".join(
        f'<script type="application/json" id="rollouts-{index}">{embedded(rollout_rows(run))}'
        "</script>"
        for index, run in enumerate(runs)
    )
    parts = {
        "policy": content_security_policy(list(scripts.values())),
        "style": _resource("page.css"),
        "data": embedded(page_data(runs, title)),
        "rollouts": rollouts,
        **scripts,
    }
    # One pass, so that a record that holds "{{page}}" stays what it is.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _resource("page.html"))
    write_text_atomic(path, page)


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
        "runs": [_settings(run, style) for run, style in zip(runs, styles, strict=True)],
        "kl_limit": limit,
        "kl_negative": negative,
    }


def embedded(value: object) -> str:
    """`value` as JSON that cannot end or leave the script element it is put in.

    `<`, `>`, `&` and everything beyond ASCII, U+2028 and U+2029 included, are written as escapes.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content_security_policy(scripts: Sequence[str]) -> str:
    """Policy under which only `scripts`, named by their hash, run and nothing is fetched.

    Styles need 'unsafe-inline' because plotly.js writes style elements and attributes; images are
    the data and blob addresses of its picture export.
    """
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


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


def _resource(name: str) -> str:
    return importlib.resources.files("effopd.reports").joinpath(name).read_text(encoding="utf-8")


def _plotly_source() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError(
            "a report needs plotly, which is not installed: pip install 'effopd[report]'"
        ) from error
    # The hash in the policy is that of the text as a browser reads it, with LF line ends.
    source = str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")
    assert "</script" not in source.lower()
    assert "<!--" not in source
    return source
