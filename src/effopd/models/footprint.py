"""Memory and time of the phases of a training step, estimated from the sizes of the models.

Memory that is decided by the settings (weights, gradients, moments, cache) is counted. Activations
are counted too, by the tensors that a layer keeps for its backward pass; what an allocator wastes
is not. Times assume `COMPUTE_SHARE` of a GPU's peak and `BANDWIDTH_SHARE` of its bandwidth, and
`LAUNCH_S` for a layer that is not part of a CUDA graph: they tell minutes from hours, no more.
"""

import re
from dataclasses import dataclass

from effopd.errors import ConfigError
from effopd.models.shapes import ModelShape

COMPUTE_SHARE = 0.4
BANDWIDTH_SHARE = 0.6
LAUNCH_S = 5e-4
"""Of one layer of one decoded token in transformers, whose kernels are launched one by one."""
CONTEXT_BYTES = 10**9
"""What CUDA and its libraries take of a card before the first tensor."""
TILE_BYTES = 2**28
"""One tile [chunk, vocabulary] of the fused divergence; two are there at a time."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A graphics card.

    Attributes:
        name: For people.
        memory_bytes: Its memory.
        flops: Peak of dense bfloat16 products, operations a second; 0 where not known.
        bandwidth: Of its memory, bytes a second; 0 where not known.
    """

    name: str
    memory_bytes: int
    flops: float = 0.0
    bandwidth: float = 0.0


GPUS = {
    "H20": Gpu(name="H20", memory_bytes=96 * 10**9, flops=148e12, bandwidth=4.0e12),
    "H100": Gpu(name="H100", memory_bytes=80 * 10**9, flops=989e12, bandwidth=3.35e12),
    "H200": Gpu(name="H200", memory_bytes=141 * 10**9, flops=989e12, bandwidth=4.8e12),
    "A100": Gpu(name="A100", memory_bytes=80 * 10**9, flops=312e12, bandwidth=2.0e12),
    "L40S": Gpu(name="L40S", memory_bytes=48 * 10**9, flops=362e12, bandwidth=0.86e12),
    "RTX4090": Gpu(name="RTX4090", memory_bytes=24 * 10**9, flops=165e12, bandwidth=1.0e12),
}
"""Data sheets of the manufacturer, dense figures."""
_FORM = r"(?:[ -]+(?:SXM\d?|PCIe|NVL|HBM\d\w?))*"
_GPU = re.compile(
    r" *(?:NVIDIA +)?(?:GeForce +)?(?P<name>RTX ?\d{4}|[A-Z][A-Z0-9]*)?"
    rf"{_FORM}[ -]*(?:(?P<gb>\d{{1,4}}) ?GB)?{_FORM} *",
    re.I,
)


