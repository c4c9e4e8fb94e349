r"""Numbers as people write them, read exactly: `1,000.5`, `-\frac12`, `3\frac{1}{2}`, `6.0e23`."""

import re
from fractions import Fraction

_TOLERANCE = Fraction(1, 10**6)
_MAX_DIGITS = 1000

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_WHOLE}(?:\.\d*)?|\.\d+)"
_EXPONENT = r"10\s*\^\s*(?:\{\s*([+-]?\s*\d{1,3})\s*\}|([+-]?\d{1,3}))"
_PART = rf"(?:\{{\s*([+-]?{_DECIMAL})\s*\}}|(\d))"

_SIGNED = re.compile(r"([+-]?)\s*(.*)", re.DOTALL)
_PLAIN = re.compile(rf"({_DECIMAL})")
_POWER = re.compile(rf"(?:({_DECIMAL})\s*(?:\\times|\\cdot|\*)\s*)?{_EXPONENT}")
_RATIO = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})")
_STACKED = re.compile(rf"\\frac\s*{_PART}\s*{_PART}")
_MIXED = re.compile(rf"(\d+)\s*\\frac\s*{_PART}\s*{_PART}|(\d+)\s+(\d+)\s*/\s*(\d+)")


def exact_number(text: str) -> Fraction | None:
    """The rational number that a text writes; None when it is anything else.

    Decimals are exact (`0.333` is not a third), thousands may have commas, mixed numbers add.
    """
    if len(text) > _MAX_DIGITS:
        return None
    signed = _SIGNED.fullmatch(text.strip())
    assert signed is not None  # the pattern matches every text
    sign, size = signed.groups()
    number = _size(size.strip())
    return -number if number is not None and sign == "-" else number


def _size(text: str) -> Fraction | None:
    """A number whose own sign, if any, stands before `text`."""
    if plain := _PLAIN.fullmatch(text):
        return _decimal(plain.group(1))
    if power := _POWER.fullmatch(text):
        mantissa, braced, bare = power.groups()
        exponent = int((braced or bare).replace(" ", ""))
        return _decimal(mantissa or "1") * Fraction(10) ** exponent
    if ratio := _RATIO.fullmatch(text) or _STACKED.fullmatch(text):
        above, below = (_decimal(part) for part in ratio.groups() if part)
        return above / below if below else None
    if mixed := _MIXED.fullmatch(text):
        whole, above, below = (_decimal(part) for part in mixed.groups() if part)
        return whole + above / below if below else None
    return None


def numbers_agree(reference: Fraction, answer: Fraction, *, decimal: bool) -> bool:
    """Whether two numbers are the same answer.

    Args:
        reference: The number that is right.
        answer: The number that was given.
        decimal: Whether one of them was written with a decimal point; then they may differ by 1e-6,
            and by 1e-6 of the reference where that is smaller: `0.333333` is a third, `0.333` and
            `3.14159` are not what they stand for.

    Returns:
        Whether they agree.
    """
    if not decimal:
        return reference == answer
    return abs(reference - answer) <= _TOLERANCE * min(Fraction(1), abs(reference))


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").replace(" ", ""))
