"""The page that sets the paper's claims beside what the tiny world shows."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studies.paper.claims import CLAIMS, Claim

from effopd.errors import RecordError
from effopd.records import Row, write_text_atomic

Verdict = Literal["reproduced", "not", "opposite"]

Measurements = Mapping[str, Sequence[Row]]
"""Name of a measurement -> its records, one a seed."""

_SHOWN: dict[Verdict, str] = {
    "reproduced": "reproduced",
    "not": "not reproduced",
    "opposite": "**opposite**",
}

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% points of Student's t with 1 to 9 degrees of freedom."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds and its 95% interval by Student's t, infinite with a single seed."""

    mean: float
    low: float
    high: float
    n: int

    def text(self, digits: int = 2) -> str:
        """`0.12 [0.05, 0.19]`; a single seed has no interval."""
        mean = f"{self.mean:.{digits}f}"
        return mean if self.n == 1 else f"{mean} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interval(values: Sequence[float]) -> Interval:
    """The 95% interval of the mean of one value per seed."""
    n = len(values)
    if not 1 <= n <= 1 + len(_T_975) or not all(map(math.isfinite, values)):
        raise RecordError(f"an interval needs 1 to {1 + len(_T_975)} finite values, got {values}")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean=mean, low=-math.inf, high=math.inf, n=1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = _T_975[n - 2] * math.sqrt(variance / n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n)


def verdict(found: Interval, neutral: float = 0.0) -> Verdict:
    """What the whole interval says of the claim that the quantity is above `neutral`."""
    if found.low > neutral:
        return "reproduced"
    return "opposite" if found.high < neutral else "not"


def load_measurements(directory: Path) -> Measurements:
    """Every `measurements/NAME/seed-S.json` of a reproduction, seeds in order."""
    found: dict[str, list[Row]] = {}
    files = sorted((directory / "measurements").glob("*/seed-*.json"), key=_order)
    for file in files:
        try:
            found.setdefault(file.parent.name, []).append(json.loads(file.read_text("utf-8")))
        except ValueError as error:
            raise RecordError(f"{file} is damaged ({error}): delete it and measure again") from None
    if not found:
        raise RecordError(f"{directory} holds no measurements: run `make reproduce` first")
    return found


def _order(file: Path) -> tuple[str, int]:
    return file.parent.name, int(file.stem.removeprefix("seed-"))


def judge(claim: Claim, measurements: Measurements) -> tuple[Interval | None, Verdict]:
    """A claim's number over seeds and the verdict; no interval where a seed has no number."""
    records = measurements.get(claim.measurement)
    if not records:
        raise RecordError(f"figure {claim.figure} needs the measurement {claim.measurement!r}")
    values = [claim.statistic(record) for record in records]
    defined = [value for value in values if value is not None]
    if len(defined) < len(values):
        return None, "not"
    found = interval(defined)
    return found, verdict(found, claim.neutral)


def write_reproduction(
    measurements: Measurements,
    page: Path,
    *,
    setup: str,
    figures: Sequence[tuple[Path, str]],
    claims: Iterable[Claim] = CLAIMS,
) -> dict[Verdict, int]:
    """Writes the page in Markdown."""
    counts: dict[Verdict, int] = {"reproduced": 0, "not": 0, "opposite": 0}
    rows = []
    for claim in claims:
        found, decided = judge(claim, measurements)
        counts[decided] += 1
        rows.append(_row(claim, found, decided))
    text = "\n".join(
        [
            _HEAD.format(setup=setup, total=sum(counts.values()), **counts),
            "| figure | claim | paper | quantity | claimed | ours | verdict |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            _numbers(measurements),
            *(f"![{caption}]({path.relative_to(page.parent)})\n" for path, caption in figures),
            _FOOT,
        ]
    )
    write_text_atomic(page, text)
    return counts


def _row(claim: Claim, found: Interval | None, decided: Verdict) -> str:
    digits = 1 if found is not None and abs(found.mean) >= 10 else 3
    cells = [
        claim.figure,
        claim.text,
        claim.paper,
        claim.quantity,
        f"> {claim.neutral:g}",
        "undefined" if found is None else found.text(digits),
        _SHOWN[decided],
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _numbers(measurements: Measurements) -> str:
    """The plain values behind the verdicts, means over seeds."""
    lines = ["## Values", "", "Means over seeds.", ""]
    lines += ["| Table 1 | GRPO | DAPO | OPD |", "|---|---|---|---|"]
    geometry = measurements["geometry"]
    for name in geometry[0]["opd"]["table1"]:
        values = [_over(geometry, method, "table1", name) for method in ("grpo", "dapo", "opd")]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(values) + " |")
    lines += ["", "| accuracy | GRPO | OPD |", "|---|---|---|"]
    for title, name, keys in _ACCURACIES:
        values = [_over(measurements[name], method, *keys) for method in ("grpo", "opd")]
        lines.append(f"| {title} | " + " | ".join(values) + " |")
    methods = measurements["methods"]
    lines += ["", "| Figures 6 and 7 | steps to 90% | seconds to 90% |", "|---|---|---|"]
    for name in methods[0]["titles"]:
        steps, seconds = (_over(methods, name, cost) for cost in ("steps", "seconds"))
        lines.append(f"| {methods[0]['titles'][name]} | {steps} | {seconds} |")
    return "\n".join([*lines, ""])


_ACCURACIES = (
    ("final checkpoint", "ranks", ("full",)),
    ("top 5% of the rank, same norm", "ranks", ("top", "0.05")),
    ("top 10%", "ranks", ("top", "0.1")),
    ("bottom 50%", "ranks", ("bottom", "0.5")),
    ("with the base's embeddings", "embeddings", ("base_embeddings",)),
    ("early checkpoint", "rescaling", ("early",)),
    ("early checkpoint at the final norms", "rescaling", ("rescaled",)),
)


def _over(records: Sequence[Row], *keys: str) -> str:
    values = []
    for record in records:
        value: Any = record
        for key in keys:
            value = value[key]
        values.append(float(value))
    mean = sum(values) / len(values)
    return f"{mean:.3g}" if abs(mean) < 1000 else f"{mean:.0f}"


_HEAD = """# Reproduction in the tiny world

{setup}

Every claim is a quantity that the claim says is above a value. Its 95% interval over training
seeds (Student's t) decides: wholly above is *reproduced*, wholly below is *opposite*, else *not
reproduced*: the seeds leave it open. Of {total} claims {reproduced} are reproduced, {not} are not,
{opposite} came out opposite. `make reproduce` makes this page; the numbers come from
`runs/reproduce/measurements/`.
"""

_FOOT = """## What a model of this size can and cannot show

- It shows whether a property follows from the objectives and the optimizer on a task where
  knowledge is present and has to be sharpened. It says nothing about properties that come from
  scale: hundreds of layers and wide matrices, many tasks in one model, text with a long tail.
- Matrices have 48 to 256 columns, so one per cent of the rank is one or two directions: Table 1 is
  compared at 5% too, and an effective rank has little room.
- With six layers a sliding window of half-width one covers half of the model. Windows at the ends
  are cut short; the inverted U is judged on whole windows only.
- RL and OPD take equally many updates of equal learning rate and batch size here. Adam's steps are
  of nearly equal length whatever the gradient, so the norm of an update measures how consistent its
  steps are. The paper does not say how many updates its RL runs took.
- All seeds start from one base model: intervals are over training, not over bases or tasks.
- A teacher that is far better than sampling, but not better than greedy decoding, leaves OPD little
  to do in the beginning; the paper's models differ from their teachers in kind.
"""
