"""What `fully_shard` (FSDP2) puts on one rank, and what a rank receives when tensors are gathered.

Each tensor is cut along its first axis into one part a rank; the first ranks have the largest
parts, which are what is counted. Experts may be distributed over ranks instead of gathered: each of
`expert_ranks` groups of ranks then holds, and gathers, its own experts.

Source: PyTorch's page on `torch.distributed.fsdp.fully_shard`: parameters are chunked on dim-0.
"""

import math

from effopd.models.shape_tensors import ModelShape, TensorShape
from effopd.search.selection import selected_names


def is_expert(tensor: TensorShape) -> bool:
    """Whether the first axis of a tensor counts experts."""
    return ".mlp.experts." in tensor.name


def shard_elements(tensor: TensorShape, ranks: int, expert_ranks: int = 1) -> int:
    """Numbers of one tensor on the rank that holds most of it.

    Args:
        tensor: Name and sizes.
        ranks: Ranks that share it.
        expert_ranks: Ranks that experts are distributed over; divides `ranks`.

    Returns:
        `ceil(rows / ranks)` times the numbers of a row.
    """
    rows, *_ = tensor.sizes
    row = tensor.elements // rows
    if is_expert(tensor):
        return row * math.ceil(math.ceil(rows / expert_ranks) / (ranks // expert_ranks))
    return row * math.ceil(rows / ranks)


def sharded_elements(shape: ModelShape, ranks: int, expert_ranks: int = 1) -> int:
    """Numbers of a whole model on the first rank."""
    return sum(shard_elements(tensor, ranks, expert_ranks) for tensor in shape.tensors())


def moved_tensors(shape: ModelShape, selection: str) -> list[TensorShape]:
    """The tensors that a search moves.

    Args:
        shape: Of the student.
        selection: As `Search.parameters`.

    Returns:
        In the model's order.

    Raises:
        ConfigError: Nothing is selected, or the selection is none.
    """
    tensors = {tensor.name: tensor for tensor in shape.tensors()}
    axes = {name: len(tensor.sizes) for name, tensor in tensors.items()}
    return [tensors[name] for name in selected_names(axes, selection)]


def received_bytes(whole_bytes: int, ranks: int) -> int:
    """What one rank receives when all gather tensors of `whole_bytes`: all but its own part."""
    return whole_bytes * (ranks - 1) // ranks


def gathered_elements(shape: ModelShape, expert_ranks: int = 1) -> tuple[int, int]:
    """Numbers that are whole on a rank while a pass runs.

    `fully_shard` is taken to be applied to each layer and to the rest.

    Returns:
        Those of the rest (embedding, head and last norm), and of the largest layer.
    """
    layers = [
        sum(t.elements // (expert_ranks if is_expert(t) else 1) for t in shape.layer_tensors(i))
        for i in range(shape.layers)
    ]
    inside = sum(t.elements for i in range(shape.layers) for t in shape.layer_tensors(i))
    return shape.parameters - inside, max(layers)
