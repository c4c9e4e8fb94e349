"""Fast on-policy distillation of language models, and understanding it from the weights.

    import effopd

    config = effopd.Config.of("effopd")
    run = effopd.train(config, "runs/mine", model=..., teacher=..., problems=...)

Train with `train`, plug `Extrapolator` into a loop of your own, compare methods with `compare`,
draw with `figures`. Functions return results and print nothing. Names load on first use, so that
`import effopd` and `effopd --help` are instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effopd import figures
    from effopd.analysis.study import analyze
    from effopd.comparison.run import Comparison, compare
    from effopd.evaluation.benchmarks.run import Evaluation, evaluate
    from effopd.models.loading import ModelSettings, load_model
    from effopd.models.updates import open_update
    from effopd.records import Run, load_run
    from effopd.search.direction import AlphaPLS, SinceAccepted, SinceBase, SinceRaw
    from effopd.search.extrapolator import Extrapolator
    from effopd.search.line_search import SearchResult
    from effopd.search.scales import GeometricScales, LadderScales, PastSearch
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
    from effopd.training.config import Config
    from effopd.training.observer import Observer
    from effopd.training.run import train

__version__ = "0.1.0"

_HOME: dict[str, tuple[str, ...]] = {
    "comparison.run": (
        "Comparison",
        "analyze",
        "compare",
        "evaluate",
    ),
    "models.loading": (
        "ModelSettings",
        "load_model",
    ),
    "models.updates": ("open_update",),
    "records": (
        "Run",
        "load_run",
    ),
    "search.direction": (
        "AlphaPLS",
        "SinceAccepted",
        "SinceBase",
        "SinceRaw",
    ),
    "search.extrapolator": ("Extrapolator",),
    "search.line_search": ("SearchResult",),
    "search.scales": (
        "GeometricScales",
        "LadderScales",
        "PastSearch",
    ),
    "search.schedule": (
        "AtSteps",
        "EveryN",
        "PowersOfTwo",
    ),
    "search.selection": ("select_parameters",),
    "search.settings": ("Search",),
    "search.validation": (
        "AtLeast",
        "Draw",
        "LengthGuard",
        "PairedMargin",
        "Score",
        "Strict",
        "Unconditional",
    ),
    "analysis.study": ("analyze",),
    "evaluation.benchmarks.run": ("Evaluation", "evaluate"),
    "training.config": ("Config",),
    "training.observer": ("Observer",),
    "training.run": ("train",),
}
_MODULE = {name: f"effopd.{module}" for module, names in _HOME.items() for name in names}

__all__ = [
    "AlphaPLS",
    "AtLeast",
    "AtSteps",
    "Comparison",
    "Config",
    "Draw",
    "Evaluation",
    "EveryN",
    "Extrapolator",
    "GeometricScales",
    "LadderScales",
    "LengthGuard",
    "ModelSettings",
    "Observer",
    "PairedMargin",
    "PastSearch",
    "PowersOfTwo",
    "Run",
    "Score",
    "Search",
    "SearchResult",
    "SinceAccepted",
    "SinceBase",
    "SinceRaw",
    "Strict",
    "Unconditional",
    "analyze",
    "compare",
    "evaluate",
    "figures",
    "load_model",
    "load_run",
    "open_update",
    "select_parameters",
    "train",
]


def __getattr__(name: str) -> object:
    """Imports a public name from its module the first time it is asked for."""
    if name == "figures":
        return import_module("effopd.figures")
    if name not in _MODULE:
        raise AttributeError(f"module 'effopd' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
