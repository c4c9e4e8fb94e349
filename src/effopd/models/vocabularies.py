"""Which tokens two models share: equal ids must mean equal tokens, and a few may be one's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effopd.errors import ParameterMismatchError

_SHOWN = 4
"""Tokens that a message names."""


@dataclass(frozen=True, kw_only=True)
class SharedVocabulary:
    """What student and teacher have in common.

    Attributes:
        size: Ids below it mean the same token to both; None where the two have the same tokens.
        remark: Names the tokens that only one of them has; "" where there is none.
    """

    size: int | None = None
    remark: str = ""


def shared_vocabulary(student: Any, other: Any, name: str) -> SharedVocabulary:
    """Compares two tokenizers, token by token.

    Tokens that one of them has alone are left out of the comparison of the models, and the student
    cannot write them: a padding token of the student, `<think>` of the teacher. They have to be
    added tokens behind all that are shared, since with other ordinary tokens the two cut text
    differently.

    Args:
        student: Hugging Face tokenizer.
        other: The one of the model that scores.
        name: What that model is called, for messages.

    Returns:
        What they share.

    Raises:
        ParameterMismatchError: An id means different tokens, an ordinary token is one's own, or
            the student's end-of-sequence token is not shared; names the tokens.
    """
    ours, theirs = student.get_vocab(), other.get_vocab()
    if ours == theirs:
        return SharedVocabulary()
    our_tokens, their_tokens = ({i: t for t, i in each.items()} for each in (ours, theirs))
    added = {*student.added_tokens_decoder, *other.added_tokens_decoder}
    both = our_tokens.keys() & their_tokens.keys()
    differ = {i for i in both if our_tokens[i] != their_tokens[i]}
    differ |= {ours[t] for t in ours.keys() & theirs.keys() if ours[t] != theirs[t]}
    if differ:
        named = "; ".join(
            f"id {i} is {our_tokens[i]!r} for the student and "
            + (f"{their_tokens[i]!r} for {name}" if i in both else f"unknown to {name}")
            for i in sorted(differ)[:_SHOWN]
        )
        remedy = "Choose a teacher of the student's family."
        if differ <= added:
            remedy = "Leave these added tokens out of one of the two tokenizers. " + remedy
        raise ParameterMismatchError(
            f"student and {name} have different tokenizers: {len(differ)} of {len(ours)} tokens "
            f"have other ids ({named}), so that a token-wise comparison would be meaningless. "
            + remedy
        )
    alone = our_tokens.keys() ^ their_tokens.keys()
    size = min(alone)
    mine = _named(our_tokens, our_tokens.keys() - both)
    its = _named(their_tokens, their_tokens.keys() - both)
    lists = f"only the student has {mine or 'none'}, only {name} has {its or 'none'}"
    if not alone <= added or max(both) > size:
        raise ParameterMismatchError(
            f"student and {name} have different tokenizers, though shared ids agree: {lists}; "
            "only added tokens behind all shared ones may differ. Choose a teacher of the "
            "student's family."
        )
    if student.eos_token_id >= size:
        raise ParameterMismatchError(
            f"{name} does not know {student.eos_token!r}, with which the student ends its answers "
            f"({lists}): choose a teacher that has it, or give the student's tokenizer another "
            "eos_token"
        )
    remark = (
        f"{lists}: these tokens are left out of every comparison, and the student cannot write "
        f"them; the {len(both)} tokens that both have agree"
    )
    return SharedVocabulary(size=size, remark=remark)


def _named(tokens: Mapping[int, str], ids: set[int]) -> str:
    """The first of the tokens with their ids, and how many more there are."""
    shown = ", ".join(f"{tokens[i]!r} ({i})" for i in sorted(ids)[:_SHOWN])
    return shown + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
