"""How one checkpoint after another reads the base's text and writes its own.

In memory: the base, its teachers, one checkpoint, and a copy of what that one changed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from effopd.analysis.applying import intervened
from effopd.analysis.behavior import divergence_summary, position_rows
from effopd.analysis.embeddings import (
    Projection,
    embedding_shift,
    frequent_tokens,
    shift_points,
    shift_vectors,
    spread_tokens,
    state_shift,
)
from effopd.analysis.interventions import NormScaling, WholeScaling
from effopd.analysis.modules import module_norms
from effopd.analysis.series import Checkpoint, Inputs
from effopd.analysis.trajectories import pca_points, tsne_points
from effopd.config.reading import to_toml
from effopd.errors import ConfigError
from effopd.evaluation.evaluator import EvaluationResult
from effopd.evaluation.logprobs import completion_reverse_kl
from effopd.evaluation.routing import routed_reverse_kl
from effopd.methods import FullVocabularyKL
from effopd.models.updates import open_update
from effopd.progress import SILENT, Display
from effopd.records import SCHEMA, Row, read_json, write_json_atomic
from effopd.reports.table_files import write_table
from effopd.training.build import build_parts, started_from
from effopd.training.config import Config, load_config
from effopd.training.run import config_of_run
from effopd.training.teachers import frozen_copy

Rows = list[Row]
Tables = dict[str, Rows]
TABLES = ("divergences", "positions", "shifts", "shift_points")
"""Names of the tables that `behavior_tables` gives."""
WRITTEN = ("accuracy", "accuracy_se", "mean_length", "truncated_share")
"""What `divergences` says about a checkpoint's own answers."""
BASE = "base"
PROJECTIONS: dict[str, Projection] = {"pca": pca_points, "tsne": tsne_points}
PICTURE_TOKENS = 200
"""Tokens shown in a picture of shifts."""


def behavior_recipe(
    asked: Sequence[str],
    run: Path | None,
    recipe: str | Path | None,
    device: str,
    report: Callable[[str], None],
) -> Config | None:
    """Where problems, prompts and teachers come from; None where no behavior is measured."""
    wanted = not asked or "behavior" in asked
    if recipe is not None and not wanted:
        raise ConfigError("--recipe is for behavior: add behavior to --what, or leave it out")
    if recipe is None and run is None and asked and wanted:
        raise ConfigError("behavior needs problems and a teacher: give --recipe RUN.toml")
    source = run if recipe is None else recipe
    if not wanted or source is None:
        return None
    path = Path(source) / "config.toml" if recipe is None else Path(source)
    config = config_of_run(path.parent) if recipe is None else load_config(path)
    if not asked and (config.evaluation.problems < 1 or config.self_teacher is not None):
        report(f"no behavior: {path} has no test problems, or a teacher that follows the student")
        return None
    return config.model_copy(update={"device": device, "teacher_device": None})


def measure_behavior(
    out: Path, inputs: Inputs, recipe: Config, display: Display, *, draws_tsne: bool
) -> None:
    """Writes the tables of behavior and the example, measured now or before."""
    path = out / "rows" / "behavior.json"
    projections = ["pca", "tsne"] if draws_tsne else ["pca"]
    conditions: Row = {"recipe": to_toml(recipe), "projections": projections}
    record = read_json(path) if path.exists() else None
    if record is None:
        found = behavior_tables(inputs, recipe, projections=projections, display=display)
        measured = {"tables": found.tables, "example": found.example}
        record = {"schema": SCHEMA, **conditions, **measured}
        write_json_atomic(path, record)
    elif any(record.get(name) != value for name, value in conditions.items()):
        raise ConfigError(
            f"{out} holds the behavior under another recipe: choose another directory (--out)"
        )
    for name, rows in record["tables"].items():
        write_table(out / "tables", name, rows)
    if record["example"] is not None:
        write_json_atomic(out / "example.json", {"schema": SCHEMA, **record["example"]})


@dataclass(frozen=True, kw_only=True)
class Behavior:
    """Rows by the names in `TABLES`, and the example (see `BehaviorStudy.example`) or None."""

    tables: Tables
    example: Row | None


