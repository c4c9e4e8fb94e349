"""Refusals that all objectives share: numbers out of range, tensors of one number per token."""

from collections.abc import Sequence

from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not above 0.

    Args:
        name: The setting, for the message.
        value: What was given; NaN is refused too.

    Raises:
        ConfigError: If it is not positive.
    """
    if not value > 0.0:
        raise ConfigError(f"{name} is {value}; expected a positive number.")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a setting outside [low, high].

    Args:
        name: The setting, for the message.
        value: What was given; NaN is refused too.
        low: Least allowed value.
        high: Largest allowed value.

    Raises:
        ConfigError: If it is outside.
    """
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; expected a number from {low} to {high}.")


def check_tokens(**tensors: Tensor) -> None:
    """Refuse tensors that are not one finite number per token, all for the same tokens.

    Args:
        **tensors: What is compared, each of shape [N], by name.

    Raises:
        ParameterMismatchError: If shapes disagree.
        NonFiniteError: If a value is NaN or infinite.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ParameterMismatchError(
            f"shapes {shapes}; expected one number per token, [N] alike. Apply one mask to all."
        )
    for name, tensor in tensors.items():
        check_finite(
            name,
            tensor,
            "An engine that filters tokens (top-p, top-k, min-p) reports -inf for them: sample "
            "with top_p = 1 and top_k off; otherwise look for NaN in that model's logits.",
        )


def check_finite(name: str, values_N: Tensor, remedy: str) -> None:
    """Refuse NaN and infinity.

    Args:
        name: What the values are, for the message.
        values_N: One number per token.
        remedy: What to do about it, as a sentence.

    Raises:
        NonFiniteError: If a value is NaN or infinite.
    """
    finite = values_N.isfinite()
    if not bool(finite.all()):
        token = int((~finite).nonzero()[0])
        raise NonFiniteError(
            f"{name}: token {token} is {values_N[token].item()}, and {int((~finite).sum())} of "
            f"{len(values_N)} tokens are not finite. {remedy}"
        )


def check_lengths(lengths: Sequence[int]) -> None:
    """Refuse lengths that cannot be token counts.

    Args:
        lengths: Tokens of every response.

    Raises:
        ParameterMismatchError: If one is negative.
    """
    if min(lengths, default=0) < 0:
        raise ParameterMismatchError(
            f"lengths are {list(lengths)}; expected token counts, 0 or more for every response."
        )
