"""What tokenizers say: the tokens at which an answer ends, and the tokens that two models share.

A model may end its answers at several tokens, and names them in four places. Equal ids must mean
equal tokens to student and teacher; a few tokens may be one's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from effopd.errors import ParameterMismatchError, see
from effopd.models.directory import GENERATION, read_config, read_object

TEMPLATE_ERRORS = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RuntimeError,
)  # fmt: skip
"""What rendering raises: a template refuses messages, or does with them what they do not allow."""
_QUESTION, _ANSWER = "What is 2 + 2?", "It is 4"
_SHOWN = 4
"""Tokens that a message names."""


# Ends of answers ----------------------------------------------------------------------------------


def end_token_ids(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """The tokens at which answers of a loaded model end.

    The tokenizer's end-of-sequence token first, then those of the generation settings, of the
    configuration, and of its part for text, that are tokens of the tokenizer; last the special
    token with which the chat template ends an assistant's turn. Every engine stops at all of them,
    and an answer that ends at one is not truncated.
    """
    parts = (model.generation_config, model.config, model.config.get_text_config())
    return _known(tokenizer, [getattr(part, "eos_token_id", None) for part in parts])


def end_token_ids_in(directory: Path, tokenizer: Any) -> tuple[int, ...]:
    """The same for a model on disk, whose weights are not loaded."""
    config, path = read_config(directory), directory / GENERATION
    generation = read_object(path) if path.exists() else {}
    text = config.get("text_config")
    parts = (generation, config, text if isinstance(text, Mapping) else {})
    return _known(tokenizer, [part.get("eos_token_id") for part in parts])


def token_names(tokenizer: Any, ids: tuple[int, ...]) -> str:
    """Tokens as messages name them: `'<eos>' and '<|im_end|>'`."""
    return " and ".join(repr(str(tokenizer.convert_ids_to_tokens(i))) for i in ids)


def end_token_remarks(tokenizer: Any, ends: tuple[int, ...]) -> Iterator[str]:
    """That an ordinary token ends answers, if one does; with a remedy."""
    special = special_ids(tokenizer)
    ordinary = tuple(i for i in ends if i not in special)
    if ordinary:
        yield (
            f"answers end with {token_names(tokenizer, ordinary)}, which the tokenizer has as "
            "ordinary text: if that is not meant, correct eos_token_id in generation_config.json "
            f"and config.json{see('end-tokens')}"
        )


def ends_remark(
    student: Any,
    ends: Sequence[int],
    other: Any,
    other_ends: Sequence[int],
    name: str,
    *,
    exchanges: bool = False,
) -> str:
    """How the ends of the student's answers and those of another model differ; "" if they do not.

    Compared by name. With an end in common the student is taught to write that one; with none, the
    other model gives every end of the student's the probability of a token it never writes, unless
    the first of both are taken for one (`exchanges`).
    """
    ours, theirs = (
        {str(tokenizer.convert_ids_to_tokens(i)): i for i in ids}
        for tokenizer, ids in ((student, ends), (other, other_ends))
    )
    if ours.keys() == theirs.keys():
        return ""
    said = (
        f"answers of the student end with {token_names(student, tuple(ends))}, those of {name} "
        f"with {token_names(other, tuple(other_ends))}"
    )
    if common := [token for token in ours if token in theirs]:
        return f"{said}: {' and '.join(map(repr, common))} ends both"
    if exchanges:
        return f"{said}: the first of both are taken for one"
    missing = next((token for token in theirs if token in student.get_vocab()), None)
    remedy = (
        "give both one chat template"
        if missing is None
        else f"add {student.get_vocab()[missing]} ({missing!r}) to eos_token_id in the student's "
        "generation_config.json"
    )
    return (
        f"{said}: none ends both, so that {name} expects no answer to end where the student's do; "
        f"{remedy}{see('end-tokens')}"
    )


def _known(tokenizer: Any, values: list[Any]) -> tuple[int, ...]:
    """The ends in the values, each a number, a list or nothing, and those of the tokenizer itself.

    Only ids that it has, as the default of a configuration class may lie beyond a small vocabulary.
    """
    listed = [each for v in values for each in (v if isinstance(v, list | tuple) else [v])]
    known = set(tokenizer.get_vocab().values())
    ids = [tokenizer.eos_token_id, *(i for i in listed if type(i) is int and i in known)]
    turn_end = turn_end_id(tokenizer)
    return tuple(dict.fromkeys(ids if turn_end is None else [*ids, turn_end]))


def special_ids(tokenizer: Any) -> set[int]:
    """The ids that no text is cut into: control tokens and other added ones."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def turn_end_id(tokenizer: Any) -> int | None:
    """The first special token that the chat template writes behind an answer; None without one."""
    if tokenizer.chat_template is None:
        return None
    said = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(said, tokenize=False))
    except TEMPLATE_ERRORS:
        return None  # a template that knows no answers says nothing about their end
    _, found, behind = text.rpartition(_ANSWER)
    ids = tokenizer(behind if found else "", add_special_tokens=False)["input_ids"]
    special = special_ids(tokenizer)
    return next((i for i in ids if i in special), None)


