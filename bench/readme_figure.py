"""The README's figure: steps to 90% of the teacher against the learning rate.

    python bench/readme_figure.py

draws `docs/assets/steps-by-rate.png` from the tables of `docs/search.md`, which `effopd compare` of
`recipes/compare-tiny.toml` and `recipes/compare-slopes.toml` measured.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "search.md", ROOT / "docs" / "assets" / "steps-by-rate.png"
MOST_STEPS = 32
RATES = ("3e-5", "1e-4", "3e-4", "1e-3")
SLOPE_RATES = ("1e-5", "1e-3", "1e-1")
METHODS = {
    "opd": ("vanilla OPD", "#8a8f98"),
    "effopd": ("the search", "#c08a2e"),
    "slope": ("effopd, from this rate", "#2a6fbb"),
}


class Steps(NamedTuple):
    """Steps to 90% over seeds; None is not reached in 32 steps."""

    median: int | None
    low: int | None
    high: int | None


def steps_to_90(page: str) -> dict[tuple[str, str, str], Steps]:
    """(world, method, learning rate) -> steps, from the tables of a page like docs/search.md."""
    found = {}
    for world, table in re.findall(r"^### World `(\w+)`\n(.*?)(?=^#)", page, re.M | re.S):
        for line in table.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == 9 and cells[1] in RATES:
                found[world, cells[0], cells[1]] = _steps(cells[4])
    for world, table in re.findall(r"^### Slopes in `(\w+)`\n(.*?)(?=^#|\Z)", page, re.M | re.S):
        for line in table.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0] == "slope":
                found[world, cells[0], cells[1]] = _steps(cells[2])
    return found


def _steps(cell: str) -> Steps:
    """The steps that a cell such as `5`, `8 (7–8)`, `–` or `32 (28–not reached)` names."""
    median, _, span = cell.partition(" (")
    low, _, high = span.rstrip(")").partition("–")
    values = [int(text) if text.isdecimal() else None for text in (median, low, high)]
    return Steps(*values) if span else Steps(values[0], values[0], values[0])


def draw(steps: dict[tuple[str, str, str], Steps], path: Path) -> None:
    """Draws a panel a world; runs that did not get there stand on the line at the top."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.5), sharey=True, layout="constrained")
    beyond = MOST_STEPS * 1.5
    for panel, world in zip(panels, ("sharpen", "mixed"), strict=True):
        for method, (label, colour) in METHODS.items():
            rows = [
                (float(rate), steps[key])
                for rate in sorted({*RATES, *SLOPE_RATES}, key=float)
                if (key := (world, method, rate)) in steps
            ]
            if not rows:
                continue
            rates = [rate for rate, _ in rows]
            panel.plot(
                rates, [row.median or beyond for _, row in rows], color=colour, label=label,
                linewidth=2, marker="o", markersize=6,
            )  # fmt: skip
            panel.vlines(
                rates, [row.low or beyond for _, row in rows],
                [row.high or beyond for _, row in rows], color=colour, linewidth=5, alpha=0.35,
            )  # fmt: skip
        panel.axhline(beyond, color="0.6", linestyle=":", linewidth=1)
        panel.text(
            1e-1,
            beyond * 0.9,
            f"not in {MOST_STEPS} steps",
            ha="right",
            va="top",
            fontsize=9,
            color="0.4",
        )
        panel.set(xscale="log", yscale="log", title=f"world {world}", xlabel="learning rate")
        panel.set_yticks([2, 4, 8, 16, 32], labels=["2", "4", "8", "16", "32"])
        ticks = ("1e-5", "1e-4", "1e-3", "1e-2", "1e-1")
        panel.set_xticks([float(rate) for rate in ticks], labels=ticks)
        panel.minorticks_off()
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("steps to 90% of the teacher")
    panels[0].legend(fontsize=9, loc="upper right", bbox_to_anchor=(1, 0.9), frameon=False)
    panels[0].set_ylim(1.3, beyond * 1.15)
    figure.savefig(path, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    draw(steps_to_90(PAGE.read_text("utf-8")), PICTURE)
    print(PICTURE.relative_to(ROOT))
