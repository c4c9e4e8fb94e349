"""The paper's claims, read from `claims.md`: numbers that records of a study can contradict."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from studies.paper import quantities
from studies.paper.quantities import Number

from effopd.records import Row

_TABLE = Path(__file__).with_name("claims.md")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Attributes:
        figure: Figure, table or section of the paper.
        text: What is claimed.
        paper: The paper's value, as it gives it.
        quantity: What our number is.
        measurement: Name of the records it is computed from.
        statistic: A record of one seed -> its number, or why there is none.
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
    statistic: Callable[[Row], Number]
    neutral: float = 0.0
    size: float | None = None
    settled_by: str
    second: bool = False


def read_claims(text: str) -> tuple[Claim, ...]:
    """The rows of the table, with the experiments listed below it."""
    experiments = dict(re.findall(r"^- (\w+): (.+)$", text, re.MULTILINE))
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    claims: list[Claim] = []
    for line in lines:
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        figure, said, paper, quantity, number, above, size, settled_by = cells
        measurement, function, *arguments = number.replace(":", "", 1).split()
        claims.append(
            Claim(
                figure=figure or claims[-1].figure,
                text=said,
                paper=paper,
                quantity=quantity,
                measurement=measurement,
                statistic=_statistic(function, arguments),
                neutral=float(above),
                size=_size(size),
                settled_by=experiments.get(settled_by, settled_by),
                second=not figure,
            )
        )
    return tuple(claims)


def _statistic(function: str, arguments: list[str]) -> Callable[[Row], Number]:
    computed: Callable[..., Number] = getattr(quantities, function)
    return lambda record: computed(record, *arguments)


def _size(text: str) -> float | None:
    """`0.1`, `log 3`, or nothing."""
    if not text:
        return None
    return math.log(float(text[4:])) if text.startswith("log ") else float(text)


CLAIMS = read_claims(_TABLE.read_text("utf-8"))
"""In the order of the page; another reading of a claim follows it."""
