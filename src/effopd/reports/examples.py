"""One question with the answers of several models, tokens coloured by divergence, as HTML.

The markup is static: it needs the style sheet of the page around it and no script. Whatever models
wrote is shown as text: control characters made visible, then escaped.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effopd.errors import RecordError
from effopd.records import Row, Run
from effopd.reports.rollouts import divergence_limit, rollout_rows
from effopd.reports.series import plain
from effopd.reports.tables import format_percent

_STACK = "display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem; margin-top: 1rem"


def example_html(record: Row) -> str:
    """The example as an HTML fragment.

    Each answer is coloured by the divergence of its own writer where that is a student, else (the
    teacher's answer) by the first student's; what the other students make of it is folded away.

    Args:
        record: What `effopd.analysis.example.example_record` gave, or what was read from its file.

    Returns:
        Markup for a place between block elements; every text in it is escaped.

    Raises:
        RecordError: A field is missing or is no text, number or list where one is expected.
    """
    try:
        answers = [_readings(record, answer) for answer in record["answers"]]
        limit, _ = divergence_limit([run for found in answers for run in found.values()])
        writers = "".join(_writer_line(row) for row in record["writers"])
        sections = "".join(_section(readings, limit) for readings in answers)
        return (
            f"{_head(record)}<ul>{writers}</ul>{_legend(limit)}"
            f'<div style="{_STACK}">{sections}</div>'
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(
            f"the example cannot be shown: {error!r}. It was written by another version of effopd "
            "or was edited; run the analysis again."
        ) from error


# Reading the record -------------------------------------------------------------------------------


def _readings(record: Row, answer: Mapping[str, Any]) -> dict[str, Run]:
    """Student to the answer as a rollout with that student's divergences, the shown one first."""
    found, writer = dict(answer["kl_nats"]), answer["writer"]
    order = sorted(found, key=lambda student: student != writer)  # stable: the others in order
    shared = {
        "step": 0,
        "problem_id": record["problem_id"],
        "prompt": record["prompt"],
        "completion": answer["text"],
        "reward": answer["reward"],
        "finish_reason": answer["finish_reason"],
        "tokens": answer["tokens"],
    }
    return {
        str(student): Run(
            directory=Path("example"),
            label=str(writer),
            info={},
            rollouts=[{**shared, "kl_nats": found[student]}],
        )
        for student in order
    }


# Markup -------------------------------------------------------------------------------------------


def _text(value: object, *, lines: bool = False) -> str:
    """Anything from a record as harmless markup."""
    return html.escape(plain(str(value), lines=lines), quote=True)


def _head(record: Row) -> str:
    asked, telling = int(record["questions"]), int(record["telling"])
    chosen = (
        f"The first of {telling} (of {asked}) that only the first writer got wrong."
        if telling
        else f"The first of {asked}: on none was the first writer alone wrong."
    )
    return (
        f"<h3>Question {_text(record['problem_id'])}</h3>"
        f'<p class="note">{chosen}</p><pre>{_text(record["prompt"], lines=True)}</pre>'
    )


def _writer_line(row: Mapping[str, Any]) -> str:
    accuracy = row["accuracy"]
    right = "not checked" if accuracy is None else f"{format_percent(float(accuracy))} right"
    mean = f"{float(row['mean_tokens']):.1f} tokens on average"
    return f"<li>{_text(row['writer'])}: {right}, {mean}</li>"


def _legend(limit: float) -> str:
    stops = ", ".join(_color(limit * i / 8, limit) or "transparent" for i in range(9))
    return (
        '<div class="legend"><span>KL per token:</span><span>0</span>'
        f'<i aria-hidden="true" style="background: linear-gradient(to right, {stops})"></i>'
        f"<span>{limit:g} nats or more</span></div>"
    )


def _section(readings: Mapping[str, Run], limit: float) -> str:
    """One answer; readings beyond the first are folded away."""
    (shown, run), *others = readings.items()
    row = rollout_rows(run)[0]
    folded = "".join(
        f"<details><summary>Read by {_text(student)}<small>{_mean(rollout_rows(other)[0])}</small>"
        f"</summary>{_tokens(rollout_rows(other)[0], limit)}</details>"
        for student, other in others
    )
    own = run.label == shown
    by = "" if own else f'<p class="note">Coloured by the divergence of {_text(shown)}.</p>'
    return (
        f'<article class="sample"><h3>{_text(run.label)}</h3>{_chips(row)}{by}'
        f"{_tokens(row, limit)}{folded}</article>"
    )


def _chips(row: Mapping[str, Any]) -> str:
    reward = row["reward"]
    facts = {
        "reward": "not scored" if reward is None else f"{reward:g}",
        "finished by": row["finish_reason"],
        "tokens": len(row["tokens"]),
        "mean KL": _mean(row),
    }
    chips = (f"<span>{name} <b>{_text(value)}</b></span>" for name, value in facts.items())
    return f'<div class="chips">{"".join(chips)}</div>'


def _mean(row: Mapping[str, Any]) -> str:
    known = [value for value in row["kl"] if value is not None]
    return _nats(sum(known) / len(known)) if known else "not recorded"


def _nats(value: float) -> str:
    """Four digits; what rounds to zero has no sign."""
    return f"{round(value, 4) + 0.0:.4f} nats"


def _tokens(row: Mapping[str, Any], limit: float) -> str:
    pairs: Sequence[tuple[str, float | None]] = list(zip(row["tokens"], row["kl"], strict=True))
    return (
        f'<div class="tokens" tabindex="0">{"".join(_token(*pair, limit) for pair in pairs)}</div>'
    )


def _token(token: str, value: float | None, limit: float) -> str:
    title = "not recorded" if value is None else _nats(value)
    color = _color(value or 0.0, limit)
    style = f' style="background: {color}"' if color else ""
    shown = html.escape(token.replace("\n", "↵\n"), quote=True)
    return f'<span title="{title}"{style}>{shown}</span>'


def _color(value: float, limit: float) -> str:
    """Background of a token as the page's viewer of rollouts gives it; "" for none."""
    if value <= 0:
        return ""
    return f"rgba(var(--warm), {min(1.0, value / limit) ** 0.7 * 0.65:.3f})"
