"""Results of benchmarks as lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def summary_lines(summaries: Mapping[str, Row]) -> Iterator[str]:
    """One line a benchmark: accuracy with its interval, pass@n, maj@n, and what went wrong."""
    table = [["benchmark", "questions", "avg@n", "95 %", "pass@n", "maj@n", "cut", "no answer",
              "tokens"]]  # fmt: skip
    for name, row in summaries.items():
        highest = row["pass"][str(row["samples"])]
        table.append([
            name,
            f"{row['questions']} x {row['samples']}",
            _share(row["avg"]["mean"]),
            _interval(row["avg"]["interval"]),
            _share(highest["mean"]),
            _share(row["maj"]["mean"]) if row["maj"] else "-",
            _share(row["truncated_share"]),
            _share(row["no_answer_share"]),
            f"{row['mean_tokens']:.0f}",
        ])  # fmt: skip
    yield from _aligned(table)


def comparison_lines(rows: Mapping[str, Row], other: str) -> Iterator[str]:
    """One line a benchmark: difference, interval, p-value, questions won and lost."""
    table = [[f"minus {other}", "difference", "95 %", "p", "better", "worse"]]
    for name, row in rows.items():
        table.append([
            name,
            f"{100 * row['difference']:+.1f}",
            _interval(row["interval"]),
            f"{row['p_value']:.2g}",
            str(row["wins"]),
            str(row["losses"]),
        ])  # fmt: skip
    yield from _aligned(table)


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as their widest entry; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [entry.rjust(width) for entry, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def _share(value: float) -> str:
    """In percent."""
    return f"{100 * value:.1f}"


def _interval(interval: Sequence[float] | None) -> str:
    if interval is None:
        return "-"
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"
