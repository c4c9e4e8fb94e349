"""The page that sets the paper's claims beside what the tiny world shows."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from studies.paper.claims import CLAIMS, Claim
from studies.paper.quantities import Untested

from effopd.errors import RecordError
from effopd.records import Row, write_text_atomic

Verdict = Literal["reproduced", "direction", "not", "opposite", "untested"]

Measurements = Mapping[str, Sequence[Row]]
"""Name of a measurement -> its records, one a seed."""

SCHEMA = 2
"""Of measurements; raised whenever their fields change."""

_SHOWN: dict[Verdict, str] = {
    "reproduced": "reproduced",
    "direction": "direction reproduced, size not",
    "not": "not reproduced",
    "opposite": "**opposite**",
    "untested": "not tested",
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


def verdict(found: Interval, neutral: float = 0.0, size: float | None = None) -> Verdict:
    """What the whole interval says of the claim that the quantity is above `neutral`.

    With the paper's `size`, an interval that lies wholly below it has the direction alone.
    """
    if found.low > neutral:
        return "direction" if size is not None and found.high < size else "reproduced"
    return "opposite" if found.high < neutral else "not"


def load_measurements(directory: Path) -> Measurements:
    """Every `measurements/NAME/seed-S.json` of a reproduction, seeds in order."""
    found: dict[str, list[Row]] = {}
    files = sorted((directory / "measurements").glob("*/seed-*.json"), key=_order)
    for file in files:
        try:
            row = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise RecordError(f"{file} is damaged ({error}): delete it and measure again") from None
        if row.get("schema") != SCHEMA:
            raise RecordError(
                f"{file} has schema {row.get('schema')}, this version reads {SCHEMA}: delete the "
                "directory of measurements, or choose another --out"
            )
        found.setdefault(file.parent.name, []).append(row)
    if not found:
        raise RecordError(f"{directory} holds no measurements: run `make reproduce` first")
    return found


def _order(file: Path) -> tuple[str, int]:
    return file.parent.name, int(file.stem.removeprefix("seed-"))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with its verdict, its interval over seeds and its mean on each base.

    `reason` says why nothing was tested; there is no interval then.
    """

    claim: Claim
    verdict: Verdict
    interval: Interval | None = None
    by_base: tuple[float, ...] = ()
    reason: str = ""

    @property
    def seeds_to_settle(self) -> int | None:
        """Seeds with which an interval of this spread and mean would not hold the neutral value."""
        found = self.interval
        if self.verdict != "not" or found is None or found.n < 2:
            return None
        distance = abs(found.mean - self.claim.neutral)
        deviation = (found.high - found.mean) * math.sqrt(found.n) / _T_975[found.n - 2]
        return None if distance == 0 else max(3, math.ceil((2 * deviation / distance) ** 2) + 1)


def judge(claim: Claim, measurements: Measurements) -> Judged:
    """The verdict over seeds; none where in one of them the thing under test did not happen."""
    records = measurements.get(claim.measurement)
    if not records:
        return Judged(claim=claim, verdict="untested", reason="not measured in this study")
    values: list[float] = []
    by_base: dict[int, list[float]] = {}
    reasons: list[str] = []
    for record in records:
        number = claim.statistic(record)
        if isinstance(number, Untested):
            reasons.append(number.reason)
            continue
        values.append(number)
        by_base.setdefault(record.get("base_model", 0), []).append(number)
    if reasons:
        reason = f"{len(reasons)} of {len(records)} seeds: {reasons[0]}"
        return Judged(claim=claim, verdict="untested", reason=reason)
    found = interval(values)
    means = tuple(math.fsum(each) / len(each) for _, each in sorted(by_base.items()))
    decided = verdict(found, claim.neutral, claim.size)
    return Judged(claim=claim, verdict=decided, interval=found, by_base=means)


def write_reproduction(
    measurements: Measurements,
    page: Path,
    *,
    setup: str,
    figures: Sequence[tuple[Path, str]],
    claims: Iterable[Claim] = CLAIMS,
) -> dict[Verdict, int]:
    """Writes the page in Markdown; counts the verdicts, other readings of a claim left out."""
    judged = [judge(claim, measurements) for claim in claims]
    counts: dict[Verdict, int] = dict.fromkeys(_SHOWN, 0)
    for each in judged:
        counts[each.verdict] += not each.claim.second
    text = "\n".join(
        [
            _METHOD.read_text("utf-8")
            + _HEAD.format(setup=setup, total=sum(counts.values()), **counts),
            "| figure | claim | paper | quantity | claimed | ours | by base | verdict |",
            "|---|---|---|---|---|---|---|---|",
            *map(_row, judged),
            "",
            *_settling(judged),
            _numbers(measurements),
            *(f"![{caption}]({path.relative_to(page.parent)})\n" for path, caption in figures),
            _FOOT,
        ]
    )
    write_text_atomic(page, text)
    return counts


