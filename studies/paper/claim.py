"""What a claim is."""

from collections.abc import Callable
from dataclasses import dataclass

from studies.paper.quantities import Number

from effopd.records import Row

Statistic = Callable[[Row], Number]
"""A record of one seed -> its number, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Attributes:
        figure: Figure, table or section of the paper.
        text: What is claimed.
        paper: The paper's value, as it gives it.
        quantity: What our number is.
        measurement: Name of the records it is computed from.
        statistic: The number of one seed.
        neutral: The claim says the number is above this.
        size: What the number would be with the paper's value; None where it gives none.
        settled_by: The experiment that would settle the claim where this study leaves it open or
            contradicts it.
        second: Whether it is another reading of the claim above it, which is shown and not counted.
    """

    figure: str
    text: str
    paper: str
    quantity: str
    measurement: str
    statistic: Statistic
    neutral: float = 0.0
    size: float | None = None
    settled_by: str
    second: bool = False
