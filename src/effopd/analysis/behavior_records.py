"""The part of `effopd analyze` that runs the models: which recipe, what of it, what is kept."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers.utils import logging as transformers_logging

from effopd.analysis.behavior_study import BehaviorSettings, BehaviorStudy, Tables
from effopd.analysis.series import Inputs
from effopd.analysis.study_directory import AnalysisDirectory
from effopd.config.reading import to_toml
from effopd.errors import ConfigError
from effopd.records import SCHEMA, Row, read_json, write_json_atomic
from effopd.reports.table_files import write_table
from effopd.training.config import Config, load_config
from effopd.training.run import config_of_run

TABLES = ("divergences", "positions", "shifts", "shift_points")
"""Names of the tables that `behavior_tables` gives."""


def behavior_recipe(
    asked: Sequence[str], run: Path | None, recipe: Path | None, device: str
) -> Config | None:
    """Where problems, prompts and teachers come from."""
    wanted = not asked or "behavior" in asked
    if recipe is not None and not wanted:
        raise ConfigError("--recipe is for behavior: add behavior to --what, or leave it out")
    path = recipe if recipe is not None else run and run / "config.toml"
    if path is None and asked and wanted:
        raise ConfigError("behavior needs problems and a teacher: give --recipe RUN.toml")
    if path is None or not wanted:
        return None
    read = load_config(recipe) if recipe is not None else config_of_run(path.parent)
    config = read.model_copy(update={"device": device, "teacher_device": None})
    if not asked and (config.evaluation.problems < 1 or config.self_teacher is not None):
        print(f"no behavior: {path} has no test problems, or a teacher that follows the student")
        return None
    return config


def measure_behavior(
    directory: AnalysisDirectory, inputs: Inputs, recipe: Config, *, draws_tsne: bool
) -> None:
    """Writes the tables of behavior and the example, measured now or before."""
    path = directory.path / "rows" / "behavior.json"
    settings = BehaviorSettings(projections=("pca", "tsne") if draws_tsne else ("pca",))
    record = read_json(path) if path.exists() else None
    conditions = {"recipe": to_toml(recipe), "settings": json.loads(json.dumps(asdict(settings)))}
    if record is None:
        record = {"schema": SCHEMA, **conditions, **_measured(inputs, recipe, settings)}
        write_json_atomic(path, record)
    elif any(record.get(name) != value for name, value in conditions.items()):
        raise ConfigError(
            f"{directory.path} holds the behavior under another recipe: choose another directory "
            "(--out)"
        )
    for name, rows in record["tables"].items():
        write_table(directory.tables, name, rows)
    if record["example"] is not None:
        example = {"schema": SCHEMA, **record["example"]}
        write_json_atomic(directory.path / "example.json", example)


def _measured(inputs: Inputs, recipe: Config, settings: BehaviorSettings) -> Row:
    transformers_logging.disable_progress_bar()
    found = behavior_tables(inputs, recipe, settings=settings)
    return {"tables": found.tables, "example": found.example}


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
    recipe: Config,
    *,
    settings: BehaviorSettings | None = None,
    report: Callable[[str], None] = print,
) -> Behavior:
    """Measures how every checkpoint of a series reads the base's text and writes its own.

    The same problems with the same random numbers for all, and the same evaluation as in training:
    the first `evaluation.problems` test problems of the recipe. The example is the first
    checkpoint, rescaled to the norms of the final one.
    """
    settings = settings or BehaviorSettings()
    series = inputs.checkpoints
    tables: Tables = {name: [] for name in TABLES}
    with closing(BehaviorStudy(inputs.base, recipe, settings, report)) as study:
        for found in (study.base(), *map(study.measure, series)):
            for name, rows in found.items():
                tables[name] += rows
        tables["shift_points"] += study.pictures(series[-1])
        example = study.example(series[0], inputs.final) if settings.example else None
    return Behavior(tables=tables, example=example)
