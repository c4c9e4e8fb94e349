"""Candidates judged on the tip's answers by importance weights: a search that writes one set.

All log-probabilities are of the trainer's own forward pass, the engine's are not used.

Legend: B answers, T token positions, the longest answer's. Answers are padded with zeros. Weights
are float64 on the host.

A token of an answer was reached by sampling the tokens before it. Under the candidate that has
`rho = prod_{j < t} candidate(y_j) / behaviour(y_j)` times the probability, so `E[rho_t f_t]` over
answers of the behaviour is `E[f_t]` over the candidate's own (f_t 0 after the end; rho stays at its
last value there). The weights are self-normalised at every position over all B answers, ended ones
included, for all of which `E[rho_t] = 1`.

Why not clipped: a clipped weight loses mass where the candidate goes most, which makes a divergence
look smaller than it is, and a search picks what looks best. Self-normalised weights sum to B at
every position, so no estimate exceeds the largest value there and none shrinks as ratios fade;
they are 1 for the behaviour itself; their bias is of order 1 / B. What remains is variance, which
grows like `exp(2 k3 t)`: `effective_share` tells when it is too much.

Source: weighted per-decision importance sampling of Precup, Sutton and Singh (2000).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from effopd.errors import ConfigError, NonFiniteError, ValidatorError
from effopd.evaluation.kept_states import STUDENT
from effopd.evaluation.logprobs import BATCH_TOKENS
from effopd.evaluation.rollout_sources import RolloutSource
from effopd.evaluation.routing import Teachers, kept_log_probs, routed_reverse_kl
from effopd.evaluation.validators import check_prompts
from effopd.models.policy import Policy
from effopd.rollouts.rollout import Rollout, total_tokens
from effopd.search.validation import Draw, Score, score_of


@dataclass(frozen=True, kw_only=True)
class ImportanceKLValidation:
    """Minus the reverse KL to the teacher, for candidates estimated on the tip's answers.

    A candidate costs forward passes instead of new answers. The importance weights hold near the
    tip only; beyond the trust bounds a candidate is rejected unseen. On long answers the weights
    degenerate at ever smaller steps: use `teacher_kl` there.

    Attributes:
        source: "fresh" has the tip write answers for the search. "batch" takes those that it has
            written for its next update: the search then comes before that update and writes
            nothing at all.
        prompts: Number of training prompts.
        resample: Draw new prompts for every search instead of one fixed set.
        reduce: "token": sum over all tokens of all answers divided by their number. "sequence":
            sum over the tokens of each answer (the divergence of equation 7), then mean over
            answers.
        trust_nats: Largest mean k3 divergence of a candidate from the tip, per token.
        trust_share: Smallest effective share of the answers, in [0, 1]: k3 says how far a token
            is off, this what is left of whole answers.
    """

    type: Literal["importance_kl"] = "importance_kl"
    source: Literal["fresh", "batch"] = "fresh"
    prompts: int = 50
    resample: bool = True
    reduce: Literal["token", "sequence"] = "token"
    trust_nats: float = 0.05
    trust_share: float = 0.3

    def __post_init__(self) -> None:
        check_prompts(self.prompts)
        if not (math.isfinite(self.trust_nats) and self.trust_nats > 0):
            raise ConfigError(f"trust_nats must be positive, got {self.trust_nats}")
        if not 0 <= self.trust_share <= 1:
            raise ConfigError(f"trust_share must be in [0, 1], got {self.trust_share}")


# Importance weights ------------------------------------------------------------------------------

TokenValues = Sequence[Sequence[float]]


def padded(values: TokenValues) -> Float[Tensor, "B T"]:
    """One row an answer, zeros after its end."""
    return pad_sequence([torch.tensor(v, dtype=torch.float64) for v in values], batch_first=True)


def prefix_weights(
    candidate: TokenValues, behaviour: TokenValues
) -> tuple[Float[Tensor, "B T"], Float[Tensor, " B"]]:
    """Self-normalised ratios of the tokens before each position, and of whole answers."""
    cumulative_BT = (padded(candidate) - padded(behaviour)).cumsum(dim=1)
    before_BT = cumulative_BT.roll(1, dims=1)
    before_BT[:, 0] = 0.0
    answers = len(cumulative_BT)
    weights_BT = torch.softmax(before_BT, dim=0) * answers
    return weights_BT, torch.softmax(cumulative_BT[:, -1], dim=0) * answers


def weighted_sums(
    weights_BT: Float[Tensor, "B T"], values_BT: Float[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Per answer the weighted sum over tokens, linearised in the normaliser.

    `sum_t m_t + w_t (v_t - m_t)` with `m_t` the weighted mean at position t: their mean over
    answers is the self-normalised estimate `sum_t m_t`, and the spread around it gives that
    estimate's standard error (delta method). With weights of 1 they are the plain sums.
    """
    means_T = (weights_BT * values_BT).mean(dim=0)
    return (means_T + weights_BT * (values_BT - means_T)).sum(dim=1)


