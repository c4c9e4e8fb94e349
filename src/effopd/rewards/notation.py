r"""One way to write what mathematicians write in many: spaces, Unicode, units, percents, words.

Everything here is text in, text out, in time linear in the length or close to it; nothing is
evaluated.
"""

import re
import unicodedata
from fractions import Fraction

from effopd.rewards.extraction import unwrapped
from effopd.rewards.numerals import exact_number

_SYMBOLS = str.maketrans({
    "−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "÷": "/", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "°": r"^\circ ", "±": r"\pm ", "∈": r"\in ",
    "ℝ": r"\mathbb{R}", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "’": "'", "“": '"', "”": '"', "…": r"\ldots ",
})  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda match: f"^{{{match.group().translate(_RAISED)}}}"),
        (r"√\s*(\d+|[a-z])", r"\\sqrt{\1}"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
        (r"\\(?:d|t|c)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\!\s*|(?<=\d)\\,\s*(?=\d)|(?<!\\)\\[()\[\]]|\*\*", ""),
        (r"\\?\$|[€£]", ""),
        (r"(?<!\\)\\[,;:> \n]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"\{,\}", ","),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"(?<![\w\\.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d+)(?!\w)", r"\1\\times 10^{\2}"),
        (r"\^\s*([a-zA-Z])", r"^{\1}"),
        (r"(?<![a-zA-Z\\])([eE])_", r"\\mathrm{\1}_"),  # a letter with an index, not Euler's number
        (
            r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}",
            lambda match: _repeating(*match.groups()),
        ),
    )
)

_MEASURES = {
    "mm": "millimeter", "cm": "centimeter centimetre", "m": "meter metre",
    "km": "kilometer kilometre", "in": "inch", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "mg": "milligram", "g": "gram", "kg": "kilogram", "lb": "lbs pound", "oz": "ounce",
    "ms": "millisecond", "s": "sec second", "min": "minute", "h": "hr hour", "day": "", "week": "",
    "month": "", "year": "yr", "ml": "mL milliliter millilitre", "l": "L liter litre",
    "dollar": "USD", "cent": "", "degree": "deg", "mph": "", "kmh": "km/h kph",
    "Hz": "hertz", "J": "joule", "N": "newton", "W": "watt", "V": "volt", "eV": "", "K": "kelvin",
}  # fmt: skip
_UNITS = {
    spelling: name
    for name, others in _MEASURES.items()
    for other in (name, *others.split())
    for spelling in (other, f"{other}s", f"{other}es")
}
"""Spelling of a unit -> its name."""
_MULTIPLIERS = re.compile(
    r"(?i)\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|third|quarter|or|and)s?\b"
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?$")
_BRACED_UNIT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mbox)\s*\{([^{}]*)\}"
    r"((?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?)$"
)
_PLAIN_UNIT = re.compile(
    r"(?<=[\d})])(?:\s+([A-Za-z][A-Za-z /]*)|([A-Za-z]{2,}))((?:\s*\^\s*(?:\{\s*\d\s*\}|\d))?)$"
)
_PERCENT = re.compile(r"(.*?)\s*(?:\\?%|\\text\{\s*(?:\\?%|percent)\s*\}|percent)", re.DOTALL)
_BASE = re.compile(r"([0-9][0-9A-F]*)_\s*(?:\{\s*(\d+)\s*\}|(\d+))")
_WORDS = re.compile(r"[A-Za-z][A-Za-z ,.'&\"-]*[A-Za-z]{2}[A-Za-z .'\"-]*|[Nn]o")
_SAME_WORDS = (
    ("none", "no solution", "no solutions", "there is no solution", "there are no solutions"),
    ("infinitely many", "infinitely many solutions", "infinite solutions"),
    ("dne", "does not exist", "the limit does not exist"),
)
_PHRASES = {phrase.replace(" ", ""): group[0] for group in _SAME_WORDS for phrase in group}


def tidy(text: str) -> str:
    r"""A formula in plain LaTeX: ASCII digits, one kind of fraction, no sizes, no thin spaces.

    Invisible characters and halves of surrogate pairs vanish; digits of every script become ASCII;
    `1e3` becomes `1\times 10^{3}`; `0.\overline{3}` becomes a fraction; a dot at the end goes.
    """
    text = "".join(_plain(character) for character in text).translate(_SYMBOLS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text).lstrip().rstrip(" .;")
    return _unbraced(text)


def squeezed(text: str) -> str:
    """Text without the spaces that mean nothing: those not between two letters or digits."""
    return re.sub(r"\s+(?!\w)|(?<!\w)\s+", "", text)


def split_unit(text: str) -> tuple[str, str]:
    """A quantity and the name of its unit; "" for none and for a unit that is not known.

    `5 cm` is ("5", "cm"), `18 eggs` is ("18", ""), `7 million` stays whole.
    """
    if degrees := _DEGREES.search(text):
        return text[: degrees.start()].strip(), "degree"
    if match := _BRACED_UNIT.search(text):
        word, power = match.groups()
    elif match := _PLAIN_UNIT.search(text):
        spaced, attached, power = match.groups()
        word = spaced or attached
    else:
        return text, ""
    rest, name = text[: match.start()].strip(), _UNITS.get(word.strip(" ."), "")
    is_word = name or match.re is _BRACED_UNIT or (len(word) > 2 and exact_number(rest) is not None)
    if not rest or not is_word or _MULTIPLIERS.search(word):
        return text, ""
    return rest, name + re.sub(r"[\s{}]", "", power) if name else ""


def split_percent(text: str) -> str | None:
    """What stands before the percent sign a text ends on; None without one."""
    match = _PERCENT.fullmatch(text)
    return match.group(1) if match and match.group(1) else None


def split_base(text: str) -> tuple[str, str]:
    r"""Digits and the base they are written in, as in `1011_2`; the base is "" without one."""
    match = _BASE.fullmatch(squeezed(text))
    return (match.group(1), match.group(2) or match.group(3)) if match else (text, "")


def wording(text: str) -> str | None:
    r"""What an answer in words says, in a form to compare; None for a formula.

    Words are at least three letters without a command around them, as in `\text{Evelyn}` and `no
    solution`. Case and punctuation do not count, and some phrases mean the same.
    """
    words = unwrapped(text)
    if not _WORDS.fullmatch(words):
        return None
    key = re.sub(r"[^a-z]", "", words.lower())
    return _PHRASES.get(key, key)


def _plain(character: str) -> str:
    """A character as ASCII where it is a digit, a space or a wide form; "" where it is unseen."""
    if character.isascii():
        return character if character.isprintable() or character.isspace() else ""
    kind = unicodedata.category(character)
    if kind in {"Cf", "Cs", "Cc"}:
        return ""
    if kind == "Zs":
        return " "
    if kind == "Nd":
        return str(unicodedata.digit(character))
    if "\uff01" <= character <= "\uff5e":
        return chr(ord(character) - 0xFEE0)
    return character


def _repeating(whole: str, fixed: str, repeated: str) -> str:
    """A repeating decimal as a fraction."""
    start = Fraction(int((whole + fixed) or "0"), 10 ** len(fixed))
    value = start + Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(fixed))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _unbraced(text: str) -> str:
    """Text without braces around all of it."""
    while text.startswith("{") and text.endswith("}") and not text.endswith(r"\}"):
        inside = text[1:-1]
        if not _is_balanced(inside):
            return text
        text = inside.strip()
    return text


def _is_balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\[{}]|[{}]", text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0
