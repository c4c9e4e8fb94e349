"""Candidates judged on the tip's answers: a search that writes one set of answers.

All log-probabilities are of the trainer's own forward pass, the engine's are not used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from effopd.errors import ConfigError, NonFiniteError, ValidatorError
from effopd.evaluation.drawn_answers import Levels, check_prefix, check_prompts
from effopd.evaluation.importance import (
    TokenValues,
    effective_share,
    mean_k3,
    padded,
    prefix_weights,
    ratio_values,
    weighted_sums,
)
from effopd.evaluation.logprobs import BATCH_TOKENS, completion_log_probs
from effopd.evaluation.routing import Teachers, routed_reverse_kl
from effopd.models.policy import Policy
from effopd.rollouts.engine import Sampling
from effopd.rollouts.rollout import Rollout, total_tokens
from effopd.search.validation import Draw, Score


@dataclass(frozen=True, kw_only=True)
class CachedKLValidation:
    """Minus the reverse KL to the teacher, for candidates estimated on the tip's answers.

    A candidate costs forward passes instead of new answers. The importance weights hold near the
    tip only; beyond the trust bounds a candidate is rejected unseen. On long answers the weights
    degenerate at ever smaller steps: use a `prefix`.

    Attributes:
        source: "fresh" has the tip write answers for the search. "batch" takes those that it has
            written for its next update: the search then comes before that update and writes
            nothing at all.
        prompts: Number of training prompts.
        resample: Draw new prompts for every search instead of one fixed set.
        reduce: "token": sum over all tokens of all answers divided by their number. "sequence":
            sum over the tokens of each answer (the divergence of equation 7), then mean over
            answers.
        prefix: Share of `sampling.max_new_tokens` that answers are written to, in (0, 1].
        levels: Lowest and highest level of the problems to draw from; None for all.
        weights: "importance" estimates what the candidate itself would write. "frozen" keeps the
            contexts of the tip: biased, and of much less variance.
        trust_nats: Largest mean k3 divergence of a candidate from the tip, per token.
        trust_share: Smallest effective share of the answers, in [0, 1]: k3 says how far a token
            is off, this what is left of whole answers. Unused with frozen weights.
    """

    type: Literal["cached_kl"] = "cached_kl"
    source: Literal["fresh", "batch"] = "fresh"
    prompts: int = 50
    resample: bool = True
    reduce: Literal["token", "sequence"] = "token"
    prefix: float = 1.0
    levels: Levels | None = None
    weights: Literal["importance", "frozen"] = "importance"
    trust_nats: float = 0.05
    trust_share: float = 0.3

    def __post_init__(self) -> None:
        check_prompts(self.prompts, self.levels)
        check_prefix(self.prefix)
        if not (math.isfinite(self.trust_nats) and self.trust_nats > 0):
            raise ConfigError(f"trust_nats must be positive, got {self.trust_nats}")
        if not 0 <= self.trust_share <= 1:
            raise ConfigError(f"trust_share must be in [0, 1], got {self.trust_share}")


@dataclass(frozen=True, kw_only=True)
class WeightedKL:
    """The reverse KL of a candidate to its teacher, estimated on another policy's answers.

    Attributes:
        per_answer_nats: One linearised value an answer; their mean is the estimate.
        mean_length: Estimated mean length of the candidate's answers in tokens.
        answer_weights: Weights of whole answers, of mean 1.
    """

    per_answer_nats: tuple[float, ...]
    mean_length: float
    answer_weights: tuple[float, ...]


def weighted_kl(
    candidate: TokenValues, behaviour: TokenValues, kl_nats: TokenValues, reduce: str
) -> WeightedKL:
    """The candidate's on-policy reverse KL from answers of the behaviour policy.

    Args:
        candidate: Log-probability of every token under the candidate, one row an answer.
        behaviour: The same under the policy that wrote the answers.
        kl_nats: `KL(candidate || teacher)` at every token of the answers.
        reduce: "sequence" estimates the mean over answers of the sum over tokens, "token" divides
            that by the mean length.

    Returns:
        The estimate.
    """
    weights_BT, weights_B = prefix_weights(candidate, behaviour)
    sums_B = weighted_sums(weights_BT, padded(kl_nats))
    lengths_B = weighted_sums(weights_BT, padded([[1.0] * len(row) for row in kl_nats]))
    per_answer_B = ratio_values(sums_B, lengths_B) if reduce == "token" else sums_B
    return WeightedKL(
        per_answer_nats=tuple(per_answer_B.tolist()),
        mean_length=lengths_B.mean().item(),
        answer_weights=tuple(weights_B.tolist()),
    )


def distrust(candidate: TokenValues, tip: TokenValues, settings: CachedKLValidation) -> str:
    """Why the tip's answers say too little about a candidate, or "" where they say enough.

    Args:
        candidate: Log-probability of every token under the candidate, one row an answer.
        tip: The same under the tip, which wrote the answers.
        settings: Trust bounds.

    Returns:
        The reason.
    """
    k3 = mean_k3(candidate, tip)
    if k3 > settings.trust_nats:
        return f"{k3:.3g} nats per token from the tip, trusted are {settings.trust_nats:g}"
    if settings.weights == "frozen":
        return ""
    share = effective_share(prefix_weights(candidate, tip)[1])
    if share < settings.trust_share:
        return f"effective share of the answers {share:.2f}, trusted is {settings.trust_share:g}"
    return ""


@dataclass(frozen=True, kw_only=True)
class _Cache:
    """What the tip wrote for a draw."""

    draw: Draw
    rollouts: Sequence[Rollout]
    log_probs: TokenValues


class Answers(Protocol):
    """Where the tip's answers come from."""

    @property
    def sampling(self) -> Sampling:
        """How they are sampled."""
        ...

    @property
    def costs_tokens(self) -> bool:
        """Whether they are written for the search alone."""
        ...

    def write(self, draw: Draw) -> list[Rollout]:
        """The answers of a draw, by the student as it is now."""
        ...

    def truncated_share(
        self, rollouts: Sequence[Rollout], weights: Sequence[float] | None = None
    ) -> float:
        """Weighted share of answers cut at the length cap, against their will."""
        ...


