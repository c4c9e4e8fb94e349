"""What `effopd analyze --what behavior` measures of a series of checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass

from effopd.cli.analyze_inputs import Inputs
from effopd.cli.behavior_study import BehaviorSettings, BehaviorStudy, Tables
from effopd.config import RunConfig
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
    inputs: Inputs,
    recipe: RunConfig,
    *,
    settings: BehaviorSettings | None = None,
    report: Callable[[str], None] = print,
) -> Behavior:
    """Measures how every checkpoint of a series reads the base's text and writes its own.

    The same problems with the same random numbers for all, and the same evaluation as in training:
    the first `evaluation.problems` test problems of the recipe. The example is the first
    checkpoint, rescaled to the norms of the final one.

    Args:
        inputs: Base, checkpoints and the final one.
        recipe: Problems, prompt, sampling, teachers and device; its student is ignored.
        settings: What else is measured; None for the defaults.
        report: Receives progress sentences.

    Returns:
        Tables and example.
    """
    settings = settings or BehaviorSettings()
    study = BehaviorStudy(inputs.base, recipe, settings, report)
    series = inputs.checkpoints
    tables: Tables = {name: [] for name in TABLES}
    for found in (study.base(), *map(study.measure, series)):
        for name, rows in found.items():
            tables[name] += rows
    tables["shift_points"] += study.pictures(series[-1])
    example = study.example(series[0], inputs.final) if settings.example else None
    return Behavior(tables=tables, example=example)
