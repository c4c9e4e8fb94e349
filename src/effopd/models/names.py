"""Names of tensors: as trainers store them, as transformers has them, and what is no model of text.

A wrapper of a trainer (DataParallel, torch.compile, FSDP, activation checkpointing, PEFT,
Lightning) adds a part to the names of all that it wraps; those parts mean nothing and are left out.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from effopd.errors import CheckpointError, ConfigError

_WRAPPERS = frozenset(  # of DataParallel and DeepSpeed, torch.compile, FSDP, FairScale, Lightning
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
     "_forward_module"}
)  # fmt: skip
"""Parts that no model of transformers has, wherever they stand in a name."""
_LEADING = ("base_model.model.", "pretrained_model.")
"""What PEFT and TRL's value heads put in front."""
_TOPS = frozenset(
    {"model", "lm_head", "embed_out", "score", "v_head", "value_head", "transformer", "gpt_neox",
     "backbone"}
)  # fmt: skip
"""First parts of names in transformers; a prefix that all names share stands before them."""
_TOPS_OF_MODEL = frozenset({"model", "lm_head", "embed_out", "score", "v_head", "value_head"})
"""Those that follow where the shared prefix is itself called `model`."""
_LORA = re.compile(r"\.(lora_[A-Za-z_]+|modules_to_save|original_module)(\.|$)")
_HEADS = frozenset({"lm_head", "embed_out"})
_NEUTRAL = frozenset(
    {"model", "language_model", "text_model", "transformer", "gpt_neox", "backbone"}
)
"""Leading parts that differ between two ways to save one model."""
_BUFFERS = re.compile(
    r"(^|\.)(rotary_emb|rotary_pos_emb|rope)\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$"
    r"|(^|\.)inv_freq$|(^|\.)position_ids$|\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$"
)
BUFFER = "a buffer that is computed anew"
_TOWER, _DRAFTS = "of a tower for images or sound", "of a head that drafts tokens"
_EXTRAS: Mapping[str, Collection[str]] = {
    "a value or reward head": {
        "v_head", "value_head", "score", "reward_head", "regression_head", "classifier",
    },
    _TOWER: {
        "vision_tower", "vision_model", "visual", "vision_encoder", "vision_embed_tokens",
        "multi_modal_projector", "mm_projector", "embed_vision", "audio_tower", "embed_audio",
        "image_newline", "connector", "vision_adapter",
    },
    _DRAFTS: {
        "mtp", "mtp_block", "nextn", "medusa_head", "medusa_heads", "eagle", "draft_model",
    },
}  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def plain_names(stored: Iterable[str], where: object) -> dict[str, str]:
    """Stored name to the name without what wrappers added to it, of all tensors of a checkpoint.

    An adapter that was not merged is a ConfigError, two names that become one a CheckpointError.
    """
    found = {name: unwrapped(name) for name in stored}
    for name in found:
        if _LORA.search(name):
            raise ConfigError(
                f"{where} holds a model with an adapter that was not merged ({name}): merge it "
                "(merge_and_unload in PEFT) and save that, or save the adapter alone"
            )
    # A prefix that all names share goes where what transformers has stands behind it.
    while (prefix := _shared_prefix(found.values())) is not None:
        found = {name: plain.removeprefix(prefix) for name, plain in found.items()}
    owner: dict[str, str] = {}
    for name, plain in found.items():
        if owner.setdefault(plain, name) != name:
            raise CheckpointError(
                f"{where} holds both {owner[plain]} and {name}, which are one tensor without the "
                "prefixes that wrappers add: export the model again with save_pretrained"
            )
    return found


def unwrapped(name: str) -> str:
    """A name without the parts of wrappers that are known, whatever stands in whatever."""
    before = ""
    while name != before:
        before, name = name, ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        for leading in _LEADING:
            name = name.removeprefix(leading)
    return name


def described_prefixes(names: Mapping[str, str]) -> str:
    """One sentence about what `plain_names` left out; "" where that is nothing."""
    changed = [(name, plain) for name, plain in names.items() if name != plain]
    if not changed:
        return ""
    name, plain = changed[0]
    return f"{len(changed)} of {len(names)} names hold a wrapper's prefix: {name} is {plain}"


def counterparts(names: Iterable[str], among: Collection[str]) -> dict[str, str]:
    """Name to what it is called in another checkpoint of the model, whose names are `among`.

    That is the same name, or the only one that differs in leading parts alone; names with neither
    are left out.
    """
    names = list(names)
    own, theirs = Counter(map(_kin, names)), Counter(map(_kin, among))
    only = {_kin(other): other for other in among if theirs[_kin(other)] == 1}
    found = {name: only.get(_kin(name)) if own[_kin(name)] == 1 else None for name in names}
    found |= {name: name for name in names if name in among}
    return {name: other for name, other in found.items() if other is not None}


def is_head(name: str) -> bool:
    """Whether it is the weight of the output head."""
    return name.endswith(".weight") and name.split(".")[-2] in _HEADS


def by_reason(reasons: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Reason to the names that have it, in their order; names without one are left out."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        if why is not None:
            found.setdefault(why, []).append(name)
    return found


def in_tower(name: str) -> bool:
    """Whether a tensor reads images or sound, and has no part in text."""
    return extra(name) == _TOWER


def draft_layers(config: Mapping[str, Any]) -> range:
    """Numbers of layers that only draft tokens, as DeepSeek-V3 stores them after its own."""
    text = config.get("text_config") or config
    match text.get("num_hidden_layers"), text.get("num_nextn_predict_layers"):
        case int(layers), int(drafts):
            return range(layers, layers + drafts)
    return range(0)


def extra(name: str, drafts: Collection[int] = ()) -> str | None:
    """What a tensor is that the logits of text do not need, in words; None for all others."""
    if _BUFFERS.search(name):
        return BUFFER
    above = set(re.split(r"\.\d+\.", name)[0].split("."))  # what holds the layers
    layer = _LAYER.search(name)
    if layer is not None and int(layer[1]) in drafts:
        return _DRAFTS
    return next((what for what, parts in _EXTRAS.items() if not above.isdisjoint(parts)), None)


def _kin(name: str) -> str:
    """The name without the leading parts that differ between two ways to save one model."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _NEUTRAL:
        parts = parts[1:]
    return ".".join(parts)


def _shared_prefix(names: Collection[str]) -> str | None:
    """The first part of all names where what transformers has stands behind it."""
    firsts = {name.partition(".")[0] for name in names}
    if len(firsts) != 1 or len(names) < 2:
        return None
    (first,) = firsts
    behind = {name.split(".")[1] if "." in name else "" for name in names}
    tops = _TOPS_OF_MODEL if first == "model" else _TOPS
    return f"{first}." if behind <= tops and behind & (tops - {"score"}) else None
