"""Which settings may be others when a run goes on, and what that changes.

A run that is killed for want of memory has to go on with less of it. So only what changes the run
is refused; everything else is told.
"""

import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from effopd.config.reading import settings_of, to_toml
from effopd.errors import ConfigError
from effopd.training.config import Config, make_config

Effect = Literal["the run", "rounding only", "no number", "what is measured and recorded"]
"""What another value of a setting changes. "the run" is refused; after "rounding only" a run is
no longer bit for bit the uninterrupted one."""

_SETTINGS: Mapping[Effect, str] = {
    "what is measured and recorded": """
        label evaluation.every evaluation.first evaluation.problems evaluation.recorded
        evaluation.teacher evaluation.divergence
    """,
    "the run": """
        method preset seed smoke student teacher teachers.* reference self_teacher task
        alignment code environment prompt teacher_prompt teacher_prompts reference_prompt sampling
        evaluation.metric rollouts.engine objective train.steps train.prompts_per_step
        train.responses_per_prompt train.updates_per_step train.epochs train.horizon
        train.stop optimizer average monitor memory.master_weights search validation
        teacher_server.top_k
    """,
    "rounding only": """
        device teacher_device threads student.attention teacher.attention teachers.*.attention
        reference.attention teacher_server.model teacher_server.url teacher_server.flavor
        teacher_server.concurrency rollouts.server.model rollouts.server.url
        rollouts.server.flavor rollouts.server.concurrency rollouts.vllm.gpu_memory
        rollouts.vllm.eager train.micro_batch_tokens train.micro_batch_sequences train.rollout_batch
        memory.offload_optimizer memory.scoring_tokens memory.generation_tokens
        memory.teacher_states_gb
    """,
    "no number": """
        student.gradient_checkpointing teacher.gradient_checkpointing
        teachers.*.gradient_checkpointing reference.gradient_checkpointing
        teacher_server.api_key_env teacher_server.request_s teacher_server.step_s
        teacher_server.retries teacher_server.backoff_s teacher_server.response_bytes
        teacher_server.tolerance_nats teacher_server.missing_retries
        teacher_server.missing_share
        rollouts.server.api_key_env rollouts.server.request_s rollouts.server.step_s
        rollouts.server.retries rollouts.server.backoff_s rollouts.server.response_bytes
        rollouts.server.tolerance_nats rollouts.server.missing_retries
        rollouts.server.missing_share rollouts.server.top_k code.sandbox.processes
        rollouts.weights_directory rollouts.vllm.sleep rollouts.vllm.tolerance_nats
        train.max_skipped_steps checkpoint.every checkpoint.keep checkpoint.keep_best
        memory.anchor_device memory.teacher_offload memory.teacher_states_device tracking
    """,
}

EFFECTS: Mapping[str, Effect] = {
    name: effect for effect, names in _SETTINGS.items() for name in names.split()
}
"""Setting or section -> what its change changes; the longest name that fits counts. A section in
which some settings may change names each of its settings, so that a new one has to be thought of:
what is not here is refused."""

_PLACES = {"path", "adapter"}
"""Settings that may be spelled in several ways."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How settings differ from those of a run: what changes it, and what else changes what."""

    refused: Sequence[str]
    allowed: Mapping[str, Effect]

    @property
    def told(self) -> list[str]:
        """What is allowed, for people."""
        return [f"{line} (changes {effect})" for line, effect in self.allowed.items()]

    @property
    def of_comparisons(self) -> list[str]:
        """What the runs of a comparison must have in common: all but how they are computed."""
        measured = (n for n, e in self.allowed.items() if e == "what is measured and recorded")
        longer = (name for name in self.allowed if name.startswith("train.steps:"))
        return [*self.refused, *measured, *longer]


def effect_of(setting: str) -> Effect | None:
    """What a change of a setting changes; None if the table has no place for it."""
    parts = setting.split(".")
    if parts[0] == "teachers" and len(parts) > 1:
        parts[1] = "*"
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((EFFECTS[name] for name in names if name in EFFECTS), None)


def changes(old_toml: str, config: Config, *, steps_done: int) -> Changes:
    """Compares the settings of a run with those it is to go on with.

    Settings that its version did not have yet count as their defaults. A ValueError says that the
    old settings are no TOML.
    """
    raw = tomllib.loads(old_toml)
    with suppress(ConfigError):  # a setting that there no longer is: shown as a difference
        raw = tomllib.loads(to_toml(make_config(raw)))
    old, new = settings_of(raw), settings_of(tomllib.loads(to_toml(config)))
    refused: list[str] = []
    allowed: dict[str, Effect] = {}
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after or (name.split(".")[-1] in _PLACES and _same_place(before, after)):
            continue
        line, effect = f"{name}: {before} -> {after}", _effect(name, config, after, steps_done)
        if effect is None or effect == "the run":
            refused.append(line)
        else:
            allowed[line] = effect
    return Changes(refused=refused, allowed=allowed)


def reasons(refused: Sequence[str], config: Config, steps_done: int) -> list[str]:
    """Why settings are refused where their names do not say it, one sentence each."""
    found = []
    if any(line.startswith("train.steps:") for line in refused):
        if config.optimizer.decay != "none":
            found.append(
                f"With optimizer.decay = {config.optimizer.decay!r} the learning rate of every "
                "step depends on train.steps; more steps need a run with decay = 'none', or a new "
                "one that starts from this one's last checkpoint (student.path)."
            )
        elif config.train.steps < steps_done:
            found.append(f"{steps_done} steps are done: train.steps cannot be less.")
    if config.train.stop.reads_evaluations and any(
        line.startswith("evaluation.") for line in refused
    ):
        found.append("train.stop ends this run by its evaluations: they stay as they are.")
    return found


def _effect(name: str, config: Config, after: Any, steps_done: int) -> Effect | None:
    """What the table says, but for settings that depend on others."""
    if name == "train.steps" and config.optimizer.decay == "none":
        return "no number" if isinstance(after, int) and after >= steps_done else "the run"
    if name.startswith("monitor.") and not config.monitor.every:
        return "what is measured and recorded"  # it may be turned off on the way
    decides = name.startswith("evaluation.") and config.train.stop.reads_evaluations
    return "the run" if decides and name != "evaluation.recorded" else effect_of(name)


def _same_place(first: Any, second: Any) -> bool:
    """Whether two paths lead to the same file or directory."""
    if not (isinstance(first, str) and isinstance(second, str)):
        return False
    one, other = (Path(text).expanduser() for text in (first, second))
    return one.exists() and other.exists() and one.samefile(other)
