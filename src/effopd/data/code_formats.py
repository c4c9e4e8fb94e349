"""Tests of programming problems as the data sets write them: APPS, TACO, Eurus and Codeforces.

Schemas:

- APPS `input_output`, TACO `input_output` and the `ground_truth` of Eurus-2-RL-Data are one form:
  an object with `inputs`, `outputs` and, where a function is called, `fn_name`. APPS and TACO write
  lists of arguments; Eurus writes one JSON value a line.
- Codeforces is the form of open-r1/codeforces: `official_tests` of `input` and `output`.

Every function raises ConfigError for what it cannot judge fairly; leave such problems out.
"""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from effopd.data.code_tests import CodeTests
from effopd.errors import ConfigError

_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random",
    "statistics", "itertools", "functools", "operator", "io", "sys", "json", "typing",
)  # fmt: skip
HARNESS_IMPORTS = "\n".join(
    [
        *(f"from {module} import *" for module in (*_MODULES, "builtins")),
        f"import {', '.join(_MODULES)}",
        "sys.setrecursionlimit(50000)",
        "",
    ]
)
"""What the graders of APPS and Eurus do before a solution."""

DECIMAL_ERROR = 1e-6
"""Absolute or relative error of printed decimals, as the judge of Codeforces usually allows."""


def from_input_output(given: str | Mapping[str, Any]) -> CodeTests:
    """Tests in the form of APPS, TACO and Eurus: an object, or its JSON text.

    When every output of a function is a list of one value, the value alone is right too: APPS wraps
    what it expects.
    """
    form = _read_json(given) if isinstance(given, str) else given
    if not isinstance(form, Mapping):
        raise ConfigError(f"tests must be an object with inputs and outputs, got {form!r:.60}")
    inputs, outputs = form.get("inputs"), form.get("outputs")
    if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple):
        raise ConfigError(f"tests must have lists of inputs and outputs, got {sorted(form)}")
    name = form.get("fn_name") or ""
    if not isinstance(name, str):
        raise ConfigError(f"fn_name must be the name of a function, got {name!r:.60}")
    if len(inputs) != len(outputs):
        raise ConfigError(f"{len(inputs)} inputs need as many outputs, got {len(outputs)}")
    if name:
        calls = [_call(*pair) for pair in zip(inputs, outputs, strict=True)]
        lists = [expected for _, expected in calls if isinstance(expected, list)]
        is_wrapped = len(lists) == len(calls) and all(len(each) == 1 for each in lists)
        return CodeTests(
            kind="call",
            inputs=tuple(arguments for arguments, _ in calls),
            outputs=tuple(expected for _, expected in calls),
            entry_point=name,
            preamble=HARNESS_IMPORTS,
            rule="json",
            is_wrapped=is_wrapped,
        )
    return CodeTests(
        kind="stdin",
        inputs=tuple(_joined(text) for text in inputs),
        outputs=tuple(_joined(text) for text in outputs),
        preamble=HARNESS_IMPORTS,
        atol=DECIMAL_ERROR,
    )


def from_codeforces(row: Mapping[str, Any]) -> CodeTests:
    """The official tests of a problem in the form of open-r1/codeforces.

    Where `official_tests_complete` is false the longest tests are missing: the verdict is then
    more lenient than the judge's.
    """
    if row.get("interaction_format"):
        raise ConfigError("an interactive problem cannot be judged by inputs and outputs")
    if row.get("input_mode") not in {None, "stdio"}:
        raise ConfigError(f"input_mode must be 'stdio', got {row['input_mode']!r:.60}")
    if row.get("generated_checker"):
        raise ConfigError("a problem with a checker has several right answers; leave it out")
    tests = row.get("official_tests")
    if not isinstance(tests, list | tuple) or not tests:
        raise ConfigError("no official_tests")
    for test in tests:
        pair = [test.get(key) for key in ("input", "output")] if isinstance(test, Mapping) else []
        if not pair or not all(isinstance(text, str) for text in pair):
            raise ConfigError(
                f"a test must be an object of text, input and output, got {test!r:.60}"
            )
    return CodeTests(
        kind="stdin",
        inputs=tuple(test["input"] for test in tests),
        outputs=tuple(test["output"] for test in tests),
        atol=DECIMAL_ERROR,
    )


def _json_lines(text: str) -> list[Any]:
    """The JSON values of a text, one a line, as the arguments of a call."""
    return [_with_integer_keys(_read_json(line)) for line in text.split("\n") if line.strip()]


def _read_json(text: str) -> Any:
    """A JSON value; its integers may be of any length."""
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python reads no integer of more than 4300 digits; Decimal does
            return json.loads(text, parse_int=lambda digits: int(Decimal(digits)))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}: {text!r:.60}") from None


def _call(arguments: Any, expected: Any) -> tuple[list[Any], Any]:
    """One call as Eurus writes it, in JSON lines, or as APPS does, in values."""
    if isinstance(arguments, str):
        if not isinstance(expected, str):
            raise ConfigError(f"the output of a call must be JSON text, got {expected!r:.60}")
        return _json_lines(arguments), _with_integer_keys(_read_json(expected))
    if not isinstance(arguments, list):
        raise ConfigError(f"arguments must be a list or JSON lines, got {arguments!r:.60}")
    return [_with_integer_keys(value) for value in arguments], _with_integer_keys(expected)


def _with_integer_keys(value: Any) -> Any:
    """Undoes what JSON does to a dict with integer keys; other values are returned as they are."""
    if isinstance(value, dict) and value and all(_is_integer(key) for key in value):
        return {int(key): each for key, each in value.items()}
    return value


def _is_integer(key: str) -> bool:
    digits = key.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= 18


def _joined(text: Any) -> str:
    """A text, or the lines of one."""
    if isinstance(text, str):
        return text
    if isinstance(text, list | tuple) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    raise ConfigError(f"a test over stdin must be text or a list of lines, got {text!r:.60}")
