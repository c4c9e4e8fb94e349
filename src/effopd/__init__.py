"""Fast on-policy distillation of language models, and understanding it from the weights.

The public API is the search, which fits any PyTorch training loop:

    from effopd import Extrapolator
    extrapolator = Extrapolator(model, validate)
    ...
    result = extrapolator.step(step)     # after each optimizer step
"""

from effopd.core.direction import SinceAccepted, SinceRaw
from effopd.core.extrapolator import Extrapolator, Search
from effopd.core.scales import GeometricScales, LadderScales, QuadraticScales
from effopd.core.schedule import AtSteps, EveryN, PowersOfTwo
from effopd.core.search import SearchResult
from effopd.core.selection import select_parameters
from effopd.core.validation import AtLeast, Draw, LengthGuard, PairedMargin, Score, Strict

__version__ = "0.1.0"

__all__ = [
    "AtLeast",
    "AtSteps",
    "Draw",
    "EveryN",
    "Extrapolator",
    "GeometricScales",
    "LadderScales",
    "LengthGuard",
    "PairedMargin",
    "PowersOfTwo",
    "QuadraticScales",
    "Score",
    "Search",
    "SearchResult",
    "SinceAccepted",
    "SinceRaw",
    "Strict",
    "select_parameters",
]
