"""The local theory of a run: what it needs of the run, and what comes of it."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effopd.analysis.quadratic import FrozenLoss, completion_logits
from effopd.analysis.theory import PastRay, Theory, compute_theory
from effopd.errors import ConfigError
from effopd.models.checkpoints import verify_checkpoint
from effopd.models.weights import open_weights
from effopd.objectives import group_advantages
from effopd.progress import SILENT, Display
from effopd.records import (
    SCHEMA,
    Row,
    checkpoint_path,
    checkpoint_step,
    list_checkpoints,
    load_run,
    write_json_atomic,
)
from effopd.reports.table_files import write_table
from effopd.reports.tables import text_table
from effopd.rollouts.engine import derive_seed
from effopd.rollouts.rollout import Rollout, total_tokens
from effopd.search.direction import SinceAccepted, SinceBase, SinceRaw
from effopd.training.build import Parts, build_parts
from effopd.training.config import Config
from effopd.training.run import config_of_run
from effopd.training.state import saved_anchor

RESPONSES = 4
"""Answers to each prompt, compared with each other for the advantages of reinforcement learning."""
PROMPTS = 16
"""Prompts answered at a time."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Text:
    """What the base model wrote, prompt by prompt, and with a verifier one advantage a context."""

    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...] | None


SHOWN = {
    "descent": ("rate", "step", "cosine", "norm_ratio", "loss", "predicted_loss"),
    "checkpoints": (
        "step", "cosine", "cosine_drive", "cosine_sign", "leading_share", "loss", "quadratic_loss",
    ),
    "scales": ("step", "accepted_scale", "theory_scale", "fitted_scale", "least_scale"),
    "estimators": ("estimator", "trace", "effective_rank", "mean_norm"),
}  # fmt: skip
"""Tables and columns of `theory_text`."""


def run_theory(
    run: str | Path,
    out: str | Path | None = None,
    *,
    rank: int = 16,
    contexts: int = 2048,
    steps: int = 32,
    display: Display = SILENT,
) -> Theory:
    """Computes the local theory of a run's base model and holds the run against it.

    Args:
        run: Directory of a run whose objective is a reverse KL to a fixed teacher.
        out: Directory of `theory.json` and `tables/theory_*.csv`; None keeps nothing on disk.
        rank: Leading eigenpairs of the curvature.
        contexts: Contexts of the base model's answers, at least; answers are kept whole.
        steps: Steps of gradient descent to predict.
        display: Receives progress.

    Returns:
        Summary and tables, whose columns docs/theory.md explains.

    Raises:
        ConfigError: A number is below 1, the run is of something else, or it trains adapters.
    """
    for name, value in {"rank": rank, "contexts": contexts, "steps": steps}.items():
        if value < 1:
            raise ConfigError(f"--{name} must be at least 1, got {value}")
    run, say = Path(run), display.say
    config = config_of_run(run)
    check_is_distillation(config)
    if config.student is not None and config.student.lora is not None:
        raise ConfigError("the local theory is that of weights, this run trains adapters")
    # The base model writes the text; then everything is read that the run left.
    with closing(build_parts(config, say)) as parts:
        text = write_text(parts, contexts, say)
    loss = frozen_loss(parts, text)
    checkpoints = read_checkpoints(run, loss)
    rays = read_rays(run, parts, loss, checkpoints, say)
    given: dict[str, Any] = {"rank": rank, "steps": steps, "advantages": text.advantages}
    found = compute_theory(loss, checkpoints, rays, **given, report=say)
    if out is not None:
        for name, rows in found.tables.items():
            write_table(Path(out) / "tables", f"theory_{name}", rows)
        about: Row = {"schema": SCHEMA, "run": str(run)}
        about |= {"label": config.name, "method": config.method_name}
        about["versions"] = {name: version(name) for name in ("effopd", "torch", "transformers")}
        write_json_atomic(Path(out) / "theory.json", about | found.summary)
    return found


