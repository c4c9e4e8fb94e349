"""Rows of repositories on the Hugging Face hub, through `datasets`; imported when asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any
from zipfile import BadZipFile

from effopd.data.origins import Origin
from effopd.data.rows import Row, needed_columns
from effopd.errors import ConfigError, MissingExtraError

_SUFFIXES = {".parquet", ".json", ".jsonl", ".csv"}


def hub_rows(
    origin: Origin, name: str, fields: Sequence[str] | None, cache: str | None = None
) -> Iterator[Row]:
    """Rows of a split at the commit of the origin; downloaded once, then read from the cache.

    With `HF_HUB_OFFLINE=1` nothing is downloaded.

    Args:
        origin: Repository, or a directory laid out like one; commit, configuration, split, files.
        name: What rows are called, before their number.
        fields: Dotted names of the fields that are needed; None for all.
        cache: Directory of what was downloaded; the one of `datasets` by default.

    Yields:
        The rows, in order.

    Raises:
        MissingExtraError: `datasets` is not installed.
    """
    if find_spec("datasets") is None:
        raise MissingExtraError(
            "reading from the hub needs datasets, which is not installed: "
            "pip install 'effopd[eval]', or give path"
        )
    with _explained(origin):
        dataset = _split(origin, cache)
        if columns := needed_columns(fields, dataset.column_names):
            dataset = dataset.select_columns(columns)
    for number, values in enumerate(dataset, start=1):
        place = f"{origin.repo}, split {origin.split}, row {number}"
        yield Row(place, f"{name}-{origin.split}-{number}", values)


def _split(origin: Origin, cache: str | None) -> Any:
    from datasets import load_dataset_builder

    builder = load_dataset_builder(
        origin.repo,
        origin.config or None,
        data_files=origin.files or None,
        revision=origin.revision or None,
        cache_dir=cache,
    )
    files = [name for names in (builder.config.data_files or {}).values() for name in names]
    others = [name for name in files if PurePosixPath(name).suffix not in _SUFFIXES]
    if others or not files:
        raise ConfigError(
            f"{origin.repo} holds other files than parquet, JSON Lines and CSV"
            + (f", such as {PurePosixPath(others[0]).name}" if others else "")
            + ": name the right ones in files, or export them and give path"
        )
    builder.download_and_prepare()
    return builder.as_dataset(split=origin.split)


@contextmanager
def _explained(origin: Origin) -> Iterator[None]:
    """What `datasets` cannot load is a wrong setting or a missing network, not a crash."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # of whichever client it uses

    try:
        yield
    except ConfigError:
        raise
    except (DatasetsError, HTTPError, BadZipFile, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"cannot load {origin.repo} at {origin.revision or 'its newest commit'}, split "
            f"{origin.split}: {error}"
        ) from error
