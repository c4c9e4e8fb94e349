"""How one checkpoint after another reads the base's text and writes its own.

In memory: the base, its teachers, one checkpoint, and a copy of what that one changed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from effopd.analysis.applying import Footprint, intervened
from effopd.analysis.behavior import divergence_summary, kl_gap_closed, position_rows
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
from effopd.analysis.series import Checkpoint
from effopd.analysis.trajectories import pca_points, tsne_points
from effopd.errors import ConfigError
from effopd.evaluation.evaluator import Evaluation
from effopd.evaluation.logprobs import completion_reverse_kl
from effopd.evaluation.routing import routed_reverse_kl
from effopd.methods import FullVocabularyKL
from effopd.models.policy import Policy
from effopd.models.updates import open_update
from effopd.records import SCHEMA, Row
from effopd.rollouts.rollout import Rollout
from effopd.training.build import build_parts, started_from
from effopd.training.config import Config
from effopd.training.teachers import frozen_copy

Rows = list[Row]
Tables = dict[str, Rows]
WRITTEN = ("accuracy", "accuracy_se", "mean_length", "truncated_share")
"""What `divergences` says about a checkpoint's own answers."""
BASE = "base"
PROJECTIONS: dict[str, Projection] = {"pca": pca_points, "tsne": tsne_points}


@dataclass(frozen=True, kw_only=True)
class BehaviorSettings:
    """What is measured beyond divergences and shifts.

    Attributes:
        picture_tokens: Tokens shown in a picture of shifts.
        projections: Kinds of picture; empty for none.
        example: Whether a question is looked for that shows what rescaling does.
        seed: Decides which tokens are shown.
    """

    picture_tokens: int = 200
    projections: tuple[Literal["pca", "tsne"], ...] = ("pca", "tsne")
    example: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.picture_tokens < 2:
            raise ConfigError(f"picture_tokens must be at least 2, got {self.picture_tokens}")
        unknown = set(self.projections) - set(PROJECTIONS)
        if unknown:
            raise ConfigError(f"projections must be among pca and tsne, got {sorted(unknown)}")


