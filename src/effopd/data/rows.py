"""Rows of JSON Lines and parquet files, one at a time, whatever the files hold."""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from glob import glob, has_magic
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from effopd.errors import ConfigError, MissingExtraError

MAX_LINE_BYTES = 128 * 1024**2
"""Longest line that is read; the largest problems with tests are a few MiB."""
_BATCH_ROWS = 64
_MARK = "\ufeff"
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE, b"{\0", b"\0{", b"\0\0\0{")
"""How JSON in UTF-16 or UTF-32 begins, with a byte order mark and without."""


class Row(NamedTuple):
    """One row of a data set.

    Attributes:
        place: Where it stands, for messages: `data.jsonl line 3`.
        name: What it is called in its data set: `data-3`. Numbers count from 1.
        values: Field -> value.
    """

    place: str
    name: str
    values: Mapping[str, Any]


def local_files(pattern: str) -> list[Path]:
    """The files that a path, or a pattern such as `data/train-*.parquet`, names; sorted.

    Raises:
        ConfigError: There is none.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise ConfigError(f"{path} is a directory: name a file in it, or several by {path}/*.jsonl")
    if path.exists() or not has_magic(pattern):
        return [path]
    if found := sorted(Path(name) for name in glob(str(path), recursive=True)):
        return found
    raise ConfigError(f"no problem file matches {pattern}")


def file_rows(path: Path, fields: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a file, by the end of its name; archives are never opened.

    Args:
        path: A file ending in `.jsonl` or `.parquet`.
        fields: Dotted names of the fields that are needed; None for all.

    Returns:
        The rows, in order.

    Raises:
        ConfigError: The file is of another kind.
    """
    if path.suffix == ".jsonl":
        return jsonl_rows(path)
    if path.suffix == ".parquet":
        return parquet_rows(path, fields)
    raise ConfigError(
        f"{path} must end in .jsonl or .parquet: convert it, for example with datasets: "
        "load_dataset('json', data_files=FILE)['train'].to_json('FILE.jsonl') ('csv' reads tables)"
    )


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Objects of a JSON Lines file, which end at a newline and at nothing else.

    Blank lines are skipped, and counted. A byte order mark of UTF-8 is read over.

    Raises:
        ConfigError: The file is missing or no regular file; a line is too long, not UTF-8, no JSON
            (which has no NaN), or no object.
    """
    _check_is_file(path)
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                place = f"{path} line {number}"
                if len(line) > MAX_LINE_BYTES:
                    raise ConfigError(f"{place} is longer than {MAX_LINE_BYTES} bytes")
                line = line.removeprefix(codecs.BOM_UTF8)  # of the file, or of one put behind it
                if line.strip():
                    yield Row(place, f"{path.stem}-{number}", _object(line, place))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def parquet_rows(path: Path, fields: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a parquet file.

    Args:
        path: The file.
        fields: Dotted names of the fields that are needed; other columns are not read, unless one
            that is needed is not there, so that a message can name those that are.

    Yields:
        The rows, in order.

    Raises:
        ConfigError: The file is missing, damaged, or holds text that is not UTF-8.
        MissingExtraError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise MissingExtraError(
            "reading parquet needs pyarrow, which is not installed: pip install 'effopd[eval]'"
        )
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    _check_is_file(path)
    number = 0
    try:
        with ParquetFile(path) as file:
            columns = needed_columns(fields, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    place = f"{path} row {number}"
                    yield Row(place, f"{path.stem}-{number}", _unmarked(values))
    except (ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} after row {number}: {error}") from None


def needed_columns(fields: Sequence[str] | None, names: Sequence[str]) -> list[str] | None:
    """The columns that hold the fields; None for all, also where one is missing."""
    if fields is None:
        return None
    wanted = [field if field in names else field.partition(".")[0] for field in fields]
    return list(dict.fromkeys(wanted)) if set(wanted) <= set(names) else None


def _check_is_file(path: Path) -> None:
    """Refuses pipes and devices, which may never end."""
    if not path.exists():
        raise ConfigError(f"no such problem file: {path}")
    if not path.is_file() and not path.is_dir():  # opening a directory has a message of its own
        raise ConfigError(f"{path} is no regular file")


def _object(line: bytes, place: str) -> Mapping[str, Any]:
    if line.startswith(_WIDE):
        raise ConfigError(
            f"{place} is not UTF-8: the file is in UTF-16 or UTF-32, save it as UTF-8, for example "
            "with iconv -f UTF-16 -t UTF-8"
        )
    try:
        row = json.loads(line.rstrip(b"\r\n").decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place} is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(
            f"{place} is not a JSON object: JSON Lines hold one object a line, as "
            "jq -c '.[]' FILE writes them from a list"
        )
    return _unmarked(row)


def _unmarked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row without byte order marks before names: of the first column of an exported table."""
    if not any(name.startswith(_MARK) for name in row):
        return row
    return {name.removeprefix(_MARK): value for name, value in row.items()}


def _refuse_constant(name: str) -> NoReturn:
    """Python reads NaN and Infinity; JSON has neither."""
    raise ValueError(f"JSON has no {name}")
