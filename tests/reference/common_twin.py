"""Two vocabularies of strings compared at one position: sets of outcomes, by trying every pair."""

import torch
from torch import Tensor


def cut(vocabulary: list[str], text: str) -> list[str]:
    """The longest token first, as often as one fits."""
    found = []
    while text:
        token = max((t for t in vocabulary if text.startswith(t)), key=len)
        found.append(token)
        text = text[len(token) :]
    return found


def classes(ours: list[str], theirs: list[str]) -> list[tuple[set[str], set[str]]]:
    """Tokens of both that a first token of the other begins with, until no two sets meet."""
    found = [({s}, {cut(theirs, s)[0]}) for s in ours] + [({cut(ours, t)[0]}, {t}) for t in theirs]
    is_changed = True
    while is_changed:
        is_changed = False
        for i, (a, b) in enumerate(found):
            for j, (c, d) in enumerate(found):
                if i < j and (a & c or b & d) and not is_changed:
                    found[i] = (a | c, b | d)
                    del found[j]
                    is_changed = True
    return found


def outcomes(
    ours: list[str],
    theirs: list[str],
    q: Tensor,
    written: str | None = None,
    path: Tensor | None = None,
    behind: Tensor | None = None,
) -> list[tuple[list[int], Tensor]]:
    """Tokens of the student, and the probability that the teacher gives them together.

    `q` are the teacher's probabilities; of a `written` token of the student that is split, `path`
    has those of the teacher's tokens for it and `behind` its distribution after them.
    """
    found = []
    for own, other in classes(ours, theirs):
        mass = torch.stack([q[theirs.index(t)] for t in sorted(other)]).sum()
        if written not in own:
            found.append((sorted(ours.index(s) for s in own), mass))
            continue
        assert path is not None
        assert behind is not None
        begin = cut(theirs, written)
        more = {
            s: cut(theirs, s)[len(begin) :]
            for s in own
            if s != written and cut(theirs, s)[: len(begin)] == begin
        }
        one = [s for s in sorted(own) if s in more and len(more[s]) == 1]
        alike = [s for s in sorted(own) if s == written or (s in more and len(more[s]) > 1)]
        others = [s for s in sorted(own) if s not in one and s not in alike]
        token = path.prod()
        onward = torch.stack([behind[theirs.index(more[s][0])] for s in one]).sum() if one else 0.0
        rest = mass - token
        found.append(
            ([ours.index(s) for s in alike], token * (1 - onward) + (0 if others else rest))
        )
        if one:
            found.append(([ours.index(s) for s in one], token * onward))
        if others:
            found.append(([ours.index(s) for s in others], rest))
    return found


def grouped(log_p_V: Tensor, found: list[tuple[list[int], Tensor]]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher over the outcomes."""
    ours = torch.stack([log_p_V[ids].logsumexp(0) for ids, _ in found])
    return ours, torch.stack([mass for _, mass in found]).log()
