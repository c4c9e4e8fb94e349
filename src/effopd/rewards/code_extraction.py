"""The program of a completion: its last fenced Python block outside the thinking; pure text.

Fences are Markdown's, as models write them: a line that ends in three or more backticks, or in them
and the name of Python, opens a block, whatever stands before them; a line of at least as many
closes it, and punctuation and tags may follow. A Python block or one in another language that is
never closed means that the completion was cut: there is no program then, whatever came before.
"""

import re
from dataclasses import dataclass

_MARKS = re.compile(r"[ \t]*(`{3,}|~{3,})")
_BULLET = re.compile(r"[ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]*)?")
_TAGS = re.compile(r"[\s.,;:!*)]*(?:<[^<>]*>\s*)*")
_NAME = re.compile(r"[\s{.]*([\w.+#-]*)")
_PYTHON = re.compile(r"(?:[ci]?python|py|pypy)[0-9.]*")
_NO_PROGRAM = re.compile(
    r"|te?xt|plain(?:text)?|(?:std)?(?:in|out)(?:put)?|console|terminal|log|(?:ba|z)?sh|shell|json"
    r"|ya?ml|csv|xml|html|markdown|md|latex|tex|math|none"
)
"""Names of blocks that hold no program, such as what one reads and prints."""
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class _Fence:
    """Backticks or tildes, what stands before them in the line, and what follows."""

    before: str
    marks: str
    after: str

    @property
    def language(self) -> str:
        """In lower case; "" without one."""
        return _NAME.match(self.after.lower())[1]  # type: ignore[index]  # it always matches

    @property
    def is_python(self) -> bool:
        return _PYTHON.fullmatch(self.language) is not None

    @property
    def is_bare(self) -> bool:
        return _TAGS.fullmatch(self.after) is not None

    def closes(self, opened: "_Fence") -> bool:
        return self.marks.startswith(opened.marks) and self.is_bare and not self.before.strip()

    def reopens(self, opened: "_Fence") -> bool:
        """Whether what seemed to open a block was a mention of a fence, or closed the prompt's."""
        is_mention = bool(opened.before.strip()) and not self.before.strip()
        is_other = is_mention or not opened.is_python
        return is_other and self.is_python and self.marks.startswith(opened.marks)


def written_program(completion: str, *, continues_prompt: bool) -> str | None:
    """The source that a completion gives, or continues if `continues_prompt`; None without."""
    continuation = continuation_of(completion, needs_fence=not continues_prompt)
    first = next((line for line in (continuation or "").split("\n") if line.strip()), "")
    if continues_prompt and first.startswith(("    ", "\t")):
        return continuation  # the body of a function: blocks that follow are no part of it
    return program_of(completion) or continuation


def program_of(completion: str) -> str | None:
    """The last Python block outside the thinking, else the last unnamed one, dedented; or None."""
    opened: _Fence | None = None
    lines: list[str] = []
    closed: list[tuple[_Fence, str]] = []
    for line in _said(completion).split("\n"):
        fence = _fence(line)
        if opened is None:
            if fence and (not fence.before.strip() or fence.is_python or fence.is_bare):
                opened, lines = fence, []
        elif fence is not None and fence.closes(opened):
            closed.append((opened, _text(opened, lines)))
            opened = None
        elif fence is not None and fence.reopens(opened):
            opened, lines = fence, []
        else:
            lines.append(line)
    if opened is not None:
        # the last line of its program may end in the fence that closes it
        for place, line in enumerate(lines):
            if (last := _fence(line)) and last.is_bare and last.marks.startswith(opened.marks):
                closed.append((opened, _text(opened, [*lines[:place], last.before])))
                break
        else:
            if not _NO_PROGRAM.fullmatch(opened.language):
                return None
    written = [(fence, text) for fence, text in closed if text.strip()]
    named = [text for fence, text in written if fence.is_python]
    unnamed = [text for fence, text in written if not fence.language]
    chosen = (named or unnamed)[-1:]
    return chosen[0] if chosen else None


def continuation_of(completion: str, *, needs_fence: bool = False) -> str | None:
    """The completion as source up to the fence that closes it; None if its first fence opens."""
    said = _said(completion)
    lines = said.split("\n")
    fences = ((place, fence) for place, line in enumerate(lines) if (fence := _fence(line)))
    place, fence = next(fences, (len(lines), None))
    if fence is not None:
        source = "\n".join([*lines[:place], fence.before]) if fence.is_bare else ""
    else:
        source = "" if needs_fence else said
    return source if source.strip() else None


def assembled(preamble: str, program: str, ending: str = "") -> str:
    """One source; `from __future__` statements of the program move to the top of it."""
    futures = _FUTURE.findall(program) if preamble else []
    if futures:
        program = _FUTURE.sub("pass", program)
    return "\n".join(part for part in (*futures, preamble, program, ending) if part)


def _said(completion: str) -> str:
    _, _, said = completion.replace("\r\n", "\n").rpartition("</think>")
    said, _, _ = said.partition("<think>")
    return said


def _fence(line: str) -> _Fence | None:
    """The fence in a line: marks at its start, or backticks later on that nothing closes."""
    if marks := _MARKS.match(line):
        before, found, after = line[: marks.start(1)], marks[1], line[marks.end() :]
    else:
        end = line.rfind("`") + 1
        before, after = line[:end].rstrip("`"), line[end:]
        found = line[len(before) : end]
        if len(found) < 3 or "```" in before:
            return None
    return None if "`" in after else _Fence(before=before, marks=found, after=after)


def _text(opened: _Fence, lines: list[str]) -> str:
    """The lines of a block, without the indentation that they share with its fence."""

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip(" \t"))

    first = next((line for line in lines if line.strip()), "")
    shared = min(len(opened.before), indent(first)) if _BULLET.fullmatch(opened.before) else 0
    return "\n".join(line[min(shared, indent(line)) :] for line in lines)
