"""What an objective is: settings that say what they need, and a learner that makes losses.

Legend: N completion tokens of one micro-batch, rollouts one after the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from effopd.evaluation.grading import Verdicts
from effopd.evaluation.logprobs import BATCH_TOKENS
from effopd.evaluation.routing import OwnPrompt, Teachers
from effopd.models.policy import Policy, Sample
from effopd.objectives import Divergence, token_log_probs
from effopd.rollouts.rollout import Rollout

TokenScores = Sequence[Sequence[float]]
"""One number per completion token, one sequence per rollout."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rollouts of one step: `responses` answers to a prompt stand together.

    There is one reward a rollout, or none at all. `written_tokens`, `reward` (the mean) and
    `verdicts` count groups that were dropped too; `horizon` is where answers were cut on purpose.
    """

    step: int
    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    responses: int
    written_tokens: int
    reward: float | None = None
    refills: int = 0
    horizon: int | None = None
    verdicts: Verdicts | None = None


@dataclass(frozen=True, kw_only=True)
class Portion:
    """Rollouts and completion tokens of a mini-batch, which micro-batches are normalised by."""

    sequences: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one micro-batch adds to an update.

    Attributes:
        loss: Its share of the update's loss; `backward()` adds its share of the gradient.
        sums: Sums over its tokens of what the metrics report per token, by name; left on the device
            until the update is done.
        inputs: What the loss was computed from, [N] each; looked at where it is not finite.
        known: How many tokens a sum is over, where that may be fewer than all.
    """

    loss: Tensor
    sums: Mapping[str, Tensor | float] = field(default_factory=dict)
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    known: Mapping[str, Tensor | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Models and sizes of a run that a learner may use.

    Attributes:
        student: The policy to train.
        teachers: Given where the objective needs a teacher.
        reference: Given where the objective needs one.
        reference_prompt: What the reference reads before an answer; None for the student's prompt.
        longest: Tokens that an answer may have.
        updates: Optimizer updates on the rollouts of a step, all passes over them together.
        epochs: Passes over the rollouts of a step.
        scoring_tokens: Padded tokens per forward pass without gradient, at most.
    """

    student: Policy
    teachers: Teachers | None = None
    reference: Policy | None = None
    reference_prompt: OwnPrompt | None = None
    longest: int = 0
    updates: int = 1
    epochs: int = 1
    scoring_tokens: int = BATCH_TOKENS

    def reference_samples(self, rollouts: Sequence[Rollout]) -> list[Sample]:
        """The answers as the reference reads them."""
        own = self.reference_prompt
        return [each.sample if own is None else own.sample(each) for each in rollouts]


class Learner(ABC):
    """One objective, ready to be applied to a student.

    Attributes:
        has_value: Whether the loss is what is minimised, and not only a means to its gradient.
    """

    has_value: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, batch: Batch) -> int:
        """Scores the step's rollouts; returns the tokens that teachers scored."""

    @abstractmethod
    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """Loss of the rollouts at `indices`, a micro-batch of the mini-batch `portion`."""

    def after_update(self) -> None:  # noqa: B027
        """Called after each optimizer update: whatever else learns takes its step."""

    def release(self) -> None:  # noqa: B027
        """Called after the last update on a batch: drops what was kept for it."""

    def discard(self) -> None:  # noqa: B027
        """Called when an update is given up: drops gradients of whatever else learns."""

    def metrics(self) -> Mapping[str, Any]:
        """More fields of the step's metrics row."""
        return {}

    def state(self) -> Tensors:
        """What must be saved for an exact resume; references, not copies."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Restores `state()`."""


class Objective(ABC):
    """Settings of what a run minimises: a frozen dataclass with the defaults of every field.

    What follows is asked by settings, memory estimates and reports; a class overrides what differs,
    by a class attribute or, where it depends on the settings, a property.
    """

    choices: ClassVar[list[type["Objective"]]] = []
    """All that recipes may name, see `effopd.methods.register`."""

    type: str
    """Name in recipes, `objective.type`."""

    @abstractmethod
    def learner(self, resources: Resources) -> Learner:
        """Applies the objective to a student."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher has to score the tokens."""
        return True

    @property
    def needs_vocabulary(self) -> bool:
        """Whether the teacher's distributions are compared, not its values of given tokens."""
        return False

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model is needed, by default the untrained student."""
        return False

    @property
    def needs_rewards(self) -> bool:
        """Whether answers have to be rewarded."""
        return False

    @property
    def needs_critic(self) -> bool:
        """Whether a copy of the student learns values beside it."""
        return False

    @property
    def refills(self) -> int:
        """Portions of prompts a step may add to replace groups of equal rewards; 0 keeps them."""
        return 0

    @property
    def teacher_temperature(self) -> float:
        """Divides the teacher's logits."""
        return 1.0

    @property
    def divergence(self) -> Divergence | None:
        """The divergence from the target that is minimised; None where it is something else."""
        return None

    @property
    def reward_scale(self) -> float:
        """Share lambda of the teacher's logits in the target, that of the reference is the rest."""
        return 1.0

    def check(self, *, responses: int, longest: int) -> None:  # noqa: B027
        """Refuses, by a ConfigError, answers to a prompt or a length cap that do not fit."""


def policy_log_probs(policy: Policy, rollouts: Sequence[Rollout]) -> Tensor:
    """Log-probability (nats) of every completion token, rollouts concatenated, with gradient."""
    states = policy.states([r.sample for r in rollouts])
    return token_log_probs(
        states.hidden_ND,
        policy.head_weight_VD,
        states.targets_N,
        bias=policy.head_bias_V,
        cap=policy.head_cap,
    ).log_probs_N


def gathered(scores: TokenScores, indices: Sequence[int], like_N: Tensor) -> Tensor:
    """The scores of some rollouts, concatenated, as a tensor like `like_N`."""
    flat = [value for i in indices for value in scores[i]]
    return torch.tensor(flat, dtype=like_N.dtype, device=like_N.device)


def weight_sums(weights_N: Tensor, cap: float) -> Tensors:
    """Sums of the importance weights and of how many were capped."""
    return {
        "importance_mean": weights_N.sum(),
        "importance_capped_share": (weights_N >= cap).sum(),
    }
