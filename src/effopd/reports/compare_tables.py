"""A comparison in words and tables: cells that a page and Markdown share, notes, the headline."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from effopd.reports.aggregates import SettingRow, unique
from effopd.reports.series import plain
from effopd.reports.summary import PERCENTS
from effopd.reports.tables import (
    escape_markdown,
    format_cost,
    format_lr,
    format_percent,
    format_ratio,
    markdown_table,
)

METHOD_NOTES = (
    "Numbers are medians over seeds; in brackets are the smallest and the largest seed.",
    "A seed that did not reach a share counts as slower than all that did; “not in 64 steps (2 of "
    "5)” says how many got there.",
    "Tokens and seconds are those at the first evaluation that reached the share, validation "
    "included. Steps are known to the grid of evaluations.",
    "Area is the mean accuracy from step 0 to the last step of the longest run of the world, by "
    "the trapezoidal rule; a run that ended earlier stays at its last accuracy.",
    "The best learning rate of a method is the one with the smallest median of steps to 90 % of "
    "the teacher; ties go to fewer sampled tokens, then to the larger area. Every other column is "
    "that of the same rate.",
)
"""What a reader of the tables must know."""


def cost_text(row: SettingRow, cost: str, percent: int) -> str:
    """A median such as `8`, or `not in 64 steps (2 of 5)`."""
    name = f"{cost}_to_{percent}"
    if row[f"median_{name}"] is not None:
        return format_cost(cost, row[f"median_{name}"])
    if row[f"reached_{percent}"] == row["seeds"] or row["teacher_accuracy"] is None:
        return "–"  # it got there, but this cost was not recorded
    return f"not in {row['steps']:g} steps ({row[f'reached_{percent}']} of {row['seeds']})"


def interval_text(row: SettingRow, cost: str, percent: int) -> str:
    """The smallest and the largest seed such as `[8, 12]`; empty where there is no median."""
    name = f"{cost}_to_{percent}"
    if row["seeds"] < 2 or row[f"median_{name}"] is None:
        return ""
    low, high = (row[f"{end}_{name}"] for end in ("low", "high"))
    return f"[{format_cost(cost, low)}, {format_cost(cost, high)}]"


def share_text(row: SettingRow, name: str) -> tuple[str, str]:
    """Median and interval of a fraction, in percent."""
    middle, low, high = (row[f"{key}_{name}"] for key in ("median", "low", "high"))
    if middle is None:
        return "–", ""
    if row["seeds"] < 2 or low is None or high is None:
        return format_percent(middle), ""
    return format_percent(middle), f"[{low * 100:.1f}, {high * 100:.1f}]"


def robustness_text(row: Mapping[str, Any]) -> str:
    """How many times slower a method is at its worst rate, such as `3.2×` or `at least 8.0×`."""
    if row["ratio_at_least"] is None:
        return "–" if row["lrs_at_90"] else "never at 90 %"
    ratio = format_ratio(row["ratio_at_least"])
    return ratio if row["ratio"] is not None else f"at least {ratio}"


def headline(summary: Mapping[str, Any]) -> str:
    """The result of the first world in one sentence: the method of interest and the baseline.

    Args:
        summary: What `comparison_summary` returns.

    Returns:
        Plain text.
    """
    if not summary["best"]:
        return "Nothing was evaluated yet."
    base, method, lr = summary["baseline"], compared_method(summary), shown_lr(summary)
    world = summary["best"][0]["world"]
    at_lr = [row for row in summary["rows"] if row["lr"] == lr]
    same = _against(at_lr, world, method, base)
    best = _against(summary["best"], world, method, base)
    text = f"In {plain(world)}, {plain(str(method))} came to 90 % of the teacher "
    if same:
        return f"{text}{same} at learning rate {format_lr(lr)} and {best} at its best."
    return f"{text}{best} at its best learning rate."


def shown_lr(summary: Mapping[str, Any]) -> float:
    """The learning rate of figures at one rate: the lower middle of those of the main table."""
    rates = sorted({row["lr"] for row in summary["rows"] if row["figure"] is None})
    return float(rates[(len(rates) - 1) // 2]) if rates else math.nan


def highlights(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Factors over the baseline as (number, what): at one learning rate, and each at its best."""
    method, lr, found = compared_method(summary), shown_lr(summary), []
    for world in unique(row["world"] for row in summary["best"]):
        rows = [row for row in summary["rows"] if row["lr"] == lr]
        for chosen, where in (
            (rows, f"at {format_lr(lr)}"),
            (summary["best"], "each at its best rate"),
        ):
            wanted = {"world": world, "method": method}
            row = next((row for row in chosen if wanted.items() <= row.items()), None)
            factor = row and row["ratio_steps_to_90"]
            if factor:
                word = "fewer" if factor > 1.05 else "more" if factor < 0.95 else "as many"
                what = f"{word} steps {where}, {plain(world)}"
                found.append((format_ratio(max(factor, 1 / factor)), what))
    return found


