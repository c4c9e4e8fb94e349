"""The verdicts on an answer, and what is decided without algebra.

Most answers are numbers, words or the reference itself; those are settled here, exactly and in
microseconds. The rest is left to the symbolic comparison in a process of its own.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Literal, get_args

from effopd.data.problem import AnswerRules
from effopd.rewards.extraction import choice_letter, unboxed, unwrapped
from effopd.rewards.notation import (
    split_base,
    split_percent,
    squeezed,
    tidy,
    with_logarithm,
    without_lead,
    wording,
)
from effopd.rewards.numerals import exact_number, numbers_agree
from effopd.rewards.units import split_unit, units_agree

Verdict = Literal["correct", "wrong", "no_answer", "truncated", "timeout", "memory", "error"]
"""How a check ended; "error" is an answer or a reference that could not be judged."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

Pairs = tuple[tuple[str, str] | tuple[str, str, float], ...]
"""(reference, answer) in tidy LaTeX, with the relative error that is allowed where there is one.

The answer is right when one pair is equal."""

MAX_CHARACTERS = 2000
_MAX_DIGITS = 1000
_MAX_DEPTH = 40
_MOST_WORDS = 8
"""A reference of more words is a sentence, which no answer repeats."""
_LABEL = re.compile(r"(?:[^\W\d_]{3,}|[^\W\d_]{2}(?=\uff1a)|A(?=: )).{0,20}?[:\uff1a]\s*\S")
"""What leads to an answer, such as `ANSWER: 3`: it is no part of one, and no ratio of letters."""
_VERB = re.compile(r".*\b(?:is|are|equals?)\b", re.DOTALL)
_SOLID = re.compile(r"[({\[]?[+-]?(?:\\d?frac\{)?[0-9A-Za-z]")
"""What a text begins with that surely holds an answer."""
_LONG_NUMBER = re.compile(rf"\d{{{_MAX_DIGITS + 1}}}")
_TOWER = re.compile(r"(?:\^[\s{(]*(?:\d+|[a-zA-Z])[\s!]*){3}")
"""Three exponents on top of one another."""


_STRICT = AnswerRules()


def decide(reference: str, answer: str, rules: AnswerRules = _STRICT) -> Verdict | Pairs:
    """The verdict where text and arithmetic give one, else what has to be compared by algebra.

    A pure function that never evaluates anything and never raises. In this order: no answer, the
    same text, letters of a multiple-choice question, refusal of what is too long or too deep,
    percents, words, bases, units, numbers. A reference with a box in it is what the box holds.
    """
    if reference == answer and _SOLID.match(reference):
        return "correct"
    reference, answer = unboxed(reference), unboxed(answer)
    is_labelled = _LABEL.match(reference) is not None
    if max(len(reference), len(answer)) > MAX_CHARACTERS:
        return "correct" if squeezed(reference) == squeezed(answer) else "error"
    reference, answer = (with_logarithm(tidy(text), rules.log_base) for text in (reference, answer))
    answer = without_lead(answer)
    if not answer:
        return "no_answer"
    if not reference:
        return "error"
    if reference == answer or _bare(reference) == _bare(answer):
        return "correct"
    if is_labelled:
        return "error"
    if letter := _choice(reference):
        return _verdict(choice_letter(answer) == letter)
    if _is_beyond(reference) or _is_beyond(answer):
        return "error"
    error = rules.relative_error
    return _first([_decide_one(*pair, error) for pair in _without_percents(reference, answer)])


def _bare(text: str) -> str:
    """Text without the commands around words and the spaces that mean nothing."""
    return squeezed(unwrapped(text) if "text" in text else text)


def _choice(reference: str) -> str | None:
    """The letter of a reference such as `C` or `(C)`; None when it is anything else."""
    match = re.fullmatch(r"\(?([A-J])\)?", unwrapped(reference))
    return match.group(1) if match else None


def _is_beyond(text: str) -> bool:
    """Whether a formula is more than anyone writes as an answer, and costly to read."""
    if len(text) > MAX_CHARACTERS:
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    is_long = _LONG_NUMBER.search(text) is not None
    return deepest > _MAX_DEPTH or is_long or _TOWER.search(text) is not None


def _without_percents(reference: str, answer: str) -> tuple[tuple[str, str], ...]:
    r"""The pairs of which one has to be equal.

    `50\%` is `0.5`, `\frac12` and, since questions ask how many percent, `50`. The other way round
    a percentage up to 100 stands for its share: `0.5` is `50\%`, but `7` is neither `7\%` nor
    `700\%`.
    """
    wanted, given = split_percent(reference), split_percent(answer)
    if wanted is not None:
        if re.search("[$€£¥]", answer):
            return ()
        if given is not None:
            return ((wanted, given),)
        return (wanted, answer), (_hundredth(wanted), answer)
    if given is not None:
        number = exact_number(given)
        if number is not None and abs(number) > 100:
            return ()
        return ((reference, _hundredth(given)),)
    return ((reference, answer),)


def _hundredth(text: str) -> str:
    number = exact_number(text)
    if number is None:
        return rf"\frac{{{text}}}{{100}}"
    if re.fullmatch(r"[+-]?\d+\.\d*", text, re.ASCII):  # stays a decimal, which may be rounded
        return f"{Decimal(text) / 100:f}"
    number /= 100
    sign = "-" if number < 0 else ""
    return rf"{sign}\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def _decide_one(reference: str, answer: str, error: float) -> Verdict | Pairs:
    words = wording(reference)
    if r"\emptyset" in (reference, answer) and "none" in (words, wording(answer)):
        return "correct"
    if words is not None:
        is_sentence = len(reference.split()) > _MOST_WORDS or _VERB.match(reference)
        return "error" if is_sentence else _verdict(wording(answer) == words)
    if wording(answer) is not None:
        return "wrong"
    (digits, base), (given_digits, given_base) = split_base(reference), split_base(answer)
    if base or given_base:
        known = {base, given_base} - {""}
        return _verdict(len(known) == 1 and digits.lstrip("0") == given_digits.lstrip("0"))
    (plain, unit), (given_plain, given_unit) = split_unit(reference), split_unit(answer)
    if not units_agree(unit, given_unit):
        return "wrong"
    wanted, given = exact_number(plain), exact_number(given_plain)
    if wanted is None or given is None:
        pairs = [(_without_currency(plain), _without_currency(given_plain))]
        if bool(unit) != bool(given_unit):
            pairs.append((reference, answer))  # what looks like a unit may be a letter
        return tuple((*pair, error) if error else pair for pair in pairs)
    is_rounded = "." in plain or r"\times" in plain
    is_decimal = is_rounded or "." in given_plain or r"\times" in given_plain
    if is_rounded and error and abs(wanted - given) <= Fraction(error) * abs(wanted):
        return "correct"
    return _verdict(numbers_agree(wanted, given, decimal=is_decimal))


def _without_currency(text: str) -> str:
    return re.sub("[$€£¥]", "", text)


def _first(outcomes: Sequence[Verdict | Pairs]) -> Verdict | Pairs:
    """Correct as soon as one is; else all that is open; else an error, if there is one."""
    if "correct" in outcomes:
        return "correct"
    pairs = tuple(pair for outcome in outcomes if isinstance(outcome, tuple) for pair in outcome)
    return pairs or ("error" if "error" in outcomes else "wrong")


def _verdict(is_right: bool) -> Verdict:
    return "correct" if is_right else "wrong"
