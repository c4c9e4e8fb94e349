r"""Units behind a quantity and currencies before it, however they are written.

Nothing is converted: `5 km` and `5000 m` are two answers. A unit may be left out.
"""

import re

from effopd.rewards.numerals import exact_number

_NAMES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre",
    "km": "kilometer kilometre", "nm": "nanometer nanometre", "in": "inch", "ft": "foot feet",
    "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram", "kg": "kilogram",
    "lb": "lbs pound", "oz": "ounce", "ton": "tonne", "ms": "millisecond", "s": "sec second",
    "min": "minute", "h": "hr hrs hour", "day": "", "week": "", "month": "", "year": "yr yrs",
    "ml": "mL milliliter millilitre", "L": "l liter litre", "gal": "gallon", "acre": "",
    "dollar": "USD buck", "cent": "", "euro": "EUR", "GBP": "", "yen": "JPY", "rupee": "Rs",
    "degree": "deg", "rad": "radian", "sr": "steradian", "Hz": "hertz", "kHz": "kilohertz",
    "MHz": "megahertz", "J": "joule", "kJ": "kilojoule", "cal": "calorie", "kcal": "",
    "N": "newton",
    "kN": "", "W": "watt", "kW": "kilowatt", "V": "volt", "eV": "", "keV": "", "MeV": "", "GeV": "",
    "K": "kelvin", "C": "coulomb", "celsius": "", "fahrenheit": "", "A": "ampere amp",
    "Pa": "pascal",
    "kPa": "", "atm": "atmosphere", "bar": "", "torr": "", "T": "tesla", "G": "gauss",
    "mol": "mole",
    "M": "molar", "ohm": r"\Omega", "F": "farad", "H": "henry", "erg": "", "dyn": "dyne", "AU": "",
    "angstrom": "", "pc": "parsec", "kpc": "", "Mpc": "", "ly": "lightyear", "unit": "",
}  # fmt: skip
_PER = {"mph": (("mi", 1), ("h", -1)), "kmh": (("km", 1), ("h", -1))} | dict.fromkeys(
    ("kph", "kmph"), (("km", 1), ("h", -1))
)
_UNITS = {
    spelling: name
    for name, others in _NAMES.items()
    for other in (name, *others.split())
    for spelling in ({other, f"{other}s", f"{other}es"} if len(other) > 2 else {other})
}
"""Spelling of a unit -> its name."""
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "GBP", "¥": "yen"}
_WORDS_OF_NUMBERS = re.compile(
    r"(?i)\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|third|quarter|or|and|mod"
    r"|base|for|where|if|when|with|times|sin|cos|tan|ln|log|pi)s?\b|[=<>]"
)

_POWER = r"(?:\s*\^\s*(?:\{\s*[+-]?\d+\s*\}|[+-]?\d))?"
_WORD = rf"(?:\\text\s*\{{[^{{}}]*\}}|\\Omega){_POWER}"
_TIMES = r"\s*(?:\\cdot|\\times|/|\*|\.)?\s*"
_ROW = rf"(?:{_WORD}(?:{_TIMES}{_WORD})*)"
_OVER = rf"(?:\s*/\s*\(\s*{_ROW}\s*\))?"
_BRACED = re.compile(
    rf"(?:\s*/)?\s*(?:\\frac\s*\{{\s*{_ROW}\s*\}}\s*\{{\s*{_ROW}\s*\}}|{_ROW}{_OVER})$"
)
_PLAIN = re.compile(
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
    if (match := _BRACED.search(text)) is None and (match := _PLAIN.search(text)) is None:
        return text, ""
    words = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", match.group())
    rest, (name, is_known) = text[: match.start()].strip(), _unit(words)
    is_unit = is_known if match.re is _PLAIN else bool(name)
    if match.re is _PLAIN and not is_known and exact_number(rest) is not None:
        is_unit = len(max(re.findall("[A-Za-z]+", words), key=len)) > 2
    if not rest or rest[-1] in "=,+-*(<>^_" or not is_unit or _WORDS_OF_NUMBERS.search(words):
        return text, ""
    return rest, name


def units_agree(reference: str, answer: str) -> bool:
    """Whether two units may belong to the same answer: one is left out, or both are the same.

    Words that are no units, as in `18 eggs per day`, agree when they share one.
    """
    if not reference or not answer or reference == answer or {reference, answer} == {"GBP", "lb"}:
        return True
    ours, theirs = (set(unit.split(" ")) for unit in (reference, answer))
    if "degree" in (reference, answer):
        return "degree" in ours & theirs
    known = set(_NAMES) | {"celsius", "fahrenheit"}
    is_free = any(unit.partition("^")[0] not in known for unit in ours | theirs)
    return is_free and bool(ours & theirs)


def _unit(text: str) -> tuple[str, bool]:
    """A unit in one spelling, and whether all of its words are units."""
    text = re.sub(r"\\frac\s*\{(.*)\}\s*\{(.*)\}$", r"\1 / (\2)", text)
    text = re.sub(r"\^\s*\{\s*([+-]?\d+)\s*\}", r"^\1", text).replace("·", " ")
    text = re.sub(r"(?:\\?\bmu\s+|\bmicro)(?=[A-Za-z])", "u", text)
    tokens = re.findall(r"\\?[A-Za-z]+|\^\s*[+-]?\d+|[/()]", text)
    powers: dict[str, int] = {}
    sign, group, factor, last, is_known = 1, 1, 1, "", True
    for token in tokens:
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
        elif low in {"square", "squared", "sq", "cubic", "cubed"}:
            power = 3 if low.startswith("cub") else 2
            if low in {"squared", "cubed"} and last:
                powers[last] *= power
            else:
                factor = power
        elif low in {"cdot", "times", "a", "an", "the", "of", "in"} - set(_UNITS) or (
            token[0] == "\\" and (token not in _UNITS)
        ):
            continue
        else:
            known = _UNITS.get(token) or _UNITS.get(low, "")
            if not known and low[0] == "u" and token[1:] in _UNITS:
                known = f"u{_UNITS[token[1:]]}"
            for name, power in _PER.get(low, ((known, 1),)):
                is_known &= bool(name)
                last = name or low.rstrip("s")
                powers[last] = powers.get(last, 0) + power * factor * sign * group
            sign, factor = 1, 1
    parts = [name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items())]
    return " ".join(parts), is_known and bool(parts)
