"""Sweeps of interventions: changed checkpoints on disk, and how good the changed models are."""

import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from effopd.analysis.applying import intervened, write_intervened
from effopd.analysis.intervention_kinds import Source, interventions
from effopd.analysis.interventions import Intervention
from effopd.config.reading import to_toml
from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.evaluator import EvaluationResult, Evaluator
from effopd.evaluation.routing import Teachers
from effopd.evaluation.statistics import mean, ratio
from effopd.models.checkpoints import weights_fingerprint
from effopd.models.directory import find_model
from effopd.models.layout import Heads, read_heads
from effopd.models.policy import Policy
from effopd.models.updates import Update, open_update, say_left_out
from effopd.progress import SILENT, Display
from effopd.records import Row
from effopd.reports.table_files import write_table
from effopd.rollouts.engine import derive_seed
from effopd.rollouts.rollout import Writer
from effopd.search.validation import standard_error
from effopd.training.build import build_parts
from effopd.training.config import Config, load_config, placed
from effopd.training.engines import started_from
from effopd.workspace import Journal, Workspace

KEY = ("kind", "checkpoint", "value", "setting", "other")
"""Columns that tell one intervention from another."""
STATISTICS = (
    "accuracy", "accuracy_se", "reverse_kl", "reverse_kl_se", "mean_length", "truncated_share",
    "problems", "passes",
)  # fmt: skip
"""Columns of `pooled`."""


def intervene(
    base: str | Path,
    tuned: str | Path,
    kind: str,
    settings: Mapping[str, Any] | Sequence[str] = (),
    *,
    out: str | Path | None = None,
    other: str | Path | None = None,
    recipe: str | Path | None = None,
    passes: int = 4,
    problems: int | None = None,
    write: bool = False,
    display: Display = SILENT,
) -> list[Row]:
    """Changes the update of a model in many ways; writes the changed models or evaluates them.

    Args:
        base: Model before training: a directory, or a repository of the Hugging Face Hub.
        tuned: Model after it, or a LoRA adapter of the base.
        kind: A name of `intervention_kinds.KINDS`, such as "scale".
        settings: `{"scale": [0.5, 1]}` or `["scale=0.5,1"]`: one value or several of each setting,
            of which all combinations are made.
        out: Where checkpoints and tables go. Rows that it holds already are not evaluated again.
        other: A second tuned model, for kinds that take norms or tensors from it.
        recipe: Says how to evaluate; None only writes checkpoints.
        passes: Evaluations of each intervention.
        problems: Test problems; None for the recipe's number.
        write: Write checkpoints though there is a recipe.
        display: Receives progress.

    Returns:
        A row for each intervention, in the order of the settings: the columns `KEY`, what it did to
        the model, and with a recipe the columns `STATISTICS` and `failure`, the reason where there
        are none.

    Raises:
        ConfigError: A setting or the recipe is wrong, or `out` holds another evaluation.
        RunLockedError: Another process writes to `out`.
    """
    transformers_logging.disable_progress_bar()
    base, tuned = find_model(base), find_model(tuned)
    config = None if recipe is None else _recipe(recipe, problems, base)
    if out is None and (write or config is None):
        raise ConfigError("checkpoints need a directory: give out, or only a recipe")
    update, heads = open_update(base, tuned), read_heads(base)
    donor_at = None if other is None else find_model(other)
    donor = None if donor_at is None else open_update(base, donor_at)
    for each in (update, donor):
        if each is not None:
            say_left_out(each, display.say)
    names = {"checkpoint": str(tuned), "other": "" if other is None else str(other)}
    cases = [
        Case(intervention=each, update=update, heads=heads, **names)
        for each in interventions(kind, settings, Source(update=update, other=donor, heads=heads))
    ]
    with ExitStack() as stack:
        workspace = None if out is None else stack.enter_context(Workspace(Path(out), "sweep"))
        rows = []
        if workspace is not None and (write or config is None):
            rows = _write(workspace.path / "checkpoints", base, cases, display)
        if config is None:
            return rows
        sources = filter(None, [base, tuned, donor_at])
        sweep = _Sweep(config, cases, passes, weights_fingerprint(sources), display)
        return list(sweep.evaluated()) if workspace is None else sweep.resume(workspace)


