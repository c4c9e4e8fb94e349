"""The settings of the plug-in: what `+effopd.KEY=VALUE` on verl's command line says.

Sections are the frozen dataclasses of the search itself; a preset fills them, keys override.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from effopd.config.reading import merged, raw_of, read
from effopd.errors import ConfigError
from effopd.search.settings import Search
from effopd.search.slope import SlopeSettings
from effopd.search.validation import PairedMargin

Preset = Literal["default", "paper", "release"]


def _check_prompts(prompts: int) -> None:
    if prompts < 1:
        raise ConfigError(f"prompts must be at least 1, got {prompts}")


@dataclass(frozen=True, kw_only=True)
class RewardValidation:
    """Mean reward of sampled answers, as verl's reward function gives it: the paper's score.

    Attributes:
        prompts: Number of training prompts, one answer each.
        resample: Draw new prompts for every search instead of one fixed set.
    """

    type: Literal["reward"] = "reward"
    prompts: int = 50
    resample: bool = False

    def __post_init__(self) -> None:
        _check_prompts(self.prompts)


@dataclass(frozen=True, kw_only=True)
class ServedKLValidation:
    """Minus the reverse KL to the teacher, estimated on the student's own answers.

    A teacher behind servers gives log-probabilities of given tokens, not of the vocabulary. The
    mean of `log student - log teacher` over tokens that the student sampled is unbiased for the
    divergence, and dense: every token counts, where a reward is one number an answer.

    Attributes:
        prompts: Number of training prompts, one answer each.
        resample: Draw new prompts for every search instead of one fixed set.
        reduce: "token": mean over the tokens of each answer, then over answers. "sequence": sum
            over the tokens of each answer (equation 7 of arXiv 2605.11739), then mean over answers.
    """

    type: Literal["teacher_kl"] = "teacher_kl"
    prompts: int = 50
    resample: bool = False
    reduce: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        _check_prompts(self.prompts)


Validation = RewardValidation | ServedKLValidation


@dataclass(frozen=True, kw_only=True)
class PluginSettings:
    """Everything under `effopd` in verl's configuration.

    Attributes:
        preset: Where `search` and `validation` start from: "paper" and "release" as published,
            "default" with a dense score and geometric scales.
        seed: Decides validation prompts and the seeds they are answered with.
        search: The search.
        validation: How candidates are scored.
        slope: In the place of the search, the actor's rate follows the slopes of its loss.
    """

    preset: Preset = "default"
    seed: int = 0
    search: Search = Search(accept=PairedMargin(z=1.65))
    validation: Validation = ServedKLValidation()
    slope: SlopeSettings | None = None


def read_settings(raw: Mapping[str, Any] | None) -> PluginSettings:
    """Settings from the section `effopd` of a configuration."""
    given = dict(raw or {})
    presets = {"paper": Search.paper, "release": Search.release}
    start = PluginSettings()
    if (preset := str(given.get("preset"))) in presets:
        start = PluginSettings(search=presets[preset](), validation=RewardValidation())
    try:
        return read(PluginSettings, merged(raw_of(start), given))
    except ConfigError as error:
        lines = str(error).splitlines()
        raise ConfigError("\n".join(f"effopd: {line}" for line in lines)) from None
