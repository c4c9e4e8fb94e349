"""Fast on-policy distillation of language models, and understanding it from the weights.

The public API is the search, which fits any PyTorch training loop:

    from effopd import Extrapolator
    extrapolator = Extrapolator(model, validate)
    ...
    result = extrapolator.step(step)     # after each optimizer step

Names load on first use, so that `import effopd` and `effopd --help` are instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effopd.analysis.study import analyze
    from effopd.search.direction import (
        AlphaPLS,
        SinceAccepted,
        SinceBase,
        SinceRaw,
    )
    from effopd.search.extrapolator import Extrapolator
    from effopd.search.line_search import SearchResult
    from effopd.search.scales import (
        GeometricScales,
        LadderScales,
        PastSearch,
    )
    from effopd.search.schedule import AtSteps, EveryN, PowersOfTwo
    from effopd.search.selection import select_parameters
    from effopd.search.settings import Search
    from effopd.search.validation import (
        AtLeast,
        Draw,
        LengthGuard,
        PairedMargin,
        Score,
        Strict,
        Unconditional,
    )

__version__ = "0.1.0"

_HOME = {
    "direction": (
        "AlphaPLS",
        "SinceAccepted",
        "SinceBase",
        "SinceRaw",
    ),
    "extrapolator": ("Extrapolator",),
    "scales": ("GeometricScales", "LadderScales", "PastSearch"),
    "schedule": ("AtSteps", "EveryN", "PowersOfTwo"),
    "line_search": ("SearchResult",),
    "selection": ("select_parameters",),
    "settings": ("Search",),
    "validation": (
        "AtLeast",
        "Draw",
        "LengthGuard",
        "PairedMargin",
        "Score",
        "Strict",
        "Unconditional",
    ),
}
_MODULE = {name: f"effopd.search.{module}" for module, names in _HOME.items() for name in names}
_MODULE["analyze"] = "effopd.analysis.study"

__all__ = [
    "AlphaPLS",
    "AtLeast",
    "AtSteps",
    "Draw",
    "EveryN",
    "Extrapolator",
    "GeometricScales",
    "LadderScales",
    "LengthGuard",
    "PairedMargin",
    "PastSearch",
    "PowersOfTwo",
    "Score",
    "Search",
    "SearchResult",
    "SinceAccepted",
    "SinceBase",
    "SinceRaw",
    "Strict",
    "Unconditional",
    "analyze",
    "select_parameters",
]


def __getattr__(name: str) -> object:
    """Imports a public name from its module the first time it is asked for."""
    if name not in _MODULE:
        raise AttributeError(f"module 'effopd' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
