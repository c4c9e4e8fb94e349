"""What would go wrong in a run and what it takes, found before it starts."""

import textwrap
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from effopd.comparison.plan import load_plan
from effopd.doctor.checks import CHECKS, Check, CheckedRun, Finding, models
from effopd.doctor.cluster import Cluster, ClusterEstimate, estimate_cluster
from effopd.doctor.memory import duration, gb, memory
from effopd.doctor.phases import Estimate, Phase
from effopd.doctor.smoke import smoke_run
from effopd.errors import ConfigError, EffopdError
from effopd.models.gpus import Gpu, card_of, gpu_named
from effopd.models.loading import real_device
from effopd.records import display_text
from effopd.training.config import Config, load_config, make_config


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found about a run."""

    findings: Sequence[Finding]  # in the order in which a run would meet them
    phases: Sequence[Phase] = ()  # bytes and seconds of a step's phases on one card
    cluster: ClusterEstimate | None = None  # where one was asked for

    @property
    def passes(self) -> bool:
        """Whether nothing stands in the way of the run."""
        return all(finding.level != "problem" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it, in bytes and seconds."""
        return asdict(self)

    def text(self) -> str:
        """The findings for people: in columns, remedies below, and what it comes to."""
        width = max(len(finding.check) for finding in self.findings)
        lines, said_before = list[str](), ""
        for each in self.findings:
            first, *more = display_text(each.text).splitlines() or [""]
            lines.append(f"{each.level:7}  {each.check:{width}}  {first}")
            lines += textwrap.indent("\n".join(more), " " * (width + 11)).splitlines()
            if each.remedy and each.remedy != said_before:  # of phases in a row, the same settings
                lines.append(f"{'':7}  {'':{width}}  -> {display_text(each.remedy)}")
            said_before = each.remedy
        levels = [finding.level for finding in self.findings]
        counts = {level: levels.count(level) for level in ("problem", "warning")}
        said = [f"{n} {level}{'s' * (n > 1)}" for level, n in counts.items() if n]
        said += ["nothing stands in the way of the run"] if self.passes else []
        return "\n".join([*lines, "", ", ".join(said)])


def check(
    config: Config,
    *,
    recipe: Path | None = None,
    offline: bool = False,
    gpu: Gpu | None = None,
    cluster: Cluster | None = None,
) -> Report:
    """Looks for what would go wrong in a run; loads no weights and trains nothing.

    Args:
        config: Settings of the run.
        recipe: Its file; `shapes.json` beside it describes models that are not on this disk.
        offline: Use nothing but this disk.
        gpu: Card that the estimates are held against; without one that of this machine, if the run
            takes it and `offline` is not set.
        cluster: Estimate a run on several cards instead of one.

    Returns:
        The findings and the estimate. What is wrong is a finding, not an error.
    """
    gpu = cluster.gpu if cluster is not None else gpu
    if gpu is None and not offline:
        try:
            gpu = card_of(real_device(config.device))
        except EffopdError:  # no card here: `devices` says so
            gpu = None
    run = CheckedRun(config=config, recipe=recipe, offline=offline, gpu=gpu)
    return _report(run, CHECKS, cluster)


def check_file(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    offline: bool = False,
    gpu: Gpu | None = None,
    cluster: Cluster | None = None,
) -> Report:
    """The report about a recipe, a plan of `effopd compare`, or with `cluster` a model.

    A model is trained as in the paper, with a teacher of its own size.

    Args:
        path: A TOML file; or a model directory, its config.json, or a repository of the Hub.
        overrides: Settings; a plan takes none.
        offline, gpu, cluster: As of `check`.

    Returns:
        The findings; wrong settings are the only one.
    """
    is_model = path.suffix == ".json" or not (path.is_file() or path.suffix == ".toml")
    look = partial(check, recipe=path, offline=offline, gpu=gpu, cluster=cluster)
    try:  # what cannot be read is no plan, and `load_config` says what is wrong
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raw = {}
    try:
        if {"methods", "worlds"} <= raw.keys():
            return Report(findings=list(_plan(path, overrides, look)))
        if is_model and cluster is None:
            raise ConfigError(f"{path} is no recipe; for a model say how many cards: --gpus 8")
        if is_model:
            config = make_config(_paper_run(str(path)), overrides)
        else:
            config = smoke_run(load_config(path, overrides), path)
    except EffopdError as error:
        return Report(findings=[Finding("problem", "settings", str(error))])
    if is_model:
        assert cluster is not None
        run = CheckedRun(config=config, recipe=None, offline=offline, gpu=cluster.gpu)
        report = _report(run, (models,), cluster)
    else:
        report = look(config)
    first = Finding("ok", "settings", f"{config.name}, {config.train.steps} steps")
    return replace(report, findings=[first, *report.findings])