def gpu_named(text: str) -> Gpu:
    """The card that is meant by "H100", "H100 80GB", "80GB" or a number of bytes.

    Names as drivers give them are understood too: "NVIDIA A100-SXM4-80GB".

    Raises:
        ConfigError: None of these.
    """
    if text.strip().isascii() and text.strip().isdigit() and len(text.strip()) <= 15:
        found = Gpu(name=f"{text.strip()} bytes", memory_bytes=int(text))
    elif (match := _GPU.fullmatch(text)) and (match["name"] or match["gb"]):
        known = GPUS.get((match["name"] or "").upper().replace(" ", ""))
        memory = int(match["gb"]) * 10**9 if match["gb"] else known.memory_bytes if known else 0
        found = Gpu(
            name=text.strip(),
            memory_bytes=memory,
            flops=known.flops if known else 0.0,
            bandwidth=known.bandwidth if known else 0.0,
        )
    else:
        found = Gpu(name=text, memory_bytes=0)
    if found.memory_bytes < 1:
        raise ConfigError(
            f"--gpu must be one of {', '.join(GPUS)}, a name with its memory such as 'H100 80GB', "
            f"a number of bytes, or 'auto' for the card of this machine, got {text!r:.60}"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Bytes on the device and on the host."""

    device: int = 0
    host: int = 0

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(device=self.device + other.device, host=self.host + other.host)


def trained_bytes(
    parameters: int, element_bytes: int, *, masters: bool = False, offload: bool = False
) -> Bytes:
    """Weights, masters, gradients and the two moments of trained parameters.

    Args:
        parameters: How many.
        element_bytes: Of one weight as the model holds it.
        masters: Whether float32 copies are trained.
        offload: Whether copies, gradients and moments are on the host.

    Returns:
        What stays from step to step.
    """
    if not masters:
        return Bytes(device=4 * element_bytes * parameters)
    kept = 16 * parameters
    weights = Bytes(device=element_bytes * parameters)
    return weights + (Bytes(host=kept) if offload else Bytes(device=kept))


def search_bytes(parameters: int, element_bytes: int, *, masters: bool, on_device: bool) -> Bytes:
    """Anchor and tip of the search, in the precision that is trained."""
    kept = 2 * (4 if masters else element_bytes) * parameters
    return Bytes(device=kept) if on_device else Bytes(host=kept)


def cache_bytes(shape: ModelShape, tokens: int, element_bytes: int) -> int:
    """Keys and values of `tokens` tokens, all sequences together."""
    return shape.cached_per_token * tokens * element_bytes


def saved_bytes_per_token(shape: ModelShape, element_bytes: int) -> int:
    """What one layer keeps for its backward pass, for one token.

    Of each norm the input in float32, and what it is before and after its weight; queries, keys and
    values as attention takes them, keys and values repeated for each head where heads share them;
    the attention's output, twice; gate, its activation, up and their product.
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    repeated = 2 * queries if shape.kv_heads < shape.heads else 0
    network = 4 * (shape.width * max(1, shape.experts_used) + shape.shared_width)
    normed = 2 * shape.hidden + (queries + keys if shape.qk_norm else 0)
    kept = 3 * queries + 2 * keys + repeated + network
    return element_bytes * kept + (4 + 2 * element_bytes) * normed


def activation_bytes(
    shape: ModelShape, tokens: int, element_bytes: int, *, checkpointing: bool
) -> int:
    """What the forward pass keeps for the backward pass, without the head.

    Args:
        shape: Of the student.
        tokens: Of one micro-batch, padding included.
        element_bytes: Of one number.
        checkpointing: Whether only the inputs of layers are kept, and one layer is recomputed.

    Returns:
        Bytes.
    """
    layer = saved_bytes_per_token(shape, element_bytes) * tokens
    if not checkpointing:
        return shape.layers * layer
    return layer + shape.layers * shape.hidden * tokens * element_bytes


def gradient_bytes(shape: ModelShape, tokens: int, element_bytes: int) -> int:
    """Gradients of activations while the backward pass of one layer runs.

    Those of gate, its activation, up and their product, and of the layer's input and output.
    """
    network = 4 * (shape.width * max(1, shape.experts_used) + shape.shared_width)
    return (network + 2 * shape.hidden) * tokens * element_bytes


def passing_bytes(shape: ModelShape, tokens: int, element_bytes: int) -> int:
    """What a pass without gradient holds at a time, without weights and head.

    The residual stream, its sum and its norm, two float32 copies within the norm, and the larger
    of attention (queries and keys twice, values) and network (gate, its activation, up, product).
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    network = 4 * (shape.width * max(1, shape.experts_used) + shape.shared_width)
    numbers = 4 * shape.hidden + max(2 * queries + 3 * keys, network)
    return tokens * (numbers * element_bytes + 2 * shape.hidden * 4)


def mask_bytes(tokens: int, longest: int) -> int:
    """The mask of a padded batch of two sequences or more, as booleans and in the precision.

    One sequence alone needs none.
    """
    return 3 * tokens * min(longest, tokens // 2)


def head_gradient_bytes(shape: ModelShape, element_bytes: int) -> int:
    """The head's gradient in float32, rounded, and padded to the rows that no token uses."""
    return (4 + 2 * element_bytes) * shape.vocabulary * shape.hidden


def tile_bytes(shape: ModelShape, tokens: int) -> int:
    """Two tiles of logits, and the gradient of the hidden states, in float32."""
    whole = 4 * tokens * shape.vocabulary
    return 2 * min(whole, TILE_BYTES) + 4 * tokens * shape.hidden


def forward_operations(shape: ModelShape, tokens: int, length: int = 0) -> int:
    """Multiplications and additions of one pass over `tokens` tokens without gradient.

    Args:
        shape: Of the model.
        tokens: Of all sequences together.
        length: Of one sequence, where the attention's own products count: each token looks at
            half of them on average. They are left out with 0.

    Returns:
        `tokens * (2 * active_parameters + length * layers * heads * (key + value width))`.
    """
    value_width = shape.head_width if shape.latent is None else shape.latent.value
    looked_at = length * shape.layers * shape.heads * (shape.head_width + value_width)
    return tokens * (2 * shape.active_parameters + looked_at)


def forward_seconds(shape: ModelShape, tokens: int, gpu: Gpu, length: int = 0) -> float:
    """One pass over `tokens` tokens in sequences of `length`, without gradient."""
    return forward_operations(shape, tokens, length) / (COMPUTE_SHARE * gpu.flops)


def writing_seconds(
    shape: ModelShape,
    sequences: int,
    new_tokens: int,
    width: int,
    element_bytes: int,
    gpu: Gpu,
    *,
    launched: bool = False,
) -> float:
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
