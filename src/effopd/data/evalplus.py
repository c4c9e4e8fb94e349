"""HumanEval+ and MBPP+ in the form of EvalPlus: inputs and a reference solution, no outputs.

What is expected is what the reference solution returns. The form is JSON, so arguments that are
tuples, sets or complex numbers were written as lists and text; the tables below say where, by
number of the MBPP problem, as EvalPlus 0.3.1 reads them (`evalplus/data/mbpp.py`). For some
problems EvalPlus accepts more than the reference's answer (`evalplus/eval/__init__.py`,
`_special_oracle.py`); each has a rule of its own here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from effopd.data.code_tests import CodeTests, Rule
from effopd.errors import ConfigError

Arguments = list[Any]

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
    task, prompt = _text(row, "task_id"), _text(row, "prompt")
    name, solution = _text(row, "entry_point"), _text(row, "canonical_solution")
    benchmark, _, number = task.partition("/")
    if benchmark not in {"HumanEval", "Mbpp"} or not number.isdecimal():
        raise ConfigError(f"task_id must be HumanEval/N or Mbpp/N, got {task!r:.60}")
    inputs = [*_inputs(row, "base_input"), *_inputs(row, "plus_input")]
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
        reference=prompt + solution,
        preamble=prompt if benchmark == "HumanEval" else "",
        rule=rules.get(name, "value"),
        atol=float(atol),
    )


def _text(row: Mapping[str, Any], field: str) -> str:
    if not isinstance(row.get(field), str):
        raise ConfigError(f"{field} must be text, got {row.get(field)!r:.60}")
    return row[field]


def _inputs(row: Mapping[str, Any], field: str) -> list[Arguments]:
    inputs = row.get(field)
    if not isinstance(inputs, list) or not all(isinstance(each, list) for each in inputs):
        raise ConfigError(f"{field} must be a list of lists of arguments, got {inputs!r:.60}")
    return inputs


# Arguments that JSON cannot write -----------------------------------------------------------------


def _items(values: list[Any]) -> list[Any]:
    """A list of tuples."""
    return [tuple(each) for each in values]


def _deep(value: Any) -> Any:
    """Tuples for lists, at any depth."""
    return tuple(_deep(each) for each in value) if isinstance(value, list) else value


_READERS: dict[int, Callable[[Arguments], Arguments]] = {
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
