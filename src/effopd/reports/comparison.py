"""What a page of runs shows, in numbers and words: of a few runs, or of a plan's many.

A few runs are a comparison in one world in which every run is a setting of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from effopd.errors import RecordError
from effopd.records import Run
from effopd.reports.figures import Curves
from effopd.reports.series import plain, unique_labels
from effopd.reports.style import Style, method_styles, rate_styles, run_styles
from effopd.reports.summary import (
    BASELINE,
    CLOSER,
    COSTS,
    PERCENTS,
    Cell,
    SettingRow,
    baseline_of,
    comparison_summary,
    evaluated,
    ratio_columns,
    setting_rows,
    teacher_of,
    unique,
)
from effopd.reports.tables import (
    csv_text,
    escape_markdown,
    format_cost,
    format_lr,
    format_percent,
    format_ratio,
    markdown_table,
)

OURS = ("slope", "effopd")
"""Methods that a page speaks of first."""

BEST = "best"
"""Choice of the learning-rate control that shows each method at its own best rate."""

METHOD_NOTES = (
    "Numbers are medians over seeds; in brackets are the smallest and the largest seed.",
    "A seed that did not reach a share counts as slower than all that did; “not in 64 steps (2 of "
    "5)” says how many got there.",
    "Tokens and seconds are those at the first evaluation that reached the share, validation "
    "included. Steps are known to the grid of evaluations.",
    "Area is the mean accuracy from step 0 to the last step of the longest run of the world, by "
    "the trapezoidal rule; a run that ended earlier stays at its last accuracy.",
    "The best learning rate of a method is the one with the smallest median of steps to 90% of "
    "the teacher; ties go to fewer sampled tokens, then to the larger area. Every other column is "
    "that of the same rate.",
)
"""What a reader of the tables must know."""

_COST_NAMES = {
    "tokens": "sampled tokens", "teacher_tokens": "teacher tokens", "passes": "student passes",
    "seconds": "seconds", "cpu": "CPU seconds",
}  # fmt: skip
_THING = {"steps": "steps", "tokens": "sampled tokens", "seconds": "time"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs of a page in the order of the plan, at least one.

    Of a plan, cells of one setting are its seeds; else every cell is shown for itself, with its
    searches, samples and settings.
    """

    name: str
    cells: Sequence[Cell]
    command: str = ""  # makes this comparison, page and figures
    notes: Sequence[str] = ()  # how it was made: processes, what is missing
    plan: str = ""  # its text
    is_plan: bool = True

    def __post_init__(self) -> None:
        if not self.cells:
            raise RecordError(
                f"no run of {self.name!r} has finished, so there is nothing to compare: look at "
                "the errors of the runs and start the command again."
            )

    @classmethod
    def of_runs(cls, runs: Sequence[Run], name: str) -> "Comparison":
        """Runs against the same teacher, each for itself."""
        if not runs:
            raise RecordError(
                "a report was asked for, but no runs were given; name a run directory."
            )
        cells: list[Cell] = []
        for label, run in zip(unique_labels(runs), runs, strict=True):
            lr = run.info.get("lr")
            known = lr if isinstance(lr, int | float) else None
            cells.append(Cell(world="", method=label, lr=known, seed=len(cells), run=run))
        return cls(name=name, cells=cells, is_plan=False)

    @classmethod
    def of_settings(cls, seeds: Mapping[str, Sequence[Run]]) -> "Comparison":
        """Seeds by the name of their setting, all in one world."""
        pairs = [(name, run) for name, runs in seeds.items() for run in runs]
        cells = [
            Cell(world="", method=name, lr=None, seed=seed, run=run)
            for seed, (name, run) in enumerate(pairs)
        ]
        return cls(name="figure", cells=cells)

    @property
    def runs(self) -> list[Run]:
        """The runs without their places."""
        return [cell.run for cell in self.cells]

    @cached_property
    def worlds(self) -> list[str]:
        """Names of the worlds; "" for runs that are shown for themselves."""
        return unique(cell.world for cell in self.cells)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        if self.is_plan:
            return comparison_summary(self.cells)
        rows, runs = setting_rows(self.cells), self.runs
        row_of = dict(zip(map(id, runs), rows, strict=True))
        against = [row_of.get(id(baseline_of(run, runs))) for run in runs]
        rows = [row | ratio_columns(row, base) for row, base in zip(rows, against, strict=True)]
        return {"baseline": None, "rows": rows, "best": rows, "robustness": []}

    @cached_property
    def styles(self) -> dict[str, Style]:
        """Method -> how it is drawn."""
        if not self.is_plan:
            return {style.label: style for style in run_styles(self.runs)}
        methods = {cell.method: str(cell.run.info.get("method")) for cell in self.cells}
        styles = method_styles(list(methods), list(methods.values()))
        return dict(zip(methods, styles, strict=True))

    @cached_property
    def rates(self) -> list[float]:
        """Learning rates of the main table; none for runs that are shown for themselves."""
        rows = self.summary["rows"] if self.is_plan else []
        return sorted({row["lr"] for row in rows if row["figure"] is None})

    @property
    def shown_lr(self) -> float | None:
        """The learning rate of figures at one rate: the lower middle one."""
        return self.rates[(len(self.rates) - 1) // 2] if self.rates else None

    def rows(self, world: str, choice: float | str | None = None) -> list[SettingRow]:
        """Rows of the main table of a world: all, at one learning rate, or each at its `BEST`."""
        rows = self.summary["best" if choice == BEST else "rows"]
        main = [row for row in rows if row["world"] == world and row["figure"] is None]
        return [row for row in main if choice in (BEST, None, row["lr"])]

    def seeds(self, row: SettingRow) -> list[Run]:
        """The runs of a row of the summary."""
        wanted = (row["world"], row["method"], row["lr"])
        return [c.run for c in self.cells if (c.world, c.method, c.lr) == wanted]

    def curves(self, rows: Sequence[SettingRow]) -> Curves:
        """One curve per row, in the style of its method."""
        return [(self.styles[row["method"]], self.seeds(row)) for row in rows]

    def sweep_curves(self, world: str) -> Curves:
        """The baseline at every learning rate, from light to dark, and the method of interest."""
        method, base = self.pair
        swept = [row for row in self.rows(world) if row["method"] == base]
        styles = rate_styles([f"{row['method']} {format_lr(row['lr'])}" for row in swept])
        curves = [(style, self.seeds(row)) for style, row in zip(styles, swept, strict=True)]
        for row in self.rows(world, self.shown_lr):
            if row["method"] == method != base:
                look = self.styles[method]
                style = replace(look, label=f"{look.label} {format_lr(row['lr'])}")
                curves.append((style, self.seeds(row)))
        return curves

    @property
    def figures(self) -> list[str]:
        """Names of the figures of variants."""
        return unique(cell.figure for cell in self.cells if cell.figure is not None)

    def variant_rows(self, figure: str, world: str) -> list[SettingRow]:
        """Rows of a figure in a world: the variants, each parent before its first one."""
        rows = [row for row in self.summary["rows"] if row["world"] == world]
        parents = {cell.method: cell.parent for cell in self.cells if cell.figure == figure}
        found: list[SettingRow] = []
        for row in rows:
            if row["figure"] == figure:
                beside = (parents[row["method"]], row["lr"])
                found += [r for r in rows if (r["method"], r["lr"]) == beside and r not in found]
                found.append(row)
        return found

    @cached_property
    def pair(self) -> tuple[str, str | None]:
        """The method of interest and its baseline, None where there is none.

        Of interest is "slope", the default, else "effopd", else the first that is no baseline.
        """
        if self.is_plan:
            base = self.summary["baseline"]
            methods = unique(row["method"] for row in self.summary["best"])
            others = [method for method in methods if method != base]
            first = [method for method in OURS if method in methods]
            return [*first, *others, *methods, ""][0], base
        trained = [(cell.run.info.get("method"), cell) for cell in self.cells]
        ours = [cell for name in OURS for method, cell in trained if method == name]
        others = [cell for method, cell in trained if method != BASELINE]
        cell = [*ours, *others, *self.cells][0]
        baseline = baseline_of(cell.run, self.runs)
        names = [c.method for c in self.cells if c.run is baseline and c is not cell]
        return cell.method, next(iter(names), None)

    def compared(self, world: str, choice: float | str | None) -> tuple[SettingRow | None, ...]:
        """Rows of the method of interest and of its baseline."""
        of = {row["method"]: row for row in self.rows(world, choice)}
        method, base = self.pair
        return of.get(method), (of.get(base) if base is not None and base != method else None)


# Words --------------------------------------------------------------------------------------------


def headline(comparison: Comparison) -> str:
    """One sentence: when the method of interest came close to the teacher, and its baseline did."""
    world, lr = comparison.worlds[0], comparison.shown_lr
    own, base = comparison.compared(world, lr)
    where = "" if own is None or lr is None else f" at learning rate {format_lr(lr)}"
    if own is None:
        own, base = comparison.compared(world, BEST)
        where = " at its best learning rate"
    if own is None:
        return "Nothing was evaluated yet."
    name = plain(own["method"]) if comparison.is_plan else own["method"]
    text = f"In {plain(world)}{where}, {name}" if comparison.is_plan else name
    teacher = own["teacher_accuracy"]
    percent = _percent(own, base)
    at = own[f"median_steps_to_{percent}"]
    theirs = base and base[f"median_steps_to_{percent}"]
    reached = f" reached {percent}% of the teacher at step "
    if at is None and theirs is None:
        if own["median_final_accuracy"] is None:
            return f"{text} has not been evaluated yet."
        final = f"{text} is at an accuracy of {format_percent(own['median_final_accuracy'])}"
        level = "was not evaluated" if teacher is None else f"is at {format_percent(teacher)}"
        return f"{final}; the teacher {level}."
    if base is None:
        tokens = format_cost("tokens", own[f"median_tokens_to_{percent}"])
        return f"{text}{reached}{at:g}, after {tokens} sampled tokens."
    other = plain(base["method"])
    if at is None:
        text = text.removesuffix(name) + other
        return f"{text}{reached}{theirs:g}; {name} did not in {own['steps']:g} steps."
    if theirs is None:
        return f"{text}{reached}{at:g}; {other} did not in {base['steps']:g} steps."
    factors = ", ".join(f"{number} {what}" for number, what in _factors(own, base, percent))
    return f"{text}{reached}{at:g}, {other} at step {theirs:g}{': ' if factors else ''}{factors}."


def highlights(comparison: Comparison) -> list[tuple[str, str]]:
    """Factors over the baseline as (number, what), such as `("6.0×", "fewer steps")`.

    Of a plan, those of steps: in each world at one learning rate, and each at its best.
    """
    if not comparison.is_plan:
        own, base = comparison.compared("", None)
        return [] if own is None or base is None else _factors(own, base, _percent(own, base))
    found = []
    for world in comparison.worlds:
        lr = comparison.shown_lr
        for choice, where in ((lr, f"at {format_lr(lr)}"), (BEST, "each at its best rate")):
            own, base = comparison.compared(world, choice)
            factors = _factors(own, base, 90, ["steps"]) if own and base else []
            found += [(number, f"{what} {where}, {plain(world)}") for number, what in factors]
    return found


def _percent(own: SettingRow, base: SettingRow | None) -> int:
    """The share to speak of: 90%, or 80% if no one got to 90%."""
    rows = [own, base] if base else [own]
    return 90 if any(row["median_steps_to_90"] is not None for row in rows) else 80


def _factors(
    own: SettingRow, base: SettingRow, percent: int, costs: Sequence[str] = tuple(_THING)
) -> list[tuple[str, str]]:
    """`("6.0×", "fewer steps")` and so on, costs that cannot be compared left out."""
    found = []
    for cost in costs:
        ours, theirs = (row[f"median_{cost}_to_{percent}"] for row in (own, base))
        if ours and theirs:
            less, same = ("less", "as much") if cost == "seconds" else ("fewer", "as many")
            factor = max(ours, theirs) / min(ours, theirs)
            word = same if factor < 1.05 else less if theirs > ours else "more"
            found.append((format_ratio(factor), f"{word} {_THING[cost]}"))
    return found


# Cells of tables ----------------------------------------------------------------------------------


def cost_text(row: SettingRow, cost: str, percent: int) -> tuple[str, str]:
    """A median such as `8`, or `not in 64 steps (2 of 5)`; and the ends of several seeds."""
    middle, low, high = (row[f"{key}_{cost}_to_{percent}"] for key in ("median", "low", "high"))
    if middle is not None:
        ends = f"[{format_cost(cost, low)}, {format_cost(cost, high)}]"
        return format_cost(cost, middle), ends if row["seeds"] > 1 else ""
    if row[f"reached_{percent}"] == row["seeds"] or row["teacher_accuracy"] is None:
        return "–", ""  # it got there, but this cost was not recorded
    of = f" ({row[f'reached_{percent}']} of {row['seeds']})" if row["seeds"] > 1 else ""
    return f"not in {row['steps']:g} steps{of}", ""


def share_text(row: SettingRow, name: str) -> tuple[str, str]:
    """Median and interval of a fraction, in percent."""
    middle, low, high = (row[f"{key}_{name}"] for key in ("median", "low", "high"))
    if middle is None:
        return "–", ""
    known = row["seeds"] > 1 and low is not None and high is not None
    return format_percent(middle), f"[{low * 100:.1f}, {high * 100:.1f}]" if known else ""


def robustness_text(row: Mapping[str, Any]) -> str:
    """How many times slower a method is at its worst rate, such as `3.2×` or `at least 8.0×`."""
    if row["ratio_at_least"] is None:
        return "–" if row["lrs_at_90"] else "never at 90%"
    ratio = format_ratio(row["ratio_at_least"])
    return ratio if row["ratio"] is not None else f"at least {ratio}"


def whole_text(row: SettingRow, cost: str, percent: int) -> str:
    """Median, interval and ratio in one cell."""
    if cost != "steps" and row[f"median_{cost}_to_{percent}"] is None:
        return "–"
    ratio = format_ratio(row[f"ratio_{cost}_to_{percent}"])
    return " ".join(filter(None, [*cost_text(row, cost, percent), ratio and f"({ratio})"]))


def final_text(run: Run) -> str:
    """Accuracy of the last evaluation in percent, with its standard error if there is one."""
    last = evaluated(run)[-1:]
    if not last or last[0].accuracy is None:
        return "–"
    error = last[0].accuracy_se
    if error is None:
        return format_percent(last[0].accuracy)
    return f"{last[0].accuracy * 100:.1f} ± {format_percent(error)}"


def summary_table(comparison: Comparison) -> list[list[str]]:
    """Runs, or methods at their best rate, as rows of short plain text, header first."""
    names = ["world", "method", "learning rate"] if comparison.is_plan else ["run"]
    steps = [f"steps to {percent}%" for percent in PERCENTS]
    rows = [[*names, "final accuracy", *steps, "tokens to 90%", "seconds to 90%"]]
    costs = [*(("steps", percent) for percent in PERCENTS), ("tokens", 90), ("seconds", 90)]
    for row in comparison.summary["best"]:
        names = [plain(row["method"]), final_text(comparison.seeds(row)[0])]
        if comparison.is_plan:
            names = [plain(row["world"]), names[0], format_lr(row["lr"])]
            names.append(share_text(row, "final_accuracy")[0])
        rows.append([*names, *(whole_text(row, cost, percent) for cost, percent in costs)])
    return rows


def csv_table(runs: Sequence[Run]) -> str:
    """One line per run and share of the teacher, numbers in full, ratios over `baseline_of`."""
    comparison = Comparison.of_runs(runs, "")
    final = {f"final_{name}": name for name in ("accuracy", "accuracy_se", "reverse_kl")}
    columns = [column for cost in COSTS for column in (cost, f"{cost}_ratio")]
    lines: list[list[object]] = [
        ["run", "method", "lr", "seed", "percent_of_teacher", *columns, *final]
    ]
    for cell, row in zip(comparison.cells, comparison.summary["rows"], strict=True):
        who = [cell.method, *(cell.run.info.get(key) for key in ("method", "lr", "seed"))]
        last = evaluated(cell.run)[-1:]
        ends = [getattr(last[0], name) if last else None for name in final.values()]
        for share in PERCENTS:
            names = [f"{kind}_{cost}_to_{share}" for cost in COSTS for kind in ("median", "ratio")]
            lines.append([*who, share, *(row[name] for name in names), *ends])
    return csv_text(lines)


def markdown_report(comparison: Comparison) -> str:
    """The whole comparison in Markdown: for each world, every rate, the best rates, robustness."""
    text = f"# {escape_markdown(comparison.name)}\n\n{escape_markdown(headline(comparison))}\n"
    for world in comparison.worlds:
        rows = comparison.rows(world)
        teacher = teacher_of(rows)
        known = "was not evaluated" if teacher is None else (
            f"has an accuracy of {format_percent(teacher)}"
        )  # fmt: skip
        horizon = max((row["horizon"] for row in rows), default=0)
        text += f"\n## {escape_markdown(world)}\n\nThe teacher {known}; the longest run has "
        text += f"{horizon:g} steps.\n"
        for lr in sorted({row["lr"] for row in rows}):
            table = _markdown_rows(comparison.rows(world, lr))
            text += f"\n### At learning rate {format_lr(lr)}\n\n{table}"
        best = comparison.rows(world, BEST)
        text += f"\n### Each at its best learning rate\n\n{_markdown_rows(best)}"
        text += f"\n### What it costs to get there\n\n{_markdown_costs(best)}"
        spreads = [row for row in comparison.summary["robustness"] if row["world"] == world]
        if spreads:
            lines = [["method", "learning rates", "at 90%", "best", "worst / best steps to 90%"]]
            for row in spreads:
                rates, reached = row["lrs"], f"{row['lrs_at_90']} of {len(row['lrs'])}"
                known_rates = [", ".join(map(format_lr, rates)), reached, format_lr(row["best_lr"])]
                lines.append([row["method"], *known_rates, robustness_text(row)])
            text += f"\n### How much the learning rate matters\n\n{markdown_table(lines)}"
        for figure in comparison.figures:
            variants = [r for r in comparison.variant_rows(figure, world) if r["figure"] == figure]
            if variants:
                text += f"\n### {escape_markdown(figure)}\n\n{_markdown_rows(variants)}"
    notes = (*METHOD_NOTES, *comparison.notes)
    return text + "".join(f"\n{escape_markdown(note)}\n" for note in notes)


def _markdown_costs(rows: Sequence[SettingRow]) -> str:
    """Costs to 90% of the teacher's accuracy and of the divergence, tuning left out and counted."""
    header = ["method", "learning rate", "way", "tuning", *_COST_NAMES.values()]
    lines = [header]
    for row in rows:
        for share, way in ((90, "90% accuracy"), (CLOSER, "90% divergence")):
            name = [row["method"], format_lr(row["lr"]), way]
            costs = [format_cost(cost, row[f"median_{cost}_to_{share}"]) for cost in _COST_NAMES]
            lines.append([*name, "free", *costs])
            costs = [format_cost(cost, row.get(f"tuned_{cost}_to_{share}")) for cost in _COST_NAMES]
            lines.append([*name, "counted", *costs])
    return markdown_table(lines)


def _markdown_rows(rows: Sequence[SettingRow]) -> str:
    header = ["method", "learning rate", "seeds", *(f"steps to {p}%" for p in PERCENTS)]
    header += ["tokens to 90%", "teacher tokens to 90%", "seconds to 90%"]
    costs = [("steps", percent) for percent in PERCENTS]
    costs += [(cost, 90) for cost in ("tokens", "teacher_tokens", "seconds")]
    cells = [[*header, "final accuracy", "area"]]
    for row in rows:
        line = [row["method"], format_lr(row["lr"]), str(row["seeds"])]
        line += [whole_text(row, cost, percent) for cost, percent in costs]
        line += [" ".join(share_text(row, name)).strip() for name in ("final_accuracy", "area")]
        cells.append(line)
    return markdown_table(cells)
