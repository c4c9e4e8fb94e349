"""Tables as text: aligned columns for a terminal, Markdown, and CSV."""

import csv
import io
from collections.abc import Sequence

from effopd.records import Run
from effopd.reports.series import plain, teacher_accuracy, unique_labels
from effopd.reports.summary import COSTS, PERCENTS, Summary, method_summary, ratios

_FORMULA = ("=", "+", "-", "@")
_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>&|#~"})


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, header first, as aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, header first, as a Markdown table; marks and what starts a formula are escaped."""

    def shown(cell: str) -> str:
        text = escape_markdown(cell)
        return f"\\{text}" if text.startswith(_FORMULA) else text

    header, *body = [[shown(cell) for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *body])


def escape_markdown(text: str) -> str:
    """`text` as one line that Markdown shows as it is."""
    return plain(text).translate(_MARKDOWN)


def table_rows(runs: Sequence[Run]) -> list[list[str]]:
    """Runs as rows of short plain text, header first, with ratios over the baseline."""
    teacher = teacher_accuracy(runs)
    header = ["run", "final accuracy", *(f"steps to {share} %" for share in PERCENTS)]
    rows = [[*header, "tokens to 90 %", "seconds to 90 %"]]
    names = [*(f"steps_to_{share}" for share in PERCENTS), "tokens_to_90", "seconds_to_90"]
    for label, run in zip(unique_labels(runs), runs, strict=True):
        summary, ratio = method_summary(run, teacher), ratios(run, runs)
        cells = []
        for name in names:
            text, factor = format_cost(name.split("_")[0], summary[name]), ratio[name]
            cells.append(text if factor is None else f"{text} ({format_ratio(factor)})")
        rows.append([label, format_accuracy(summary), *cells])
    return rows


def csv_table(runs: Sequence[Run]) -> str:
    """One line per run and share of the teacher, numbers in full, lines ended by CR LF (RFC 4180).

    Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    teacher = teacher_accuracy(runs)
    out = io.StringIO()
    writer = csv.writer(out)
    columns = [column for cost in COSTS for column in (cost, f"{cost}_ratio")]
    final = ["final_accuracy", "final_accuracy_se", "final_reverse_kl"]
    writer.writerow(["run", "method", "lr", "seed", "percent_of_teacher", *columns, *final])
    for label, run in zip(unique_labels(runs), runs, strict=True):
        summary, ratio = method_summary(run, teacher), ratios(run, runs)
        who = [label, *(run.info.get(key) for key in ("method", "lr", "seed"))]
        for share in PERCENTS:
            names = [f"{cost}_to_{share}" for cost in COSTS]
            pairs = [value for name in names for value in (summary[name], ratio[name])]
            cells = [*who, share, *pairs, *(summary[name] for name in final)]
            writer.writerow([_csv_cell(cell) for cell in cells])
    return out.getvalue()


def _csv_cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = plain(cell)
    return f"'{text}" if text.startswith(_FORMULA) else text


def format_cost(cost: str, value: float | None) -> str:
    """A number of "steps", "tokens" or "seconds" in at most six characters or so."""
    if value is None:
        return "–"
    if cost == "seconds":
        return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if size == 1e4 else size):.3g}{unit}"
    return f"{value:,g}"


def format_lr(lr: float | None) -> str:
    """A learning rate such as `1e-4` or `2.5e-5`; a dash if it is not known."""
    if lr is None:
        return "–"
    mantissa, exponent = f"{lr:.6e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_ratio(ratio: float | None) -> str:
    """A ratio such as `6.0×`; empty if there is none."""
    if ratio is None:
        return ""
    return f"{ratio:.2f}×" if ratio < 0.95 else f"{ratio:.1f}×" if ratio < 100 else f"{ratio:,.0f}×"


def format_accuracy(summary: Summary) -> str:
    """Final accuracy in percent, with its standard error if there is one."""
    accuracy, error = summary["final_accuracy"], summary["final_accuracy_se"]
    if accuracy is None:
        return "–"
    if error is None:
        return format_percent(accuracy)
    return f"{accuracy * 100:.1f} ± {format_percent(error)}"


def format_percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage, such as `93.8 %` for 0.938."""
    return f"{fraction * 100:.{digits}f} %"
