"""JSON from someone else, bounded in depth before it is parsed."""

import json
import re
from typing import Any

from effopd.servers.failures import PassingError

DEEPEST = 32
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def parse(text: bytes) -> Any:
    """The value of a JSON text; NaN and infinities stay what they are.

    Raises:
        PassingError: It is no JSON in UTF-8, or nested deeper than `DEEPEST`.
    """
    if depth(text) > DEEPEST:
        raise PassingError(f"JSON nested deeper than {DEEPEST} levels")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise PassingError(f"an answer of {len(text)} bytes that is no JSON") from None


def depth(text: bytes) -> int:
    """How deep arrays and objects are nested in a text, strings skipped."""
    deepest = level = 0
    for match in _TOKEN.finditer(text):
        if text[match.start()] in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif text[match.start()] in b"]}":
            level -= 1
    return deepest
