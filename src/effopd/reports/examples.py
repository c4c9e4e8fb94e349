"""One question with the answers of several models, tokens coloured by divergence, as HTML.

The markup is static: it needs the style sheet of the page around it and no script. Whatever models
wrote is shown as text: control characters made visible, then escaped by the template.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from effopd.errors import RecordError
from effopd.records import Row, Run
from effopd.reports.rollouts import divergence_limit, rollout_rows
from effopd.reports.series import plain
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


def example_html(record: Row) -> str:
    """Renders the example as an HTML fragment, every text in it escaped.

    Each answer is coloured by the divergence of its own writer where that is a student, else (the
    teacher's answer) by the first student's; what the other students make of it is folded away.
    """
    try:
        readings = [_readings(record, answer) for answer in record["answers"]]
        limit, _ = divergence_limit([run for found in readings for run in found.values()])
        answers = []
        for answer, found in zip(record["answers"], readings, strict=True):
            shown, *others = [_reading(student, run, limit) for student, run in found.items()]
            answers.append(
                {"writer": plain(str(answer["writer"])), "shown": shown, "others": others}
            )
        asked, telling = int(record["questions"]), int(record["telling"])
        writers = []
        for row in record["writers"]:
            right = row["accuracy"]
            right = "not checked" if right is None else f"{format_percent(float(right))} right"
            mean = f"{float(row['mean_tokens']):.1f} tokens on average"
            writers.append(f"{plain(str(row['writer']))}: {right}, {mean}")
        template = Environment(autoescape=True).from_string(_TEMPLATE)
        return template.render(
            problem_id=plain(str(record["problem_id"])),
            prompt=plain(str(record["prompt"]), lines=True),
            chosen=f"The first of {telling} (of {asked}) that only the first writer got wrong."
            if telling
            else f"The first of {asked}: on none was the first writer alone wrong.",
            writers=writers,
            answers=answers,
            limit=f"{limit:g}",
            stops=", ".join(_color(limit * i / 8, limit) or "transparent" for i in range(9)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(
            f"the example cannot be shown: {error!r}. It was written by another version of effopd "
            "or was edited; run the analysis again."
        ) from error


def _readings(record: Row, answer: Mapping[str, Any]) -> dict[str, Run]:
    """Student to the answer as a rollout with that student's divergences, the writer's first."""
    shared = {name: record[name] for name in ("problem_id", "prompt")} | {
        name: answer[name] for name in ("reward", "finish_reason", "tokens")
    }
    found = {}
    for student in sorted(answer["kl_nats"], key=lambda student: student != answer["writer"]):
        rollout = shared | {"step": 0, "kl_nats": answer["kl_nats"][student]}
        rollout["completion"] = answer["text"]
        found[str(student)] = Run(directory=Path(), label="", info={}, rollouts=[rollout])
    return found


def _reading(student: str, run: Run, limit: float) -> dict[str, Any]:
    """Coloured tokens of an answer as one student reads it, and the facts above them."""
    (row,) = rollout_rows(run)
    known = [value for value in row["kl"] if value is not None]
    reward = row["reward"]
    return {
        "student": plain(student),
        "tokens": [
            (
                token.replace("\n", "↵\n"),
                "not recorded" if value is None else _nats(value),
                _color(value or 0.0, limit),
            )
            for token, value in zip(row["tokens"], row["kl"], strict=True)
        ],
        "chips": {
            "reward": "not scored" if reward is None else f"{reward:g}",
            "finished by": row["finish_reason"],
            "tokens": len(row["tokens"]),
            "mean KL": _nats(sum(known) / len(known)) if known else "not recorded",
        },
    }


def _nats(value: float) -> str:
    """Four digits; what rounds to zero has no sign."""
    return f"{round(value, 4) + 0.0:.4f} nats"


def _color(value: float, limit: float) -> str:
    """Background of a token as the page's viewer of rollouts gives it; "" for none."""
    if value <= 0:
        return ""
    return f"rgba(var(--warm), {min(1.0, value / limit) ** 0.7 * 0.65:.3f})"
