"""Bytes and seconds of the parts of a training step, in closed forms of the models' sizes.

Memory that is decided by the settings (weights, gradients, moments, cache) is counted. Activations
are counted by the tensors that a layer keeps for its backward pass; what an allocator wastes is
left out. Times assume `COMPUTE_SHARE` of a GPU's peak and `BANDWIDTH_SHARE` of its bandwidth, and
`LAUNCH_S` for a layer that is no part of a CUDA graph: they tell minutes from hours.
"""

from dataclasses import dataclass

from effopd.doctor.sizes import ModelShape
from effopd.models.gpus import Gpu

COMPUTE_SHARE = 0.4
BANDWIDTH_SHARE = 0.6
LAUNCH_S = 5e-4
"""Of one layer of one decoded token in transformers, whose kernels are launched one by one."""
CONTEXT_BYTES = 10**9
"""What CUDA and its libraries take of a card before the first tensor."""
TILE_BYTES = 2**28
"""One tile [chunk, vocabulary] of the fused divergence; two are there at a time."""


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Bytes on the device and on the host."""

    device: int = 0
    host: int = 0

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(device=self.device + other.device, host=self.host + other.host)


def trained_bytes(
    parameters: int, element_bytes: int, *, masters: bool = False, offload: bool = False,
    kept: int | None = None,
) -> Bytes:  # fmt: skip
    """Weights, gradients and what the optimizer keeps; with `masters` float32 beside weights.

    `kept` are the optimizer's numbers, AdamW's two moments by default.
    """
    kept = 2 * parameters if kept is None else kept
    if not masters:
        return Bytes(device=element_bytes * (2 * parameters + kept))
    kept = 4 * (2 * parameters + kept)
    weights = Bytes(device=element_bytes * parameters)
    return weights + (Bytes(host=kept) if offload else Bytes(device=kept))


def search_bytes(parameters: int, element_bytes: int, *, masters: bool, on_device: bool) -> Bytes:
    """Anchor and tip of the search, in the precision that is trained."""
    kept = 2 * (4 if masters else element_bytes) * parameters
    return Bytes(device=kept) if on_device else Bytes(host=kept)


def cache_bytes(shape: ModelShape, tokens: int, element_bytes: int) -> int:
    """Keys and values of `tokens` tokens, all sequences together."""
    return shape.cached_per_token * tokens * element_bytes


def _network(shape: ModelShape) -> int:
    """Numbers a token of gate, its activation, up and their product."""
    return 4 * (shape.width * max(1, shape.experts_used) + shape.shared_width)


def activation_bytes(
    shape: ModelShape, tokens: int, element_bytes: int, *, checkpointing: bool
) -> int:
    """What the forward pass of a micro-batch keeps for the backward pass, without the head.

    Of each norm the input in float32, and what it is before and after its weight; queries, keys and
    values as attention takes them, keys and values repeated for each head where heads share them;
    the attention's output, twice; the network. With checkpointing the inputs of layers alone are
    kept, and one layer is recomputed.
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    repeated = 2 * queries if shape.kv_heads < shape.heads else 0
    normed = 2 * shape.hidden + (queries + keys if shape.qk_norm else 0)
    kept = 3 * queries + 2 * keys + repeated + _network(shape)
    layer = tokens * (element_bytes * kept + (4 + 2 * element_bytes) * normed)
    if not checkpointing:
        return shape.layers * layer
    return layer + shape.layers * shape.hidden * tokens * element_bytes


def gradient_bytes(shape: ModelShape, tokens: int, element_bytes: int) -> int:
    """Gradients of activations in the backward pass of one layer: network, input and output."""
    return (_network(shape) + 2 * shape.hidden) * tokens * element_bytes


def passing_bytes(shape: ModelShape, tokens: int, element_bytes: int) -> int:
    """What a pass without gradient holds at a time, without weights and head.

    The residual stream, its sum and its norm, two float32 copies within the norm, and the larger
    of attention (queries and keys twice, values) and network.
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    numbers = 4 * shape.hidden + max(2 * queries + 3 * keys, _network(shape))
    return tokens * (numbers * element_bytes + 2 * shape.hidden * 4)


def mask_bytes(tokens: int, longest: int) -> int:
    """The mask of a padded batch of two sequences or more, as booleans and in the precision."""
    return 3 * tokens * min(longest, tokens // 2)


def head_gradient_bytes(shape: ModelShape, element_bytes: int) -> int:
    """The head's gradient in float32, rounded, and padded to the rows that no token uses."""
    return (4 + 2 * element_bytes) * shape.vocabulary * shape.hidden


def tile_bytes(shape: ModelShape, tokens: int) -> int:
    """Two tiles of logits, and the gradient of the hidden states, in float32."""
    whole = 4 * tokens * shape.vocabulary
    return 2 * min(whole, TILE_BYTES) + 4 * tokens * shape.hidden


def forward_operations(shape: ModelShape, tokens: int, length: int = 0) -> int:
    """Multiplications and additions of one pass over `tokens` tokens in sequences of `length`.

    `tokens * (2 * active_parameters + length * layers * heads * (key + value width))`: each token
    attends to half of its sequence on average. Attention is left out where `length` is 0.
    """
    attention = length * shape.layers * shape.heads * (shape.head_width + shape.value_width)
    return tokens * (2 * shape.active_parameters + attention)


def forward_seconds(shape: ModelShape, tokens: int, gpu: Gpu, length: int = 0) -> float:
    """One pass over `tokens` tokens in sequences of `length`, without gradient."""
    return forward_operations(shape, tokens, length) / (COMPUTE_SHARE * gpu.flops)


def writing_seconds(
    shape: ModelShape, sequences: int, new_tokens: int, width: int, element_bytes: int, gpu: Gpu,
    *, launched: bool = False,
) -> float:  # fmt: skip
    """Answers of one length, `width` sequences at a time: weights and cache are read each token.

    Where kernels are launched one by one, a token takes at least `LAUNCH_S` for each layer.
    """
    width = min(width, sequences)
    rounds = -(-sequences // width)
    weights = shape.parameters * element_bytes
    cache = cache_bytes(shape, width * new_tokens // 2, element_bytes)
    reading = (weights + cache) / (BANDWIDTH_SHARE * gpu.bandwidth)
    computing = forward_seconds(shape, width, gpu)
    launching = LAUNCH_S * shape.layers if launched else 0.0
    return rounds * new_tokens * max(reading, computing, launching)
