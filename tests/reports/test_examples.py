"""The example as markup: what it shows, and what a text in it cannot do."""

import copy
import html.parser
import re

import pytest

from effopd.errors import RecordError
from effopd.reports.rollouts import example_html

RECORD = {
    "schema": 1,
    "problem_id": "sums/7",
    "prompt": "What is\n47 + 58?",
    "questions": 60,
    "telling": 3,
    "writers": [
        {"writer": "step-4", "accuracy": 0.25, "mean_tokens": 31.26},
        {"writer": "teacher", "accuracy": None, "mean_tokens": 40.0},
    ],
    "answers": [
        {
            "writer": "step-4", "text": "It is 5", "tokens": ["It ", "is\n", "5"],
            "finish_reason": "length", "reward": 0.0,
            "kl_nats": {"rescaled": [0.0, 0.05, 0.1], "step-4": [0.0, 0.5, 5.0]},
        },
        {
            "writer": "teacher", "text": "105", "tokens": ["105"],
            "finish_reason": "stop", "reward": None,
            "kl_nats": {"rescaled": [0.25], "step-4": [2.0]},
        },
    ],
}  # fmt: skip


DELETED = object()


class Markup(html.parser.HTMLParser):
    """Tags with attributes, texts, and whether every element is closed in order."""

    void = frozenset({"br", "img", "input", "meta", "link", "hr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open, self.closed = [], [], [], True
        self.feed(text)
        self.close()
        self.closed = self.closed and not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.closed = self.closed and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def tokens(self):
        return [attrs for tag, attrs in self.tags if tag == "span" and "title" in attrs]


def altered(**fields):
    return {**copy.deepcopy(RECORD), **fields}


@pytest.fixture(scope="module")
def shown():
    return Markup(example_html(RECORD))


def test_the_question_and_how_it_was_chosen_are_shown(shown):
    assert shown.closed
    text = "".join(shown.texts)
    assert "Question sums/7" in text
    assert "What is\n47 + 58?" in text
    assert "The first of 3 (of 60) that only the first writer got wrong." in text
    assert "step-4: 25.0% right, 31.3 tokens on average" in text
    assert "teacher: not checked, 40.0 tokens on average" in text
    assert "is↵\n" in shown.texts
    none = example_html(altered(telling=0))
    assert "The first of 60: on none was the first writer alone wrong." in none


def test_answers_are_coloured_by_their_own_writer_and_others_are_folded_away(shown):
    titles = [attrs["title"] for attrs in shown.tokens()]
    own, read = ["0.0000 nats", "0.5000 nats", "5.0000 nats"], ["0.0000 nats", "0.0500 nats"]
    assert titles == [*own, *read, "0.1000 nats", "0.2500 nats", "2.0000 nats"]
    text = "".join(shown.texts)
    assert [t for t in shown.texts if t.startswith("Read by")] == [
        "Read by rescaled",
        "Read by step-4",
    ]
    assert text.count("Coloured by the divergence of") == 1
    assert "Coloured by the divergence of rescaled." in text
    assert "mean KL 1.8333 nats" in text
    assert "finished by length" in text
    assert "reward not scored" in text


@pytest.mark.parametrize(("value", "title"), [(None, "not recorded"), (-2e-8, "0.0000 nats")])
def test_what_is_unknown_or_rounds_to_zero_has_no_colour(value, title):
    record = altered()
    record["answers"][1]["kl_nats"] = {"step-4": [value]}
    (token,) = Markup(example_html(record)).tokens()[-1:]
    assert token == {"title": title}


def hostile(text):
    """The record with `text` in every field that may hold text."""
    record = altered(problem_id=text, prompt=text)
    record["writers"] = [{"writer": text, "accuracy": 0.5, "mean_tokens": 2.0}]
    record["answers"] = [
        {
            "writer": writer, "text": text, "tokens": [text, text], "finish_reason": text,
            "reward": 1.0, "kl_nats": {text: [0.1, 0.2], text + "2": [0.1, 0.2]},
        }
        for writer in (text, "teacher")
    ]  # fmt: skip
    return record


def test_hostile_text_stays_text(payloads):
    expected = Markup(example_html(hostile("harmless")))
    for payload in [*payloads, "' onmouseover='x", '" style="x', "&amp;<", "\x1b[2J\u202e</pre>"]:
        found = Markup(example_html(hostile(payload)))
        assert found.closed
        assert found.tags == expected.tags, payload
    text = example_html(hostile("a\x1b\u202eb"))
    assert "a␛⟨202E⟩b" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("questions", "<b>"),
        ("answers", [1]),
        ("answers", [{**RECORD["answers"][0], "kl_nats": {}}]),
        ("answers", [{**RECORD["answers"][0], "kl_nats": {"step-4": [1.0]}}]),
        ("answers", [{**RECORD["answers"][0], "kl_nats": {"step-4": ["<b>"] * 3}}]),
        ("answers", [{**RECORD["answers"][0], "reward": "<b>"}]),
        ("writers", [{"writer": "x", "accuracy": "<b>", "mean_tokens": 1.0}]),
        ("writers", None),
        ("problem_id", DELETED),
        ("prompt", DELETED),
    ],
)
def test_a_damaged_record_is_refused(field, value):
    record = altered(**{field: value})
    if value is DELETED:
        del record[field]
    with pytest.raises(RecordError, match="run the analysis again"):
        example_html(record)
