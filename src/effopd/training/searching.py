"""The search of a run: which tensors move, and in which form they are extrapolated."""

from effopd.errors import ConfigError
from effopd.models.lora import factor_pairs
from effopd.models.policy import Policy
from effopd.search.extrapolator import Extrapolator, Search
from effopd.search.factors import Factors
from effopd.search.line_search import OnTrial
from effopd.search.selection import select_parameters
from effopd.search.validation import Validator
from effopd.training.settings import LoopSettings
from effopd.training.updating import Updater


def extrapolator_of(
    student: Policy,
    updater: Updater,
    settings: LoopSettings,
    *,
    search: Search | None,
    validate: Validator | None,
    on_trial: OnTrial,
) -> Extrapolator | None:
    """The search over what the optimizer moves; None without a search.

    Points are computed from float32 masters where there are any, and rounded once to the live
    weights. Of adapters the products are extrapolated, not the factors.
    """
    if search is None:
        return None
    if validate is None:
        raise ConfigError("a search needs a validator: pass validate=, or search=None")
    names = select_parameters(student.model, search.parameters)
    pairs = factor_pairs(student.model)
    return Extrapolator(
        {name: updater.moved[name] for name in names},
        validate,
        search=search,
        mirrors={name: updater.live[name] for name in names} if updater.masters else None,
        device="cpu" if settings.memory.anchor_device == "cpu" else None,
        factors=Factors(pairs) if pairs else None,
        on_trial=on_trial,
    )