def compared_method(summary: Mapping[str, Any]) -> str | None:
    """The method of interest: "effopd" if there is one, else the first beside the baseline."""
    methods = unique(row["method"] for row in summary["best"])
    others = [method for method in methods if method != summary["baseline"]]
    return "effopd" if "effopd" in methods else next(iter([*others, *methods]), None)


def markdown_report(name: str, summary: Mapping[str, Any], notes: Sequence[str]) -> str:
    """The whole comparison in Markdown: for each world, every rate, the best rates, robustness.

    Args:
        name: Title.
        summary: What `comparison_summary` returns.
        notes: Sentences below.

    Returns:
        Text that ends in a newline; names stay text.
    """
    text = f"# {escape_markdown(name)}\n\n{escape_markdown(headline(summary))}\n"
    for world in unique(row["world"] for row in summary["rows"]):
        rows = [row for row in summary["rows"] if row["world"] == world]
        text += f"\n## {escape_markdown(world)}\n\n{_teacher_line(rows[0])}\n"
        main = [row for row in rows if row["figure"] is None]
        for lr in sorted({row["lr"] for row in main}):
            chosen = [row for row in main if row["lr"] == lr]
            text += f"\n### At learning rate {format_lr(lr)}\n\n{_markdown_rows(chosen)}"
        best = [row for row in summary["best"] if row["world"] == world]
        text += f"\n### Each at its best learning rate\n\n{_markdown_rows(best)}"
        found = [row for row in summary["robustness"] if row["world"] == world]
        if found:
            text += f"\n### How much the learning rate matters\n\n{_markdown_robustness(found)}"
        for figure in unique(row["figure"] for row in rows if row["figure"] is not None):
            variants = [row for row in rows if row["figure"] == figure]
            text += f"\n### {escape_markdown(figure)}\n\n{_markdown_rows(variants)}"
    return text + "".join(f"\n{escape_markdown(note)}\n" for note in (*METHOD_NOTES, *notes))


def best_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """Each method at its best learning rate as rows of short plain text, header first."""
    header = ["world", "method", "learning rate", "steps to 90 %", "tokens to 90 %", "final"]
    rows = [header]
    for row in summary["best"]:
        steps, tokens = (_whole(row, cost, 90) for cost in ("steps", "tokens"))
        final = share_text(row, "final_accuracy")[0]
        names = [plain(row["world"]), plain(row["method"])]
        rows.append([*names, format_lr(row["lr"]), steps, tokens, final])
    return rows


def _markdown_rows(rows: Sequence[SettingRow]) -> str:
    header = ["method", "learning rate", "seeds", *(f"steps to {p} %" for p in PERCENTS)]
    header += ["tokens to 90 %", "teacher tokens to 90 %", "seconds to 90 %"]
    cells = [[*header, "final accuracy", "area"]]
    for row in rows:
        costs = [("steps", percent) for percent in PERCENTS]
        costs += [(cost, 90) for cost in ("tokens", "teacher_tokens", "seconds")]
        line = [row["method"], format_lr(row["lr"]), str(row["seeds"])]
        line += [_whole(row, cost, percent) for cost, percent in costs]
        line += [" ".join(share_text(row, name)).strip() for name in ("final_accuracy", "area")]
        cells.append(line)
    return markdown_table(cells)


def _markdown_robustness(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["method", "learning rates", "at 90 %", "best", "worst / best steps to 90 %"]
    return markdown_table([
        header,
        *(
            [
                row["method"],
                ", ".join(map(format_lr, row["lrs"])),
                f"{row['lrs_at_90']} of {len(row['lrs'])}",
                format_lr(row["best_lr"]),
                robustness_text(row),
            ]
            for row in rows
        ),
    ])  # fmt: skip


def _whole(row: SettingRow, cost: str, percent: int) -> str:
    """Median, interval and ratio in one cell."""
    if cost != "steps" and row[f"median_{cost}_to_{percent}"] is None:
        return "–"
    ratio = format_ratio(row[f"ratio_{cost}_to_{percent}"])
    parts = [cost_text(row, cost, percent), interval_text(row, cost, percent)]
    return " ".join(filter(None, [*parts, f"({ratio})" if ratio else ""]))


def _teacher_line(row: SettingRow) -> str:
    teacher = row["teacher_accuracy"]
    level = "The teacher was not evaluated" if teacher is None else (
        f"The teacher's accuracy is {format_percent(teacher)}"
    )  # fmt: skip
    return f"{level}; the longest run has {row['horizon']:g} steps."


def _against(rows: Sequence[SettingRow], world: str, method: str | None, base: str | None) -> str:
    """`in 8 steps (opd in 52)`; empty if the method has no row there."""
    of = {row["method"]: row for row in rows if row["world"] == world and row["figure"] is None}
    if method not in of:
        return ""
    beside = f" ({plain(str(base))} {_when(of[base])})" if base != method and base in of else ""
    return _when(of[method]) + beside


def _when(row: SettingRow) -> str:
    steps = row["median_steps_to_90"]
    return f"not in {row['steps']:g} steps" if steps is None else f"in {steps:g} steps"
