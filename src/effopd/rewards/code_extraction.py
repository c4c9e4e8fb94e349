"""The program of a completion: its last fenced Python block outside the thinking; pure text.

Fences are Markdown's: a line of three or more backticks or tildes opens a block, a line of at least
as many of the same closes it. A fence that is never closed, or a thinking block that is never
closed, means that the completion was cut: there is no program then, whatever came before.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^`]*)")
_NAMES = {"python", "python3", "py", "py3"}
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class _Block:
    """A fenced block: its language in lower case, "" without one, and its text."""

    language: str
    text: str
    is_closed: bool


def program_of(completion: str) -> str | None:
    """The last Python block, else the last block that names no language; None without one.

    `<think>...</think>` is left out, its opening tag may stand in the prompt. The indentation of
    the fence is taken off the lines of the block. Linear in the length of `completion`.
    """
    blocks = list(_blocks(_said(completion)))
    if not blocks or not blocks[-1].is_closed:
        return None
    named = [block for block in blocks if block.language in _NAMES]
    unnamed = [block for block in blocks if not block.language]
    chosen = (named or unnamed)[-1:]
    return chosen[0].text if chosen and chosen[0].text.strip() else None


def continuation_of(completion: str) -> str | None:
    """The completion itself as source, where it holds no fence: what a base model writes."""
    said = _said(completion)
    has_fence = any(_FENCE.fullmatch(line) for line in said.split("\n"))
    return None if has_fence or not said.strip() else said


def assembled(preamble: str, program: str, ending: str = "") -> str:
    """One source: the preamble, the program, and an ending.

    `from __future__` statements of the program move to the top, where Python wants them.
    """
    futures = _FUTURE.findall(program)
    if futures and preamble:
        program = _FUTURE.sub("pass", program)
    else:
        futures = []
    return "\n".join(part for part in (*futures, preamble, program, ending) if part)


def _said(completion: str) -> str:
    _, _, said = completion.replace("\r\n", "\n").rpartition("</think>")
    said, _, _ = said.partition("<think>")
    return said


def _blocks(text: str) -> Iterator[_Block]:
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if opened is None:
            opened, lines = fence, []
        elif fence is not None and _closes(fence, opened):
            yield _block(opened, lines, is_closed=True)
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        yield _block(opened, lines, is_closed=False)


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    return fence[1].startswith(opened[1]) and not fence[2].strip()


def _block(opened: re.Match[str], lines: list[str], *, is_closed: bool) -> _Block:
    language = (opened[2].split() or [""])[0].lower().strip("{}.")
    indent = len(opened[0]) - len(opened[0].lstrip(" \t"))
    text = "\n".join(_without_indent(line, indent) for line in lines)
    return _Block(language=language, text=text, is_closed=is_closed)


def _without_indent(line: str, indent: int) -> str:
    kept = line.lstrip(" \t")
    return line[min(indent, len(line) - len(kept)) :]
