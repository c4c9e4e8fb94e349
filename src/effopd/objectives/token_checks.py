"""Refusals that all objectives share: numbers out of range, tensors of one number per token."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError


def check_positive(name: str, value: float) -> None:
    """Refuses a setting that is not above 0; NaN too."""
    if not value > 0.0:
        raise ConfigError(f"{name} is {value}; expected a positive number.")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuses a setting outside [low, high]; NaN too."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; expected a number from {low} to {high}.")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuses what is no member of a Literal type."""
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; expected one of {get_args(choices)}.")


def check_shapes(**tensors: Tensor) -> None:
    """Refuses tensors that are not one number per token [N], all for the same tokens."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ParameterMismatchError(
            f"shapes {shapes}; expected one number per token, [N] alike. Apply one mask to all."
        )


def check_lengths(lengths: Sequence[int]) -> None:
    """Refuses lengths that cannot be token counts."""
    if min(lengths, default=0) < 0:
        raise ParameterMismatchError(
            f"lengths are {list(lengths)}; expected token counts, 0 or more for every response."
        )


def check_finite(result: Tensor, **inputs_N: Tensor) -> None:
    """Refuses a result of any shape that is NaN or infinite, and says which of its inputs was.

    The objectives let NaN and infinity through to the loss, since looking at a tensor waits for
    the device. Call this once, on the loss, before the optimizer's step; the inputs, one number per
    token each, are looked at only when it fails.

    Raises:
        NonFiniteError: If a number of the result is NaN or infinite.
    """
    if not bool(result.isfinite().all()):
        raise NonFiniteError(non_finite_cause(inputs_N))


def non_finite_cause(inputs_N: Mapping[str, Tensor]) -> str:
    """Which input of a loss that is not finite was not finite first, and what to do about it."""
    for name, values_N in inputs_N.items():
        broken_N = ~values_N.isfinite()
        if bool(broken_N.any()):
            token = int(broken_N.nonzero()[0])
            return (
                f"{name}: token {token} is {values_N[token].item()}, and {int(broken_N.sum())} of "
                f"{len(values_N)} tokens are not finite. Look for NaN and infinity in that model's "
                "weights and hidden states (a learning rate too high, fp16 overflow, an lm_head "
                "bias that masks tokens). An engine that filters tokens (top-p, top-k, min-p) "
                "reports -inf for them: sample with top_p = 1 and top_k off."
            )
    return (
        "The loss overflows although its inputs are finite: the policy has moved too far from the "
        "one it is compared with. Lower the learning rate, take fewer updates per batch of "
        "responses, or check that both saw the same tokens."
    )