def theory_text(found: Theory) -> str:
    """The most important numbers as text; `-` where there is none."""
    summary, values = found.summary, found.summary["eigenvalues"]
    parts = [
        f"{summary['contexts']} contexts, {summary['parameters']} parameters\n"
        f"loss of the base {summary['base_loss_nats']:.4f} nats, of its quadratic "
        f"{summary['quadratic_base_loss_nats']:.4f}\n"
        f"largest eigenvalues {', '.join(f'{value:.3g}' for value in values[:4])}; the leading "
        f"{len(values)} hold {summary['leading_drive_share']:.0%} of b\n"
        f"the loss itself curves from {summary['hessian_smallest']:.3g} to "
        f"{summary['hessian_largest']:.3g}; along b {summary['drive_hessian']:.3g}, its quadratic "
        f"{summary['drive_curvature']:.3g}"
    ]
    estimators = [{"estimator": name} | row for name, row in summary["estimators"].items()]
    tables = {**found.tables, "estimators": estimators}

    def shown(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)

    for name, columns in SHOWN.items():
        if tables[name]:
            cells = [[shown(row[column]) for column in columns] for row in tables[name]]
            parts.append(f"{name}\n{text_table([list(columns), *cells])}")
    return "\n\n".join(parts)


def check_is_distillation(config: Config) -> None:
    """Refuses runs that minimise anything but a reverse KL to a teacher that stays."""
    objective = config.objective
    if objective.needs_rewards:
        what = "reinforcement learning"
    elif config.self_teacher is not None:
        what = "distillation from a teacher that follows the student"
    elif objective.divergence is None:
        what = f"objective.type = {objective.type!r}"
    elif objective.divergence != "reverse":
        what = f"objective.divergence = {objective.divergence!r}"
    else:
        return
    raise ConfigError(
        f"the run is {what}; the local theory is that of the reverse KL to a fixed teacher: give a "
        "run of objective.type 'sampled_token', 'exopd' or 'full_kl'"
    )


def write_text(parts: Parts, contexts: int, say: Say) -> Text:
    """Answers of the base model to training prompts, until there are so many contexts."""
    responses = RESPONSES if parts.verifier is not None else 1
    writer, problems = parts.writer(parts.student), parts.task.train
    rollouts: list[Rollout] = []
    found = start = 0
    while found < contexts and start < len(problems):
        chosen = [p for p in problems[start : start + PROMPTS] for _ in range(responses)]
        seeds = [derive_seed(parts.config.seed, "theory", start, i) for i in range(len(chosen))]
        written = writer.answer(chosen, seeds)
        for group in range(0, len(written), responses):
            if found < contexts:
                answers = written[group : group + responses]
                rollouts += answers
                found += total_tokens(answers)
        start += PROMPTS
        say(f"{found} contexts in {len(rollouts)} answers of the base model")
    if parts.verifier is None:
        return Text(rollouts=tuple(rollouts), advantages=None)
    rewards = parts.verifier.rewards([rollout.answer for rollout in rollouts])
    table_GR = torch.tensor(rewards, dtype=torch.float64).view(-1, RESPONSES)
    each = group_advantages(table_GR, "std").flatten().tolist()
    pairs = zip(each, rollouts, strict=True)
    advantages = tuple(value for value, r in pairs for _ in r.sample.learned_ids)
    return Text(rollouts=tuple(rollouts), advantages=advantages)