class BehaviorStudy:
    """Base, teachers and the base's text, against which checkpoints are measured one by one.

    Args:
        base: Directory of the base.
        recipe: See `behavior_tables`.
        settings: What is measured.
        report: Receives progress sentences.

    Raises:
        ConfigError: The recipe has no test problems, or a teacher that follows the student.
    """

    def __init__(
        self,
        base: Path,
        recipe: Config,
        settings: BehaviorSettings,
        report: Callable[[str], None],
    ) -> None:
        if recipe.evaluation.problems < 1 or recipe.self_teacher is not None:
            raise ConfigError(
                "behavior is measured on test problems and against a fixed teacher: set "
                "evaluation.problems to at least 1, and leave out self_teacher"
            )
        self._directory, self._settings, self._report = base, settings, report
        measured = replace(recipe.evaluation, divergence=True)
        plain = FullVocabularyKL()  # needs no reference model
        reading = recipe.model_copy(update={"objective": plain, "evaluation": measured})
        self._parts = build_parts(started_from(reading, base), report)
        self._base = frozen_copy(self._parts.student)
        self._written = {BASE: self._parts.evaluate_student()}
        self._pictured: dict[str, dict[str, Pictured]] = {}

    def close(self) -> None:
        """Ends the verifier's processes."""
        self._parts.close()

    @property
    def _text(self) -> Sequence[Rollout]:
        """What the base wrote."""
        return self._written[BASE].rollouts

    def base(self) -> Tables:
        """Rows of the base itself, on its own text."""
        return self._divergence_tables(BASE, 0, self._readings(BASE)[:1])

    def measure(self, checkpoint: Checkpoint) -> Tables:
        """Rows of one checkpoint."""
        self._report(f"behavior of {checkpoint.label}")
        with self._as(checkpoint.directory):
            self._written[checkpoint.label] = self._parts.evaluate_student()
            tables = self._divergence_tables(
                checkpoint.label, checkpoint.step, self._readings(checkpoint.label)
            )
            return tables | {"shifts": self._shifts(checkpoint)}

    def _as(self, directory: Path) -> AbstractContextManager[Footprint]:
        """The live student is the checkpoint inside, and the base afterwards."""
        whole = WholeScaling(scale=1.0).apply(open_update(self._directory, directory))
        return intervened(self._parts.student.model, whole)

    # Divergences ----------------------------------------------------------------------------------

    def _readings(self, label: str) -> list["Reading"]:
        """How the live student reads the base's text and its own: to the teacher, to the base."""
        student, teachers = self._parts.student, self._parts.teachers
        texts = {"base": BASE} | ({} if label == BASE else {"own": label})
        found = []
        for text, writer in texts.items():
            rollouts, known = self._written[writer].rollouts, self._written[writer].kl_nats
            if teachers is not None:
                is_own = writer == label  # measured when it was written
                kl = known if is_own else routed_reverse_kl(student, teachers, rollouts)
                found.append(Reading(text=text, to="teacher", kl_nats=kl))
            if label != BASE:
                samples = [rollout.sample for rollout in rollouts]
                kl = completion_reverse_kl(student, self._base, samples)
                found.append(Reading(text=text, to="base", kl_nats=kl))
        return found

    def _divergence_tables(
        self, label: str, step: int | None, readings: Sequence["Reading"]
    ) -> Tables:
        """Rows of `divergences` and `positions` of one checkpoint."""
        tables: Tables = {"divergences": [], "positions": []}
        wrote = self._written[label].row()
        for reading in readings:
            who = {"label": label, "step": step, "text": reading.text, "to": reading.to}
            is_own = reading.text == "own" or label == BASE
            facts = {name: wrote[name] if is_own else None for name in WRITTEN}
            row = {**who, **divergence_summary(reading.kl_nats), **facts}
            tables["divergences"].append(row | {"closed_share": self._closed(reading, row)})
            tables["positions"] += [{**who, **each} for each in position_rows(reading.kl_nats)]
        return tables

    def _closed(self, reading: "Reading", row: Row) -> float | None:
        """How much of the base's divergence from the teacher is gone, on the base's text."""
        if (reading.text, reading.to) != ("base", "teacher"):
            return None
        base_nats = divergence_summary(self._written[BASE].kl_nats)["mean_nats"]
        assert base_nats is not None
        return kl_gap_closed(row["mean_nats"], base_nats)

    # Shifts ---------------------------------------------------------------------------------------

    def _shifts(self, checkpoint: Checkpoint) -> Rows:
        """Rows of `shifts`; keeps the representations that a picture would show."""
        student, base, count = self._parts.student, self._base, self._settings.picture_tokens
        samples = [rollout.sample for rollout in self._text]
        ids_N = torch.tensor([token for sample in samples for token in sample.completion_ids])
        before_VD, after_VD = (_embeddings(policy) for policy in (base, student))
        chosen = spread_tokens(len(ids_N), count, self._settings.seed)
        states = state_shift(base, student, samples, chosen=chosen)
        rows = {
            "embedding": embedding_shift(before_VD, after_VD, ids_N),
            "embedding, each token once": embedding_shift(before_VD, after_VD, ids_N.unique()),
            "last hidden state": states.row,
        }
        ids = frequent_tokens(ids_N, count)
        self._pictured[checkpoint.label] = {
            "embedding": Pictured(
                token_ids=ids, before_SD=before_VD[ids].cpu(), after_SD=after_VD[ids].cpu()
            ),
            "last hidden state": Pictured(
                token_ids=ids_N[chosen].tolist(),
                before_SD=states.before_SD,
                after_SD=states.after_SD,
            ),
        }
        who = {"label": checkpoint.label, "step": checkpoint.step}
        return [{**who, "space": space, **row} for space, row in rows.items()]

    def pictures(self, checkpoint: Checkpoint) -> Rows:
        """Rows of `shift_points`: the base and a checkpoint that was measured, in one picture."""
        rows: Rows = []
        for projection in self._settings.projections:
            project = PROJECTIONS[projection]
            for space, shown in self._pictured[checkpoint.label].items():
                after = {checkpoint.label: shown.after_SD}
                kinds = {
                    "positions": shift_points(shown.before_SD, after, project),
                    "shifts": shift_vectors(shown.before_SD, after, project),
                }
                for kind, points in kinds.items():
                    where = {"space": space, "projection": projection, "kind": kind}
                    rows += [{**where, **p, "token_id": shown.token_id(p["token"])} for p in points]
        return rows

    # The example ----------------------------------------------------------------------------------

    def example(self, early: Checkpoint, final: Checkpoint) -> Row | None:
        """One question answered by an early checkpoint, by it rescaled, and by the teacher.

        Every module of the early update is brought to the norm it has in the final one.

        Returns:
            What `example.json` holds: the question, how many were asked and how many tell the
            writers apart; for each writer its accuracy over all questions; and its answer, with the
            divergence from the teacher (nats) of every token in the eyes of either student. None
            without a teacher, and where both are one checkpoint.

        Source: arXiv 2605.11739, section 3.3 and appendix F.4.
        """
        student, teachers = self._parts.student, self._parts.teachers
        if teachers is None or early.label == final.label:
            self._report("no example: it takes a teacher and two checkpoints")
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
        written["teacher"] = _in_order(self._parts.evaluate_teacher(), self._text)
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
        decode = student.tokenizer.decode
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
                    "tokens": [str(decode([token])) for token in rollout.completion.token_ids],
                    "finish_reason": rollout.completion.finish_reason,
                    "reward": rewards[name][index],
                    "kl_nats": {reader: list(values[i]) for reader, values in kl_nats.items()},
                }
                for i, (name, rollout) in enumerate(zip(written, chosen, strict=True))
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Divergences of a student along a text.

    Attributes:
        text: Who wrote it: "base", or "own" for the student itself.
        to: Whom the student is compared with: "teacher" or "base".
        kl_nats: At every token of every answer.
    """

    text: str
    to: str
    kl_nats: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictured:
    """Representations that a picture shows.

    Attributes:
        token_ids: S tokens.
        before_SD: In the base, on the CPU.
        after_SD: In a checkpoint.
    """

    token_ids: Sequence[int]
    before_SD: Tensor
    after_SD: Tensor

    def token_id(self, token: int | None) -> int | None:
        """The id of a point's token; None for the point of no token."""
        return None if token is None else self.token_ids[token]


