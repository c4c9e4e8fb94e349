"""An analysis directory as its page reads it: `analysis.json`, the tables, and the example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effopd.errors import RecordError
from effopd.records import Row, read_json
from effopd.reports.series import plain, unique_lines
from effopd.reports.table_files import Cell, read_table

if TYPE_CHECKING:
    from effopd.reports.figures import Figure

TableRows = list[dict[str, Cell]]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What an analysis found; `effopd.analyze` and `load_analysis` give one.

    Attributes:
        directory: Where it is kept; None where nothing was kept on disk.
        info: `analysis.json`.
        tables: Rows by the name of the table; a table that was not asked for is missing.
        example: `example.json`; None where there is none.
    """

    directory: Path | None
    info: Row
    tables: Mapping[str, TableRows]
    example: Row | None = None

    def to_pandas(self, table: str) -> Any:
        """A table as a `pandas.DataFrame`.

        Raises:
            RecordError: The analysis has no such table.
        """
        from pandas import DataFrame

        if table not in self.tables:
            raise RecordError(f"no table {table!r}; there are {', '.join(sorted(self.tables))}")
        return DataFrame(self.tables[table])

    def figure(self, name: str) -> "Figure":
        """One of its figures, such as "norms", as `effopd.figures` gives them all.

        Raises:
            RecordError: There is no such figure, or what it shows was not measured.
        """
        from effopd.reports.analysis_page import analysis_figures

        figures = analysis_figures(self)
        if name not in figures:
            raise RecordError(f"no figure {name!r}; there are {', '.join(figures)}")
        return figures[name]

    @property
    def checkpoints(self) -> list[str]:
        """Labels of the series in the order of training."""
        return [str(each["label"]) for each in self.info["checkpoints"]]

    @property
    def shown(self) -> dict[str, str]:
        """Label -> unique, printable name."""
        labels = self.checkpoints
        return dict(zip(labels, unique_lines(labels), strict=True))

    @property
    def final(self) -> str:
        """What the series was compared with, printable."""
        return plain(str(self.info["final"]["label"]))

    @property
    def axis(self) -> tuple[str, dict[str, float]]:
        """Title of the horizontal axis, and where each checkpoint stands on it."""
        steps = [each["step"] for each in self.info["checkpoints"]]
        if None in steps:
            places = range(1, len(steps) + 1)
            return "checkpoint", dict(zip(self.checkpoints, map(float, places), strict=True))
        return "optimizer steps", dict(zip(self.checkpoints, map(float, steps), strict=True))

    def rows(self, table: str, **equal: Cell) -> TableRows:
        """Rows of a table with given cells; none where the table is missing."""
        rows = self.tables.get(table, [])
        if rows and not equal.keys() <= rows[0].keys():
            raise RecordError(
                f"the table {table} has no column {', '.join(equal.keys() - rows[0].keys())}: run "
                "the analysis again"
            )
        return [row for row in rows if all(row[name] == cell for name, cell in equal.items())]


def load_analysis(directory: Path) -> Analysis:
    """Reads an analysis directory, also one that goes on."""
    if not (directory / "analysis.json").is_file():
        raise RecordError(
            f"{directory} has no analysis.json; expected a directory that `effopd analyze` wrote"
        )
    info = read_json(directory / "analysis.json")
    paths = sorted((directory / "tables").glob("*.csv"))
    example = directory / "example.json"
    try:
        series = info["checkpoints"]
        _ = [(each["label"], each["step"], each["path"]) for each in [*series, info["final"]]]
        _ = info["base"]["path"], info["what"], info["command"], info["versions"]
    except (KeyError, TypeError) as error:
        raise RecordError(f"{directory / 'analysis.json'} is damaged: {error!r}") from None
    return Analysis(
        directory=directory,
        info=info,
        tables={path.stem: read_table(path) for path in paths},
        example=read_json(example) if example.exists() else None,
    )


def numbers(rows: Sequence[Mapping[str, Cell]], name: str) -> list[float | None]:
    """A column; None where a cell is empty."""
    found: list[float | None] = []
    for row in rows:
        cell = row.get(name, "")
        if isinstance(cell, str):
            raise RecordError(
                f"the column {name} holds {cell!r}, expected numbers; the table was written by "
                "another version or edited: run the analysis again"
            )
        found.append(cell)
    return found
