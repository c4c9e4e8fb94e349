"""Recorded samples as pages show them: for the viewer of a report, and as an example in HTML."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from effopd.errors import RecordError
from effopd.records import Row, Run
from effopd.reports.series import number, plain
from effopd.reports.tables import format_percent

_TEMPLATE = """
{%- macro tokens(row) %}<div class="tokens" tabindex="0">
{%- for text, title, color in row.tokens %}<span title="{{ title }}"
{%- if color %} style="background: {{ color }}"{% endif %}>{{ text }}</span>{% endfor %}</div>
{%- endmacro -%}
<h3>Question {{ problem_id }}</h3><p class="note">{{ chosen }}</p><pre>{{ prompt }}</pre>
<ul>{% for line in writers %}<li>{{ line }}</li>{% endfor %}</ul>
<div class="legend"><span>KL per token:</span><span>0</span>
<i aria-hidden="true" style="background: linear-gradient(to right, {{ stops }})"></i>
<span>{{ limit }} nats or more</span></div>
<div style="display: grid; grid-template-columns: minmax(0, 1fr); gap: 1rem; margin-top: 1rem">
{%- for answer in answers %}<article class="sample"><h3>{{ answer.writer }}</h3>
<div class="chips">{% for name, value in answer.shown.chips.items() -%}
<span>{{ name }} <b>{{ value }}</b></span>{% endfor %}</div>
{%- if answer.shown.student != answer.writer -%}
<p class="note">Coloured by the divergence of {{ answer.shown.student }}.</p>{% endif %}
{{- tokens(answer.shown) }}
{%- for row in answer.others %}<details><summary>Read by {{ row.student -}}
<small>{{ row.chips["mean KL"] }}</small></summary>{{ tokens(row) }}</details>{% endfor -%}
</article>{% endfor %}</div>"""


def rollout_rows(run: Run) -> list[dict[str, Any]]:
    """Samples of a run with printable text, and the divergence per token where it was recorded."""
    found = []
    for row in run.rollouts:
        shown: dict[str, Any] = {
            "step": number(row, "step", run),
            "problem_id": plain(str(row.get("problem_id"))),
            "prompt": plain(str(row.get("prompt")), lines=True),
            "reward": number(row, "reward", run),
            "finish_reason": plain(str(row.get("finish_reason"))),
        }
        divergences = _divergences(row)
        if divergences is None:
            shown["completion"] = plain(str(row.get("completion")), lines=True)
        else:
            shown["tokens"] = [plain(str(token), lines=True) for token in row["tokens"]]
            shown["masked"] = _masked(row)
            shown["kl"] = [None if each is None else float(f"{each:.6g}") for each in divergences]
        found.append(shown)
    return found


def divergence_limit(runs: Sequence[Run]) -> tuple[float, bool]:
    """Where the colour scale of tokens ends, and whether any divergence is below 0.

    The limit is the 98th percentile of the sizes, rounded up to 1, 2 or 5 times a power of ten, and
    the same for all runs and steps so that colours can be compared.
    """
    rows: Iterable[Row] = (row for run in runs for row in run.rollouts)
    values = [value for row in rows for value in _divergences(row) or () if value is not None]
    sizes = sorted(map(abs, values))
    high = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 1.0
    unit = 10.0 ** (len(str(int(high))) - 1) if high >= 1 else 0.1 if high >= 0.1 else 0.01
    limit = next((n * unit for n in (1.0, 2.0, 5.0) if n * unit >= high), 10.0 * unit)
    return round(limit, 6), any(value < 0 for value in values)


def _masked(row: Row) -> list[int]:
    """Indices of the tokens that an environment wrote."""
    try:
        spans = [range(start, end) for start, end in row.get("masked", [])]
    except (TypeError, ValueError):
        return []
    return [i for span in spans for i in span if i < len(row["tokens"])]


def _divergences(row: Row) -> list[float | None] | None:
    """Divergence per token, or None if there is not one number or null for each token."""
    tokens, values = row.get("tokens"), row.get("kl_nats")
    if not isinstance(tokens, list) or not isinstance(values, list):
        return None
    numbers = all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in values
    )
    return values if numbers and tokens and len(tokens) == len(values) else None


# An example: one question with the answers of several models -------------------------------------


def example_html(record: Row) -> str:
    """Renders `example.json` as static HTML, every text in it escaped.

    Each answer is coloured by the divergence of its own writer where that is a student, else (the
    teacher's answer) by the first student's; what the other students make of it is folded away.
    """
    try:
        # An answer is a run whose rollouts are what each student makes of it, its writer first.
        students, runs = [], []
        for answer in record["answers"]:
            by = answer["kl_nats"]
            students.append(sorted(by, key=lambda student: student != answer["writer"]))
            own = {name: answer[name] for name in ("reward", "finish_reason", "tokens")}
            own |= {name: record[name] for name in ("problem_id", "prompt")} | {"step": 0}
            own |= {"masked": answer.get("masked", [])}
            rows = [own | {"kl_nats": by[student]} for student in students[-1]]
            runs.append(Run(directory=Path(), label="", info={}, rollouts=rows))
        limit, _ = divergence_limit(runs)
        answers = []
        for answer, names, run in zip(record["answers"], students, runs, strict=True):
            rows = rollout_rows(run)
            shown, *others = [_reading(*each, limit) for each in zip(names, rows, strict=True)]
            writer = plain(str(answer["writer"]))
            answers.append({"writer": writer, "shown": shown, "others": others})
        asked, telling = int(record["questions"]), int(record["telling"])
        writers = []
        for row in record["writers"]:
            right = row["accuracy"]
            right = "not checked" if right is None else f"{format_percent(float(right))} right"
            mean = f"{float(row['mean_tokens']):.1f} tokens on average"
            writers.append(f"{plain(str(row['writer']))}: {right}, {mean}")
        chosen = f"The first of {asked}: on none was the first writer alone wrong."
        if telling:
            chosen = f"The first of {telling} (of {asked}) that only the first writer got wrong."
        stops = ", ".join(_color(limit * i / 8, limit) or "transparent" for i in range(9))
        return Environment(autoescape=True).from_string(_TEMPLATE).render(
            problem_id=plain(str(record["problem_id"])),
            prompt=plain(str(record["prompt"]), lines=True), chosen=chosen, writers=writers,
            answers=answers, limit=f"{limit:g}", stops=stops,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(
            f"the example cannot be shown: {error!r}. It was written by another version of effopd "
            "or was edited; run the analysis again."
        ) from error


def _reading(student: str, row: dict[str, Any], limit: float) -> dict[str, Any]:
    """Coloured tokens of an answer as one student reads it, and the facts above them."""
    known, reward = [value for value in row["kl"] if value is not None], row["reward"]
    tokens = []
    for i, (token, value) in enumerate(zip(row["tokens"], row["kl"], strict=True)):
        unknown = "of the environment, not learned" if i in row["masked"] else "not recorded"
        title = unknown if value is None else _nats(value)
        tokens.append((token.replace("\n", "↵\n"), title, _color(value or 0.0, limit)))
    chips = {
        "reward": "not scored" if reward is None else f"{reward:g}",
        "finished by": row["finish_reason"],
        "tokens": len(row["tokens"]),
        "mean KL": _nats(sum(known) / len(known)) if known else "not recorded",
    }
    return {"student": plain(student), "tokens": tokens, "chips": chips}


def _nats(value: float) -> str:
    """Four digits; what rounds to zero has no sign."""
    return f"{round(value, 4) + 0.0:.4f} nats"


def _color(value: float, limit: float) -> str:
    """Background of a token as the page's viewer of rollouts gives it; "" for none."""
    if value <= 0:
        return ""
    return f"rgba(var(--warm), {min(1.0, value / limit) ** 0.7 * 0.65:.3f})"
