"""Plain values as JSON that keeps their types, and back.

None, bool, int, str and list are themselves; everything else is an object with one key that
names its type. Both sides of the boundary use this file; what comes out of a sandbox is decoded
with caps, since whatever runs there can write what it likes.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

_MAX_DEPTH = 100
_MAX_HEX_DIGITS = 200_000
_PLAIN_INT = 2**62
_MAX_EQUAL_HASHES = 64


class ValueRefusedError(ValueError):
    """A value is not plain, or too deep, or too long."""


def dump(value: Any) -> bytes:
    """A value as ASCII; ValueRefusedError where it is not plain, or breaks a cap."""
    return json.dumps(_encode(value, 0), separators=(",", ":"), allow_nan=False).encode("ascii")


def load(text: bytes) -> Any:
    """The value in a text that nobody vouches for; ValueRefusedError where it is none."""
    try:
        document = json.loads(text.decode("ascii"), parse_constant=_refuse, parse_int=_small_int)
        return _decode(document, 0)
    except ValueRefusedError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise ValueRefusedError(f"not a value: {str(error)[:100]}") from None


def _encode(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueRefusedError(f"nested more than {_MAX_DEPTH} deep")
    if value is None or value is True or value is False:
        return value
    for kind, encode in _ENCODERS:
        if isinstance(value, kind):
            return encode(value, depth + 1)
    if type(value).__module__ == "numpy":  # an array or a number of it
        return _encode(value.tolist(), depth + 1)
    raise ValueRefusedError(f"a {type(value).__name__} is not a plain value")


def _encode_int(value: int, depth: int) -> Any:
    value = int.__index__(value)
    if value.bit_length() > 4 * _MAX_HEX_DIGITS:
        raise ValueRefusedError("an integer is too long")
    return value if abs(value) < _PLAIN_INT else {"int": f"{value:x}"}


def _encode_float(value: float, depth: int) -> Any:
    value = float.__float__(value)
    return value if math.isfinite(value) else {"float": repr(value)}


def _encode_all(values: Iterable[Any], depth: int) -> list[Any]:
    return [_encode(each, depth) for each in values]


_ENCODERS: tuple[tuple[type, Callable[[Any, int], Any]], ...] = (
    (int, _encode_int),
    (float, _encode_float),
    (complex, lambda v, d: {"complex": [_encode_float(v.real, d), _encode_float(v.imag, d)]}),
    (str, lambda v, _: str.__str__(v)),
    (bytes, lambda v, _: {"bytes": bytes.hex(v)}),
    (bytearray, lambda v, _: {"bytearray": bytearray.hex(v)}),
    (list, lambda v, d: _encode_all(list.__iter__(v), d)),
    (tuple, lambda v, d: {"tuple": _encode_all(tuple.__iter__(v), d)}),
    (set, lambda v, d: {"set": _encode_all(set.__iter__(v), d)}),
    (frozenset, lambda v, d: {"frozenset": _encode_all(frozenset.__iter__(v), d)}),
    (dict, lambda v, d: {"dict": [_encode_all(pair, d) for pair in dict.items(v)]}),
)
"""A subclass is written as the built-in that it extends, by the methods of that built-in."""


def _decode(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH + 2:
        raise ValueRefusedError(f"nested more than {_MAX_DEPTH} deep")
    if isinstance(value, list):
        return [_decode(each, depth + 1) for each in value]
    if isinstance(value, dict):
        if len(value) != 1:
            raise ValueRefusedError("an object must have one key")
        ((tag, content),) = value.items()
        if tag not in _DECODERS:
            raise ValueRefusedError(f"there is no type {tag[:40]!r}")
        return _DECODERS[tag](content, depth + 1)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueRefusedError("a number is out of range")
    return value


def _small_int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueRefusedError("an integer is too long")
    return int(digits)


def _refuse(name: str) -> None:
    raise ValueRefusedError(f"{name} is not JSON")


def _decode_int(digits: Any, depth: int) -> int:
    if not isinstance(digits, str) or len(digits) > _MAX_HEX_DIGITS + 1:
        raise ValueRefusedError("an integer is too long")
    return int(digits, 16)


def _decode_float(name: Any, depth: int) -> float:
    if name not in ("inf", "-inf", "nan"):
        raise ValueRefusedError("a float is inf, -inf or nan")
    return float(name)


def _decode_complex(parts: Any, depth: int) -> complex:
    real, imaginary = _decode(parts, depth)
    return complex(float(real), float(imaginary))


def _decode_list(content: Any, depth: int) -> list[Any]:
    if not isinstance(content, list):
        raise ValueRefusedError("a sequence must be a list")
    return [_decode(each, depth) for each in content]


def _decode_dict(content: Any, depth: int) -> dict[Any, Any]:
    if not isinstance(content, list):
        raise ValueRefusedError("a dict must be a list of pairs")
    pairs = [_decode_list(pair, depth) for pair in content]
    _spread([key for key, _ in pairs])
    return dict(pairs)


def _spread(elements: list[Any]) -> list[Any]:
    """The elements, unless they were chosen to collide, which makes a set of them quadratic."""
    most = Counter(map(hash, elements)).most_common(1)
    if most and most[0][1] > _MAX_EQUAL_HASHES:
        raise ValueRefusedError("many elements have the same hash")
    return elements


_DECODERS: dict[str, Callable[[Any, int], Any]] = {
    "int": _decode_int,
    "float": _decode_float,
    "complex": _decode_complex,
    "bytes": lambda v, _: bytes.fromhex(v),
    "bytearray": lambda v, _: bytearray.fromhex(v),
    "tuple": lambda v, d: tuple(_decode_list(v, d)),
    "set": lambda v, d: set(_spread(_decode_list(v, d))),
    "frozenset": lambda v, d: frozenset(_spread(_decode_list(v, d))),
    "dict": _decode_dict,
}
