"""Sequences in portions that one forward pass can hold."""

from collections.abc import Iterator, Sequence

from effopd.errors import ConfigError


def portions(
    lengths: Sequence[int], *, tokens: int, sequences: int | None = None
) -> Iterator[list[int]]:
    """Indices of consecutive sequences whose padded size stays within the limits.

    A single sequence longer than `tokens` forms a portion of its own; no sequences, no portions.

    Args:
        lengths: Tokens of each sequence, prompt included.
        tokens: Largest padded size of a portion: its longest sequence times their number.
        sequences: Largest number of sequences in a portion; None for no limit.

    Yields:
        The indices of one portion, in order.

    Raises:
        ConfigError: A limit is below 1.
    """
    if tokens < 1 or (sequences is not None and sequences < 1):
        raise ConfigError(
            f"a portion holds at least one token and one sequence, got tokens = {tokens}, "
            f"sequences = {sequences}"
        )
    portion: list[int] = []
    longest = 0
    for i, length in enumerate(lengths):
        padded = max(longest, length) * (len(portion) + 1)
        if portion and (padded > tokens or len(portion) == sequences):
            yield portion
            portion, longest = [], 0
        portion.append(i)
        longest = max(longest, length)
    if portion:
        yield portion
