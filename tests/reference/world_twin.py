"""The tiny world's arithmetic, read from text with Python's own numbers."""

from collections.abc import Sequence


def truth(prompt: str, modulus: int) -> str:
    """Value of `x op b op b ... =`, left to right, modulo `modulus` after every step."""
    *chain, equals = prompt.split()
    assert equals == "="
    value = int(chain[0]) % modulus
    for operator, operand in zip(chain[1::2], chain[2::2], strict=True):
        value = eval(f"({value} {operator} {operand}) % {modulus}")
    return str(value)


def steps(answer: Sequence[str]) -> tuple[list[tuple[int, str, int, int]], list[str]]:
    """The written steps `a op b = v ;` of an answer, and the words after them."""
    found, words = [], list(answer)
    while len(words) > 5 and words[3] == "=" and words[5] == ";":
        a, operator, b, _, v, _ = words[:6]
        found.append((int(a), operator, int(b), int(v)))
        words = words[6:]
    return found, words
