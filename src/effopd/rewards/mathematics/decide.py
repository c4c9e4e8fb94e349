"""The verdicts on an answer, and what is decided without algebra.

Most answers are numbers, words or the reference itself; those are settled here, exactly and in
microseconds. The rest is left to the symbolic comparison in a process of its own.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import Literal, get_args

from effopd.data.problem import AnswerRules
from effopd.rewards.extraction import choice_letter, unboxed, unwrapped
from effopd.rewards.mathematics.formula import words
from effopd.rewards.mathematics.latex import (
    as_words,
    normalize_latex,
    split_base,
    split_percent,
    strip_spaces,
    with_logarithm,
    without_lead,
)

Verdict = Literal["correct", "wrong", "no_answer", "truncated", "timeout", "memory", "error"]
"""How a check ended; "error" is an answer or a reference that could not be judged."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

Pairs = tuple[tuple[str, str] | tuple[str, str, float], ...]
"""(reference, answer) in normalised LaTeX, with the relative error where one is allowed.

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
    """The verdict where text and arithmetic give one, else what algebra has to compare."""
    # the same text, as written or normalised
    if reference == answer and _SOLID.match(reference):
        return "correct"
    reference, answer = unboxed(reference), unboxed(answer)
    is_labelled = _LABEL.match(reference) is not None
    if max(len(reference), len(answer)) > MAX_CHARACTERS:
        return "correct" if strip_spaces(reference) == strip_spaces(answer) else "error"
    reference, answer = (
        with_logarithm(normalize_latex(text), rules.log_base) for text in (reference, answer)
    )
    answer = without_lead(answer)
    if not answer:
        return "no_answer"
    if not reference:
        return "error"
    bare = [
        strip_spaces(unwrapped(text) if "text" in text else text) for text in (reference, answer)
    ]
    if bare[0] == bare[1]:
        return "correct"
    if is_labelled:
        return "error"
    # the letter of a multiple-choice question, such as `C` or `(C)`
    if letter := re.fullmatch(r"\(?([A-J])\)?", unwrapped(reference)):
        return _verdict(choice_letter(answer) == letter[1])
    if _is_beyond(reference) or _is_beyond(answer):
        return "error"
    # correct as soon as one pair is; else all that is open; else an error, if there is one
    error = rules.relative_error
    outcomes = [_decide_pair(*pair, error) for pair in _without_percents(reference, answer)]
    if "correct" in outcomes:
        return "correct"
    pairs = tuple(pair for outcome in outcomes if isinstance(outcome, tuple) for pair in outcome)
    return pairs or ("error" if "error" in outcomes else "wrong")


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
    if wanted is not None and re.search("[$€£¥]", answer):
        return ()
    if wanted is not None and given is None:
        return (wanted, answer), (_hundredth(wanted), answer)
    if wanted is None and given is not None:
        number = exact_number(given)
        return () if number is not None and abs(number) > 100 else ((reference, _hundredth(given)),)
    return ((wanted or reference, given or answer),)


def _hundredth(text: str) -> str:
    number = exact_number(text)
    if number is not None and re.fullmatch(r"[+-]?\d+\.\d*", text, re.ASCII):
        return f"{Decimal(text) / 100:f}"  # stays a decimal, which may be rounded
    above, below = (text, 100) if number is None else (number / 100).as_integer_ratio()
    return rf"\frac{{{above}}}{{{below}}}"


def _decide_pair(reference: str, answer: str, error: float) -> Verdict | Pairs:
    said, given_said = as_words(reference), as_words(answer)
    if r"\emptyset" in (reference, answer) and "none" in (said, given_said):
        return "correct"
    if said is not None:
        is_sentence = len(reference.split()) > _MOST_WORDS or _VERB.match(reference)
        return "error" if is_sentence else _verdict(given_said == said)
    if given_said is not None:
        return "wrong"
    (digits, base), (given_digits, given_base) = split_base(reference), split_base(answer)
    if base or given_base:
        known = {base, given_base} - {""}
        return _verdict(len(known) == 1 and digits.lstrip("0") == given_digits.lstrip("0"))
    (plain, unit), (given_plain, given_unit) = split_unit(reference), split_unit(answer)
    if not units_equal(unit, given_unit):
        return "wrong"
    wanted, given = exact_number(plain), exact_number(given_plain)
    if wanted is None or given is None:
        plain, given_plain = (re.sub("[$€£¥]", "", text) for text in (plain, given_plain))
        pairs = [(plain, given_plain)]
        if bool(unit) != bool(given_unit):
            pairs.append((reference, answer))  # what looks like a unit may be a letter
        return tuple((*pair, error) if error else pair for pair in pairs)
    is_rounded = "." in plain or r"\times" in plain
    is_decimal = is_rounded or "." in given_plain or r"\times" in given_plain
    if is_rounded and error and abs(wanted - given) <= Fraction(error) * abs(wanted):
        return "correct"
    return _verdict(numbers_equal(wanted, given, decimal=is_decimal))


def _verdict(is_right: bool) -> Verdict:
    return "correct" if is_right else "wrong"


# Numbers, read exactly ----------------------------------------------------------------------------

_TOLERANCE = Fraction(1, 10**6)

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_EXPONENT = r"10\s*\^\s*(?:\{\s*([+-]?\s*\d{1,3})\s*\}|([+-]?\d{1,3}))"
_PART = rf"(?:\{{\s*([+-]?{_DECIMAL})\s*\}}|(\d))"

_POWER = re.compile(rf"(?:({_DECIMAL})\s*(?:\\times|\\cdot|\*)\s*)?{_EXPONENT}")
_RATIO = re.compile(
    rf"({_DECIMAL})(?:\s*/\s*({_DECIMAL}))?|(\d+)?\s*\\frac\s*{_PART}\s*{_PART}"
    r"|(\d+)\s+(\d+)\s*/\s*(\d+)"
)
"""A decimal, a fraction, or a mixed number."""


def exact_number(text: str) -> Fraction | None:
    """The rational number that a text writes, decimals exact, mixed numbers added; else None."""
    if len(text) > _MAX_DIGITS:
        return None
    text = text.strip()
    sign, text = (-1 if text[:1] == "-" else 1), re.sub(r"^[+-]\s*", "", text)
    if power := _POWER.fullmatch(text):
        mantissa, braced, bare = power.groups()
        return sign * _decimal(mantissa or "1") * Fraction(10) ** int(_decimal(braced or bare))
    if (ratio := _RATIO.fullmatch(text)) is None:
        return None
    parts = [_decimal(part) for part in ratio.groups() if part]
    *whole, above, below = parts if len(parts) > 1 else [*parts, Fraction(1)]
    return sign * (sum(whole) + above / below) if below else None


def numbers_equal(reference: Fraction, answer: Fraction, *, decimal: bool) -> bool:
    """Whether two numbers are the same answer.

    Where one was written with a decimal point they may differ by 1e-6, and by 1e-6 of the reference
    where that is smaller: `0.333333` is a third, `0.333` and `3.14159` are not what they stand for.
    """
    error = _TOLERANCE * min(Fraction(1), abs(reference)) if decimal else 0
    return abs(reference - answer) <= error


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", ""))


# Units behind a quantity and currencies before it: nothing is converted ---------------------------

_UNIT_NAMES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre",
    "km": "kilometer kilometre", "nm": "nanometer nanometre", "in": "inch", "ft": "foot feet",
    "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram", "kg": "kilogram",
    "lb": "lbs pound", "oz": "ounce", "ton": "tonne", "ms": "millisecond", "s": "sec second",
    "min": "minute", "h": "hr hrs hour", "year": "yr yrs", "ml": "mL milliliter millilitre",
    "L": "l liter litre", "gal": "gallon", "dollar": "USD buck", "euro": "EUR", "yen": "JPY",
    "rupee": "Rs", "degree": "deg", "rad": "radian", "sr": "steradian", "Hz": "hertz",
    "kHz": "kilohertz", "MHz": "megahertz", "J": "joule", "kJ": "kilojoule", "cal": "calorie",
    "N": "newton", "W": "watt", "kW": "kilowatt", "V": "volt", "K": "kelvin", "C": "coulomb",
    "A": "ampere amp", "Pa": "pascal", "atm": "atmosphere", "T": "tesla", "G": "gauss",
    "mol": "mole", "M": "molar", "ohm": r"\Omega", "F": "farad", "H": "henry", "dyn": "dyne",
    "pc": "parsec", "ly": "lightyear",
} | dict.fromkeys(
    words(
        "day week month acre cent GBP kcal kN eV keV MeV GeV celsius fahrenheit kPa bar torr erg "
        "AU angstrom kpc Mpc unit"
    ),
    "",
)  # fmt: skip
"""Symbol of a unit -> its names in the singular."""
_UNITS = {
    spelling: name
    for name, others in _UNIT_NAMES.items()
    for other in (name, *others.split())
    for spelling in ({other, f"{other}s", f"{other}es"} if len(other) > 2 else {other})
}
"""Spelling of a unit -> its name."""
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "GBP", "¥": "yen"}
_WORDS_OF_NUMBERS = re.compile(
    r"(?i)\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|third|quarter|or|and|mod"
    r"|base|for|where|if|when|with|times|sin|cos|tan|ln|log|pi)s?\b|[=<>]"
)

_UNIT_POWER = r"(?:\s*\^\s*(?:\{\s*[+-]?\d+\s*\}|[+-]?\d))?"
_UNIT_WORD = rf"(?:\\text\s*\{{[^{{}}]*\}}|\\Omega){_UNIT_POWER}"
_UNIT_TIMES = r"\s*(?:\\cdot|\\times|/|\*|\.)?\s*"
_UNIT_ROW = rf"(?:{_UNIT_WORD}(?:{_UNIT_TIMES}{_UNIT_WORD})*)"
_UNIT_OVER = rf"(?:\s*/\s*\(\s*{_UNIT_ROW}\s*\))?"
_BRACED_UNIT = re.compile(
    rf"(?:\s*/)?\s*(?:\\frac\s*\{{\s*{_UNIT_ROW}\s*\}}\s*\{{\s*{_UNIT_ROW}\s*\}}|{_UNIT_ROW}{_UNIT_OVER})$"
)
_PLAIN_UNIT = re.compile(
    r"(?<=[\d})])(?:\s*/\s*|\s+)(\(?[A-Za-z][A-Za-z]*(?:(?:\s*[/*·]\s*|\s+|-)\(?[A-Za-z]+|\)"
    r"|\^\{?-?\d+\}?)*)$|(?<=[\d})])([A-Za-z]{2,}(?:/[A-Za-z]+)?(?:\^\{?-?\d\}?)?)$"
)
_DEGREES = re.compile(
    r"(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*(?:\\text\s*\{\s*([CFK])\s*\}|([CF]))?$"
)
_MONEY = re.compile(r"([+-]?)\s*([$€£¥])\s*(.*)|(.*?)\s*([$€£¥])", re.DOTALL)


def split_unit(text: str) -> tuple[str, str]:
    r"""A quantity and its unit in one spelling; "" without one.

    `5 cm` is ("5", "cm"), `3\text{ m/s}^2` ("3", "m s^-2"), `18 eggs` ("18", "eggs");
    `7 million` stays whole.
    """
    if money := _MONEY.fullmatch(text):
        sign, before, rest, other, behind = money.groups()
        amount, unit = split_unit(f"{sign}{rest}" if before else other)
        currency = _CURRENCIES[before or behind]
        return amount, currency if unit in {"", currency} else f"{currency} {unit}"
    if degrees := _DEGREES.search(text):
        letter = degrees.group(1) or degrees.group(2)
        name = {"C": "degree celsius", "F": "degree fahrenheit", "K": "K"}.get(letter, "degree")
        return text[: degrees.start()].strip(), name
    if (match := _BRACED_UNIT.search(text)) is None and (match := _PLAIN_UNIT.search(text)) is None:
        return text, ""
    words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", match.group())
    rest, (name, is_known) = text[: match.start()].strip(), _unit(words)
    is_unit = is_known if match.re is _PLAIN_UNIT else bool(name)
    if match.re is _PLAIN_UNIT and not is_known and exact_number(rest) is not None:
        is_unit = len(max(re.findall("[A-Za-z]+", words), key=len)) > 2
    if not rest or rest[-1] in "=,+-*(<>^_" or not is_unit or _WORDS_OF_NUMBERS.search(words):
        return text, ""
    return rest, name


def units_equal(reference: str, answer: str) -> bool:
    """Whether units may be of one answer: one is left out, both are the same, or share a word."""
    if not reference or not answer or reference == answer or {reference, answer} == {"GBP", "lb"}:
        return True
    ours, theirs = (set(unit.split(" ")) for unit in (reference, answer))
    if "degree" in (reference, answer):
        return "degree" in ours & theirs
    known = set(_UNIT_NAMES)
    is_free = any(unit.partition("^")[0] not in known for unit in ours | theirs)
    return is_free and bool(ours & theirs)


def _unit(text: str) -> tuple[str, bool]:
    """A unit in one spelling, and whether all of its words are units."""
    text = re.sub(r"\\frac\s*\{(.*)\}\s*\{(.*)\}$", r"\1 / (\2)", text)
    text = re.sub(r"\^\s*\{\s*([+-]?\d+)\s*\}", r"^\1", text).replace("·", " ")
    text = re.sub(r"(?:\\?\bmu\s+|\bmicro)(?=[A-Za-z])", "u", text)
    text = re.sub(r"(?i)\bmph\b", "mi/h", re.sub(r"(?i)\b(?:kmh|kph|kmph)\b", "km/h", text))
    text = re.sub(r"(?i)\bsq(?:uare)?\b[\s.]*([a-z]+)|\s+squared\b", r"\1^2", text)
    text = re.sub(r"(?i)\bcubic\b\s*([a-z]+)|\s+cubed\b", r"\1^3", text)
    powers: dict[str, int] = {}
    sign, group, last, is_known = 1, 1, "", True
    for token in re.findall(r"\\?[A-Za-z]+|\^\s*[+-]?\d+|[/()]", text):
        low = token.lower()
        if token in {"/", "per"}:
            sign = -1
        elif token == "(":
            group, sign = sign, 1
        elif token == ")":
            group = 1
        elif token[0] == "^":
            if last:
                powers[last] = powers[last] * int(token[1:].replace(" ", ""))
        elif low in {"cdot", "times", "a", "an", "the", "of", "in"} - set(_UNITS) or (
            token[0] == "\\" and (token not in _UNITS)
        ):
            continue
        else:
            known = _UNITS.get(token) or _UNITS.get(low, "")
            if not known and low[0] == "u" and token[1:] in _UNITS:
                known = f"u{_UNITS[token[1:]]}"
            is_known &= bool(known)
            last = known or low.rstrip("s")
            powers[last] = powers.get(last, 0) + sign * group
            sign = 1
    parts = [name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items())]
    return " ".join(parts), is_known and bool(parts)
