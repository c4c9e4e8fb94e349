"""The tokens at which an answer ends: a model may have several, and names them in three places."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from effopd.models.chat_templates import TEMPLATE_ERRORS
from effopd.models.saving import GENERATION
from effopd.models.weights import read_config, read_object

_QUESTION, _ANSWER = "What is 2 + 2?", "It is 4"


def end_token_ids(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Where answers of a loaded model end.

    Args:
        tokenizer: Hugging Face tokenizer.
        model: Hugging Face causal language model.

    Returns:
        The tokenizer's end-of-sequence token first, then those of the generation settings, of the
        configuration, and of its part for text, that are tokens of the tokenizer.
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
    """What is odd about the tokens at which answers end; one sentence each, with a remedy.

    Args:
        tokenizer: Of the model.
        ends: From `end_token_ids`.

    Yields:
        That the chat template ends a turn with a token at which no answer ends, which a model
        trained on that template writes and goes on after; that an ordinary token ends answers.
    """
    turn_end = _turn_end(tokenizer)
    if turn_end is not None and turn_end not in ends:
        token = str(tokenizer.convert_ids_to_tokens(turn_end))
        yield (
            f"the chat template ends a turn with {token!r}, but answers end with "
            f"{token_names(tokenizer, ends)}: add {turn_end} to eos_token_id in "
            f"generation_config.json, or set sampling.stop = [{token!r}]"
        )
    ordinary = tuple(i for i in ends if i not in _special(tokenizer))
    if ordinary:
        yield (
            f"answers end with {token_names(tokenizer, ordinary)}, which the tokenizer has as "
            "ordinary text: if that is not meant, correct eos_token_id in generation_config.json "
            "and config.json"
        )


def _known(tokenizer: Any, values: list[Any]) -> tuple[int, ...]:
    """The ids in the values, each a number, a list or nothing, that the tokenizer has; no repeats.

    The default of a configuration class may lie beyond a small vocabulary.
    """
    listed = [each for v in values for each in (v if isinstance(v, list | tuple) else [v])]
    known = set(tokenizer.get_vocab().values())
    ids = [tokenizer.eos_token_id, *(i for i in listed if type(i) is int and i in known)]
    return tuple(dict.fromkeys(ids))


def _special(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _turn_end(tokenizer: Any) -> int | None:
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
    return next((i for i in ids if i in _special(tokenizer)), None)
