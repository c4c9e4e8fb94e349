"""Which text of a completion is its program, and what stands around it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.growth import grows_linearly

from effopd.rewards.code_extraction import (
    assembled,
    continuation_of,
    program_of,
    written_program,
)

PYTHON, OTHER = "```python\nx = 1\n```", "```python\nx = 2\n```"


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        (PYTHON, "x = 1"), (f"First.\n{PYTHON}\nThat is it.", "x = 1"),
        (f"{PYTHON}\nBetter:\n{OTHER}", "x = 2"), ("```py\nx = 3\n```", "x = 3"),
        ("```Python3\nx = 3\n```", "x = 3"), ("```{.python}\nx = 3\n```", "x = 3"),
        ('```python title="a.py"\nx = 3\n```', "x = 3"), ("``` python\nx = 3\n```", "x = 3"),
        ("```\nx = 3\n```", "x = 3"), (f"{PYTHON}\nIt prints\n```\n1\n```", "x = 1"),
        ("```cpp\nint x;\n```", None), (f"{PYTHON}\n```cpp\nint x;\n```", "x = 1"),
        ("```cpp\nint x;\n```\n```\nx = 3\n```", "x = 3"), ("~~~python\nx = 3\n~~~", "x = 3"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```python\nx = '```'\n```", "x = '```'"),
        ("```python\nif x:\n    y = 1\n\n```", "if x:\n    y = 1\n"),
        ("1. So:\n   ```python\n   if x:\n       y = 1\n   ```", "if x:\n    y = 1"),
        ("```python\r\nx = 3\r\n```\r\n", "x = 3"), ("", None), ("x = 1", None),
        ("Use `x = 1`.", None), ("```x = 1```", None), ("```python\n```", None),
        ("```python\n   \n```", None), ("```python\nx = 1", None),
        (f"{PYTHON}\n```python\nx = 2", None), (f"{PYTHON}\n```cpp\nint", None),
        ("```python\nx = 1\n~~~", None), ("````python\nx = 1\n```", None),
        (f"<think>{OTHER}</think>\n{PYTHON}", "x = 1"),
        (f"thinking ```python </think>\n{PYTHON}", "x = 1"),
        (f"{PYTHON}\n<think>\n{OTHER}", "x = 1"), (f"<think>\n{PYTHON}\n</think>\nDone.", None),
        (f"<think>\n{PYTHON}", None),
        # names
        ("```pypy3\nx = 3\n```", "x = 3"), ("```PyPy\nx = 3\n```", "x = 3"),
        ("```python3.11\nx = 3\n```", "x = 3"), ("```python:main.py\nx = 3\n```", "x = 3"),
        ("```Python 3\nx = 3\n```", "x = 3"), ("```pycon\n>>> 3\n```", None),
        # what stands in the line of a fence
        ("<answer>```python\nx = 3\n```</answer>", "x = 3"),
        ("<answer> ```python\nx = 3\n``` </answer>", "x = 3"),
        ("<answer>\n```python\nx = 3\n```</answer>", "x = 3"),
        ("<answer>```\nx = 3\n```</answer>", "x = 3"),
        ("```python\nx = 3\n```<|endoftext|>", "x = 3"), ("So (```python\nx = 3\n```).", "x = 3"),
        ("So: **```python\nx = 3\n```**.", "x = 3"), ("Here: ```python\nx = 3\n```", "x = 3"),
        ("Here:```python\nx = 3\n```\nDone.", "x = 3"), ("Here:```\nx = 3\n```", "x = 3"),
        ("Use `x`: ```py\nx = 3\n```", "x = 3"),
        ("**Code** ```Python3\r\nx = 3\r\n```\r\n", "x = 3"),
        ("1. ```python\n   if x:\n       y = 1\n   ```", "if x:\n    y = 1"),
        ("- ```python\nif x:\n  y = 1\n  ```", "if x:\n  y = 1"), ("```python\nx = 3```", "x = 3"),
        ("<answer>```python\nx = 3```</answer>\n", "x = 3"),
        ("```python\nx = 3  # a```b\n```", "x = 3  # a```b"),
        ("I put it in ```python\n```python\nx = 3\n```", "x = 3"),
        ("I put it in ```\n```python\nx = 3\n```", "x = 3"),
        ("Wrap it in ``` or so.\n```python\nx = 3\n```", "x = 3"),
        # a right block, and then one that is not closed
        (f"{PYTHON}\nOutput:\n```\n1", "x = 1"), (f"{PYTHON}\nOutput:\n```text\n1\n", "x = 1"),
        (f"{PYTHON}\n```output\n1", "x = 1"), (f"{PYTHON}\nInput:\n```input\n1\n", "x = 1"),
        (f"{PYTHON}\n```json\n1\n", "x = 1"), ("```ipython\nx = 3\n```", "x = 3"),
        (f"{PYTHON}\n```", "x = 1"), ("```\nx = 3\n```\nIt prints\n```\n1", "x = 3"),
        (f"{PYTHON}\n```python", None), (f"{PYTHON}\n```python\n\n```", "x = 1"),
        # one fence within another
        (f"```markdown\n{PYTHON}\n```", "x = 1"), (f"````markdown\n{PYTHON}\n````", None),
        (f"```\n{PYTHON}\n```", "x = 1"), (f"    return 1\n```\nTest:\n{PYTHON}", "x = 1"),
    ],
)  # fmt: skip
def test_last_python_block_outside_the_thinking(completion: str, program: str | None) -> None:
    assert program_of(completion) == program


@pytest.mark.parametrize(
    ("completion", "source"),
    [
        ("    return 1\n", "    return 1\n"), ("<think>hm</think>    return 1", "    return 1"),
        (PYTHON, None), ("    return 1\n```", "    return 1\n"),
        ("    return 1```\n", "    return 1"), ("    return 1\n```<|endoftext|>", "    return 1\n"),
        ("    return 1\r\n```\r\nIt adds.\r\n", "    return 1\n"),
        (f"    return 1\n```\nTest:\n{PYTHON}", "    return 1\n"), ("```\n    return 1\n```", None),
        ("    return 1\n```python\n", None), (" \n", None), ("", None),
    ],
)  # fmt: skip
def test_a_completion_without_a_fence_can_be_source(completion: str, source: str | None) -> None:
    assert continuation_of(completion) == source


@pytest.mark.parametrize(
    ("completion", "after_a_stub", "alone"),
    [
        ("    return 1\n", "    return 1\n", None),
        ("    return 1\n```\n", "    return 1\n", "    return 1\n"),
        ("x = 1\n```\nThat is it.", "x = 1\n", "x = 1\n"), ("x = 1", "x = 1", None),
        (f"    return 1\n```\nTest:\n{PYTHON}", "    return 1\n", "x = 1"),
        (f"\n    return 1\n```\n```\n1\n```\n{PYTHON}", "\n    return 1\n", "x = 1"),
        (f"\treturn 1\n```\n{PYTHON}", "\treturn 1\n", "x = 1"),
        (f" Here it is:\n{PYTHON}", "x = 1", "x = 1"),
        ("    \nHere it is:\n```\nx = 1\n```", "x = 1", "x = 1"),
        (f"    {PYTHON}", "x = 1", "x = 1"), ("```python\nx = 1", None, None), ("```", None, None),
    ],
)  # fmt: skip
def test_programs_after_a_stub_and_alone(
    completion: str, after_a_stub: str | None, alone: str | None
) -> None:
    assert written_program(completion, continues_prompt=True) == after_a_stub
    assert written_program(completion, continues_prompt=False) == alone


def test_parts_of_a_source_in_order() -> None:
    assert assembled("import a", "x = 1", "y = 2") == "import a\nx = 1\ny = 2"
    assert assembled("", "x = 1") == "x = 1"


def test_future_statements_come_first() -> None:
    program = "from __future__ import annotations\nx: Y = 1"
    source = assembled("import a", program, "")
    assert source == "from __future__ import annotations\nimport a\npass\nx: Y = 1"
    compile(source, "program", "exec")
    assert assembled("", program) == program


BLOCK = st.text(alphabet="ab =:\n", min_size=1).filter(lambda text: bool(text.strip()))
FENCED = st.text(alphabet="`~ \npython<think>/x:1.", max_size=80)


@given(text=BLOCK, before=st.text(alphabet="ab \n.", max_size=20))
@settings(deadline=None)
def test_a_fenced_text_is_found_as_written(text: str, before: str) -> None:
    assert program_of(f"{before}\n```python\n{text}\n```") == text


@given(text=FENCED)
@settings(deadline=None)
def test_any_text_has_a_program_or_none(text: str) -> None:
    for found in (
        program_of(text),
        continuation_of(text),
        written_program(text, continues_prompt=True),
        written_program(text, continues_prompt=False),
    ):
        assert found is None or found.strip()


@pytest.mark.parametrize(
    "text",
    [
        lambda size: "`" * 8 * size, lambda size: "```" + " " * 8 * size + "`",
        lambda size: " " * 8 * size + "```", lambda size: "```\n" * 2 * size,
        lambda size: "<think>" * size, lambda size: "from __future__ import a\n" * (size // 2),
        lambda size: "a`" * 4 * size, lambda size: "```" + "<a>" * 3 * size,
        lambda size: "```" + "<" * 8 * size, lambda size: "```{" + "." * 8 * size,
        lambda size: "```\n" + "a```\n" * 2 * size,
    ],
    ids=range(11),
)  # fmt: skip
def test_long_text_costs_little(text: Callable[[int], str]) -> None:
    def read(size: int) -> None:
        written_program(text(size), continues_prompt=True)
        assembled("import a", text(size))

    assert grows_linearly(read, 1000)
