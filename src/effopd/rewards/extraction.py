r"""The final answer of a completion: the last `\boxed{...}` outside the thinking; pure text.

The last box wins, whatever stands in earlier ones. A box that is never closed, or a thinking block
that is never closed, means that the completion was cut: there is no answer then.
"""

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BARE = re.compile(r"\\boxed\s*([0-9]+|[a-zA-Z])")
"""A box around one thing without braces, as TeX allows."""
_BRACE = re.compile(r"\\[\\{}]|[{}]")
_GROUP = re.compile(r"\\{1,2}boxed\s*\{|\\[\\{}]|[{}]")
r"""What opens or closes a group; `\{` and `\}` are text, and so is the `\\` before a brace."""

_WHOLE = re.compile(r"\(?([A-Ja-j])\)?[.:]?")
_LISTED = re.compile(r"(?:\(([A-J])\)|([A-J])[).:])\s*(.+)", re.DOTALL)
_SAID = re.compile(
    r"(?P<before>.*\s)?(?i:answer|option|choice)(?:\s+(?i:is))?\s*:?\s*\(?(?P<letter>[A-J])\)?\.?",
    re.DOTALL,
)
_SECOND = re.compile(r"(?:(?:or|and|,|/|&)\s*)?\(?[A-J][).:]?(?:\s|$)|(?:or|and|,|/|&)\s")
_LIST = re.compile(
    r"(?:^|[\s,;/])\(?[A-J]\)|[\s,;][A-J][.:]\s+\S|\b(?i:or|option|choice)\s+\(?[A-J](?:\)|[.:,]?$)|\band\s+\(?[A-J]\)"
)
_MARK = re.compile(
    r"(?:^|[\s,;/])\(?(?:[A-J]\)|[A-J][.:](?=\s+\S)|[B-HJ](?![\w'])|A(?=\s*(?:,|/|&|or\b|and\b)))"
    r"|\b(?i:options?|choices?)\s+\(?[A-J]\b"
)
"""What shows that another letter is named: a list of letters chooses none of them."""
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mathsf|mbox|operatorname|bf)"
    r"\s*\{([^{}]*)\}"
)


def final_answer(completion: str) -> str | None:
    r"""Content of the box that a completion ends on, as written; None without one.

    `<think>...</think>` is left out, its opening tag may stand in the prompt. Of nested boxes the
    outermost counts, the commands within it are dropped: `\boxed{x = \boxed{5}}` answers `x = 5`.
    Linear in the length of `completion`.
    """
    _, _, said = completion.rpartition("</think>")
    said, _, _ = said.partition("<think>")
    said = _BARE.sub(r"\\boxed{\1}", said.replace(r"\fbox", r"\boxed"))
    if _is_cut(said):
        return None
    box = last_box(said)
    return None if box is None else _BOX.sub("", box).strip()


def unboxed(text: str) -> str:
    r"""What a reference says: what its last box holds, or all of it when it has none."""
    box = last_box(text.replace(r"\fbox", r"\boxed")) if "box" in text else None
    return _BOX.sub("", box).strip() if box and box.strip() else text


def last_box(text: str) -> str | None:
    r"""Content of the `\boxed{...}` that closes last, whatever its depth; None without one."""
    box: str | None = None
    opened: list[int | None] = []
    for match in _GROUP.finditer(text):
        token = match.group()
        if token == "}":
            start = opened.pop() if opened else None
            box = box if start is None else text[start : match.start()]
        elif token == "{" or (token.endswith("{") and len(token) > 2):
            opened.append(None if token == "{" else match.end())
    return box


def _is_cut(text: str) -> bool:
    r"""Whether the box that opens last is never closed."""
    start = text.rfind(r"\boxed")
    opened = 0
    for match in _BRACE.finditer(text, max(start, 0)):
        opened += {"{": 1, "}": -1}.get(match.group(), 0)
        if opened == 0 and match.group() == "}":
            return False
    return start >= 0 and opened > 0


def unwrapped(text: str) -> str:
    r"""Text without `\text{...}` and the like around words, and without Markdown's bold."""
    before = None
    while before != text:
        before, text = text, _WRAPPER.sub(r"\1", text)
    return text.replace("**", "").strip()


def choice_letter(answer: str) -> str | None:
    """The option, A to J, that the answer to a multiple-choice question names; None if none.

    `B`, `(B)`, `B.`, `b`, `B) 12 m` and `the answer is B` choose B; `B or C` and a sentence that
    begins with `A` choose nothing.
    """
    text = re.sub("[{}]", "", unwrapped(answer)).strip()
    if whole := _WHOLE.fullmatch(text):
        return whole.group(1).upper()
    if said := _SAID.fullmatch(text):
        return None if _MARK.search(said["before"] or "") else said["letter"]
    listed = _LISTED.fullmatch(text)
    if listed is None or _SECOND.match(listed.group(3)) or _LIST.search(listed.group(3)):
        return None
    return listed.group(1) or listed.group(2)
