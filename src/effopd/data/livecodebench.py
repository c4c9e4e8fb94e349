"""Tests of LiveCodeBench problems, private ones included, without unpickling anything.

Upstream the private tests are a JSON text that was pickled, compressed and written in base64. A
pickle may call any function when it is loaded, so it is not: one that holds a single text, and
nothing else, is a header, a length and the text, and that is all that is read here.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any

from effopd.data.code_formats import (
    DECIMAL_ERROR,
    HARNESS_IMPORTS,
    call_tests,
    json_lines,
    read_json,
    text_pair,
)
from effopd.data.code_tests import CodeTests
from effopd.errors import ConfigError

MAX_BYTES = 512 * 1024**2

_LENGTH_BYTES = {b"\x8c": 1, b"X": 4, b"\x8d": 8}
"""Opcodes of a text, with the size of the length that follows."""
_SKIPPED_BYTES = {b"\x80": 1, b"\x95": 8, b"q": 1, b"r": 4, b"\x94": 0}
"""Opcodes without effect on one text, with what follows them: protocol, frame, memo."""


def from_livecodebench(row: Mapping[str, Any]) -> CodeTests:
    """All tests of a problem, public and private.

    Args:
        row: With `public_test_cases`, `private_test_cases` and, where a function is called,
            `func_name` in `metadata`; each JSON text or what it says.

    Raises:
        ConfigError: Tests are missing, mixed or not of this form, or the private ones hold more
            than one text.
    """
    public, private = row.get("public_test_cases"), row.get("private_test_cases")
    tests = [*_cases(public, "public_test_cases"), *_cases(private, "private_test_cases")]
    kinds = {test.get("testtype") if isinstance(test, Mapping) else None for test in tests}
    pairs = [text_pair(test) for test in tests]
    if kinds == {"functional"}:
        name = _function_name(row.get("metadata"))
        return call_tests(
            name,
            [(json_lines(given), read_json(expected)) for given, expected in pairs],
            is_wrapped=False,
        )
    if kinds != {"stdin"}:
        raise ConfigError(f"testtype must be 'stdin' or 'functional' throughout, got {kinds}")
    return CodeTests(
        kind="stdin",
        inputs=tuple(given for given, _ in pairs),
        outputs=tuple(expected for _, expected in pairs),
        preamble=HARNESS_IMPORTS,
        rule="lines",
        atol=DECIMAL_ERROR,
    )


def _cases(given: Any, field: str) -> list[Any]:
    value = given
    if isinstance(given, str):
        text = given if given.lstrip().startswith(("[", "{")) else unpacked_text(given)
        value = read_json(text)
    if not isinstance(value, list):
        raise ConfigError(f"{field} must be a list of tests, got {value!r:.60}")
    return value


def _function_name(metadata: Any) -> str:
    value = read_json(metadata) if isinstance(metadata, str) else metadata
    name = value.get("func_name") if isinstance(value, Mapping) else None
    if not isinstance(name, str):
        raise ConfigError("functional tests need the func_name of the metadata")
    return name


def unpacked_text(packed: str) -> str:
    """The text in base64(zlib(pickle(text))), or in base64(zlib(text)).

    Raises:
        ConfigError: It is not packed like that, larger than `MAX_BYTES`, or a pickle of anything
            but one text.
    """
    try:
        opened = zlib.decompressobj()
        data = opened.decompress(base64.b64decode(packed, validate=True), MAX_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise ConfigError(f"private tests must be JSON or base64 of zlib: {error}") from None
    if not opened.eof:
        raise ConfigError(f"private tests are cut, or larger than {MAX_BYTES} bytes")
    try:
        return (data if data[:1] in {b"[", b"{"} else _pickled_text(data)).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"private tests are not UTF-8: {error}") from None


def _pickled_text(data: bytes) -> bytes:
    """The one text of a pickle, which is read and not loaded."""
    place, text = 0, None
    while place < len(data):
        code = data[place : place + 1]
        place += 1
        if code == b"." and text is not None and place == len(data):
            return text
        if code in _SKIPPED_BYTES:
            place += _SKIPPED_BYTES[code]
        elif code in _LENGTH_BYTES and text is None:
            size = _LENGTH_BYTES[code]
            end = place + size + int.from_bytes(data[place : place + size], "little")
            text = data[place + size : end]
            place = end
        else:
            break
    raise ConfigError(
        "private tests are a pickle of more than one text, which is never loaded: convert them "
        "to JSON with a program you trust, and give that as private_test_cases"
    )