class CachedKLValidator:
    """Scores the tip on its own answers, and candidates on those of the tip.

    The tip's call writes the answers, which are kept for the candidates of its draw. The teacher
    scores them again for every candidate, since the divergence is over the whole vocabulary, of
    which nothing can be kept; a candidate costs one more pass of the student for its
    log-probabilities, made first, so that no teacher is asked about a candidate beyond trust.

    Args:
        answers: Writes the tip's answers.
        student: The policy whose weights are searched.
        teachers: Whom it is compared with.
        settings: Trust bounds, and how to reduce.
        teacher_temperature: Divides the teachers' logits.
        batch_tokens: Padded tokens per forward pass, at most.

    Raises:
        ConfigError: Answers are not sampled from the policy itself, so that ratios of its
            probabilities are not those of its answers.
    """

    def __init__(
        self,
        answers: Answers,
        student: Policy,
        teachers: Teachers,
        settings: CachedKLValidation,
        *,
        teacher_temperature: float = 1.0,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        sampling = answers.sampling
        if (sampling.temperature, sampling.top_p, sampling.top_k) != (1.0, 1.0, 0):
            raise ConfigError(
                "validation.type = 'cached_kl' needs samples of the policy itself: temperature 1, "
                f"top_p 1 and top_k 0, got {sampling.temperature}, {sampling.top_p} and "
                f"{sampling.top_k}; use 'teacher_kl'"
            )
        self._answers = answers
        self._student = student
        self._teachers = teachers
        self._settings = settings
        self._teacher_temperature = teacher_temperature
        self._batch_tokens = batch_tokens
        self._cache: _Cache | None = None

    def __call__(self, draw: Draw) -> Score:
        """The score; not finite beyond trust and when the student's weights or logits are not.

        Raises:
            ValidatorError: A candidate is scored, but the last tip was that of another draw.
        """
        try:
            if draw.candidate:
                return self._score_candidate(self._tip_of(draw))
            return self._score_tip(draw)
        except NonFiniteError:
            return Score(value=float("nan"))

    def _tip_of(self, draw: Draw) -> _Cache:
        """The cache of the candidate's draw."""
        if self._cache is None or replace(draw, candidate=False) != self._cache.draw:
            kept = "none" if self._cache is None else str(self._cache.draw)
            raise ValidatorError(
                f"a candidate of {draw} is scored on the answers of its tip, which was not scored "
                f"before it; kept are those of {kept}. Score the tip with candidate=False first."
            )
        return self._cache

    def _score_tip(self, draw: Draw) -> Score:
        self._cache = None
        rollouts = self._answers.write(draw)
        log_probs = self._log_probs(rollouts)
        self._cache = _Cache(draw=draw, rollouts=rollouts, log_probs=log_probs)
        tokens = total_tokens(rollouts) if self._answers.costs_tokens else 0
        return self._score(rollouts, log_probs, log_probs, tokens)

    def _score_candidate(self, cache: _Cache) -> Score:
        log_probs = self._log_probs(cache.rollouts)
        if reason := distrust(log_probs, cache.log_probs, self._settings):
            return Score(value=float("nan"), reason=reason)
        return self._score(cache.rollouts, log_probs, cache.log_probs, 0)

    def _score(
        self, rollouts: Sequence[Rollout], candidate: TokenValues, tip: TokenValues, tokens: int
    ) -> Score:
        """The score of weights that may differ from those that wrote the answers."""
        kl_nats = routed_reverse_kl(
            self._student,
            self._teachers,
            rollouts,
            teacher_temperature=self._teacher_temperature,
            batch_tokens=self._batch_tokens,
        )
        if self._settings.weights == "frozen":
            candidate = tip
        estimate = weighted_kl(candidate, tip, kl_nats, self._settings.reduce)
        values = tuple(-nats for nats in estimate.per_answer_nats)
        return Score(
            value=math.fsum(values) / len(values),
            per_prompt=values,
            tokens=tokens,
            teacher_tokens=total_tokens(rollouts),
            mean_length=estimate.mean_length,
            truncated_share=self._answers.truncated_share(rollouts, estimate.answer_weights),
        )

    def _log_probs(self, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]]:
        samples = [rollout.sample for rollout in rollouts]
        return completion_log_probs(self._student, samples, batch_tokens=self._batch_tokens)
