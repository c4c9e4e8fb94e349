"""What each method sets: the only list of methods, and of what ours is made of."""

from dataclasses import replace
from typing import Any, Literal

from effopd.evaluation.importance_kl import ImportanceKLValidation
from effopd.evaluation.validators import AccuracyValidation, TeacherKLValidation
from effopd.objectives import ExOPD, FullVocabularyKL, PolicyGradient, SampledTokenOPD
from effopd.rollouts.engine import Sampling
from effopd.search.extrapolator import Search
from effopd.search.scales import GeometricScales
from effopd.search.schedule import EveryN
from effopd.search.validation import PairedMargin
from effopd.training.settings import TrainSettings

Method = Literal["opd", "effopd", "exopd", "alphaopd", "expo", "grpo", "dapo", "ppo", "dr_grpo"]
Preset = Literal["default", "paper", "release"]

ACCELERATORS = {"alphaopd": Search.alphaopd, "expo": Search.expo}
"""Methods that propose a jump of their own, taken unseen."""
REWARDED = {
    "grpo": PolicyGradient.grpo,
    "dapo": PolicyGradient.dapo,
    "ppo": PolicyGradient.ppo,
    "dr_grpo": PolicyGradient.dr_grpo,
}
"""Methods that learn from rewards."""
SEARCHING = {"effopd", *ACCELERATORS}
"""Methods that move the weights along a direction."""

EFFOPD_SEARCH = Search(
    schedule=EveryN(n=1),
    scales=GeometricScales(floor=0.125),
    accept=PairedMargin(z=1.65),
    learning_rate="follow",
)
"""The search that measured best (docs/search.md)."""
EFFOPD_VALIDATION = ImportanceKLValidation(source="batch", prompts=64)
"""Scores candidates on the batch that is trained on next, so that a search writes nothing."""
EFFOPD_EPOCHS = 4
"""Updates per batch; the search takes back what goes too far."""


def method_settings(method: str, preset: str, longest: int) -> dict[str, Any]:
    """Sections of a run's settings that a method and a preset fill, by name."""
    published = preset in ("paper", "release")
    epochs = EFFOPD_EPOCHS if method == "effopd" and not published else 1
    found: dict[str, Any] = {
        "search": EFFOPD_SEARCH,
        "validation": EFFOPD_VALIDATION,
        "train": TrainSettings(epochs=epochs),
    }
    if published:
        found |= {
            "search": Search.paper() if preset == "paper" else Search.release(),
            "validation": AccuracyValidation(),
            "objective": SampledTokenOPD(),
        }
    if method == "exopd":
        found["objective"] = (
            ExOPD() if published else FullVocabularyKL(reward_scale=ExOPD().reward_scale)
        )
    if method in ACCELERATORS:
        found |= {"search": ACCELERATORS[method](), "validation": TeacherKLValidation()}
    if method in REWARDED:
        found["objective"] = REWARDED[method]()
        found["train"] = TrainSettings(prompts_per_step=32, responses_per_prompt=8)
    if method == "dapo":  # its buffer is a fifth of the length cap: 4096 of 20,480 tokens
        found["objective"] = replace(PolicyGradient.dapo(), overlong_buffer=longest // 5)
        found["sampling"] = Sampling(max_new_tokens=longest)
    return found