def _recipe(recipe: str | Path, problems: int | None, base: Path) -> Config:
    """The recipe's settings with the base as the student."""
    config = load_config(
        Path(recipe), [] if problems is None else [f"evaluation.problems={problems}"]
    )
    if config.evaluation.problems < 1:
        raise ConfigError("there are no test problems to evaluate on: give --problems")
    if config.self_teacher is not None:
        raise ConfigError(
            "the recipe's teacher is an average of the student, which only a run has: take a "
            "recipe that names a teacher"
        )
    return placed(started_from(config, base))


@dataclass(frozen=True, kw_only=True)
class Case:
    """An intervention on an update; tables name it by the tuned model and a second one, if any."""

    intervention: Intervention
    update: Update
    heads: Heads | None = None
    checkpoint: str = ""
    other: str = ""

    @property
    def row(self) -> Row:
        """The columns of `KEY`."""
        return {
            "kind": self.intervention.kind,
            "checkpoint": self.checkpoint,
            "value": self.intervention.value,
            "setting": self.intervention.setting,
            "other": self.other,
        }


# Checkpoints --------------------------------------------------------------------------------------


def _write(out: Path, base: Path, cases: Sequence[Case], display: Display) -> list[Row]:
    """Writes a checkpoint for each, such as `step-00008-scale-0.5`."""
    rows = []
    for case in cases:
        row = case.row
        value = "" if row["value"] is None else f"{row['value']:.6g}"
        names = Path(row["checkpoint"]).name, row["kind"], value, row["setting"]
        parts = filter(None, [*names, Path(row["other"]).name])
        directory = out / re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(parts))
        found = write_intervened(directory, base, case.intervention.apply(case.update, case.heads))
        display.say(
            f"{directory}: update norm {found.update_norm:.6g}, {found.changed} tensors changed, "
            f"{found.at_base} at the base, {found.never_moved} never moved"
        )
        rows.append(row | asdict(found) | {"directory": str(directory)})
    return rows


# Evaluation ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sweep:
    """Interventions to be evaluated in one way; `files` tells whether weights changed."""

    config: Config
    cases: Sequence[Case]
    passes: int
    files: str
    display: Display

    def resume(self, workspace: Workspace) -> list[Row]:
        """Evaluates what the journal lacks, and writes the table after every row."""
        # All rows of a table come from one base, one evaluation and one number of passes.
        evaluation = tomllib.loads(to_toml(self.config))
        workspace.settle("evaluation.toml", {"passes": self.passes, **evaluation})
        with Journal(workspace.path / "interventions.jsonl", key_of) as journal:
            keys = {key_of(case.row) for case in self.cases}
            stored = {key: row for key, row in journal.rows.items() if key in keys}
            finished = {key for key, row in stored.items() if row["files"] == self.files}
            shown: dict[tuple[Any, ...], Row] = {}
            for row in chain(self.evaluated(finished), [None]):
                if row is not None:
                    journal.add(row | {"files": self.files})
                shown = {  # without what only the journal needs
                    key: {name: row[name] for name in row if name not in {"schema", "files"}}
                    for key, row in journal.rows.items()
                }
                write_table(workspace.path / "tables", "interventions", [*shown.values()])
            return [shown[key_of(case.row)] for case in self.cases]

    def evaluated(self, finished: Collection[tuple[Any, ...]] = ()) -> Iterator[Row]:
        """A row for each intervention whose key is not finished."""
        waiting = [case for case in self.cases if key_of(case.row) not in finished]
        if not waiting:
            return
        with (
            closing(build_parts(self.config, self.display.say)) as parts,
            self.display.progress("interventions", len(self.cases), done=len(finished)) as progress,
        ):
            passes = Passes(
                policy=parts.student,
                writer=parts.writer(parts.student),
                evaluator=parts.evaluator(),
                teachers=parts.teachers,
                count=self.passes,
            )
            for row in evaluate_interventions(waiting, passes):
                name, *cells = sweep_cells([row])[1]
                header = sweep_cells([])[0][1:]
                numbers = [f"{h} {c}" for h, c in zip(header, cells, strict=True) if c != "-"]
                failure = [row["failure"]] if row["failure"] else []
                progress.advance("  ".join([name, *numbers, *failure]))
                yield row


