"""How tokens are drawn, in plain float64 Python: no tensors, one token at a time."""

import math
from collections.abc import Sequence


def log_softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Log-probabilities in nats; temperature 0 scales by nothing, as greedy decoding records."""
    scaled = [x / (temperature or 1.0) for x in logits]
    top = max(scaled)
    log_total = top + math.log(math.fsum(math.exp(x - top) for x in scaled))
    return [x - log_total for x in scaled]


def truncated(
    logits: Sequence[float], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> list[float]:
    """Probabilities after temperature, then top-k, then top-p; what is cut off has 0.

    Top-p keeps the smallest number of most likely tokens whose mass reaches it.
    """
    p = [math.exp(x) for x in log_softmax(logits, temperature)]
    ranked = sorted(range(len(p)), key=lambda i: -p[i])
    kept = ranked[: top_k or len(p)]
    mass, total, nucleus = 0.0, math.fsum(p[i] for i in kept), []
    for i in kept:
        if nucleus and mass >= top_p * total:
            break
        nucleus.append(i)
        mass += p[i]
    return [p[i] / mass if i in nucleus else 0.0 for i in range(len(p))]


def draw(probabilities: Sequence[float], uniform: float) -> int:
    """The first token at which the distribution function exceeds `uniform` in [0, 1)."""
    aim, mass = uniform * math.fsum(probabilities), 0.0
    for token, p in enumerate(probabilities):
        mass += p
        if mass > aim:
            return token
    raise ValueError(f"{uniform} is no number in [0, 1)")


def chi_square(counts: Sequence[int], probabilities: Sequence[float]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; tokens of probability 0 are left out."""
    n = sum(counts)
    cells = [(c, n * p) for c, p in zip(counts, probabilities, strict=True) if p > 0]
    return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1


def chi_square_limit(freedom: int) -> float:
    """The 0.9999 quantile, Wilson and Hilferty's approximation; infinite without freedom."""
    if freedom == 0:
        return 1e-9
    v = 2 / (9 * freedom)
    return freedom * (1 - v + 3.719 * math.sqrt(v)) ** 3
