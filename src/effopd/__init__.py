"""Fast on-policy distillation of language models, and understanding it from the weights.

    import effopd

    config = effopd.Config.of("slope")
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
    from effopd.analysis.sweeps import intervene
    from effopd.comparison.run import Comparison, compare
    from effopd.evaluation.benchmarks.run import Evaluation, evaluate
    from effopd.hub import push_to_hub
    from effopd.models.loading import ModelSettings, load_model
    from effopd.models.updates import open_update
    from effopd.records import Run, load_run
    from effopd.reports.analysis import Analysis
    from effopd.search.direction import AlphaPLS, SinceAccepted, SinceBase, SinceRaw
    from effopd.search.extrapolator import Extrapolator
    from effopd.search.line_search import SearchResult
    from effopd.search.scales import GeometricScales, LadderScales, PastSearch
    from effopd.search.schedule import AtSteps, EveryN, PowersOfTwo
    from effopd.search.selection import select_parameters
    from effopd.search.settings import Search
    from effopd.search.slope import SlopeRate, SlopeSettings
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

__version__ = "0.2.0"

_NAMES = {
    "figures": "",
    "analysis.study": "analyze",
    "analysis.sweeps": "intervene",
    "comparison.run": "Comparison compare",
    "evaluation.benchmarks.run": "Evaluation evaluate",
    "hub": "push_to_hub",
    "models.loading": "ModelSettings load_model",
    "models.updates": "open_update",
    "records": "Run load_run",
    "reports.analysis": "Analysis",
    "search.direction": "AlphaPLS SinceAccepted SinceBase SinceRaw",
    "search.extrapolator": "Extrapolator",
    "search.line_search": "SearchResult",
    "search.scales": "GeometricScales LadderScales PastSearch",
    "search.schedule": "AtSteps EveryN PowersOfTwo",
    "search.selection": "select_parameters",
    "search.settings": "Search",
    "search.slope": "SlopeRate SlopeSettings",
    "search.validation": "AtLeast Draw LengthGuard PairedMargin Score Strict Unconditional",
    "training.config": "Config",
    "training.observer": "Observer",
    "training.run": "train",
}
"""Module -> the public names it has; none where the module is one itself."""

__all__ = [
    "AlphaPLS", "Analysis", "AtLeast", "AtSteps", "Comparison", "Config", "Draw", "Evaluation",
    "EveryN", "Extrapolator", "GeometricScales", "LadderScales", "LengthGuard", "ModelSettings",
    "Observer", "PairedMargin", "PastSearch", "PowersOfTwo", "Run", "Score", "Search",
    "SearchResult", "SinceAccepted", "SinceBase", "SinceRaw", "SlopeRate",
    "SlopeSettings", "Strict", "Unconditional",
    "analyze", "compare", "evaluate", "figures", "intervene", "load_model", "load_run",
    "open_update", "push_to_hub", "select_parameters", "train",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Imports a public name from its module the first time it is asked for."""
    for module, names in _NAMES.items():
        if name in (names or module).split():
            loaded = import_module(f"effopd.{module}")
            return getattr(loaded, name) if names else loaded
    raise AttributeError(f"module 'effopd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
