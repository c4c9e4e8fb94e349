"""The result in one sentence, computed from the records."""

from collections.abc import Sequence

from effopd.records import Run
from effopd.reports.series import teacher_accuracy, unique_labels
from effopd.reports.summary import BASELINE, COSTS, Summary, baseline_of, method_summary
from effopd.reports.tables import format_accuracy, format_cost, format_percent

_THING = {"steps": "steps", "tokens": "sampled tokens", "seconds": "time"}


def headline(runs: Sequence[Run]) -> str:
    """One sentence: when the run of interest came close to the teacher, and its baseline did.

    The run of interest is the first whose method is "effopd", else the first that is not "opd",
    else the first.

    Args:
        runs: Runs against the same teacher, at least one.

    Returns:
        Plain text, such as `effopd reached 90 % of the teacher at step 8, opd at step 48: 6.0×
        fewer steps, 3.2× fewer sampled tokens, 2.4× less time.`
    """
    run, baseline = _compared(runs)
    name_of = dict(zip(map(id, runs), unique_labels(runs), strict=True))
    own, percent = _at_share(run, baseline, runs)
    at = own[f"steps_to_{percent}"]
    if baseline is None:
        if at is None:
            return _end_only(name_of[id(run)], own, runs)
        tokens = format_cost("tokens", own[f"tokens_to_{percent}"])
        return (
            f"{name_of[id(run)]} reached {percent} % of the teacher at step {at:g}, "
            f"after {tokens} sampled tokens."
        )
    theirs = method_summary(baseline, teacher_accuracy(runs))[f"steps_to_{percent}"]
    if at is None and theirs is None:
        return _end_only(name_of[id(run)], own, runs)
    if at is None or theirs is None:
        first, other = (run, baseline) if theirs is None else (baseline, run)
        return (
            f"{name_of[id(first)]} reached {percent} % of the teacher at step "
            f"{at if theirs is None else theirs:g}; {name_of[id(other)]} did not in "
            f"{_last_step(other):g} steps."
        )
    factors = ", ".join(text for _, text in _factors(run, baseline, runs, percent))
    return (
        f"{name_of[id(run)]} reached {percent} % of the teacher at step {at:g}, "
        f"{name_of[id(baseline)]} at step {theirs:g}" + (f": {factors}." if factors else ".")
    )


def highlights(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The factors of the headline as (number, what) pairs, such as `("6.0×", "fewer steps")`.

    Args:
        runs: Runs against the same teacher, at least one.

    Returns:
        Up to three pairs; none where there is no baseline or a share was not reached.
    """
    run, baseline = _compared(runs)
    if baseline is None:
        return []
    _, percent = _at_share(run, baseline, runs)
    return [
        (number, text.removeprefix(f"{number} "))
        for number, text in _factors(run, baseline, runs, percent)
    ]


def _compared(runs: Sequence[Run]) -> tuple[Run, Run | None]:
    """The run of interest and its baseline, None if it has none but itself."""
    others = [run for run in runs if run.info.get("method") != BASELINE]
    ours = [run for run in others if run.info.get("method") == "effopd"]
    run = [*ours, *others, *runs][0]
    baseline = baseline_of(run, runs)
    return run, None if baseline is run else baseline


def _at_share(run: Run, baseline: Run | None, runs: Sequence[Run]) -> tuple[Summary, int]:
    """Summary of `run`, and the share to speak of: 90 %, or 80 % if no one got to 90 %."""
    teacher = teacher_accuracy(runs)
    own = method_summary(run, teacher)
    both = [own] + ([method_summary(baseline, teacher)] if baseline else [])
    return own, 90 if any(summary["steps_to_90"] is not None for summary in both) else 80


def _factors(run: Run, baseline: Run, runs: Sequence[Run], percent: int) -> list[tuple[str, str]]:
    """`("6.0×", "6.0× fewer steps")` and so on, costs that cannot be compared left out."""
    teacher = teacher_accuracy(runs)
    own, theirs = method_summary(run, teacher), method_summary(baseline, teacher)
    found = []
    for cost in COSTS:
        ours, plain = own[f"{cost}_to_{percent}"], theirs[f"{cost}_to_{percent}"]
        if not ours or not plain:
            continue
        less, same = ("less", "as much") if cost == "seconds" else ("fewer", "as many")
        factor = max(ours, plain) / min(ours, plain)
        word = same if factor < 1.05 else less if plain > ours else "more"
        found.append((f"{factor:.1f}×", f"{factor:.1f}× {word} {_THING[cost]}"))
    return found


def _end_only(label: str, own: Summary, runs: Sequence[Run]) -> str:
    teacher = teacher_accuracy(runs)
    final = format_accuracy(own)
    if own["final_accuracy"] is None:
        return f"{label} has not been evaluated yet."
    if teacher is None:
        return f"{label} ended at an accuracy of {final}; the teacher was not evaluated."
    return f"{label} ended at an accuracy of {final}; the teacher is at {format_percent(teacher)}."


def _last_step(run: Run) -> float:
    return max((row.get("step", 0) for row in [*run.metrics, *run.evals]), default=0)
