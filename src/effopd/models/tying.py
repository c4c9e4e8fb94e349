"""A head that is the embedding, and trainers that store it nonetheless."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from effopd.errors import ParameterMismatchError
from effopd.models.names import extra, is_head

if TYPE_CHECKING:
    from effopd.models.weights import Weights

_EMBEDDINGS = frozenset(
    {"embed_tokens", "wte", "embed_in", "word_embeddings", "embeddings", "tok_embeddings"}
)
_ROWS = 2**14
"""Compared at a time."""


def ties_head(config: Mapping[str, Any]) -> bool | None:
    """Whether the head is the embedding, by the content of a config.json.

    Returns:
        None where it does not say, or says both.
    """
    text = config.get("text_config")
    sections = [config, *([text] if isinstance(text, dict) else [])]
    said = {section.get("tie_word_embeddings") for section in sections} - {None}
    if len(said) == 1:
        return bool(said.pop())
    return None if said else _family_ties(config.get("model_type"))


def stored_head(weights: "Weights") -> str | None:
    """Name of the head's weight; None where none is stored."""
    return next((name for name in weights.shapes if is_head(name)), None)


def equals_embedding(weights: "Weights", head: str) -> bool | None:
    """Whether a stored head has the values of the embedding; reads both, some rows at a time.

    Args:
        weights: Of one model.
        head: See `stored_head`.

    Returns:
        None where there is no embedding of the head's shape.
    """
    shape = weights.shapes[head]
    found = filter(is_embedding, weights.shapes)
    embedding = next((name for name in found if weights.shapes[name] == shape), None)
    if embedding is None or len(shape) != 2:
        return None
    for first in range(0, shape[0], _ROWS):
        rows = first, min(first + _ROWS, shape[0])
        ours, theirs = weights.read(head, rows), weights.read(embedding, rows)
        if not torch.equal(ours.to(torch.float64), theirs.to(torch.float64)):
            return False
    return True


def check_tied_shapes(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], where: object
) -> None:
    """Refuses a tied head that is stored in another shape than its embedding.

    Args:
        shapes: Of all tensors of a model.
        config: Content of its config.json.
        where: The model, for messages.

    Raises:
        ParameterMismatchError: It is; an empty one is a sharded trainer's place holder.
    """
    head = next((name for name in shapes if is_head(name)), None)
    embedding = next((name for name in shapes if is_embedding(name)), None)
    if head is None or embedding is None or not ties_head(config) or 0 in shapes[head]:
        return
    if shapes[head] != shapes[embedding]:
        raise ParameterMismatchError(
            f"config.json of {where} ties the head to the embedding, but {head} is stored with "
            f"shape {shapes[head]} and {embedding} with {shapes[embedding]}: save the model again "
            "without the head, or set tie_word_embeddings to what the weights are"
        )


def is_embedding(name: str) -> bool:
    """Whether it is the weight of the embedding of tokens."""
    return name.endswith(".weight") and name.split(".")[-2] in _EMBEDDINGS and extra(name) is None


def tied_copy(weights: "Weights", config: Mapping[str, Any], where: object) -> str | None:
    """A stored head that is nothing but the embedding, because config.json ties the two.

    Args:
        weights: Of the model.
        config: Content of its config.json.
        where: The model, for messages.

    Returns:
        Its name; None where there is none.

    Raises:
        ParameterMismatchError: config.json ties the two and their values differ.
    """
    check_tied_shapes(weights.shapes, config, where)
    head = stored_head(weights)
    if head is None or ties_head(config) is not True:
        return None
    if 0 in weights.shapes[head]:  # a sharded trainer's place holder
        return head
    equal = equals_embedding(weights, head)
    if equal is False:
        raise ParameterMismatchError(
            f"config.json of {where} ties the head to the embedding, but {head} is stored with "
            "different values: set tie_word_embeddings to what the weights are"
        )
    return head if equal else None


def _family_ties(kind: Any) -> bool | None:
    """What an architecture does where its config.json does not say."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    try:
        whole = CONFIG_MAPPING[kind]()
        said = {whole.tie_word_embeddings, whole.get_text_config().tie_word_embeddings}
    except (AttributeError, ValueError):  # it has no single language model
        return None
    return said.pop() if len(said) == 1 else None
