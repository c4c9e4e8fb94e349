"""Tables as text: aligned columns for a terminal, Markdown, and CSV."""

import csv
import io
from collections.abc import Iterable, Sequence

from effopd.reports.series import plain

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


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows, header first, as CSV, lines ended by CR LF (RFC 4180).

    Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    out = io.StringIO()
    for row in rows:
        texts = [plain(cell) if isinstance(cell, str) else cell for cell in row]
        marked = [f"'{c}" if isinstance(c, str) and c.startswith(_FORMULA) else c for c in texts]
        csv.writer(out).writerow(marked)
    return out.getvalue()


def format_cost(cost: str, value: float | None) -> str:
    """A number of steps, tokens or seconds in at most six characters or so."""
    if value is None:
        return "–"
    if cost in {"seconds", "cpu"}:
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


def format_percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage, such as `93.8%` for 0.938."""
    return f"{fraction * 100:.{digits}f}%"