def _row(judged: Judged) -> str:
    claim, found = judged.claim, judged.interval
    digits = 1 if found is not None and abs(found.mean) >= 10 else 3
    cells = [
        claim.figure,
        titled(claim),
        claim.paper,
        claim.quantity,
        claimed(claim),
        judged.reason if found is None else found.text(digits),
        ", ".join(f"{mean:.{digits}f}" for mean in judged.by_base),
        _SHOWN[judged.verdict],
    ]
    return table_row(cells)


def titled(claim: Claim) -> str:
    """What is claimed; of another reading it says so."""
    return f"*other reading:* {claim.text}" if claim.second else claim.text


def claimed(claim: Claim) -> str:
    """What its number is held against, with the paper's size where it gives one."""
    size = "" if claim.size is None else f", paper {claim.size:.3g}"
    return f"> {claim.neutral:g}{size}"


def table_row(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _settling(judged: Sequence[Judged]) -> list[str]:
    """The experiment for every claim that is not reproduced."""
    lines = []
    for each in judged:
        if each.claim.second or each.verdict in {"reproduced", "direction"}:
            continue
        seeds = each.seeds_to_settle
        more = f"about {seeds} seeds at this spread; " if seeds else ""
        verdict_ = _SHOWN[each.verdict].strip("*")
        lines.append(
            f"- Figure {each.claim.figure}, {each.claim.text} ({verdict_}): {more}"
            f"{each.claim.settled_by}."
        )
    return ["## What would settle the rest", "", *lines, ""] if lines else []


def _numbers(measurements: Measurements) -> str:
    """The plain values behind the verdicts, means over seeds."""
    lines = ["## Values", "", "Means over seeds.", ""]
    lines += ["| Table 1 | GRPO | GRPO as accurate as OPD | OPD |", "|---|---|---|---|"]
    geometry = measurements["geometry"]
    for name in geometry[0]["opd"]["table1"]:
        values = [_over(geometry, method, "table1", name) for method in ("grpo", "matched", "opd")]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(values) + " |")
    lines += ["", "| accuracy | GRPO | OPD |", "|---|---|---|"]
    for title, name, keys in _ACCURACIES:
        values = [_over(measurements[name], method, *keys) for method in ("grpo", "opd")]
        lines.append(f"| {title} | " + " | ".join(values) + " |")
    methods = measurements.get("methods")
    if not methods:
        return "\n".join([*lines, ""])
    columns = {"steps": "steps to 90%", "seconds": "seconds to 90%"}
    columns |= {"final": "final accuracy", "accepted": "searches that moved"}
    lines += ["", f"| Figures 6 and 7 | {' | '.join(columns.values())} |", "|---|---|---|---|---|"]
    for name in methods[0]["titles"]:
        cells = [_over(methods, name, column) for column in columns]
        lines.append(f"| {methods[0]['titles'][name]} | " + " | ".join(cells) + " |")
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


_METHOD = Path(__file__).with_name("method.md")
"""How runs are trained and claims judged; the page begins with it."""

_HEAD = """## Results

{setup}

Of {total} claims {reproduced} are reproduced, {direction} in direction alone, {not} are not,
{opposite} came out opposite, {untested} were not tested. The numbers come from
`runs/reproduce/measurements/`.
"""

_FOOT = """## What a model of this size can and cannot show

- It shows whether a property follows from the objectives and the optimizer on a task where
  knowledge is present and has to be sharpened. It says nothing about properties that come from
  scale: hundreds of layers and wide matrices, many tasks in one model, text with a long tail.
- Matrices have 48 to 256 columns, so one per cent of the rank is one or two directions: Table 1 is
  compared at 5% too, and an effective rank has little room.
- With six layers a sliding window of half-width one covers half of the model. Windows at the ends
  are cut short, as the paper's are; that alone can bend a curve down at both ends, so whole windows
  are judged beside them.
- The paper's rule ends reinforcement learning before it is saturated here (above). Adam's
  steps are of nearly equal length whatever the gradient, so a norm measures how many steps were
  taken and how consistent they are; a claim about spectra or tails is therefore shown again for the
  checkpoint of reinforcement learning that is as accurate as distillation's last one.
- A teacher that is far better than sampling, but not better than greedy decoding, leaves OPD little
  to learn but to sample what it knows; both bases are right when greedy.
"""
