"""The run directory: records on disk that join running and looking.

Training writes these files, reports read them, and neither imports the other. `docs/records.md`
describes every field. A JSON line counts once its newline is on disk: a process killed in the
middle of a write loses that line and no other.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from effopd.errors import RecordError

SCHEMA = 1
"""Format number that every record carries; a reader refuses the ones it does not know."""

Row = dict[str, Any]

_CHECKPOINT = re.compile(r"step-\d+")


class JsonlWriter:
    """Append-only writer of one JSON Lines file.

    Opening repairs what a killed process left: an unfinished last line is cut off. A failed write
    (a full disk, for instance) leaves no part of its line behind.

    Attributes:
        path: The file being appended to.
        offset: Length of the file in bytes; hand it to `truncate_jsonl` to come back to this point.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (closed by close)
        self.offset = _repair_tail(self._file.fileno())

    def write(self, row: Mapping[str, Any]) -> None:
        """Append `row` as one line and hand it to the operating system.

        Args:
            row: JSON values only; `schema` is added. A number that could not be computed is None.

        Raises:
            RecordError: If a value is NaN, infinite, or not a JSON value.
            OSError: If the disk refuses; the file is then as it was before the call.
        """
        line = (_to_json({"schema": SCHEMA, **row}, self.path) + "\n").encode(
            # A lone surrogate becomes \udXXX, which is its JSON escape.
            errors="backslashreplace"
        )
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError:
            os.ftruncate(self._file.fileno(), self.offset)
            raise
        self.offset += len(line)

    def sync(self) -> None:
        """Force what was written to the disk itself (fsync)."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; further writes fail."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def truncate_jsonl(path: Path | str, offset: int) -> None:
    """Cut a JSON Lines file back to `offset` bytes, as when training resumes from a checkpoint.

    A file that does not exist counts as empty.

    Args:
        path: The file to shorten in place.
        offset: Length to keep in bytes, as `JsonlWriter.offset` gave it.

    Raises:
        RecordError: If the file is shorter than `offset`, or `offset` is not the end of a line.
    """
    path = Path(path)
    size = path.stat().st_size if path.exists() else 0
    if not 0 <= offset <= size:
        raise RecordError(
            f"{path}: cannot go back to byte {offset}, the file has {size} bytes. It lost rows "
            "after the checkpoint was written; resume from an older checkpoint or restore the file."
        )
    if not path.exists():
        return
    with open(path, "r+b") as file:
        if offset > 0:
            file.seek(offset - 1)
            if file.read(1) != b"\n":
                raise RecordError(
                    f"{path}: byte {offset} is inside a line, expected the end of one. The file "
                    "was edited after the checkpoint; restore it or resume from an older one."
                )
        file.truncate(offset)
        os.fsync(file.fileno())


def read_jsonl(path: Path | str) -> list[Row]:
    """Rows of a JSON Lines file, in order; a last line cut off in the middle is left out.

    Args:
        path: The file to read; it must exist.

    Returns:
        One dict per line, `schema` included.

    Raises:
        RecordError: If another line is not a JSON object, holds a number that is not finite, or has
            an unknown schema. The message names file and line.
    """
    path = Path(path)
    rows = []
    for number, line, finished in _lines(_read_bytes(path)):
        try:
            rows.append(_from_json(line, f"{path}, line {number}"))
        except RecordError:
            if finished:
                raise
    return rows


def finished_rows(data: bytes, path: Path, before: int = 0) -> list[Row]:
    """Rows of whole lines of a file, behind `before` others; checked as by `read_jsonl`."""
    return [_from_json(line, f"{path}, line {before + n}") for n, line, _ in _lines(data)]


def write_text_atomic(path: Path | str, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one, never a part.

    Args:
        path: The file to write; its directory is made if needed.
        text: The content, stored as UTF-8, line ends as they are.

    Raises:
        OSError: If the disk refuses; the old file is then still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(text.encode(errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def write_json_atomic(path: Path | str, value: object) -> None:
    """Replace a JSON file in one step, indented by two spaces.

    Raises:
        RecordError: If a value is NaN, infinite, or not a JSON value.
    """
    write_text_atomic(path, _to_json(value, Path(path), indent=2) + "\n")


def read_json(path: Path | str) -> Row:
    """The object in a JSON file; its numbers are finite and its `schema` is this version's."""
    return _from_json(_read_bytes(Path(path)), str(path))


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run directory holds; a file that was never written is an empty list.

    Attributes:
        directory: Where it was read from.
        label: Name of the run in figures and tables.
        info: `run.json`: method, preset, lr, seed, versions.
        config: Text of `config.toml`, every setting resolved.
        metrics: One row per training step.
        timing: One row per training step, seconds.
        search: One row per trial.
        evals: One row per evaluation.
        rollouts: One row per recorded sample.
        monitor: One row per observation of the monitor.
    """

    directory: Path
    label: str
    info: Row
    config: str = ""
    metrics: list[Row] = field(default_factory=list)
    timing: list[Row] = field(default_factory=list)
    search: list[Row] = field(default_factory=list)
    evals: list[Row] = field(default_factory=list)
    rollouts: list[Row] = field(default_factory=list)
    monitor: list[Row] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the run is over, rather than interrupted."""
        return bool(self.info.get("finished"))

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint, a model directory; None before the first."""
        return next(iter(list_checkpoints(self.directory / "checkpoints")), None)

    @property
    def best_checkpoint(self) -> Path | None:
        """That of the best evaluation; None where there is none, or it was not kept."""
        path = checkpoint_path(self.directory / "checkpoints", best_step(self.evals) or 0)
        return path if path.is_dir() else None

    def to_pandas(self, name: str = "metrics") -> Any:
        """One of the records as a `pandas.DataFrame`: "metrics", "timing", "search", "evals" ..."""
        from pandas import DataFrame

        return DataFrame(getattr(self, name))


def load_run(directory: Path | str) -> Run:
    """Read a run directory, finished or still being written.

    Args:
        directory: A directory that holds at least `run.json`.

    Returns:
        The run, with empty lists for files that are not there.

    Raises:
        RecordError: If the directory or `run.json` is missing, or a file is damaged.
    """
    directory = Path(directory)
    if not (directory / "run.json").is_file():
        what = "has no run.json" if directory.is_dir() else "is not a directory"
        raise RecordError(
            f"{directory} {what}; expected a run directory written by `effopd train`. "
            "Check the path, or start the run again."
        )
    info = read_json(directory / "run.json")
    config = directory / "config.toml"

    def rows(name: str) -> list[Row]:
        path = directory / name
        return read_jsonl(path) if path.exists() else []

    return Run(
        directory=directory,
        label=str(info.get("label") or directory.name),
        info=info,
        config=_read_bytes(config).decode(errors="replace") if config.exists() else "",
        metrics=rows("metrics.jsonl"),
        timing=rows("timing.jsonl"),
        search=rows("search.jsonl"),
        evals=rows("evals.jsonl"),
        rollouts=rows("rollouts.jsonl"),
        monitor=rows("monitor.jsonl"),
    )


MANIFEST = "manifest.json"
"""The sizes and hashes of a checkpoint's files, its last file to be written."""


