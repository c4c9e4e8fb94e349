"""How long a text a model is made for."""

from collections.abc import Mapping
from typing import Any

_NAMES = ("max_position_embeddings", "n_positions")
_SCALED = {"linear", "dynamic", "yarn"}
"""Kinds of rotary embeddings whose factor lengthens what the configuration says."""


def position_limit(config: Mapping[str, Any]) -> int | None:
    """Positions that a model is made for, from the content of its config.json.

    Args:
        config: The content; of a model with several towers, the text's counts.

    Returns:
        Tokens of prompt and answer together; None where the configuration sets no limit.
    """
    text = config.get("text_config")
    found = text if isinstance(text, Mapping) else config
    limit = next((found[name] for name in _NAMES if type(found.get(name)) is int), None)
    scaling = found.get("rope_parameters") or found.get("rope_scaling")
    if limit is None or not isinstance(scaling, Mapping):
        return limit
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in _SCALED or not isinstance(factor, int | float):
        return limit
    original = scaling.get("original_max_position_embeddings")
    return max(limit, int(factor * (original if isinstance(original, int) else limit)))
