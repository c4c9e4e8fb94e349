"""What `effopd analyze --what behavior` measures of a series of checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from effopd.cli.behavior_study import BASE, BehaviorSettings, BehaviorStudy, Tables, Tuned
from effopd.config import RunConfig
from effopd.errors import ConfigError
from effopd.records import Row

TABLES = ("divergences", "positions", "shifts", "shift_points")
"""Names of the tables that `behavior_tables` gives."""


@dataclass(frozen=True, kw_only=True)
class Behavior:
    """What was found.

    Attributes:
        tables: Rows by the names in `TABLES`; numbers, text, or None.
        example: See `example_record`; None without a teacher or where none was asked for.
    """

    tables: Tables
    example: Row | None


def behavior_tables(
    base: Path,
    checkpoints: Sequence[Tuned],
    recipe: RunConfig,
    *,
    settings: BehaviorSettings | None = None,
    early: str | None = None,
    final: Tuned | None = None,
    report: Callable[[str], None] = print,
) -> Behavior:
    """Measures how every checkpoint of a series reads the base's text and writes its own.

    The same problems with the same random numbers for all, and the same evaluation as in training:
    the first `evaluation.problems` test problems of the recipe.

    Args:
        base: Directory of the model before training.
        checkpoints: The series in the order of training.
        recipe: Problems, prompt, sampling, teachers and device; its student is ignored.
        settings: What else is measured; None for the defaults.
        early: Label of the checkpoint that the example rescales; None for the first of the series.
        final: To whose norms it is rescaled; None for the last of the series.
        report: Receives progress sentences.

    Returns:
        Tables and example.

    Raises:
        ConfigError: There is no checkpoint, two have one label, or `early` is not among them.
    """
    settings = settings or BehaviorSettings()
    labels = [tuned.label for tuned in checkpoints]
    taken = {BASE, "teacher", *labels}
    if not labels or len(taken) < 2 + len(labels) or early not in {None, *labels}:
        raise ConfigError(
            f"checkpoints {labels} and early = {early!r}: expected at least one checkpoint, labels "
            "that differ from one another, from 'base' and 'teacher', and one of them as early"
        )
    study = BehaviorStudy(base, recipe, settings, report)
    tables: Tables = {name: [] for name in TABLES}
    for found in (study.base(), *(study.measure(tuned) for tuned in checkpoints)):
        for name, rows in found.items():
            tables[name] += rows
    tables["shift_points"] += study.pictures(checkpoints[-1])
    first = next(tuned for tuned in checkpoints if early in {None, tuned.label})
    last = checkpoints[-1] if final is None else final
    example = study.example(first, last) if settings.example else None
    return Behavior(tables=tables, example=example)