def _paper_run(model: str) -> dict[str, Any]:
    """The numbers of arXiv 2605.11739, appendix D, for a student and a teacher of one size."""
    problems = {"type": "dataset", "verifier": "boxed"}
    return {
        "preset": "paper",
        "student": {"path": model, "gradient_checkpointing": True},
        "teacher": {"path": model, "dtype": "bfloat16"},
        "task": problems | {"train": {"path": "-", "answer_field": "-"}},
        "prompt": {"max_tokens": 2048},
        "sampling": {"max_new_tokens": 16_384},
        "train": {"steps": 40, "prompts_per_step": 1024, "micro_batch_tokens": 18_432},
    }


def named_card(name: str | None) -> Gpu | None:
    """The card of a name, of "auto" that of this machine, else ConfigError; None for None."""
    if name is None:
        return None
    return card_of(real_device("auto")) if name == "auto" else gpu_named(name)


def _report(run: CheckedRun, checks: Sequence[Check], cluster: Cluster | None) -> Report:
    """What the checks find, and the estimate where models are known."""
    findings, estimate = list[Finding](), list[ClusterEstimate]()

    def on_cluster(run: CheckedRun) -> Iterator[Finding]:
        if "student" in run.models and cluster is not None:
            estimate.append(estimate_cluster(run.config, run.shapes, cluster))
            yield from _cluster(run.config, cluster, estimate[0])

    for each in (*checks, memory if cluster is None else on_cluster):
        try:
            for finding in each(run):
                findings.append(finding)
        except (EffopdError, OSError) as error:
            # What one check refuses is its finding, once; the others still have their turn.
            if all(str(error) != finding.text for finding in findings):
                name = "cluster" if each is on_cluster else each.__name__
                findings.append(Finding("problem", name, str(error)))
    known = "student" in run.models and all(each.known_shape for each in run.models.values())
    phases = list[Phase]()
    if known and cluster is None:
        phases = Estimate(
            config=run.config, shapes=run.shapes, gpu=run.gpu, served_width=run.served_width
        ).phases()
    return Report(findings=findings, phases=phases, cluster=estimate[0] if estimate else None)


def _plan(
    path: Path, overrides: Sequence[str], look: Callable[[Config], Report]
) -> Iterator[Finding]:
    """One run of every method in every world, each finding once."""
    if overrides:
        text = f"{path} is a plan, which takes no overrides: write them into it"
        yield Finding("problem", "settings", text)
        return
    cells = load_plan(path).cells()
    configs: dict[str, Config] = {}
    for cell in cells:
        try:
            configs.setdefault(f"{cell.world}/{cell.method}", make_config(cell.settings))
        except EffopdError as error:
            yield Finding("problem", cell.name, str(error))
    text = f"a plan of {len(cells)} runs, {len(configs)} methods in their worlds"
    yield Finding("ok", "settings", text)
    seen = set[Finding]()
    for config in configs.values():
        findings = look(config).findings
        yield from (finding for finding in findings if finding not in seen)
        seen.update(findings)


def _cluster(config: Config, cluster: Cluster, found: ClusterEstimate) -> Iterator[Finding]:
    """The estimate in sentences; a problem where a card has less than a rank takes."""
    gpu, steps = cluster.gpu, config.train.steps
    text = f"{gb(found.device_bytes)} on the device: weights, gradients and moments "
    text += f"{gb(found.weights_bytes)}, teachers {gb(found.teacher_bytes)}, gathered "
    text += f"{gb(found.gathered_bytes)}, activations {gb(found.activation_bytes)}"
    if found.device_bytes <= gpu.memory_bytes:
        yield Finding("ok", "rank", text)
    else:
        text += f"; {gpu.name} has {gb(gpu.memory_bytes)}"
        yield Finding("problem", "rank", text, "more --gpus, or a smaller train.micro_batch_tokens")
    text = f"at most {found.step_s / 3600:.1f} hours a step on {cluster.gpus} x {gpu.name}, "
    text += f"engines of {found.engine_gpus}: writing {duration(found.writing_s)}, scoring "
    text += f"{duration(found.scoring_s)}, update {duration(found.update_s)}"
    yield Finding("ok", "time", text)
    if not found.searches:
        return
    where = "device" if found.search_device_bytes else "host"
    ends = found.search_device_bytes + found.search_host_bytes
    text = f"anchor and tip take {gb(ends)} of a rank's {where}; a search moves nothing over the "
    text += f"network and {gb(found.moved_bytes)} between a GPU and its host"
    yield Finding("ok", "search", text)
    fewest, most = found.evaluations
    text = f"{fewest} to {most} points a search, each {duration(found.trial_s)} "
    text += f"({found.trial_s / found.step_s:.1%} of a step) and {gb(found.scored_bytes)} over the "
    text += f"network; {found.searches} searches add {found.rejected_share:.1%} to "
    text += f"{found.accepted_share:.1%} to {steps} steps"
    yield Finding("ok", "validation", text)
    if found.break_even_steps is None:
        text = f"the searches take longer than {steps} steps: they cannot pay for themselves"
        remedy = "search less often (search.schedule), or score fewer answers (validation.prompts)"
        yield Finding("warning", "break-even", text, remedy)
    else:
        text = f"the search has to save {found.break_even_steps} of {steps} steps"
        yield Finding("ok", "break-even", text)
