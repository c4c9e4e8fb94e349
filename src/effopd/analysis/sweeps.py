"""What `effopd intervene` does: changed checkpoints, and how good they are."""

import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from effopd.analysis.applying import write_intervened
from effopd.analysis.intervention_kinds import Source, interventions
from effopd.analysis.intervention_scores import Case, Passes, Row, evaluate_interventions, key_of
from effopd.config.reading import differences, to_toml
from effopd.errors import ConfigError
from effopd.models.checkpoints import weights_fingerprint
from effopd.models.layout import read_heads
from effopd.models.updates import open_update, say_left_out
from effopd.records import JsonlWriter, display_text, read_jsonl, write_text_atomic
from effopd.reports.table_files import write_table
from effopd.reports.tables import text_table
from effopd.training.build import Parts, build_parts, started_from
from effopd.training.config import Config, load_config
from effopd.training.devices import placed


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `effopd intervene` was asked for.

    Attributes:
        base: Model directory before training.
        tuned: Model directory after it, or a LoRA adapter of the base.
        kind: Of intervention.
        settings: `key=value`, several values separated by commas.
        out: Where checkpoints and tables go.
        other: A second tuned model, for kinds that take norms or tensors from it.
        recipe: Says how to evaluate; None only writes checkpoints.
        passes: Evaluations of each intervention.
        problems: Test problems; None for the recipe's number.
        write: Write checkpoints though there is a recipe.
    """

    base: Path
    tuned: Path
    kind: str
    settings: Sequence[str]
    out: Path
    other: Path | None = None
    recipe: Path | None = None
    passes: int = 4
    problems: int | None = None
    write: bool = False


def run_intervene(asked: Request) -> None:
    """Writes a checkpoint of every intervention, or evaluates every one, or both."""
    transformers_logging.disable_progress_bar()
    config = None if asked.recipe is None else _config(asked, asked.recipe)
    cases = _cases(asked)
    if config is None or asked.write:
        _write(asked, cases)
    if config is not None:
        _evaluate(asked, config, cases)


def _cases(asked: Request) -> list[Case]:
    update = open_update(asked.base, asked.tuned)
    other = None if asked.other is None else open_update(asked.base, asked.other)
    heads = read_heads(asked.base)
    source = Source(update=update, other=other, heads=heads)
    for each in (update, *([other] if other else [])):
        say_left_out(each, lambda text: print(display_text(text)))
    return [
        Case(
            intervention=intervention,
            update=source.update,
            heads=heads,
            checkpoint=str(asked.tuned),
            other="" if asked.other is None else str(asked.other),
        )
        for intervention in interventions(asked.kind, asked.settings, source)
    ]


# Checkpoints --------------------------------------------------------------------------------------


def _write(asked: Request, cases: Sequence[Case]) -> None:
    for case in cases:
        directory = asked.out / "checkpoints" / directory_name(case)
        changed = case.intervention.apply(case.update, case.heads)
        found = write_intervened(directory, asked.base, changed)
        print(
            f"{directory}: update norm {found.update_norm:.6g}, {found.changed} tensors changed, "
            f"{found.at_base} at the base, {found.never_moved} never moved"
        )


def directory_name(case: Case) -> str:
    """Name of the checkpoint of an intervention, such as `step-00008-scale-0.5`."""
    row = case.row
    value = "" if row["value"] is None else f"{row['value']:.6g}"
    other = Path(row["other"]).name
    parts = [Path(row["checkpoint"]).name, row["kind"], value, row["setting"], other]
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(part for part in parts if part))


# Evaluation ---------------------------------------------------------------------------------------


def _config(asked: Request, recipe: Path) -> Config:
    """The recipe's settings with the base as the student."""
    overrides = [] if asked.problems is None else [f"evaluation.problems={asked.problems}"]
    config = load_config(recipe, overrides)
    if config.evaluation.problems < 1:
        raise ConfigError("there are no test problems to evaluate on: give --problems")
    if config.self_teacher is not None:
        raise ConfigError(
            "the recipe's teacher is an average of the student, which only a run has: take a "
            "recipe that names a teacher"
        )
    return placed(started_from(config, asked.base))