def checkpoint_path(parent: Path | str, step: int) -> Path:
    """`parent/step-00008`."""
    return Path(parent) / f"step-{step:05d}"


def checkpoint_step(path: Path) -> int:
    """The step that the name of a checkpoint holds."""
    return int(path.name.removeprefix("step-"))


def list_checkpoints(parent: Path | str) -> list[Path]:
    """Checkpoint directories below `parent`, the highest step first; not verified."""
    found = Path(parent).glob("step-*")
    named = [path for path in found if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(named, key=lambda path: (checkpoint_step(path), path), reverse=True)


def run_of_checkpoint(path: Path) -> Path | None:
    """The run directory that holds a checkpoint; None where the path is not in one."""
    run = path.parent.parent
    inside = path.parent.name == "checkpoints" and (run / "config.toml").is_file()
    return run if inside else None


def reaches(accuracy: float | None, share: float, teacher: float | None) -> bool:
    """Whether an accuracy is at least a share of the teacher's; False where one is not known.

    The tolerance keeps 0.81 at 90% of 0.9, whatever the rounding of the product.
    """
    if accuracy is None or teacher is None:
        return False
    return accuracy >= share * teacher - 1e-12


def quality(row: Mapping[str, Any]) -> float | None:
    """What an evaluation is judged by: the metric of the user, if there is one, or the accuracy."""
    value: float | None = row.get("metric", row["accuracy"])
    return value


def best_step(evals: Sequence[Row]) -> int | None:
    """The step of the best row of `evals.jsonl` of a trained student, the first of equals.

    Best is the highest quality, of equal ones the lowest divergence; without qualities the latter
    alone; None where neither was measured.
    """

    def goodness(row: Row) -> list[float]:
        kl = row["reverse_kl"]
        return [-math.inf if v is None else v for v in (quality(row), kl and -kl)]

    student = [row for row in evals if row["model"] == "student" and row["step"] > 0]
    best = max((row for row in student if max(goodness(row)) > -math.inf), key=goodness, default={})
    return best.get("step")


_VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
    | {0x7F: 0x2421}
    | {
        code: f"⟨{code:02X}⟩"
        for code in (*range(0x80, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029)
    }
    | {code: f"⟨{code:02X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
    | dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
)


def display_text(text: str) -> str:
    """`text` made safe to print: what steers a terminal is shown, not obeyed.

    Control characters other than newline and tab become control pictures (ESC is shown as `␛`) or
    their code (`⟨9B⟩`), as do bidirectional overrides and isolates; lone surrogates become U+FFFD.
    Markup of a printing library, such as `[bold]`, is not touched: print the result as plain text.

    Args:
        text: Anything, such as a completion of a model.

    Returns:
        The same text without control characters except newline and tab.
    """
    return text.translate(_VISIBLE)


def _to_json(value: object, path: Path, indent: int | None = None) -> str:
    """`value` as JSON text that keeps the order of keys, or a RecordError that names the field."""
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        return json.dumps(
            value, allow_nan=False, ensure_ascii=False, separators=separators, indent=indent
        )
    except (TypeError, ValueError, RecursionError) as error:
        where = next(_non_finite(value), None)
        what = f"{where} is not finite; write None instead" if where else str(error)
        raise RecordError(f"{path}: cannot store this record: {what}.") from error


def _non_finite(value: object, name: str = "") -> Iterator[str]:
    """Names of the NaN and infinite numbers inside `value`, such as `kl_nats[3]`."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name or "the value"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _non_finite(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _non_finite(item, f"{name}[{index}]")


def _from_json(data: bytes, where: str) -> Row:
    """The JSON object in `data`, checked for finite numbers and a known schema."""
    try:
        row = json.loads(data.decode(), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            f"{where}: not valid JSON ({error}). Restore the file, or remove the damaged line."
        ) from error
    schema = row.get("schema") if isinstance(row, dict) else None
    if schema != SCHEMA:
        raise RecordError(
            f"{where}: schema {schema!r}, expected {SCHEMA}. The file was written by another "
            "version of effopd, or is not one of its records."
        )
    checked: Row = row
    return checked


def _finite(text: str) -> float:
    """The number `text` stands for; ValueError for NaN, Infinity and 1e400."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return number


def _lines(data: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Line number from 1, content, and whether its newline is there."""
    *finished, last = data.split(b"\n")
    for number, line in enumerate(finished, start=1):
        yield number, line, True
    if last:
        yield len(finished) + 1, last, False


def _read_bytes(path: Path) -> bytes:
    """Content of `path`, or a RecordError that says why it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}).") from error


def _repair_tail(descriptor: int) -> int:
    """Cut an unfinished last line off an open file; its length in bytes afterwards."""
    size = end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def _sync_directory(directory: Path) -> None:
    """Force a rename inside `directory` to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