def default_ends(tokenizer: Any) -> tuple[int, ...]:
    """The ends that a tokenizer itself knows, the turn end of its chat template first."""
    ends = (turn_end_id(tokenizer), tokenizer.eos_token_id)
    return tuple(dict.fromkeys(i for i in ends if i is not None))


# Vocabularies -------------------------------------------------------------------------------------


def unused_ids(tokenizer: Any, rows: int) -> tuple[int, ...]:
    """The ids below `rows` that no token has, in order: padding rows of a head, which engines mask.

    Families round the rows up (Qwen2.5: 151,936 for 151,665 tokens); some have holes inside.
    """
    known = set(tokenizer.get_vocab().values())
    return tuple(i for i in range(rows) if i not in known)


class SharedVocabulary(NamedTuple):
    """What student and teacher have in common."""

    size: int | None = None  # ids below it mean the same token to both; None: all do
    remark: str = ""  # names the tokens that only one of them has


def shared_vocabulary(student: Any, other: Any, name: str) -> SharedVocabulary:
    """Compares the tokenizer of the student with that of another model, called `name` in messages.

    Tokens that one of them has alone are left out of the comparison of the models, and the student
    cannot write them: a padding token of the student, `<think>` of the teacher. They have to be
    added tokens behind all that are shared, since with other ordinary tokens the two cut text
    differently.
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
        others = "; ".join(
            f"id {i} is {our_tokens[i]!r} for the student and "
            + (f"{their_tokens[i]!r} for {name}" if i in both else f"unknown to {name}")
            for i in sorted(differ)[:_SHOWN]
        )
        remedy = "Choose a teacher of the student's family."
        if differ <= added:
            remedy = "Leave these added tokens out of one of the two tokenizers. " + remedy
        raise ParameterMismatchError(
            f"student and {name} have different tokenizers: {len(differ)} of {len(ours)} tokens "
            f"have other ids ({others}), so that a token-wise comparison would be meaningless. "
            + remedy
            + see("tokenizer-mismatch")
        )
    alone = our_tokens.keys() ^ their_tokens.keys()
    size = min(alone)
    named = []
    for tokens in (our_tokens, their_tokens):
        own = sorted(tokens.keys() - both)
        more = f" and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
        named.append(", ".join(f"{tokens[i]!r} ({i})" for i in own[:_SHOWN]) + more or "none")
    lists = f"only the student has {named[0]}, only {name} has {named[1]}"
    if not alone <= added or max(both) > size:
        raise ParameterMismatchError(
            f"student and {name} have different tokenizers, though shared ids agree: {lists}; "
            "only added tokens behind all shared ones may differ. Choose a teacher of the "
            "student's family." + see("tokenizer-mismatch")
        )
    if student.eos_token_id >= size:
        raise ParameterMismatchError(
            f"{name} does not know {student.eos_token!r}, with which the student ends its answers "
            f"({lists}): choose a teacher that has it, or give the student's tokenizer another "
            "eos_token" + see("end-tokens")
        )
    remark = (
        f"{lists}: these tokens are left out of every comparison, and the student cannot write "
        f"them; the {len(both)} tokens that both have agree"
    )
    return SharedVocabulary(size=size, remark=remark)