def _evaluate(asked: Request, config: Config, cases: Sequence[Case]) -> None:
    """Evaluates what the tables lack, one row at a time, and writes the tables."""
    _check_same_evaluation(asked, config)
    directories = [asked.base, asked.tuned, *([asked.other] if asked.other else [])]
    files = weights_fingerprint(directories)
    journal = asked.out / "interventions.jsonl"
    known = {key_of(row): row for row in (read_jsonl(journal) if journal.exists() else [])}
    finished = {key for key, row in known.items() if row["files"] == files}
    wanted = [case for case in cases if key_of(case.row) not in finished]
    if len(wanted) < len(cases):
        print(f"{len(cases) - len(wanted)} of {len(cases)} are in {journal} already")
    with JsonlWriter(journal) as rows:
        progress = _Progress(len(wanted))

        def on_row(row: Row) -> None:
            rows.write(row | {"files": files})
            known[key_of(row)] = row
            _write_tables(asked.out, list(known.values()))
            progress.show(row)

        if wanted:
            with closing(build_parts(config, lambda text: print(display_text(text)))) as parts:
                evaluate_interventions(wanted, _passes(asked, parts), on_row=on_row)
    _write_tables(asked.out, list(known.values()))
    shown = [known[key_of(case.row)] for case in cases]
    print(f"\n{text_table(_cells(shown))}\n\ntable: {asked.out / 'tables' / 'interventions.csv'}")


def _passes(asked: Request, parts: Parts) -> Passes:
    return Passes(
        policy=parts.student,
        writer=parts.writer(parts.student),
        evaluator=parts.evaluator(),
        teachers=parts.teachers,
        count=asked.passes,
    )


def _check_same_evaluation(asked: Request, config: Config) -> None:
    """All rows of a table come from one base, one evaluation and one number of passes."""
    path = asked.out / "evaluation.toml"
    text = f"passes = {asked.passes}\n{to_toml(config)}"
    if not path.exists():
        write_text_atomic(path, text)
        return
    changed = differences(path.read_text(encoding="utf-8"), text)
    if changed:
        raise ConfigError(
            f"{asked.out} holds the results of another evaluation:\n  "
            + "\n  ".join(changed)
            + "\nEvaluate in the same way, or choose another directory (--out)."
        )


def _write_tables(out: Path, rows: Sequence[Row]) -> None:
    hidden = {"schema", "files"}
    shown = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
    write_table(out / "tables", "interventions", shown)


class _Progress:
    """One line an intervention.

    Args:
        total: How many there are.
    """

    def __init__(self, total: int) -> None:
        self._total, self._done, self._started = total, 0, time.monotonic()

    def show(self, row: Row) -> None:
        """Prints a finished row."""
        self._done += 1
        spent = time.monotonic() - self._started
        left = spent / self._done * (self._total - self._done)
        name, *cells = _cells([row])[1]
        header = _cells([row])[0][1:]
        numbers = "  ".join(f"{h} {c}" for h, c in zip(header, cells, strict=True) if c != "-")
        reason = f"  {row['failure']}" if row["failure"] else ""
        line = f"{self._done}/{self._total}  {name}  {numbers}{reason}  {left:.0f} s left"
        print(display_text(line), flush=True)


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """The printed table, header first."""
    found = [["intervention", "norm", "accuracy", "KL to teacher", "never moved"]]
    for row in rows:
        value = "" if row["value"] is None else f" {row['value']:.6g}"
        name = f"{row['kind']}{value} {row['setting']}".strip()
        accuracy = _with_error(row["accuracy"], row["accuracy_se"])
        divergence = _with_error(row["reverse_kl"], row["reverse_kl_se"])
        norm = f"{row['update_norm']:.4g}"
        found.append([name, norm, accuracy, divergence, str(row["never_moved"])])
    return found


def _with_error(value: Any, error: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if error is None else f"{value:.4f} +- {error:.4f}"
