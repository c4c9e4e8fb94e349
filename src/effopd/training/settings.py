"""Settings of the loop."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from effopd.data.problem import is_path
from effopd.errors import ConfigError
from effopd.evaluation.kept_states import DEFAULT_GB
from effopd.records import quality, reaches
from effopd.training.averages import AverageSettings
from effopd.training.optimizers import OptimizerSettings


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What is kept in which precision and where; see docs/memory.md for the bytes.

    But for `master_weights` nothing here changes what a run computes, only how fast.

    Attributes:
        master_weights: Train float32 copies of a student in bfloat16, which is rounded from them.
        offload_optimizer: Keep masters, gradients and the optimizer's moments on the CPU, where
            the update is then computed; needs `master_weights`.
        anchor_device: Where the search keeps anchor and tip: "cpu", or next to what it moves.
        teacher_offload: Keep the teachers on the CPU except while they score or write.
        teacher_states_gb: Room for the hidden states of a batch's answers under teachers and
            reference, and under the student while a search scores a candidate, in 10^9 bytes. What
            finds no room is computed again whenever it is needed.
        teacher_states_device: Where they are kept: "cpu", or the student's device.
        scoring_tokens: Padded tokens per forward pass without gradient, at most.
        generation_tokens: Prompt and answer tokens, padding included, that are decoded together at
            most; 0 leaves it to `train.rollout_batch`.
    """

    master_weights: bool = False
    offload_optimizer: bool = False
    anchor_device: Literal["cpu", "student"] = "cpu"
    teacher_offload: bool = False
    teacher_states_gb: float = DEFAULT_GB
    teacher_states_device: Literal["cpu", "student"] = "cpu"
    scoring_tokens: int = 32_768
    generation_tokens: int = 0

    def __post_init__(self) -> None:
        if self.offload_optimizer and not self.master_weights:
            raise ConfigError(
                "memory.offload_optimizer keeps the masters on the CPU: set memory.master_weights"
            )
        if not (math.isfinite(self.teacher_states_gb) and self.teacher_states_gb >= 0):
            raise ConfigError(
                "memory.teacher_states_gb must be >= 0 (0 keeps none), got "
                f"{self.teacher_states_gb}"
            )
        if self.scoring_tokens < 1 or self.generation_tokens < 0:
            raise ConfigError(
                "memory needs scoring_tokens >= 1 and generation_tokens >= 0, got "
                f"{self.scoring_tokens} and {self.generation_tokens}"
            )


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """Answers cut short while training: only their first tokens are written and learned from.

    The first tokens of an answer carry most of what a teacher corrects, and the rest is dear.

    Attributes:
        tokens: Tokens written in the first step; 0 writes whole answers.
        growth: Tokens added with each step, up to `sampling.max_new_tokens`.

    Source: fixed and progressive horizons of arXiv 2605.31490 and 2605.27028.
    """

    tokens: int = 0
    growth: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens < 0 or not (math.isfinite(self.growth) and self.growth >= 0):
            raise ConfigError(
                "train.horizon needs tokens >= 0 and growth >= 0, got "
                f"{self.tokens} and {self.growth}"
            )
        if self.growth and not self.tokens:
            raise ConfigError(
                f"train.horizon.growth = {self.growth} needs train.horizon.tokens, the length to "
                "grow from"
            )

    def tokens_at(self, step: int, longest: int) -> int | None:
        """Tokens written in step `step` (1 is the first); None where the length cap rules."""
        tokens = int(self.tokens + self.growth * (step - 1))
        return tokens if self.tokens > 0 and tokens < longest else None


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When a run ends before its last step; looked at after each step and evaluation.

    Attributes:
        patience: Evaluations in a row without a new best accuracy, or `evaluation.metric`; 0 never
            stops for that.
        target: Share of the teacher's accuracy that ends the run once reached; 0 never does.
        reward_patience: Steps in a row without a new best mean reward of the step's answers; 0
            never stops for that.
        reward_window: Steps whose mean counts as the reward of the last of them; small batches need
            several.

    Source: reward_patience 5 is how arXiv 2605.11739, appendix D.2, ends its reinforcement
    learning: the average reward of a batch has not risen for five steps. Its batches have 512
    answers, and it does not mention a window.
    """

    patience: int = 0
    target: float = 0.0
    reward_patience: int = 0
    reward_window: int = 1

    def __post_init__(self) -> None:
        if self.patience < 0 or not (math.isfinite(self.target) and self.target >= 0):
            raise ConfigError(
                f"train.stop needs patience >= 0 and target >= 0, got {self.patience} and "
                f"{self.target}"
            )
        if self.reward_patience < 0 or self.reward_window < 1:
            raise ConfigError(
                "train.stop needs reward_patience >= 0 and reward_window >= 1, got "
                f"{self.reward_patience} and {self.reward_window}"
            )

    @property
    def reads_evaluations(self) -> bool:
        """Whether evaluations can end a run."""
        return self.patience > 0 or self.target > 0

    @property
    def is_active(self) -> bool:
        """Whether the rule can end a run."""
        return self.reads_evaluations or self.reward_patience > 0

    def reason(
        self,
        evaluations: Sequence[Mapping[str, Any]],
        metrics: Sequence[Mapping[str, Any]] = (),
    ) -> str | None:
        """What ends a run after these rows of `evals.jsonl` and `metrics.jsonl`; None to go on."""
        rewards = [r["reward"] for r in metrics if r["reward"] is not None]
        width, waited = self.reward_window, self.reward_patience
        means = [fmean(rewards[i : i + width]) for i in range(len(rewards) - width + 1)]
        if 0 < waited < len(means) and max(means[-waited:]) <= max(means[:-waited]):
            of = f", each the mean of {width} steps" if width > 1 else ""
            return f"no better reward in {waited} steps{of}"
        student, teacher = (
            [r["accuracy"] for r in evaluations if r["model"] == model]
            for model in ("student", "teacher")
        )
        student = [accuracy for accuracy in student if accuracy is not None]
        if student and teacher and self.target and reaches(student[-1], self.target, teacher[0]):
            return f"accuracy {student[-1]:.3f} is {self.target:.0%} of the teacher's"
        judged = [quality(row) for row in evaluations if row["model"] == "student"]
        known = [value for value in judged if value is not None]
        recent = known[-self.patience :] if 0 < self.patience < len(known) else []
        if recent and max(recent) <= max(known[: -self.patience]):
            what = "metric" if "metric" in evaluations[-1] else "accuracy"
            return f"no better {what} in {self.patience} evaluations"
        return None


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How much, in which portions.

    Attributes:
        steps: Batches of rollouts, each followed by `updates_per_step * epochs` optimizer updates.
        prompts_per_step: Prompts a step.
        responses_per_prompt: Answers to each prompt; advantages within a group need several.
        updates_per_step: Mini-batches, one optimizer update each, that the rollouts of a step are
            split into; above 1 they are shuffled.
        epochs: Passes over the rollouts of a step.
        micro_batch_tokens: Prompt and completion tokens (padding included) per forward pass.
        micro_batch_sequences: Answers per forward pass, at most; 0 leaves it to
            `micro_batch_tokens`.
        rollout_batch: Sequences generated together.
        max_skipped_steps: Updates skipped in a row (non-finite loss or gradient) before the run
            stops with an error.
        horizon: Answers cut short while training.
        stop: When to end before the last step.
    """

    steps: int = 64
    prompts_per_step: int = 128
    responses_per_prompt: int = 1
    updates_per_step: int = 1
    epochs: int = 1
    micro_batch_tokens: int = 16384
    micro_batch_sequences: int = 0
    rollout_batch: int = 128
    max_skipped_steps: int = 3
    horizon: Horizon = Horizon()
    stop: StopRule = StopRule()

    def __post_init__(self) -> None:
        for name in (
            "steps", "prompts_per_step", "responses_per_prompt", "updates_per_step", "epochs",
            "micro_batch_tokens", "rollout_batch",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        if self.updates_per_step > self.prompts_per_step * self.responses_per_prompt:
            raise ConfigError(
                f"train.updates_per_step = {self.updates_per_step} is more than a step's "
                f"{self.prompts_per_step * self.responses_per_prompt} answers"
            )
        for name in ("max_skipped_steps", "micro_batch_sequences"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} must be >= 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Held-out evaluation during training.

    Attributes:
        every: Steps between evaluations; 0 evaluates the last step only.
        first: Early steps that are evaluated too.
        problems: Test problems used; 0 turns evaluation off.
        recorded: Rollouts written to `rollouts.jsonl` at each evaluation.
        teacher: Evaluate the teacher once, before the first step.
        divergence: Measure the student's reverse KL to its teachers too; about as much work again
            as writing the answers.
        metric: A function of the answers, `package.module:function`, whose number is recorded and
            takes the place of accuracy in `train.stop.patience` and `checkpoint.keep_best`.
    """

    every: int = 4
    first: tuple[int, ...] = (1, 2)
    problems: int = 256
    recorded: int = 4
    teacher: bool = True
    divergence: bool = True
    metric: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", tuple(self.first))
        if self.metric and not is_path(self.metric):
            raise ConfigError(
                f"evaluation.metric must name a 'package.module:function', got {self.metric!r}"
            )
        for name in ("every", "problems", "recorded"):
            if getattr(self, name) < 0:
                raise ConfigError(f"evaluation.{name} must be >= 0, got {getattr(self, name)}")

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to evaluate after update `step` of `steps`; 0 is the untrained student."""
        periodic = self.every > 0 and step % self.every == 0
        return self.problems > 0 and (step in {0, steps} or periodic or step in self.first)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Checkpoints.

    Attributes:
        every: Steps between checkpoints; the last step and an interrupted one are saved too.
        keep: Newest checkpoints kept.
        keep_best: Save after an evaluation that is the best so far, and keep that checkpoint
            besides the newest. Best is the highest accuracy, or `evaluation.metric`, of equal ones
            the lowest divergence; without a verifier the lowest divergence.
    """

    every: int = 16
    keep: int = 2
    keep_best: bool = False

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise ConfigError(
                f"checkpoint.every and checkpoint.keep must be at least 1, got {self.every} and "
                f"{self.keep}"
            )


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """Watching the direction of training, see docs/monitor.md.

    Attributes:
        every: Steps between observations; 0 turns the monitor off.
        bound: Foresight is lost when cosines of successive displacements exceed what momentum alone
            gives by less than this, on average over the last `patience` observations.
        patience: Observations that the verdict rests on; there is none before so many.
    """

    every: int = 0
    bound: float = 0.0
    patience: int = 3

    def __post_init__(self) -> None:
        if self.every < 0 or self.patience < 1 or not -2 <= self.bound <= 2:
            raise ConfigError(
                "monitor needs every >= 0 (0 is off), patience >= 1 and a bound in [-2, 2], a "
                f"difference of cosines; got {self.every}, {self.patience} and {self.bound}"
            )


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """All settings of the loop; the seed is that of prompts, sampling and validation sets."""

    seed: int = 0
    train: TrainSettings = TrainSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    average: AverageSettings = AverageSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    monitor: MonitorSettings = MonitorSettings()
    memory: MemorySettings = MemorySettings()

    def __post_init__(self) -> None:
        stop, evaluation = self.train.stop, self.evaluation
        if stop.reads_evaluations and evaluation.problems == 0:
            raise ConfigError("train.stop looks at evaluations: set evaluation.problems above 0")
        if self.checkpoint.keep_best and evaluation.problems == 0:
            raise ConfigError(
                "checkpoint.keep_best looks at evaluations: set evaluation.problems above 0"
            )
        if stop.target > 0 and not evaluation.teacher:
            raise ConfigError(
                "train.stop.target is a share of the teacher's accuracy: set evaluation.teacher"
            )
