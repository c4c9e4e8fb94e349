"""Reinforcement learning on rewards: GRPO, DAPO, Dr. GRPO and PPO as settings of one learner.

Legend: G groups, R responses per group, N completion tokens, D hidden width. The loss of a
mini-batch is `sum_n w_n (i_n s_n + kl_coefficient k_n)` with `w` from `token_weights`, `i` from
`importance_weights`, `s` from `clipped_surrogate` and `k` from `k3_divergence`.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from effopd.errors import CheckpointError, ConfigError
from effopd.evaluation.logprobs import BATCH_SEQUENCES, BATCH_TOKENS, completion_log_probs
from effopd.evaluation.routing import routed_log_probs
from effopd.methods.objective import (
    Batch,
    Contribution,
    Learner,
    Objective,
    Portion,
    Resources,
    Tensors,
    TokenScores,
    gathered,
    policy_log_probs,
    weight_sums,
)
from effopd.models.policy import Policy, Sample, micro_batches
from effopd.objectives import (
    Aggregation,
    GroupScale,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    gae,
    group_advantages,
    importance_weights,
    k3_divergence,
    overlong_penalties,
    token_weights,
    whiten,
)
from effopd.objectives.token_checks import check_choice, check_positive, check_range
from effopd.rollouts.rollout import Rollout

AdvantageKind = Literal["group", "gae"]


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective):
    """Policy gradient on rewards, with or without a teacher's advantage added.

    The defaults are DAPO without what it adds to sampling (dynamic sampling, overlong penalty):
    no reference model, no critic, no refills. `grpo()`, `dapo()`, `dr_grpo()` and `ppo()` are the
    published settings.

    Attributes:
        type: Name of this objective in a configuration.
        advantage: `"group"`, relative to the other responses to the prompt, or `"gae"`, from a
            critic and whitened over the batch.
        group_scale: `"std"` divides group advantages by the group's standard deviation, `"none"`
            does not.
        clip_low: The ratio to the sampling policy counts down to `1 - clip_low`, in (0, 1].
        clip_high: And up to `1 + clip_high`, above 0.
        aggregation: `"token"`, mean over all tokens; `"sequence"`, mean over each response's
            tokens, then over responses; `"constant"`, sum over responses * longest length allowed.
        kl_coefficient: Weight of the divergence from the reference model; 0 turns it off.
        importance_cap: Upper bound of the weight trainer over rollout engine, above 0.
        dynamic_sampling: Whether groups whose rewards are all equal are replaced by new ones.
        max_refills: Extra batches sampled for that in one step, at least 1.
        overlong_buffer: Tokens before the longest length over which the length penalty falls from
            0 to -1; 0 turns it off.
        gae_gamma: Discount of rewards, in [0, 1].
        gae_lambda: Discount of temporal differences, in [0, 1].
        value_clip: How far a value may move from the one at sampling, above 0; large is off.
        critic_lr: Learning rate of the critic.
        critic_warmup_steps: First steps, in which only the critic learns.
        distillation: Weight of the advantage `log q - log p` of a teacher q at every token, added
            to that of the rewards; 0 needs no teacher.
    """

    type: Literal["policy_gradient"] = "policy_gradient"
    advantage: AdvantageKind = "group"
    group_scale: GroupScale = "std"
    clip_low: float = 0.2
    clip_high: float = 0.28
    aggregation: Aggregation = "token"
    kl_coefficient: float = 0.0
    importance_cap: float = 5.0
    dynamic_sampling: bool = False
    max_refills: int = 10
    overlong_buffer: int = 0
    gae_gamma: float = 1.0
    gae_lambda: float = 0.95
    value_clip: float = 0.2
    critic_lr: float = 1e-5
    critic_warmup_steps: int = 0
    distillation: float = 0.0
    needs_rewards = True

    def __post_init__(self) -> None:
        check_choice("advantage", self.advantage, AdvantageKind)
        check_choice("group_scale", self.group_scale, GroupScale)
        check_choice("aggregation", self.aggregation, Aggregation)
        for name in ("clip_low", "clip_high", "importance_cap", "value_clip", "critic_lr"):
            check_positive(name, getattr(self, name))
        check_range("clip_low", self.clip_low, 0.0, 1.0)
        check_range("max_refills", self.max_refills, 1, math.inf)
        for name in ("gae_gamma", "gae_lambda"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        for name in ("kl_coefficient", "distillation", "overlong_buffer", "critic_warmup_steps"):
            check_range(name, getattr(self, name), 0, math.inf)
        for name in ("clip_high", "critic_lr", "kl_coefficient", "distillation"):
            if math.isinf(getattr(self, name)):
                raise ConfigError(f"{name} is infinite; expected a finite number.")
        if self.dynamic_sampling and self.advantage != "group":
            raise ConfigError(
                f"dynamic_sampling with advantage = {self.advantage!r}; only group advantages "
                "vanish where rewards are equal. Turn one of them off."
            )
        if self.critic_warmup_steps and not self.needs_critic:
            raise ConfigError(
                f"critic_warmup_steps = {self.critic_warmup_steps}, but advantage = "
                f"{self.advantage!r} has no critic: set it to 'gae', or the steps to 0"
            )

    @classmethod
    def grpo(cls) -> "PolicyGradient":
        """Group-relative policy optimisation.

        Source: arXiv 2402.03300, equations (3) and (4). The KL coefficient is the 1e-3 of
        arXiv 2501.12948; the first paper's own experiment takes 0.04.
        """
        return cls(clip_high=0.2, aggregation="sequence", kl_coefficient=1e-3)

    @classmethod
    def dapo(cls, longest: int = 20_480) -> "PolicyGradient":
        """Decoupled clip, dynamic sampling, token-level loss, soft overlong punishment, no KL.

        Source: arXiv 2503.14476, section 4.1: the buffer is a fifth of the longest response, 4096
        of 20,480 tokens. The bound on refills is ours: the paper samples until the batch is full.
        """
        return cls(dynamic_sampling=True, overlong_buffer=longest // 5)

    @classmethod
    def dr_grpo(cls) -> "PolicyGradient":
        """GRPO without its biases: no deviation, a constant instead of each length, no KL.

        Source: arXiv 2503.20783.
        """
        return cls(clip_high=0.2, group_scale="none", aggregation="constant")

    @classmethod
    def ppo(cls) -> "PolicyGradient":
        """Proximal policy optimisation with a critic.

        Source: arXiv 1707.06347, clip 0.2 and lambda 0.95. Departures: gamma is 1 instead of 0.99,
        since the reward comes once, at the end; the clipped value loss and the whitening are those
        of the authors' implementation.
        """
        return cls(advantage="gae", clip_high=0.2)

    @property
    def needs_critic(self) -> bool:
        """Whether advantages come from a critic."""
        return self.advantage == "gae"

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model has to score the tokens."""
        return self.kl_coefficient > 0.0

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher has to score the tokens."""
        return self.distillation > 0.0

    @property
    def refills(self) -> int:
        """Portions of prompts a step may add to replace groups of equal rewards."""
        return self.max_refills if self.dynamic_sampling else 0

    def check(self, *, responses: int, longest: int) -> None:
        """See `Objective.check`."""
        if self.advantage == "group" and responses < 2:
            raise ConfigError(
                "objective.advantage = 'group' compares answers to one prompt: set "
                f"train.responses_per_prompt to at least 2, got {responses}"
            )
        if self.overlong_buffer > longest:
            raise ConfigError(
                f"objective.overlong_buffer = {self.overlong_buffer} is more than "
                f"sampling.max_new_tokens = {longest}"
            )

    def learner(self, resources: Resources) -> "PolicyGradientLearner":
        """See `Objective.learner`."""
        return PolicyGradientLearner(self, resources)


class Critic:
    """A copy of the student's body with one output, and its own AdamW.

    The value of token t is read where the policy predicts it, so it depends on the tokens before t
    alone. The new head starts at zero: the first values are 0 everywhere.
    """

    def __init__(self, student: Policy, *, lr: float, clip_norm: float = 1.0) -> None:
        self._policy = Policy(copy.deepcopy(student.model), student.tokenizer)
        self._body = self._policy.model.base_model
        width = student.head_weight_VD.shape[1]
        self._head = nn.Linear(width, 1, device=student.device, dtype=torch.float32)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self._clip_norm = clip_norm
        self._parameters = {
            f"{prefix}.{name}": parameter
            for prefix, module in (("body", self._body), ("head", self._head))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad  # of a student with adapters, those alone
        }
        self.optimizer = torch.optim.AdamW(self._parameters.values(), lr=lr, weight_decay=0.0)
        self.explained_variance: float | None = None
        self._samples: Sequence[Sample] = ()
        self._values: TokenScores = ()
        self._returns: TokenScores = ()

    def values(self, samples: Sequence[Sample]) -> Float[Tensor, " N"]:
        """Values of every completion token, concatenated; with gradient if enabled."""
        hidden_ND = self._policy.states(samples).hidden_ND
        values_N: Tensor = self._head(hidden_ND.to(self._head.weight.dtype))[:, 0]
        return values_N

    @torch.no_grad()
    def all_values(self, samples: Sequence[Sample]) -> Float[Tensor, " N"]:
        """Values of many samples, portion by portion, on the host."""
        lengths = [sample.length for sample in samples]
        parts = micro_batches(lengths, tokens=BATCH_TOKENS, sequences=BATCH_SEQUENCES)
        return torch.cat([self.values([samples[i] for i in part]).cpu() for part in parts])

    def advantages(
        self, samples: Sequence[Sample], rewards_S: Tensor, gamma: float, lam: float
    ) -> Float[Tensor, " N"]:
        """Whitened, from values before the first update; keeps values and returns of the step."""
        lengths = [len(sample.learned_ids) for sample in samples]
        values_N = self.all_values(samples).double()
        rewards_N = torch.zeros_like(values_N)
        rewards_N[torch.tensor(lengths).cumsum(0) - 1] = rewards_S
        advantages_N, returns_N = gae(rewards_N, values_N, lengths, gamma, lam)
        self.explained_variance = explained_variance(returns_N, values_N)
        self._samples = samples
        self._values, self._returns = (
            [part.tolist() for part in each_N.split(lengths)] for each_N in (values_N, returns_N)
        )
        return whiten(advantages_N)

    def losses(self, indices: Sequence[int], clip: float) -> tuple[Tensor, Tensor]:
        """Values and clipped losses [N] of some samples of the step, with gradient."""
        values_N = self.values([self._samples[i] for i in indices])
        known_N, returns_N = (
            gathered(scores, indices, values_N) for scores in (self._values, self._returns)
        )
        return values_N, clipped_value_loss(values_N, known_N, returns_N, clip)

    def update_(self) -> None:
        """One clipped step along the gradients accumulated since the last."""
        nn.utils.clip_grad_norm_(self._parameters.values(), self._clip_norm)
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> Tensors:
        """Weights and optimizer moments by name; references."""
        found = {f"critic/{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"critic-optimizer/{name}/{key}"] = value
        return found

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        self.optimizer.state.clear()
        for name, parameter in self._parameters.items():
            saved = tensors.get(f"critic/{name}")
            if saved is None or saved.shape != parameter.shape:
                raise CheckpointError(f"the saved critic does not fit this model: {name}")
            parameter.copy_(saved)
            prefix = f"critic-optimizer/{name}/"
            for key, value in tensors.items():
                if key.startswith(prefix):
                    entry = key.removeprefix(prefix)
                    placed = value if entry == "step" else value.to(parameter.device)
                    self.optimizer.state[parameter][entry] = placed


class PolicyGradientLearner(Learner):
    """The clipped surrogate of rewards, with what its settings add to it.

    Where a step takes several updates the ratio is against the log-probabilities before the first
    of them, else against the current ones.
    """

    def __init__(self, objective: PolicyGradient, resources: Resources) -> None:
        assert resources.teachers is not None or not objective.needs_teacher
        assert resources.reference is not None or not objective.needs_reference
        self._objective, self._student = objective, resources.student
        self._teachers = resources.teachers if objective.needs_teacher else None
        self._reference = resources.reference if objective.needs_reference else None
        self._longest, self._reuses_rollouts = resources.longest, resources.updates > 1
        self._scoring_tokens = resources.scoring_tokens
        self.critic: Critic | None = None
        if objective.needs_critic:
            self.critic = Critic(resources.student, lr=objective.critic_lr)
        self._rollouts: Sequence[Rollout] = ()
        self._advantages: TokenScores = ()
        self._old: TokenScores = ()
        self._reference_scores: TokenScores = ()
        self._only_critic_learns = False

    def prepare(self, batch: Batch) -> int:
        """See `Learner.prepare`."""
        objective, self._rollouts = self._objective, batch.rollouts
        samples = [r.sample for r in batch.rollouts]
        lengths = [len(s.learned_ids) for s in samples]
        rewards = torch.tensor(batch.rewards, dtype=torch.float64)
        if objective.overlong_buffer:
            whole = [len(s.completion_ids) for s in samples]  # the cap counts every token
            rewards += overlong_penalties(whole, self._longest, objective.overlong_buffer)
        if self.critic is not None:
            self._only_critic_learns = batch.step <= objective.critic_warmup_steps
            gamma, lam = objective.gae_gamma, objective.gae_lambda
            advantages_N = self.critic.advantages(samples, rewards, gamma, lam)
        else:
            shape_GR = rewards.view(-1, batch.responses)
            advantages_GR = group_advantages(shape_GR, objective.group_scale)
            advantages_N = advantages_GR.flatten().repeat_interleave(torch.tensor(lengths))
        self._old = self._log_probs(self._student) if self._reuses_rollouts else ()
        if self._reference is not None:
            self._reference_scores = self._log_probs(self._reference)
        taught = 0
        if self._teachers is not None:  # adds the distillation advantage `log q - log p`
            scores = routed_log_probs(
                self._teachers, batch.rollouts, batch_tokens=self._scoring_tokens
            )
            own = self._old or [r.completion.log_probs for r in batch.rollouts]
            teacher_N, student_N = (
                torch.tensor([value for row in rows for value in row], dtype=torch.float64)
                for rows in (scores, own)
            )
            advantages_N = advantages_N + objective.distillation * (teacher_N - student_N)
            taught = len(teacher_N)
        self._advantages = [part.tolist() for part in advantages_N.split(lengths)]
        return taught

    def _log_probs(self, policy: Policy) -> TokenScores:
        samples = [rollout.sample for rollout in self._rollouts]
        return completion_log_probs(policy, samples, batch_tokens=self._scoring_tokens)

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """See `Learner.contribution`."""
        objective, rollouts = self._objective, [self._rollouts[i] for i in indices]
        log_probs_N = policy_log_probs(self._student, rollouts)
        current_N = log_probs_N.detach()
        old_N = gathered(self._old, indices, current_N) if self._old else current_N
        engine_N = gathered([r.completion.log_probs for r in self._rollouts], indices, current_N)
        advantages_N = gathered(self._advantages, indices, current_N)
        inputs = {"student": current_N, "student before the step": old_N}
        inputs |= {"rollout engine": engine_N, "advantages": advantages_N}
        weights_N = importance_weights(old_N, engine_N, objective.importance_cap)
        surrogate = clipped_surrogate(
            log_probs_N, old_N, advantages_N, objective.clip_low, objective.clip_high
        )
        per_token_N = weights_N * surrogate.loss_N
        sums = weight_sums(weights_N, objective.importance_cap)
        sums["clipped_share"] = surrogate.clipped_N.sum()
        if self._reference is not None:
            reference_N = gathered(self._reference_scores, indices, current_N)
            inputs["reference"] = reference_N
            divergence_N = k3_divergence(log_probs_N, reference_N)
            per_token_N = per_token_N + objective.kl_coefficient * divergence_N
            sums["reference_kl"] = divergence_N.detach().sum()
        shares_N = token_weights(
            [r.completion.sampled_tokens for r in rollouts],
            objective.aggregation,
            longest=self._longest,
            sequences=portion.sequences,
            tokens=portion.tokens,
        ).to(per_token_N)
        loss = (shares_N * per_token_N).sum()
        if self._only_critic_learns:
            loss = loss.detach()  # no gradient, not one of 0: the student stays bit for bit
        if self.critic is not None:
            # A token mean; critic and student share no parameters, so one backward serves both.
            values_N, losses_N = self.critic.losses(indices, objective.value_clip)
            inputs["values"] = values_N.detach()
            value_loss = losses_N.sum() / portion.tokens
            sums["value_loss"] = value_loss.detach().double() * portion.tokens
            loss = loss + value_loss.to(loss.device)
        return Contribution(loss=loss, sums=sums, inputs=inputs)

    def after_update(self) -> None:
        """See `Learner.after_update`."""
        if self.critic is not None:
            self.critic.update_()

    def discard(self) -> None:
        """See `Learner.discard`."""
        if self.critic is not None:
            self.critic.discard()

    def metrics(self) -> Mapping[str, float]:
        """See `Learner.metrics`."""
        found = self.critic.explained_variance if self.critic is not None else None
        return {} if found is None else {"explained_variance": found}

    def state(self) -> Tensors:
        """See `Learner.state`."""
        return self.critic.state() if self.critic is not None else {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Learner.load_state`."""
        if self.critic is not None:
            self.critic.load_state(tensors)