def frozen_loss(parts: Parts, text: Text) -> FrozenLoss:
    """The base model's loss on the text, with the target that the run's objective has."""
    assert parts.teachers is not None  # Config checked it
    samples = [rollout.sample for rollout in text.rollouts]
    targets: dict[int, Tensor] = {}
    for name, teacher, indices in parts.teachers.split_local(text.rollouts):
        read = [parts.teachers.sample_for(name, text.rollouts[i]) for i in indices]
        found = completion_logits(teacher, read)
        targets.update(zip(indices, found, strict=True))
    objective = parts.config.objective
    target_logits = [targets[i] / objective.teacher_temperature for i in range(len(samples))]
    if parts.reference is not None:
        share = objective.reward_scale
        own = parts.reference_prompt
        read = samples if own is None else [own.sample(each) for each in text.rollouts]
        reference = completion_logits(parts.reference, read)
        pairs = zip(target_logits, reference, strict=True)
        target_logits = [share * z + (1 - share) * z_ref for z, z_ref in pairs]
    return FrozenLoss(parts.student, samples, target_logits)


def read_checkpoints(run: Path, loss: FrozenLoss) -> dict[int, Tensor]:
    """Step -> displacement from the base, in order of the steps; damaged ones are refused."""
    found = {}
    for directory in reversed(list_checkpoints(run / "checkpoints")):
        verify_checkpoint(directory)
        weights = open_weights(directory)
        tensors = {name: weights.read(name).to(loss.base_P) for name in loss.space.shapes}
        found[checkpoint_step(directory)] = loss.space.flat(tensors) - loss.base_P
    return found


def read_rays(
    run: Path, parts: Parts, loss: FrozenLoss, checkpoints: Mapping[int, Tensor], say: Say
) -> list[PastRay]:
    """The rays of the run's searches, as far as the checkpoints that are left tell them.

    A search on the batch trained on next comes after the checkpoint of its step, which then holds
    the tip; any other comes before it, and the checkpoint holds the accepted point. The anchor is
    what a checkpoint saved since the search before says it is, or the base.
    """
    if not parts.config.searches:
        return []
    direction = parts.config.search.direction
    if not isinstance(direction, SinceAccepted | SinceRaw | SinceBase):
        say(f"searches left out: direction {direction.type!r} is not the displacement of the tip")
        return []
    follows_checkpoint = parts.batch_rollouts is not None
    scales = {
        row["step"] - follows_checkpoint: row["accepted_scale"]
        for row in load_run(run).metrics
        if row["accepted_scale"] is not None
    }
    rays: list[PastRay] = []
    before: int | None = None
    for step, scale in scales.items():
        anchor = _anchor(run, loss, before, step, follows_checkpoint=follows_checkpoint)
        before = step
        if anchor is None or step not in checkpoints or (scale == 0 and not follows_checkpoint):
            continue
        point_P, anchor_P = checkpoints[step], checkpoints[step].clone()
        for name, start in anchor.items():
            anchor_P[loss.space.slices[name]] = start.flatten()
        tip_P = point_P if follows_checkpoint else anchor_P + (point_P - anchor_P) / scale
        rays.append(PastRay(step=step, scale=scale, tip_P=tip_P, anchor_P=anchor_P))
    if len(rays) < len(scales):
        say(
            f"{len(scales) - len(rays)} of {len(scales)} searches left out: their checkpoints are "
            "gone; train with checkpoint.every=1 and a large checkpoint.keep to have all"
        )
    return rays


def _anchor(
    run: Path, loss: FrozenLoss, before: int | None, step: int, *, follows_checkpoint: bool
) -> dict[str, Tensor] | None:
    """Displacement from the base, by name, of where the search of `step` starts; None: unknown.

    `before` is the step of the search before; None for the first one, which starts at the base.
    """
    base = loss.space.tensors(loss.base_P)
    if before is None:
        anchors = map(saved_anchor, list_checkpoints(run / "checkpoints"))
        moved = next((anchor for anchor in anchors if anchor is not None), None)
        return None if moved is None else {name: torch.zeros_like(base[name]) for name in moved}
    for saved in range(before + follows_checkpoint, step + follows_checkpoint):
        anchor = saved_anchor(checkpoint_path(run / "checkpoints", saved))
        if anchor is not None:
            return {n: t.to(loss.base_P) - base[n] for n, t in anchor.items()}
    return None
