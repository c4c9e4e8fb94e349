"""Rows of data sets: from JSON Lines, parquet, the Hugging Face hub, or memory.

Local files are read where they lie, a row at a time; only repositories of the hub are copied into
the cache of `datasets`. JSON Lines are read by `json` alone, as columns of one type cannot hold the
arguments of programs.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from effopd.errors import ConfigError

_SUFFIXES = {".parquet", ".json", ".jsonl", ".csv"}


class Row(NamedTuple):
    """One row: where it stands (`data.jsonl line 3`), its name (`data-3`, from 1), its fields."""

    place: str
    name: str
    values: Mapping[str, Any]


def file_rows(pattern: str, fields: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a `.jsonl` or `.parquet` file, or of all that match `data/train-*.parquet`, sorted.

    `fields` are the dotted names that are needed; None needs all. Other columns of parquet are not
    read.
    """
    path = Path(pattern).expanduser()
    files = [path]
    if has_magic(pattern) and not path.exists():
        files = sorted(map(Path, glob(str(path), recursive=True)))
        if not files:
            raise ConfigError(f"no problem file matches {pattern}")
    for file in files:
        if file.is_dir():
            raise ConfigError(f"{file} is a directory: name the files in it by {file}/*.jsonl")
        if file.suffix not in {".jsonl", ".parquet"}:
            raise ConfigError(
                f"{file} must end in .jsonl or .parquet: convert it, for example with datasets: "
                "load_dataset('json', data_files=FILE)['train'].to_json('FILE.jsonl') ('csv' reads "
                "tables)"
            )
        if not file.is_file():  # a pipe or a device may never end
            raise ConfigError(f"no such problem file: {file}")
        yield from _jsonl_rows(file) if file.suffix == ".jsonl" else _parquet_rows(file, fields)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    place = str(path)
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                place = f"{path} line {number}"
                if line.strip(" \t\r\n"):
                    values = json.loads(line)
                    if not isinstance(values, dict):
                        raise ConfigError(
                            f"{place} is not a JSON object: JSON Lines hold one object a line, as "
                            "jq -c '.[]' FILE writes them from a list"
                        )
                    yield Row(place, f"{path.stem}-{number}", values)
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def _parquet_rows(path: Path, fields: Sequence[str] | None) -> Iterator[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            columns = needed_columns(fields, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", f"{path.stem}-{number}", values)
    except (ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} after row {number}: {error}") from None


def hub_rows(
    repo: str,
    *,
    revision: str,
    split: str,
    config: str = "",
    files: str = "",
    fields: Sequence[str] | None = None,
    name: str = "",
) -> Iterator[Row]:
    """Rows of a split at a commit; downloaded once, with `HF_HUB_OFFLINE=1` not at all.

    `name` is what rows are called before their number, the repository's name by default.
    """
    try:
        from datasets import load_dataset_builder

        builder = load_dataset_builder(
            repo, config or None, data_files=files or None, revision=revision or None
        )
        found = [file for each in (builder.config.data_files or {}).values() for file in each]
        others = [file for file in found if PurePosixPath(file).suffix not in _SUFFIXES]
        if others or not found:  # archives are not unpacked
            example = f", such as {PurePosixPath(others[0]).name}" if others else ""
            raise ConfigError(
                f"it holds other files than parquet, JSON Lines and CSV{example}: name the right "
                "ones in files, or export them and give path"
            )
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=split)
    except Exception as error:
        raise ConfigError(
            f"cannot load {repo} at {revision or 'its newest commit'}, split {split}: {error}"
        ) from error
    if columns := needed_columns(fields, dataset.column_names):
        dataset = dataset.select_columns(columns)
    name = name or repo.rpartition("/")[2]
    for number, values in enumerate(dataset, start=1):
        yield Row(f"{repo}, split {split}, row {number}", f"{name}-{split}-{number}", values)


def memory_rows(rows: Iterable[Any], name: str) -> Iterator[Row]:
    """Rows of a list of mappings, or of a `datasets.Dataset`."""
    for number, values in enumerate(rows, start=1):
        if not isinstance(values, Mapping):
            raise ConfigError(f"{name} {number} must be a mapping of fields, got {values!r:.60}")
        yield Row(f"{name} {number}", f"{name}-{number}", values)


def needed_columns(fields: Sequence[str] | None, names: Sequence[str]) -> list[str] | None:
    """The columns that hold the fields; None for all, also where one is missing."""
    if fields is None:
        return None
    wanted = [field if field in names else field.partition(".")[0] for field in fields]
    return list(dict.fromkeys(wanted)) if set(wanted) <= set(names) else None
