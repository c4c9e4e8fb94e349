"""Reinforcement learning in the same loop: GRPO, DAPO, Dr. GRPO and PPO as settings of one learner.

Legend: G groups, R responses per group, N completion tokens.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from effopd.errors import ConfigError
from effopd.evaluation.logprobs import BATCH_TOKENS, completion_log_probs
from effopd.evaluation.routing import Teachers, routed_log_probs
from effopd.models.policy import Policy
from effopd.objectives import (
    PolicyGradient,
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
from effopd.rollouts.rollout import Rollout
from effopd.training.batch import Portion
from effopd.training.collect import Batch
from effopd.training.critic import Critic
from effopd.training.learning import (
    Contribution,
    Tensors,
    TokenScores,
    gathered,
    policy_log_probs,
    weight_sums,
)
from effopd.training.settings import TrainSettings


def check_reward_learning(objective: PolicyGradient, train: TrainSettings, longest: int) -> None:
    """Refuses settings of a run that contradict its objective."""
    if objective.advantage == "group" and train.responses_per_prompt < 2:
        raise ConfigError(
            "objective.advantage = 'group' compares answers to one prompt: set "
            f"train.responses_per_prompt to at least 2, got {train.responses_per_prompt}"
        )
    if train.horizon.tokens:
        raise ConfigError(
            "train.horizon cuts answers before they can be rewarded: use it with distillation"
        )
    if objective.overlong_buffer > longest:
        raise ConfigError(
            f"objective.overlong_buffer = {objective.overlong_buffer} is more than "
            f"sampling.max_new_tokens = {longest}"
        )
    if objective.critic_warmup_steps and not objective.needs_critic:
        raise ConfigError(
            f"objective.critic_warmup_steps = {objective.critic_warmup_steps}, but "
            f"objective.advantage = {objective.advantage!r} has no critic: set it to 'gae', or the "
            "steps to 0"
        )


class PolicyGradientLearner:
    """The clipped surrogate of rewards, with what its settings add to it.

    Args:
        objective: Advantages, clipping, aggregation and the rest.
        student: The policy to train.
        longest: Length cap of an answer in tokens.
        reuses_rollouts: Whether a step takes several updates; the ratio is then against the
            log-probabilities before the first of them, else against the current ones.
        teachers: Needed when `objective.distillation` is not 0.
        reference: Needed when `objective.kl_coefficient` is not 0.
        critic: Needed for advantages from a critic.
        scoring_tokens: Padded tokens per forward pass without gradient, at most.

    Raises:
        ConfigError: One that is needed is missing.
    """

    def __init__(
        self,
        objective: PolicyGradient,
        student: Policy,
        *,
        longest: int,
        reuses_rollouts: bool,
        teachers: Teachers | None = None,
        reference: Policy | None = None,
        critic: Critic | None = None,
        scoring_tokens: int = BATCH_TOKENS,
    ) -> None:
        needs = {
            "teachers": (objective.needs_teacher, teachers),
            "a reference": (objective.needs_reference, reference),
            "a critic": (objective.needs_critic, critic),
        }
        for name, (is_needed, given) in needs.items():
            if is_needed and given is None:
                raise ConfigError(f"this policy-gradient objective needs {name}")
        self._objective, self._student, self._longest = objective, student, longest
        self._reuses_rollouts, self._scoring_tokens = reuses_rollouts, scoring_tokens
        self._teachers, self._reference, self._critic = teachers, reference, critic
        self._rollouts: Sequence[Rollout] = ()
        self._advantages: TokenScores = ()
        self._old: TokenScores = ()
        self._reference_scores: TokenScores = ()
        self._values: TokenScores = ()
        self._returns: TokenScores = ()
        self._explained_variance: float | None = None
        self._only_critic_learns = False

    def prepare(self, batch: Batch) -> int:
        """See `Learner.prepare`."""
        self._rollouts = batch.rollouts
        has_critic = self._critic is not None
        self._only_critic_learns = has_critic and batch.step <= self._objective.critic_warmup_steps
        samples = [r.sample for r in batch.rollouts]
        lengths = [len(s.completion_ids) for s in samples]
        rewards = torch.tensor(batch.rewards, dtype=torch.float64)
        if self._objective.overlong_buffer:
            rewards += overlong_penalties(lengths, self._longest, self._objective.overlong_buffer)
        advantages_N = (
            self._critic_advantages(rewards, lengths)
            if self._critic
            else self._group_advantages(rewards, lengths, batch.responses)
        )
        self._old = self._log_probs(self._student) if self._reuses_rollouts else ()
        if self._reference is not None and self._objective.needs_reference:
            self._reference_scores = self._log_probs(self._reference)
        taught = 0
        if self._teachers is not None and self._objective.needs_teacher:
            advantages_N, taught = self._with_teacher(advantages_N)
        self._advantages = _per_rollout(advantages_N, lengths)
        return taught

    def _log_probs(self, policy: Policy) -> TokenScores:
        samples = [rollout.sample for rollout in self._rollouts]
        return completion_log_probs(policy, samples, batch_tokens=self._scoring_tokens)

    def _group_advantages(self, rewards: Tensor, lengths: Sequence[int], responses: int) -> Tensor:
        advantages_GR = group_advantages(rewards.view(-1, responses), self._objective.group_scale)
        return advantages_GR.flatten().repeat_interleave(torch.tensor(lengths))

    def _critic_advantages(self, rewards: Tensor, lengths: Sequence[int]) -> Tensor:
        """Whitened, from values before the first update; keeps values and returns."""
        assert self._critic is not None
        values_N = self._critic.all_values([r.sample for r in self._rollouts]).double()
        rewards_N = torch.zeros_like(values_N)
        rewards_N[torch.tensor(lengths).cumsum(0) - 1] = rewards
        advantages_N, returns_N = gae(
            rewards_N, values_N, lengths, self._objective.gae_gamma, self._objective.gae_lambda
        )
        self._explained_variance = explained_variance(returns_N, values_N)
        self._values = _per_rollout(values_N, lengths)
        self._returns = _per_rollout(returns_N, lengths)
        return whiten(advantages_N)

    def _with_teacher(self, advantages_N: Tensor) -> tuple[Tensor, int]:
        """Adds the distillation advantage `log q - log p` at every token."""
        assert self._teachers is not None
        scores = routed_log_probs(self._teachers, self._rollouts, batch_tokens=self._scoring_tokens)
        teacher_N = torch.tensor([v for row in scores for v in row], dtype=torch.float64)
        own = self._old or [r.completion.log_probs for r in self._rollouts]
        student_N = torch.tensor([v for row in own for v in row], dtype=torch.float64)
        mixed_N = advantages_N + self._objective.distillation * (teacher_N - student_N)
        return mixed_N, len(teacher_N)

    def contribution(self, indices: Sequence[int], portion: Portion) -> Contribution:
        """See `Learner.contribution`."""
        rollouts = [self._rollouts[i] for i in indices]
        log_probs_N = policy_log_probs(self._student, rollouts)
        current_N = log_probs_N.detach()
        old_N = gathered(self._old, indices, current_N) if self._old else current_N
        engine_N = gathered([r.completion.log_probs for r in self._rollouts], indices, current_N)
        advantages_N = gathered(self._advantages, indices, current_N)
        inputs = {"student": current_N, "student before the step": old_N}
        inputs |= {"rollout engine": engine_N, "advantages": advantages_N}
        cap = self._objective.importance_cap
        weights_N = importance_weights(old_N, engine_N, cap)
        surrogate = clipped_surrogate(
            log_probs_N,
            old_N,
            advantages_N,
            self._objective.clip_low,
            self._objective.clip_high,
        )
        per_token_N = weights_N * surrogate.loss_N
        sums = weight_sums(weights_N, cap)
        sums["clipped_share"] = surrogate.clipped_N.sum()
        if self._objective.needs_reference:
            reference_N = gathered(self._reference_scores, indices, current_N)
            inputs["reference"] = reference_N
            divergence_N = k3_divergence(log_probs_N, reference_N)
            per_token_N = per_token_N + self._objective.kl_coefficient * divergence_N
            sums["reference_kl"] = divergence_N.detach().sum()
        shares_N = token_weights(
            [len(r.completion.token_ids) for r in rollouts],
            self._objective.aggregation,
            longest=self._longest,
            sequences=portion.sequences,
            tokens=portion.tokens,
        ).to(per_token_N)
        loss = (shares_N * per_token_N).sum()
        if self._only_critic_learns:
            loss = loss.detach()  # no gradient, not one of 0: the student stays bit for bit
        if self._critic is not None:
            # A token mean; critic and student share no parameters, so one backward serves both.
            values_N = self._critic.values([r.sample for r in rollouts])
            known_N = gathered(self._values, indices, values_N)
            returns_N = gathered(self._returns, indices, values_N)
            inputs["values"] = values_N.detach()
            clip = self._objective.value_clip
            value_loss = clipped_value_loss(values_N, known_N, returns_N, clip).sum()
            value_loss = value_loss / portion.tokens
            sums["value_loss"] = value_loss.detach().double() * portion.tokens
            loss = loss + value_loss.to(loss.device)
        return Contribution(loss=loss, sums=sums, inputs=inputs)

    def after_update(self) -> None:
        """See `Learner.after_update`."""
        if self._critic is not None:
            self._critic.update_()

    def discard(self) -> None:
        """See `Learner.discard`."""
        if self._critic is not None:
            self._critic.discard()

    def metrics(self) -> Mapping[str, float]:
        """See `Learner.metrics`."""
        found = self._explained_variance
        return {} if found is None else {"explained_variance": found}

    def state(self) -> Tensors:
        """See `Learner.state`."""
        return self._critic.state() if self._critic is not None else {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Learner.load_state`."""
        if self._critic is not None:
            self._critic.load_state(tensors)


def _per_rollout(values_N: Tensor, lengths: Sequence[int]) -> list[list[float]]:
    return [part.tolist() for part in values_N.split(list(lengths))]
