"""Tables on disk: CSV always, Parquet beside it where pyarrow is installed.

A CSV cell is a number, or text, or empty for None. Text that a spreadsheet or a reader would take
for a formula or a number has a leading apostrophe, which reading takes away again.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from effopd.errors import RecordError
from effopd.records import write_text_atomic

Cell = str | int | float | None
TableRow = Mapping[str, Cell]
_MARKED = ("=", "+", "-", "@", "'", "\t", "\r")


def write_table(directory: Path, name: str, rows: Sequence[TableRow]) -> None:
    """Writes `name.csv`, and `name.parquet` where pyarrow is installed."""
    columns = list(rows[0]) if rows else []
    for row in rows:
        if list(row) != columns:
            raise RecordError(f"table {name}: a row has columns {list(row)}, the first {columns}")
        for column, cell in row.items():
            wrong = isinstance(cell, bool) or not isinstance(cell, str | int | float | None)
            if wrong or (isinstance(cell, float) and not math.isfinite(cell)):
                where = f"table {name}, column {column}"
                raise RecordError(f"{where}: {cell!r} is no finite number, text or None")
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([columns, *([_stored(cell) for cell in row.values()] for row in rows)])
    write_text_atomic(directory / f"{name}.csv", out.getvalue() if rows else "")
    _write_parquet(directory / f"{name}.parquet", columns, rows)


def read_table(path: Path) -> list[dict[str, Cell]]:
    """The rows of a CSV table that `write_table` wrote."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from None
    header = lines[0] if lines else []
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise RecordError(
                f"{path}: row {number} has {len(line)} cells, the first {len(header)}"
            )
    return [dict(zip(header, map(_read, line), strict=True)) for line in lines[1:]]


def _stored(cell: Cell) -> Cell:
    if isinstance(cell, str):
        return f"'{cell}" if cell.startswith(_MARKED) or _number(cell) is not None else cell
    return "" if cell is None else repr(cell)


def _read(cell: str) -> Cell:
    if not cell:
        return None
    number = _number(cell)
    return cell.removeprefix("'") if number is None else number


def _number(text: str) -> int | float | None:
    """The number that a text stands for; None if it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _write_parquet(path: Path, columns: Sequence[str], rows: Sequence[TableRow]) -> None:
    """Columns of one type: text if one cell is, else whole numbers if all are, else float64."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return  # the CSV holds the same
    arrays = {}
    for name in columns:
        cells = [row[name] for row in rows]
        known = [cell for cell in cells if cell is not None]
        kind = pyarrow.int64() if known and all(isinstance(c, int) for c in known) else (
            pyarrow.float64()
        )  # fmt: skip
        if any(isinstance(cell, str) for cell in known):
            cells, kind = [c if c is None else str(c) for c in cells], pyarrow.string()
        arrays[name] = pyarrow.array(cells, kind)
    temporary = path.with_name(f".{path.name}.tmp")
    parquet.write_table(pyarrow.table(arrays), temporary)
    temporary.replace(path)
