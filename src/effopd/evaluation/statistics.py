"""What samples of a benchmark say: accuracies, how sure they are, and whether two models differ.

Questions are independent; samples of one question are not. Every statistic is therefore computed
for each question first, and its error comes from the spread over questions.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from effopd.errors import ConfigError
from effopd.rewards.math import MathVerifier
from effopd.search.validation import standard_error

Z_95 = 1.959963984540054
"""Two-sided 95% quantile of the standard normal distribution."""
EXACT_QUESTIONS = 16
"""Up to so many questions that differ, every pattern of signs is counted."""
FLIPS = 20_000
"""Random patterns of signs beyond that."""
DOUBT = 0.5
"""Questions that count as right always or never, besides those seen; see `average`."""

Interval = tuple[float, float]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)


def ratio(sums: Sequence[float], counts: Sequence[int]) -> tuple[float | None, float | None]:
    """`sum(sums) / sum(counts)` and its standard error with the pairs as the sample.

    The error is that of the linearised ratio: of the values `(sum - ratio * count) / mean count`.
    """
    total = sum(counts)
    if total == 0:
        return None, None
    found = math.fsum(sums) / total
    scale = total / len(counts)
    residuals = [(s - found * n) / scale for s, n in zip(sums, counts, strict=True)]
    return found, standard_error(residuals)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over questions and how sure it is.

    Attributes:
        mean: Mean over questions of the mean over their samples.
        standard_error: For other questions of the same kind; None for a single question.
        sampling_error: For the same questions answered again; None where a question has one sample.
        interval: 95% confidence interval for other questions, within [0, 1]; None for a single
            question.
    """

    mean: float
    standard_error: float | None
    sampling_error: float | None
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same questions.

    Attributes:
        difference: Mean over questions of first minus second.
        standard_error: Of the paired difference; None for a single question.
        interval: 95% confidence interval of the difference, within [-1, 1]; None for a single
            question.
        p_value: Two-sided, of a sign-flip test over questions, in (0, 1].
        wins: Questions the first answers better.
        losses: Questions the second answers better.
    """

    difference: float
    standard_error: float | None
    interval: Interval | None
    p_value: float
    wins: int
    losses: int


def average(rewards: Sequence[Sequence[float]]) -> Estimate:
    """avg@n: the expected reward of one sample.

    With `m_q` the mean and `v_q` the unbiased variance of the n_q samples of question q of Q:
    `standard_error = std(m) / sqrt(Q)`, which contains both the spread of questions and that of
    samples, and `sampling_error = sqrt(sum_q v_q / n_q) / Q`.

    The interval is Wilson's with `Q / r` for a number of trials. r is the share of `p (1 - p)`, p
    the mean, that lies between questions: 1 where a question is right always or never, `1 / n`
    where they are alike. It rests on the questions that right answers are spread over (or wrong
    ones, where that is fewer), `x + 1 = (sum m)^2 / sum m^2` of them; to these x, `DOUBT` of a
    question of share 1 is added. Without any right answer nothing is known of r, and of 30
    questions the upper end is 0.11.

    Takes one sequence a question, one reward in [0, 1] a sample.

    Source: E. Miller, Adding Error Bars to Evals, arXiv 2411.00640, sections 2 and 3; E. Wilson
    1927. The effective number of trials is that of surveys (Korn and Graubard 1998), the doubt is
    ours, chosen by the coverage at 30 questions (docs/evaluation.md).
    """
    _check_samples(rewards)
    means = [mean(each) for each in rewards]
    errors = [standard_error(each) for each in rewards]
    known = [error for error in errors if error is not None]
    sampling = math.sqrt(math.fsum(e * e for e in known)) / len(rewards)
    return _estimate(means, max(map(len, rewards)), sampling if len(known) == len(errors) else None)


def pass_at_k(rewards: Sequence[Sequence[float]], k: int) -> Estimate:
    """pass@k: the chance that at least one of k samples is right, without bias.

    `1 - C(n - c, k) / C(n, k)` for a question with c right samples of n, as a product.

    A sample is right when its reward is 1; no question may have fewer than k samples.

    Source: M. Chen et al., Evaluating Large Language Models Trained on Code, arXiv 2107.03374.
    """
    _check_samples(rewards)
    fewest = min(map(len, rewards))
    if not 1 <= k <= fewest:
        raise ConfigError(f"pass@k needs k of 1 to {fewest}, the samples of a question, got {k}")
    counts = [(len(each), sum(r == 1 for r in each)) for each in rewards]
    chances = [
        1.0 - math.prod(1.0 - k / i for i in range(n - right + 1, n + 1)) if n - right >= k else 1.0
        for n, right in counts
    ]
    return _estimate(chances, max(map(len, rewards)))


def majority(
    answers: Sequence[Sequence[str | None]], rewards: Sequence[Sequence[float]]
) -> Estimate:
    r"""maj@n: the reward of the answer that most samples of a question give.

    Samples without an answer have no vote. Answers count as one when they have the same value, as
    the verifier of mathematics finds: `\frac{1}{2}`, `0.5` and `\dfrac12`, or `A` and `(A)`; all
    that were found right are one. Of values that are equally frequent the one that came first wins.

    Takes extracted answers, one sequence a question, and their rewards in the same shape.
    """
    _check_samples(rewards)
    with MathVerifier() as verifier:
        groups = [verifier.groups(each) for each in answers]
    kept = []
    for found, given in zip(groups, rewards, strict=True):
        right = [group for group, reward in zip(found, given, strict=True) if reward == 1]
        as_one = [right[0] if group in right else group for group in found]
        votes = Counter(group for group in as_one if group is not None).most_common(1)
        winner = votes[0][0] if votes else None  # of equal counts the one that was met first
        pairs = zip(as_one, given, strict=True)
        kept.append(max(r for group, r in pairs if group == winner) if votes else 0.0)
    return _estimate(kept, 1)


def _estimate(
    values: Sequence[float], samples: int, sampling_error: float | None = None
) -> Estimate:
    """Of one value in [0, 1] a question, each from so many samples; see `average`."""
    questions, center, error, interval = len(values), mean(values), standard_error(values), None
    if error is not None:
        # The effective number of questions.
        seen = min(_spread_over(values), _spread_over([1 - value for value in values]))
        whole = center * (1 - center)
        share = questions * error**2 / whole if whole > 0 else 1.0
        share = min(max(share, 1 / samples), 1.0)
        share = (seen * share + DOUBT) / (seen + DOUBT)
        # z^2 / trials, with which Wilson's interval is the roots of a quadratic.
        pull = Z_95**2 * share / questions
        middle = (center + pull / 2) / (1 + pull)
        half = math.sqrt(pull * (whole + pull / 4)) / (1 + pull)
        # At an end of [0, 1] the root is there itself, but for rounding.
        low = 0.0 if center == 0 else max(0.0, middle - half)
        interval = low, 1.0 if center == 1 else min(1.0, middle + half)
    return Estimate(
        mean=center, standard_error=error, sampling_error=sampling_error, interval=interval
    )


def _spread_over(parts: Sequence[float]) -> float:
    """How many questions a sum is spread over, `(sum m)^2 / sum m^2`, beyond the first."""
    squares = math.fsum(part * part for part in parts)
    return max(math.fsum(parts) ** 2 / squares - 1, 0.0) if squares else 0.0


def compare(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int = 0
) -> Comparison:
    """Whether two models differ on the same questions.

    The p-value is the chance of a mean difference at least as large when the sign of every
    question's difference is a coin: exact up to `EXACT_QUESTIONS` questions that differ, else from
    `FLIPS` random patterns, the observed one counted among them.

    The interval is `difference +- sqrt((1.96 se)^2 + w^2 DOUBT / (x + DOUBT))`: w is the upper end
    of Wilson's interval for no event in Q questions, and x + 1 questions are what the differences
    are spread over (or, where that is fewer, what they lack to a win, or to a loss, of all). Two
    models that answer 30 questions alike differ by at most 0.11; where many questions differ it is
    the normal interval.

    Takes rewards in [0, 1] of both models on the same questions in the same order; the seed is that
    of the random patterns.
    """
    _check_samples(first)
    _check_samples(second)
    if len(first) != len(second):
        raise ConfigError(
            f"a paired comparison needs the same questions, got {len(first)} and {len(second)}"
        )
    differences = [mean(a) - mean(b) for a, b in zip(first, second, strict=True)]
    error, interval = standard_error(differences), None
    if error is not None:
        # The normal interval, wider where next to no question differs.
        seen = min(
            _spread_over([abs(value - same) for value in differences]) for same in (-1, 0, 1)
        )
        least, center = Z_95**2 / (len(differences) + Z_95**2), mean(differences)
        half = math.sqrt((Z_95 * error) ** 2 + DOUBT / (seen + DOUBT) * least**2)
        interval = max(-1.0, center - half), min(1.0, center + half)
    return Comparison(
        difference=mean(differences),
        standard_error=error,
        interval=interval,
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
    beyond = [reward for each in rewards for reward in each if not 0 <= reward <= 1]
    if beyond:
        raise ConfigError(f"a reward is {beyond[0]}; expected shares of a right answer, in [0, 1]")
