"""`effopd doctor`: what would go wrong in a run, found before it starts."""

import json
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from effopd.cli.doctor_memory import memory
from effopd.cli.doctor_models import devices, models
from effopd.cli.doctor_prompts import problems, sandbox, servers, tokenizers
from effopd.cli.doctor_visit import Finding, Patient
from effopd.cli.stand_in import with_stand_ins
from effopd.comparison.plan import PlannedCell, load_plan
from effopd.errors import EffopdError
from effopd.models.devices import card_of, real_device
from effopd.models.footprint import Gpu, gpu_named
from effopd.records import display_text
from effopd.training.config import Config, load_config, make_config

Check = Callable[[Patient], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (devices, models, tokenizers, sandbox, problems, servers, memory)
"""In the order in which a run would meet what they look at."""


def doctor(
    recipe: Path, overrides: Sequence[str], *, offline: bool, gpu: str | None, as_json: bool
) -> bool:
    """Prints what was found about a recipe or a plan; loads no weights and trains nothing.

    Args:
        recipe: Recipe, or a plan of `effopd compare`.
        overrides: Settings; of a recipe alone.
        offline: Use nothing but this disk.
        gpu: Card that the estimates are held against; "auto" for that of this machine.
        as_json: Print one JSON list.

    Returns:
        Whether nothing stands in the way of the run.
    """
    card = None
    if gpu is not None:
        card = card_of(real_device("auto")) if gpu == "auto" else gpu_named(gpu)
    found = list(examine(recipe, overrides, offline=offline, gpu=card))
    print(json.dumps([asdict(each) for each in found], indent=2) if as_json else page(found))
    return all(finding.level != "problem" for finding in found)


def examine(
    recipe: Path, overrides: Sequence[str], *, offline: bool, gpu: Gpu | None
) -> Iterator[Finding]:
    """The findings, in the order in which a run would meet them."""
    try:
        if _is_plan(recipe):
            yield from _plan(recipe, overrides, offline=offline, gpu=gpu)
            return
        config = with_stand_ins(load_config(recipe, overrides), recipe)
    except EffopdError as error:
        yield Finding(level="problem", check="settings", text=str(error))
        return
    yield Finding(level="ok", check="settings", text=f"{config.name}, {config.train.steps} steps")
    yield from _visited(config, recipe, offline=offline, gpu=gpu)


def page(findings: Sequence[Finding]) -> str:
    """The findings for people: in columns, remedies below, and what it comes to."""
    width = max(len(finding.check) for finding in findings)
    lines, said_before = list[str](), ""
    for each in findings:
        first, *more = display_text(each.text).splitlines() or [""]
        lines.append(f"{each.level:7}  {each.check:{width}}  {first}")
        lines += textwrap.indent("\n".join(more), " " * (width + 11)).splitlines()
        if each.remedy and each.remedy != said_before:  # of phases in a row, the same settings
            lines.append(f"{'':7}  {'':{width}}  -> {display_text(each.remedy)}")
        said_before = each.remedy
    counts = {level: sum(f.level == level for f in findings) for level in ("problem", "warning")}
    said = [f"{n} {level}{'s' * (n > 1)}" for level, n in counts.items() if n]
    if not counts["problem"]:
        said.append("nothing stands in the way of the run")
    return "\n".join([*lines, "", ", ".join(said)])


def _visited(config: Config, recipe: Path, *, offline: bool, gpu: Gpu | None) -> Iterator[Finding]:
    """What the checks find; without a card named, that of this machine if the run takes it."""
    if gpu is None and not offline:
        try:
            gpu = card_of(real_device(config.device))
        except EffopdError:  # no card here: `devices` says so
            gpu = None
    patient = Patient(config=config, recipe=recipe, offline=offline, gpu=gpu)
    said = set[str]()
    for check in CHECKS:
        try:
            for finding in check(patient):
                yield finding
                said.add(finding.text)
        except (EffopdError, OSError) as error:
            # What one check refuses is its finding, once; the others still have their turn.
            if str(error) not in said:
                yield Finding(level="problem", check=check.__name__, text=str(error))
            said.add(str(error))


def _is_plan(recipe: Path) -> bool:
    """Whether a file is a plan of `effopd compare`, as far as it can be read."""
    try:
        raw = tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # `load_config` says what is wrong
    return "methods" in raw and "worlds" in raw


def _plan(
    path: Path, overrides: Sequence[str], *, offline: bool, gpu: Gpu | None
) -> Iterator[Finding]:
    """One run of every method in every world, each finding once."""
    if overrides:
        raise_about = f"{path} is a plan, which takes no overrides: write them into it"
        yield Finding(level="problem", check="settings", text=raise_about)
        return
    cells = load_plan(path).cells()
    configs: dict[str, tuple[PlannedCell, Config]] = {}
    for cell in cells:
        try:
            configs.setdefault(f"{cell.world}/{cell.method}", (cell, make_config(cell.settings)))
        except EffopdError as error:
            yield Finding(level="problem", check=cell.name, text=str(error))
    text = f"a plan of {len(cells)} runs, {len(configs)} methods in their worlds"
    yield Finding(level="ok", check="settings", text=text)
    seen = set[Finding]()
    for _, config in configs.values():
        for finding in _visited(config, path, offline=offline, gpu=gpu):
            if finding not in seen:
                yield finding
            seen.add(finding)