def behavior_tables(
    inputs: Inputs,
    recipe: Config,
    *,
    projections: Sequence[str] = tuple(PROJECTIONS),
    picture_tokens: int = PICTURE_TOKENS,
    display: Display = SILENT,
) -> Behavior:
    """Measures how every checkpoint of a series reads the base's text and writes its own.

    The same problems with the same random numbers for all, and the same evaluation as in training:
    the first `evaluation.problems` test problems of the recipe, whose student is not used. The
    pictures are of the last checkpoint's shifts; the example is the first checkpoint, rescaled to
    the norms of the final one.
    """
    series = inputs.checkpoints
    with closing(BehaviorStudy(inputs.base, recipe, picture_tokens, display)) as study:
        found = [study.divergences(BASE, 0)]
        with display.progress("behavior", len(series)) as progress:
            for checkpoint in series:
                found.append(study.measure(checkpoint))
                progress.advance(checkpoint.label)
        tables = {n: [row for each in found for row in each.get(n, [])] for n in TABLES}
        tables["shift_points"] = study.pictures(series[-1], projections)
        return Behavior(tables=tables, example=study.example(series[0], inputs.final))


class BehaviorStudy:
    """Base, teachers and the base's text, against which checkpoints are measured one by one."""

    def __init__(self, base: Path, recipe: Config, picture_tokens: int, display: Display) -> None:
        if recipe.evaluation.problems < 1 or recipe.self_teacher is not None:
            raise ConfigError(
                "behavior is measured on test problems and against a fixed teacher: set "
                "evaluation.problems to at least 1, and leave out self_teacher"
            )
        self._directory, self._picture_tokens, self._display = base, picture_tokens, display
        measured = replace(recipe.evaluation, divergence=True)
        plain = FullVocabularyKL()  # needs no reference model
        reading = recipe.model_copy(update={"objective": plain, "evaluation": measured})
        self._parts = build_parts(started_from(reading, base), display.say)
        self._base = frozen_copy(self._parts.student)
        self._written = {BASE: self._parts.evaluate_student()}
        self._text = self._written[BASE].rollouts
        # Token ids, and their S representations in the base and in the checkpoint measured last.
        self._pictured: dict[str, tuple[list[int], Tensor, Tensor]] = {}

    def close(self) -> None:
        """Ends the verifier's processes."""
        self._parts.close()

    def measure(self, checkpoint: Checkpoint) -> Tables:
        """Rows of one checkpoint, which the live student is meanwhile."""
        update = open_update(self._directory, checkpoint.directory)
        with intervened(self._parts.student.model, WholeScaling(scale=1.0).apply(update)):
            self._written[checkpoint.label] = self._parts.evaluate_student()
            tables = self.divergences(checkpoint.label, checkpoint.step)
            return tables | {"shifts": self._shifts(checkpoint)}

    def divergences(self, label: str, step: int | None) -> Tables:
        """Rows of `divergences` and `positions`: the live student on the base's text and its own.

        Against the teacher, and of a checkpoint against the base.
        """
        student, teachers, wrote = self._parts.student, self._parts.teachers, self._written[label]
        readings: list[tuple[str, str, Sequence[Sequence[float]]]] = []
        for text, writer in {"base": BASE, "own": label}.items():
            if (text, label) == ("own", BASE):
                continue
            rollouts = self._written[writer].rollouts
            if teachers is not None:
                is_own = writer == label  # measured when it was written
                kl = wrote.kl_nats if is_own else routed_reverse_kl(student, teachers, rollouts)
                readings.append((text, "teacher", kl))
            if label != BASE:
                kl = completion_reverse_kl(student, self._base, [r.sample for r in rollouts])
                readings.append((text, "base", kl))
        tables: Tables = {"divergences": [], "positions": []}
        for text, to, kl_nats in readings:
            who = {"label": label, "step": step, "text": text, "to": to}
            is_own, evaluated = text == "own" or label == BASE, wrote.row()
            facts = {name: evaluated[name] if is_own else None for name in WRITTEN}
            summary, closed = divergence_summary(kl_nats), None
            if (text, to) == ("base", "teacher"):  # 0 at the base, 1 at the teacher
                of_base = divergence_summary(self._written[BASE].kl_nats)["mean_nats"]
                closed = 1.0 - summary["mean_nats"] / of_base if of_base > 0 else None
            tables["divergences"].append({**who, **summary, **facts, "closed_share": closed})
            tables["positions"] += [{**who, **each} for each in position_rows(kl_nats)]
        return tables

    def _shifts(self, checkpoint: Checkpoint) -> Rows:
        """Rows of `shifts`; keeps the representations that a picture would show."""
        student, base, count = self._parts.student, self._base, self._picture_tokens
        samples = [rollout.sample for rollout in self._text]
        ids_N = torch.tensor([token for sample in samples for token in sample.learned_ids])
        before_VD, after_VD = (
            policy.model.get_input_embeddings().weight.detach() for policy in (base, student)
        )
        chosen = spread_tokens(len(ids_N), count)
        states = state_shift(base, student, samples, chosen=chosen)
        rows = {
            "embedding": embedding_shift(before_VD, after_VD, ids_N),
            "embedding, each token once": embedding_shift(before_VD, after_VD, ids_N.unique()),
            "last hidden state": states.row,
        }
        ids = frequent_tokens(ids_N, count)
        self._pictured = {
            "embedding": (ids, before_VD[ids].cpu(), after_VD[ids].cpu()),
            "last hidden state": (ids_N[chosen].tolist(), states.before_SD, states.after_SD),
        }
        who = {"label": checkpoint.label, "step": checkpoint.step}
        return [{**who, "space": space, **row} for space, row in rows.items()]

    def pictures(self, checkpoint: Checkpoint, projections: Sequence[str]) -> Rows:
        """Rows of `shift_points`: the base and the checkpoint measured last, in one picture."""
        kinds = {"positions": shift_points, "shifts": shift_vectors}
        rows: Rows = []
        for projection, space, kind in product(projections, self._pictured, kinds):
            token_ids, before_SD, after_SD = self._pictured[space]
            where = {"space": space, "projection": projection, "kind": kind}
            after = {checkpoint.label: after_SD}
            for point in kinds[kind](before_SD, after, PROJECTIONS[projection]):
                token = point["token"]  # None of the point of no shift
                token_id = None if token is None else token_ids[token]
                rows.append({**where, **point, "token_id": token_id})
        return rows

    def example(self, early: Checkpoint, final: Checkpoint) -> Row | None:
        """One question answered by an early checkpoint, by it rescaled, and by the teacher.

        Every module of the early update is brought to the norm it has in the final one. Each
        answer has the divergence from the teacher (nats) of its tokens in the eyes of either
        student. None without a teacher, and where both are one checkpoint.

        Source: arXiv 2605.11739, section 3.3 and appendix F.4.
        """
        student, teachers = self._parts.student, self._parts.teachers
        if teachers is None or early.label == final.label:
            self._display.say("no example: it takes a teacher and two checkpoints")
            return None
        # Two students, three writers.
        norms = module_norms(open_update(self._directory, final.directory))
        update = open_update(self._directory, early.directory)
        rescaled = f"{early.label} at the norms of {final.label}"
        models = {
            early.label: WholeScaling(scale=1.0).apply(update),
            rescaled: NormScaling(final=norms).apply(update),
        }
        written = {early.label: self._written[early.label]}
        with intervened(student.model, models[rescaled]):
            written[rescaled] = self._parts.evaluate_student()
        # The teachers' answers come teacher by teacher: put them in the order of the text.
        taught = self._parts.evaluate_teacher()
        places = {rollout.problem.id: i for i, rollout in enumerate(taught.rollouts)}
        order = [places[rollout.problem.id] for rollout in self._text]
        written["teacher"] = EvaluationResult(
            rollouts=tuple(taught.rollouts[i] for i in order),
            rewards=tuple(taught.rewards[i] for i in order) if taught.rewards else (),
            kl_nats=(),
        )
        rewards = {
            name: found.rewards or (None,) * len(found.rollouts) for name, found in written.items()
        }
        # The question shown, as each student reads each answer to it.
        index, telling = most_informative_question(rewards, early.label)
        chosen = [found.rollouts[index] for found in written.values()]
        kl_nats = {}
        for name, changed in models.items():
            with intervened(student.model, changed):
                kl_nats[name] = routed_reverse_kl(student, teachers, chosen)
        return {
            "schema": SCHEMA,
            "problem_id": chosen[0].problem.id,
            "prompt": chosen[0].problem.prompt,
            "questions": len(self._text),
            "telling": telling,
            "writers": [
                {"writer": name, "accuracy": row["accuracy"], "mean_tokens": row["mean_length"]}
                for name, row in ((name, found.row()) for name, found in written.items())
            ],
            "answers": [
                {
                    "writer": name,
                    "text": rollout.completion.text,
                    **rollout.completion.record(student.tokenizer),
                    "reward": rewards[name][index],
                    "kl_nats": {
                        reader: rollout.completion.per_token(values[i])
                        for reader, values in kl_nats.items()
                    },
                }
                for i, (name, rollout) in enumerate(zip(written, chosen, strict=True))
            ],
        }


def most_informative_question(
    rewards: Mapping[str, Sequence[float | None]], early: str
) -> tuple[int, int]:
    """The first question that all writers but `early` answer correctly, and how many there are.

    The first question of all where there is none. Appendix F.4 of arXiv 2605.11739 shows such a
    question and does not say how many it was chosen from.
    """
    expected = [writer != early for writer in rewards]
    questions = enumerate(zip(*rewards.values(), strict=True))
    found = [i for i, row in questions if None not in row and [r == 1.0 for r in row] == expected]
    return (found[0] if found else 0), len(found)
