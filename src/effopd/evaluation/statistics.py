"""What samples of a benchmark say: accuracies, how sure they are, and whether two models differ.

Questions are independent; samples of one question are not. Every statistic is therefore computed
for each question first, and its error comes from the spread over questions.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effopd.core.validation import standard_error
from effopd.errors import ConfigError
from effopd.evaluation.metrics import mean

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""
EXACT_QUESTIONS = 16
"""Up to so many questions that differ, every pattern of signs is counted."""
FLIPS = 20_000
"""Random patterns of signs beyond that."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over questions and how sure it is.

    Attributes:
        mean: Mean over questions of the mean over their samples.
        standard_error: For other questions of the same kind; None for a single question.
        sampling_error: For the same questions answered again; None where a question has one sample.
    """

    mean: float
    standard_error: float | None
    sampling_error: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval for other questions, normal approximation; None without one."""
        if self.standard_error is None:
            return None
        return self.mean - Z_95 * self.standard_error, self.mean + Z_95 * self.standard_error


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same questions.

    Attributes:
        difference: Mean over questions of first minus second.
        standard_error: Of the paired difference; None for a single question.
        p_value: Two-sided, of a sign-flip test over questions, in (0, 1].
        wins: Questions the first answers better.
        losses: Questions the second answers better.
    """

    difference: float
    standard_error: float | None
    p_value: float
    wins: int
    losses: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the difference; None for a single question."""
        estimate = Estimate(
            mean=self.difference, standard_error=self.standard_error, sampling_error=None
        )
        return estimate.interval


def average(rewards: Sequence[Sequence[float]]) -> Estimate:
    """avg@n: the expected reward of one sample.

    With `m_q` the mean and `v_q` the unbiased variance of the n_q samples of question q of Q:
    `standard_error = std(m) / sqrt(Q)`, which contains both the spread of questions and that of
    samples, and `sampling_error = sqrt(sum_q v_q / n_q) / Q`.

    Args:
        rewards: One sequence a question, one reward a sample.

    Returns:
        The estimate.

    Source: E. Miller, Adding Error Bars to Evals, arXiv 2411.00640, sections 2 and 3.
    """
    _check_samples(rewards)
    means = [mean(each) for each in rewards]
    errors = [standard_error(each) for each in rewards]
    known = [error for error in errors if error is not None]
    sampling = math.sqrt(math.fsum(e * e for e in known)) / len(rewards)
    return Estimate(
        mean=mean(means),
        standard_error=standard_error(means),
        sampling_error=sampling if len(known) == len(errors) else None,
    )


def pass_at_k(rewards: Sequence[Sequence[float]], k: int) -> Estimate:
    """pass@k: the chance that at least one of k samples is right, without bias.

    `1 - C(n - c, k) / C(n, k)` for a question with c right samples of n, as a product.

    Args:
        rewards: One sequence a question; a sample is right when its reward is 1.
        k: Samples drawn; at most those of the question with the fewest.

    Returns:
        The estimate; its sampling error is not known.

    Raises:
        ConfigError: A question has fewer than k samples.

    Source: M. Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374.
    """
    _check_samples(rewards)
    fewest = min(map(len, rewards))
    if not 1 <= k <= fewest:
        raise ConfigError(f"pass@k needs k of 1 to {fewest}, the samples of a question, got {k}")
    chances = [chance_of_pass(len(each), sum(r == 1 for r in each), k) for each in rewards]
    return Estimate(mean=mean(chances), standard_error=standard_error(chances), sampling_error=None)


def chance_of_pass(samples: int, right: int, k: int) -> float:
    """The share of the k-subsets of the samples that hold a right one."""
    if samples - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - right + 1, samples + 1))


def majority(
    answers: Sequence[Sequence[str | None]], rewards: Sequence[Sequence[float]]
) -> Estimate:
    """maj@n: the reward of the answer that most samples of a question give.

    Samples without an answer have no vote. Of answers that are equally frequent the one that came
    first wins. Answers count as one when their text is equal up to spaces.

    Args:
        answers: Extracted answers, one sequence a question.
        rewards: Their rewards, in the same shape.

    Returns:
        The estimate; its sampling error is not known.
    """
    _check_samples(rewards)
    kept = [_of_majority(a, r) for a, r in zip(answers, rewards, strict=True)]
    return Estimate(mean=mean(kept), standard_error=standard_error(kept), sampling_error=None)


def _of_majority(answers: Sequence[str | None], rewards: Sequence[float]) -> float:
    """Reward of the first sample that gives the majority's answer; 0 when nobody answers."""
    spelled = ["".join(answer.split()) if answer else None for answer in answers]
    votes = Counter(answer for answer in spelled if answer)
    if not votes:
        return 0.0
    winner = votes.most_common(1)[0][0]  # of equal counts the one that was met first
    return list(rewards)[spelled.index(winner)]


def compare(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int = 0
) -> Comparison:
    """Whether two models differ on the same questions.

    The p-value is the chance of a mean difference at least as large when the sign of every
    question's difference is a coin: exact up to `EXACT_QUESTIONS` questions that differ, else from
    `FLIPS` random patterns, the observed one counted among them.

    Args:
        first: Rewards of the first model, one sequence a question.
        second: Those of the second on the same questions in the same order.
        seed: Of the random patterns.

    Returns:
        The comparison.

    Raises:
        ConfigError: The numbers of questions differ.
    """
    _check_samples(first)
    _check_samples(second)
    if len(first) != len(second):
        raise ConfigError(
            f"a paired comparison needs the same questions, got {len(first)} and {len(second)}"
        )
    differences = [mean(a) - mean(b) for a, b in zip(first, second, strict=True)]
    return Comparison(
        difference=mean(differences),
        standard_error=standard_error(differences),
        p_value=sign_flip_p_value(differences, seed),
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
    )


def sign_flip_p_value(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of a sum under independent random signs, in (0, 1].

    Sums within rounding of the observed one count as equal to it.
    """
    sizes = np.array([abs(d) for d in differences if d != 0], dtype=np.float64)
    if sizes.size == 0:
        return 1.0
    observed = abs(math.fsum(differences)) * (1 - 1e-12) - 1e-12
    if sizes.size <= EXACT_QUESTIONS:
        patterns = np.arange(2**sizes.size)[:, None] >> np.arange(sizes.size) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ sizes) >= observed))
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, size=(FLIPS, sizes.size), dtype=np.int8)
    as_large = np.count_nonzero(np.abs((2.0 * signs - 1.0) @ sizes) >= observed)
    return float((as_large + 1) / (FLIPS + 1))


def _check_samples(rewards: Sequence[Sequence[float]]) -> None:
    if not rewards or not all(rewards):
        raise ConfigError("statistics need at least one question, and one sample of each")
    if not all(math.isfinite(reward) for each in rewards for reward in each):
        raise ConfigError("a reward is not finite: score that sample again, or leave it out")
