"""The only list of objectives and methods: what `objective.type` and `method` may name."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

from effopd.errors import ConfigError
from effopd.evaluation.importance_kl import ImportanceKLValidation
from effopd.evaluation.validators import AccuracyValidation, TeacherKLValidation
from effopd.methods.fixed_negative import FixedNegative
from effopd.methods.full_kl import FullVocabularyKL
from effopd.methods.objective import Objective
from effopd.methods.opd import ExOPD, SampledTokenOPD
from effopd.methods.policy_gradient import PolicyGradient
from effopd.search.extrapolator import Search

Preset = Literal["default", "paper", "release"]
Sections = Mapping[str, Any]
ObjectiveType = TypeVar("ObjectiveType", bound=type[Objective])

Objective.choices.extend([SampledTokenOPD, ExOPD, FullVocabularyKL, FixedNegative, PolicyGradient])

EFFOPD_SEARCH = Search.effopd()
"""The search that measured best (docs/search.md)."""
EFFOPD_VALIDATION = ImportanceKLValidation(source="batch", prompts=64)
"""Scores candidates on the batch that is trained on next, so that a search writes nothing."""
EFFOPD_EPOCHS = 4
"""Updates per batch; the search takes back what goes too far."""


@dataclass(frozen=True)
class Method:
    """What a name of `method` stands for.

    Attributes:
        sections: From (whether a published preset is asked for, longest answer in tokens) to
            the settings that the method has in place of the preset's, by section.
        searches: Whether it moves the weights along a direction.
    """

    sections: Callable[[bool, int], Sections]
    searches: bool = False


def _jump(search: Search) -> Method:
    """An accelerator that proposes a jump of its own, taken unseen."""
    return Method(lambda *_: {"search": search, "validation": TeacherKLValidation()}, searches=True)


def _rewarded(objective: Callable[[int], PolicyGradient]) -> Method:
    """Learns from rewards, with groups of answers to each prompt."""
    train = {"prompts_per_step": 32, "responses_per_prompt": 8}
    return Method(lambda _, longest: {"objective": objective(longest), "train": train})


METHODS = {
    "opd": Method(lambda *_: {}),
    "slope": Method(
        lambda *_: {"train": {"updates_per_step": 8, "epochs": 2}, "optimizer": {"slope": {}}}
    ),
    "effopd": Method(
        lambda published, _: {} if published else {"train": {"epochs": EFFOPD_EPOCHS}},
        searches=True,
    ),
    "exopd": Method(
        lambda published, _: {
            "objective": ExOPD()
            if published
            else FullVocabularyKL(reward_scale=ExOPD().reward_scale)
        }
    ),
    "alphaopd": _jump(Search.alphaopd()),
    "expo": _jump(Search.expo()),
    "first_update": _jump(Search.first_update()),
    "fixed_alpha": _jump(Search.fixed_alpha()),
    "fixed_negative": Method(lambda *_: {"objective": FixedNegative()}),
    "grpo": _rewarded(lambda _: PolicyGradient.grpo()),
    "dapo": _rewarded(PolicyGradient.dapo),
    "ppo": _rewarded(lambda _: PolicyGradient.ppo()),
    "dr_grpo": _rewarded(lambda _: PolicyGradient.dr_grpo()),
}


def sections(method: str, preset: str, longest: int) -> Sections:
    """Settings that a method and a preset stand for, by section; whole objects or some settings.

    An unknown method has those of its preset.
    """
    published = preset in ("paper", "release")
    if published:
        found: Sections = {
            "search": Search.paper() if preset == "paper" else Search.release(),
            "validation": AccuracyValidation(),
            "objective": SampledTokenOPD(),
        }
    else:
        found = {"search": EFFOPD_SEARCH, "validation": EFFOPD_VALIDATION}
    known = METHODS.get(method)
    return {**found, **(known.sections(published, longest) if known else {})}


def register(objective: ObjectiveType) -> ObjectiveType:
    """Makes an objective one that `objective.type` and `method` may name; usable as a decorator.

    Args:
        objective: A frozen dataclass of settings whose field `type` has its name as default. One
            of the same module and name takes the place of an earlier one, as in a notebook.

    Raises:
        ConfigError: The name is missing or taken.
    """
    name = getattr(objective, "type", None)
    if not isinstance(name, str):
        raise ConfigError(f"{objective.__name__} has no name: give its field `type` a default")
    others = [each for each in Objective.choices if not _is_same(each, objective)]
    if name in {each.type for each in others} or (name in METHODS and others == Objective.choices):
        raise ConfigError(f"objective.type = {name!r} is taken: choose another name")
    Objective.choices[:] = [*others, objective]
    METHODS[name] = Method(lambda *_: {"objective": {"type": name}})
    return objective


def import_installed() -> None:
    """Imports the modules that installed packages name in the group `effopd.objectives`."""
    for each in entry_points(group="effopd.objectives"):
        if each.module in sys.modules:  # it imported effopd, and registers by itself
            continue
        try:
            each.load()
        except Exception as error:  # whatever a module does when it is imported
            package = each.dist.name if each.dist else "another package"
            raise ConfigError(
                f"the objective {each.name!r} of {package} cannot be imported: "
                f"{type(error).__name__}: {error}; mend or uninstall {package}"
            ) from error


def _is_same(one: type, other: type) -> bool:
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
