"""Tests of programming problems as the data sets write them.

Schemas:

- APPS `input_output`, TACO `input_output` and the `ground_truth` of Eurus-2-RL-Data are one form:
  an object with `inputs`, `outputs` and, where a function is called, `fn_name`. APPS and TACO write
  lists of arguments; Eurus writes one JSON value a line.
- Codeforces is the form of open-r1/codeforces: `official_tests` of `input` and `output`.
- EvalPlus writes HumanEval+ and MBPP+ as inputs and a reference solution, without outputs: what is
  expected is what the solution returns. The form is JSON, so arguments that are tuples, sets or
  complex numbers were written as lists and text; a table says where, by number of the MBPP problem,
  as EvalPlus 0.3.1 reads them (`evalplus/data/mbpp.py`). For some problems EvalPlus accepts more
  than the reference's answer (`evalplus/eval/__init__.py`, `_special_oracle.py`): they have rules.

Every function raises ConfigError for what it cannot judge fairly; leave such problems out.
"""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from effopd.data.code_tests import CodeTests, Rule
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

_INTEGER = re.compile("-?[0-9]{1,18}")
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
        return CodeTests(
            kind="call",
            inputs=tuple(arguments for arguments, _ in calls),
            outputs=tuple(expected for _, expected in calls),
            entry_point=name,
            preamble=HARNESS_IMPORTS,
            rule="json",
            is_wrapped=all(isinstance(found, list) and len(found) == 1 for _, found in calls),
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
    pairs = []
    for test in tests:
        pair = (test.get("input"), test.get("output")) if isinstance(test, Mapping) else (None,)
        if not all(isinstance(text, str) for text in pair):
            raise ConfigError(
                f"a test must be an object of text, input and output, got {test!r:.60}"
            )
        pairs.append(pair)
    inputs, outputs = zip(*pairs, strict=True)
    return CodeTests(kind="stdin", inputs=inputs, outputs=outputs, atol=DECIMAL_ERROR)


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
        lines = [line for line in arguments.split("\n") if line.strip()]
        arguments, expected = [_read_json(line) for line in lines], _read_json(expected)
    if not isinstance(arguments, list):
        raise ConfigError(f"arguments must be a list or JSON lines, got {arguments!r:.60}")
    return [_with_integer_keys(value) for value in arguments], _with_integer_keys(expected)


def _with_integer_keys(value: Any) -> Any:
    """Undoes what JSON does to a dict with integer keys; other values are returned as they are."""
    if not isinstance(value, dict) or not all(map(_INTEGER.fullmatch, value)):
        return value
    return {int(key): each for key, each in value.items()}


def _joined(text: Any) -> str:
    """A text, or the lines of one."""
    if isinstance(text, str):
        return text
    if isinstance(text, list | tuple) and all(isinstance(line, str) for line in text):
        return "\n".join(text)
    raise ConfigError(f"a test over stdin must be text or a list of lines, got {text!r:.60}")


# EvalPlus -----------------------------------------------------------------------------------------

_HUMANEVAL_RULES: dict[str, Rule] = {"find_zero": "root"}
_MBPP_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly",
            "larg_nnum", "intersection_array", "find_dissimilar", "Diff",
        ),
        "set",
    ),
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "presence"),
    "are_equivalent": "anything",
    "sum_div": "zero_too",
    "surface_Area": "pyramid",
    "digit_distance_nums": "digit_distance",
}  # fmt: skip
"""Name of the function -> how its result is compared, where not by value."""


def from_evalplus(row: Mapping[str, Any]) -> CodeTests:
    """All tests of a problem, the base ones first.

    A program may leave out what the prompt of HumanEval gives: it stands before every program.
    """
    for field in ("task_id", "prompt", "entry_point", "canonical_solution"):
        if not isinstance(row.get(field), str):
            raise ConfigError(f"{field} must be text, got {row.get(field)!r:.60}")
    task, prompt, name = row["task_id"], row["prompt"], row["entry_point"]
    benchmark, _, number = task.partition("/")
    if benchmark not in {"HumanEval", "Mbpp"} or not number.isdecimal():
        raise ConfigError(f"task_id must be HumanEval/N or Mbpp/N, got {task!r:.60}")
    inputs: list[list[Any]] = []
    for field in ("base_input", "plus_input"):
        found = row.get(field)
        if not isinstance(found, list) or not all(isinstance(each, list) for each in found):
            raise ConfigError(f"{field} must be a list of lists of arguments, got {found!r:.60}")
        inputs += found
    atol = row.get("atol", 0)
    if isinstance(atol, bool) or not isinstance(atol, int | float):
        raise ConfigError(f"atol must be a number, got {atol!r:.60}")
    if benchmark == "Mbpp" and (read := _READERS.get(int(number))) is not None:
        try:
            inputs = [read(each) for each in inputs]
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise ConfigError(f"{task}: arguments are not as expected: {error}") from None
    rules = _MBPP_RULES if benchmark == "Mbpp" else _HUMANEVAL_RULES
    return CodeTests(
        kind="call",
        inputs=tuple(inputs),
        entry_point=name,
        reference=prompt + row["canonical_solution"],
        preamble=prompt if benchmark == "HumanEval" else "",
        rule=rules.get(name, "value"),
        atol=float(atol),
    )


def _items(values: list[Any]) -> list[Any]:
    """A list of tuples."""
    return [*map(tuple, values)]


def _deep(value: Any) -> Any:
    """Tuples for lists, at any depth."""
    return tuple(_deep(each) for each in value) if isinstance(value, list) else value


_READERS: dict[int, Callable[[list[Any]], list[Any]]] = {
    **dict.fromkeys(
        (
            2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630,
            726, 740, 744, 809,
        ),
        _items,  # each argument is a tuple
    ),
    **dict.fromkeys(
        (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780),
        lambda given: [_items(each) for each in given],
    ),
    **dict.fromkeys((75, 413, 444, 753), lambda given: [_items(given[0]), *given[1:]]),
    **dict.fromkeys(
        (250, 307, 405, 446, 617, 720, 763, 808), lambda given: [tuple(given[0]), *given[1:]]
    ),
    **dict.fromkeys((106, 750), lambda given: [given[0], tuple(given[1])]),
    **dict.fromkeys((259, 401, 445), lambda given: [tuple(_items(each)) for each in given]),
    **dict.fromkeys((580, 615, 791), lambda given: [_deep(each) for each in given]),
    115: lambda given: [
        [set(each) if isinstance(each, list) and each else {} for each in given[0]]
    ],
    124: lambda given: [float(given[0]), complex(given[1])],
    252: lambda given: [complex(given[0])],
    278: lambda given: [tuple(tuple(x) if isinstance(x, list) else x for x in given[0])],
    722: lambda given: [{key: tuple(each) for key, each in given[0].items()}, *given[1:]],
}  # fmt: skip
"""Number of an MBPP problem -> its arguments as they were before they were JSON."""
