"""Which parameters move along the ray."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from effopd.errors import ConfigError

RELEASED_NAMES = re.compile(
    r"attn|self_attn|attention|[qkvo]_proj|mlp|feed_forward|ffn|gate_proj|up_proj|down_proj",
    re.IGNORECASE,
)
"""The released code's substring test; by accident it also takes `post_attention_layernorm`."""
_PATTERNS = {
    "all": re.compile(""), "attention_mlp": RELEASED_NAMES, "matrices": RELEASED_NAMES,
}  # fmt: skip
_IN_LAYERS = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.\d+\.")
"""Within the stack of layers, whatever an architecture calls it."""


def select_parameters(model: nn.Module, selection: str = "attention_mlp") -> Mapping[str, Tensor]:
    """The trainable parameters of `model` that a search moves, by name.

    A tensor with two names (tied embeddings) is listed once, under its first name.

    Args:
        model: Any module; parameters with `requires_grad=False` never move.
        selection: "attention_mlp" as released, and every other matrix of the layers, such as those
            of convolutions and state spaces; "matrices", of these only tensors with two or more
            axes; "all"; or "re:PATTERN", a regular expression searched in the name.

    Returns:
        Name to live parameter, in the model's order.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    chosen = selected_names({n: p.ndim for n, p in trainable.items()}, selection)
    return {name: trainable[name] for name in chosen}


def selected_names(dimensions: Mapping[str, int], selection: str = "attention_mlp") -> list[str]:
    """Which of the parameters that can move, name to number of axes, a search moves, in order."""
    if selection.startswith("re:"):
        try:
            pattern = re.compile(selection[3:])
        except re.error as error:
            raise ConfigError(
                f"selection {selection!r} is no regular expression: {error}"
            ) from None
    elif selection not in _PATTERNS:
        raise ConfigError(
            f"unknown selection {selection!r}: use 'attention_mlp', 'matrices', 'all' or "
            "'re:PATTERN'"
        )
    else:
        pattern = _PATTERNS[selection]
    least = 2 if selection == "matrices" else 0
    takes_layers = selection in {"attention_mlp", "matrices"}
    chosen = [
        name
        for name, axes in dimensions.items()
        if (pattern.search(name) and axes >= least)
        or (takes_layers and axes >= 2 and _IN_LAYERS.search(name))
    ]
    if not chosen:
        raise ConfigError(
            f"selection {selection!r} matches none of {len(dimensions)} parameters that can move "
            f"(for example {list(dimensions)[:3]}); use 'all' or 're:PATTERN'"
        )
    return chosen