def _embeddings(policy: Policy) -> Tensor:
    weight: Tensor = policy.model.get_input_embeddings().weight
    return weight.detach()


def most_informative_question(
    rewards: Mapping[str, Sequence[float | None]], early: str
) -> tuple[int, int]:
    """The first question that all writers but `early` answer correctly, and how many there are.

    The first question of all where there is none. Appendix F.4 of arXiv 2605.11739 shows such a
    question and does not say how many it was chosen from.
    """
    found = [
        index
        for index, row in enumerate(zip(*rewards.values(), strict=True))
        if all(
            reward is not None and (reward == 1.0) == (writer != early)
            for writer, reward in zip(rewards, row, strict=True)
        )
    ]
    return (found[0] if found else 0), len(found)


def _in_order(evaluation: Evaluation, like: Sequence[Rollout]) -> Evaluation:
    """Answers, which come teacher by teacher, in the order of the problems of others."""
    places = {rollout.problem.id: i for i, rollout in enumerate(evaluation.rollouts)}
    order = [places[rollout.problem.id] for rollout in like]
    rewards = evaluation.rewards
    return Evaluation(
        rollouts=tuple(evaluation.rollouts[i] for i in order),
        rewards=tuple(rewards[i] for i in order) if rewards else (),
        kl_nats=(),
    )
