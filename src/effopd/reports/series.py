"""Records of a run as the points that figures and tables are made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from effopd.errors import RecordError
from effopd.records import Row, Run, display_text


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of the student, and what training had cost by then, validation included."""

    step: float
    sampled_tokens: float | None
    teacher_tokens: float | None
    student_passes: float | None
    elapsed_s: float | None
    cpu_s: float | None
    accuracy: float | None
    accuracy_se: float | None
    reverse_kl: float | None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial of a search; `advantage` is over the incumbent it was compared with."""

    step: float
    kind: str
    scale: float
    score: float | None
    score_se: float | None
    advantage: float | None
    accepted: bool | None
    reason: str
    tokens: float | None
    seconds: float | None


def evaluations(run: Run) -> list[Evaluation]:
    """Evaluations of the student in order of steps."""
    clocks: dict[str, dict[float, float | None]] = {"elapsed_s": {0: 0.0}, "cpu_s": {0: 0.0}}
    for name, clock in clocks.items():
        clock |= {required(row, "step", run): number(row, name, run) for row in run.timing}
    measured = (
        "sampled_tokens",
        "teacher_tokens",
        "student_passes",
        "accuracy",
        "accuracy_se",
        "reverse_kl",
    )
    points = []
    for row in run.evals:
        if row.get("model") == "student":
            step = required(row, "step", run)
            found = {name: number(row, name, run) for name in measured}
            found |= {name: clock.get(step) for name, clock in clocks.items()}
            points.append(Evaluation(step=step, **found))
    return sorted(points, key=lambda point: point.step)


def trials(run: Run) -> Iterator[Trial]:
    """Trials of all searches of a run, each measured against the latest incumbent of its search."""
    step_of_incumbent: float | None = None
    incumbent: float | None = None
    for row in run.search:
        step, scale = required(row, "step", run), required(row, "scale", run)
        kind, score = str(row.get("kind")), number(row, "score", run)
        if kind.endswith("incumbent"):
            step_of_incumbent, incumbent = step, score
        compared = incumbent if step == step_of_incumbent else None
        found = {name: number(row, name, run) for name in ("score_se", "tokens", "seconds")}
        yield Trial(
            step=step, kind=kind, scale=scale, score=score, reason=str(row.get("reason") or ""),
            advantage=None if score is None or compared is None else score - compared,
            accepted=None if row.get("accepted") is None else row["accepted"] is True,
            **found,
        )  # fmt: skip


def teacher_levels(runs: Sequence[Run]) -> list[float | None]:
    """Accuracy of the teacher as each run measured it."""
    levels = []
    for run in runs:
        rows = (number(r, "accuracy", run) for r in run.evals if r.get("model") == "teacher")
        levels.append(next((accuracy for accuracy in rows if accuracy is not None), None))
    return levels


def teacher_accuracy(runs: Sequence[Run]) -> float | None:
    """Accuracy of the teacher as the first run that measured it did; None if none did."""
    return next((level for level in teacher_levels(runs) if level is not None), None)


def base_accuracy(runs: Sequence[Run]) -> float | None:
    """Accuracy of the untrained student, from the first run that evaluated it at step 0."""
    points = (point for run in runs for point in evaluations(run) if point.step == 0)
    return next((point.accuracy for point in points if point.accuracy is not None), None)


def unique_labels(runs: Sequence[Run]) -> list[str]:
    """One printable line per run; a repeated label gets a counter, as in `opd (2)`."""
    return unique_lines([run.label for run in runs])


def unique_lines(texts: Sequence[str]) -> list[str]:
    """Each text as one printable line of at most 60 characters, repeated ones with a counter."""
    seen: set[str] = set()
    labels = []
    for text in texts:
        line = plain(text) or "run"
        name = label = line if len(line) <= 60 else line[:59] + "…"
        count = 1
        while label in seen:
            count += 1
            label = f"{name} ({count})"
        seen.add(label)
        labels.append(label)
    return labels


def plain(text: str, *, lines: bool = False) -> str:
    """`text` from a record, safe to show: no control characters, one line unless `lines`."""
    shown = display_text(text)
    return shown if lines else " ".join(shown.split())


def number(row: Row, key: str, run: Run) -> float | None:
    """The number at `key`, None if it is null or missing; anything else is a RecordError."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(
            f"{run.directory}: {key} at step {row.get('step')!r} is {value!r}, expected a number "
            "or null. The record was written by something else; see docs/records.md."
        )
    return value


def required(row: Row, key: str, run: Run) -> float:
    """The number at `key`; that there is none is a RecordError too."""
    value = number(row, key, run)
    if value is None:
        raise RecordError(
            f"{run.directory}: a record has no {key}: {str(row)[:120]}. See docs/records.md."
        )
    return value