def ratio_values(
    sums_B: Float[Tensor, " B"], lengths_B: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """Per answer the ratio of two means, linearised.

    `R + (s - R l) / mean(l)` with `R = mean(s) / mean(l)`: their mean is R, their spread gives its
    standard error (delta method).
    """
    ratio = sums_B.mean() / lengths_B.mean()
    return ratio + (sums_B - ratio * lengths_B) / lengths_B.mean()


def mean_k3(candidate: TokenValues, behaviour: TokenValues) -> float:
    """Mean over tokens of `r - 1 - log r`, r the ratio of a token: `KL(behaviour || candidate)`.

    In nats per token; never negative.
    """
    log_ratio_BT = padded(candidate) - padded(behaviour)
    k3_BT = torch.expm1(log_ratio_BT) - log_ratio_BT  # 0 where padded
    return k3_BT.sum().item() / sum(map(len, behaviour))


def effective_share(weights_B: Float[Tensor, " B"]) -> float:
    """Kish's effective sample size over the sample size, in (0, 1]; 1 for equal weights."""
    return (weights_B.sum().square() / weights_B.square().sum()).item() / len(weights_B)


@dataclass(frozen=True, kw_only=True)
class WeightedKL:
    """The reverse KL of a candidate to its teacher, estimated on another policy's answers.

    One linearised value an answer, whose mean is the estimate; likewise of the length of the
    candidate's answers in tokens; weights of whole answers, of mean 1.
    """

    per_answer_nats: tuple[float, ...]
    lengths: tuple[float, ...]
    answer_weights: tuple[float, ...]


def weighted_kl(
    candidate: TokenValues, behaviour: TokenValues, kl_nats: TokenValues, reduce: str
) -> WeightedKL:
    """The candidate's on-policy reverse KL from answers of the behaviour policy.

    A token whose divergence is NaN, not known, has weight 0: with `reduce = "token"` it is not
    counted among the tokens either.
    """
    weights_BT, weights_B = prefix_weights(candidate, behaviour)
    nats_BT = padded(kl_nats)
    sums_B = weighted_sums(weights_BT, nats_BT.nan_to_num(nan=0.0))
    one_BT = padded([[1.0] * len(row) for row in kl_nats])
    lengths_B = weighted_sums(weights_BT, one_BT)
    known_B = weighted_sums(weights_BT, one_BT.masked_fill(nats_BT.isnan(), 0.0))
    per_answer_B = ratio_values(sums_B, known_B) if reduce == "token" else sums_B
    return WeightedKL(
        per_answer_nats=tuple(per_answer_B.tolist()),
        lengths=tuple(lengths_B.tolist()),
        answer_weights=tuple(weights_B.tolist()),
    )


def outside_trust_region(
    candidate: TokenValues, tip: TokenValues, settings: ImportanceKLValidation
) -> str:
    """Why the tip's answers say too little about a candidate, or "" where they say enough.

    Takes the log-probability of every token under both, one row an answer.
    """
    k3 = mean_k3(candidate, tip)
    if k3 > settings.trust_nats:
        return f"{k3:.3g} nats per token from the tip, trusted are {settings.trust_nats:g}"
    share = effective_share(prefix_weights(candidate, tip)[1])
    if share < settings.trust_share:
        return f"effective share of the answers {share:.2f}, trusted is {settings.trust_share:g}"
    return ""


class ImportanceWeightedKLValidator:
    """Scores the tip on its own answers, and candidates on those of the tip.

    The tip's call takes the answers and has the teacher read them, whose hidden states are kept for
    the candidates of its search. A candidate costs one pass of the student: log-probabilities and,
    unless it is beyond trust, the divergence over the whole vocabulary come from the same states.

    Answers have to be sampled from the policy itself, without temperature, top-p and top-k, or
    ratios of its probabilities would not be those of its answers.
    """

    def __init__(
        self,
        source: RolloutSource,
        student: Policy,
        teachers: Teachers,
        settings: ImportanceKLValidation,
        *,
        teacher_temperature: float = 1.0,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        sampling = source.sampling
        if (sampling.temperature, sampling.top_p, sampling.top_k) != (1.0, 1.0, 0):
            raise ConfigError(
                f"validation.type = {settings.type!r} needs samples of the policy itself: "
                f"temperature 1, top_p 1 and top_k 0, got {sampling.temperature}, "
                f"{sampling.top_p} and {sampling.top_k}; use 'teacher_kl'"
            )
        self._source, self._student, self._teachers = source, student, teachers
        self._settings, self._teacher_temperature = settings, teacher_temperature
        self._batch_tokens = batch_tokens
        self._step: int | None = None  # of the search that these belong to
        self._rollouts: Sequence[Rollout] = ()
        self._tip: TokenValues = ()

    def __call__(self, draw: Draw) -> Score:
        """The score; not finite beyond trust and when the student's weights or logits are not."""
        try:
            return self._score(draw)
        except NonFiniteError:
            return Score(value=float("nan"))
        finally:
            self._teachers.kept.release(STUDENT)  # the next candidate has other weights

    def _score(self, draw: Draw) -> Score:
        teachers, tokens, before = self._teachers, 0, self._teachers.tokens_read
        limits: Any = {"batch_tokens": self._batch_tokens}
        if draw.is_candidate:
            if draw.step != self._step:
                raise ValidatorError(
                    f"{draw} is scored on the answers of its tip, which was not scored before it "
                    f"(kept are those of step {self._step}): score the tip, at scale 1, first"
                )
        else:
            # The answers of the tip, for itself and for all candidates of its search.
            self._step, self._rollouts = None, self._source.rollouts(draw)
            teachers.hold(self._rollouts)
            teachers.read(self._rollouts, **limits)
            tokens = total_tokens(self._rollouts) if self._source.costs_tokens else 0
        # One pass of the student; its log-probabilities say whether the answers tell enough.
        samples = [rollout.sample for rollout in self._rollouts]
        everything = (STUDENT, self._student, self._rollouts, samples)
        teachers.kept.fill(*everything, **limits)
        candidate = kept_log_probs(teachers.kept, *everything, **limits)
        if not draw.is_candidate:
            self._step, self._tip = draw.step, candidate
        elif reason := outside_trust_region(candidate, self._tip, self._settings):
            return Score(value=float("nan"), reason=reason)
        # The divergence at each of their tokens, weighted by how likely the candidate writes them.
        kl_nats = routed_reverse_kl(
            self._student,
            teachers,
            self._rollouts,
            teacher_temperature=self._teacher_temperature,
            **limits,
        )
        estimate = weighted_kl(candidate, self._tip, kl_nats, self._settings.reduce)
        cut = zip(estimate.answer_weights, self._source.truncated(self._rollouts), strict=True)
        return score_of(
            [-nats for nats in estimate.per_answer_nats],
            estimate.lengths,
            [weight * is_cut for weight, is_cut in cut],
            tokens=tokens,
            teacher_tokens=teachers.tokens_read - before,
        )