def key_of(row: Row) -> tuple[Any, ...]:
    """What tells the rows of a table apart."""
    return tuple(row[name] for name in KEY)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """A live model, evaluated several times over the same problems.

    The first pass draws the random numbers of training's own evaluation, so that one pass gives its
    numbers; every later pass draws others. All interventions get the same. With teachers, the
    reverse KL of the same rollouts is measured.
    """

    policy: Policy
    writer: Writer
    evaluator: Evaluator
    teachers: Teachers | None
    count: int = 4

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"passes must be at least 1, got {self.count}")

    def evaluate(self) -> Row:
        """The statistics of the model as it is now."""
        self.writer.engine.sync_weights()
        seed = self.evaluator.seed
        seeds = [seed, *(derive_seed(seed, "pass", i) for i in range(1, self.count))]
        who: dict[str, Any] = {"student": self.policy, "teachers": self.teachers}
        each = (replace(self.evaluator, seed=seed) for seed in seeds)
        return pooled([evaluator.evaluate(self.writer, **who) for evaluator in each])


def evaluate_interventions(cases: Iterable[Case], passes: Passes) -> Iterator[Row]:
    """Applies one intervention after the other to the live model, evaluates it, puts it back.

    A model whose logits are not finite gives a row without statistics, with the reason in
    `failure`: the far end of a sweep may well break a model.
    """
    for case in cases:
        changed = case.intervention.apply(case.update, case.heads)
        with intervened(passes.policy.model, changed) as footprint:
            row = case.row | asdict(footprint)
            try:
                row |= passes.evaluate() | {"failure": None}
            except NonFiniteError as error:
                row |= dict.fromkeys(STATISTICS) | {"failure": str(error)}
        yield row
    passes.writer.engine.sync_weights()


def pooled(evaluations: Sequence[EvaluationResult]) -> Row:
    """Statistics over all passes; standard errors treat the problems as the sample.

    Passes of one problem are not independent of each other, so its mean counts as one value.
    """
    rows = [evaluation.row() for evaluation in evaluations]
    rewards = [mean(each) for each in zip(*(e.rewards for e in evaluations), strict=True)]
    tokens = [
        [value for rollout in of_problem for value in rollout]
        for of_problem in zip(*(e.kl_nats for e in evaluations), strict=True)
    ]
    kl, kl_se = ratio([sum(each) for each in tokens], [len(each) for each in tokens])
    return {
        "accuracy": mean(rewards) if rewards else None,
        "accuracy_se": standard_error(rewards),
        "reverse_kl": kl,
        "reverse_kl_se": kl_se,
        "mean_length": mean([row["mean_length"] or 0.0 for row in rows]),
        "truncated_share": mean([row["truncated_share"] or 0.0 for row in rows]),
        "problems": len(evaluations[0].rollouts),
        "passes": len(evaluations),
    }


def sweep_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Evaluated rows as cells of a short table, header first."""

    def with_error(row: Row, name: str) -> str:
        value, error = row[name], row[f"{name}_se"]
        if value is None:
            return "-"
        return f"{value:.4f}" if error is None else f"{value:.4f} +- {error:.4f}"

    found = [["intervention", "norm", "accuracy", "KL to teacher", "never moved"]]
    for row in rows:
        value = "" if row["value"] is None else f" {row['value']:.6g}"
        name = f"{row['kind']}{value} {row['setting']}".strip()
        numbers = [with_error(row, "accuracy"), with_error(row, "reverse_kl")]
        found.append([name, f"{row['update_norm']:.4g}", *numbers, str(row["never_moved"])])
    return found
