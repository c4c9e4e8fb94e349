"""Settings of the objectives, and how one is registered."""

import dataclasses
import math
from typing import Any, Literal

import pytest

from effopd.errors import ConfigError
from effopd.methods import (
    ExOPD,
    FullVocabularyKL,
    Learner,
    Objective,
    PolicyGradient,
    Resources,
    SampledTokenOPD,
    register,
)
from effopd.methods.registry import METHODS
from effopd.training.config import Config


def test_defaults_are_the_vetted_settings() -> None:
    assert dataclasses.asdict(SampledTokenOPD()) == {
        "type": "sampled_token",
        "importance_cap": 5.0,
        "teacher_temperature": 1.0,
    }
    assert dataclasses.asdict(ExOPD()) == {
        "type": "exopd",
        "reward_scale": 1.25,
        "importance_cap": 5.0,
        "teacher_temperature": 1.0,
    }
    assert dataclasses.asdict(FullVocabularyKL()) == {
        "type": "full_kl",
        "divergence": "reverse",
        "beta": 0.5,
        "teacher_temperature": 1.0,
        "reward_scale": 1.0,
    }


@pytest.mark.parametrize(
    ("node", "setting"),
    [
        (SampledTokenOPD, {"importance_cap": 0.0}),
        (SampledTokenOPD, {"importance_cap": math.nan}),
        (ExOPD, {"importance_cap": -1.0}),
        (ExOPD, {"reward_scale": -0.1}),
        (ExOPD, {"reward_scale": math.nan}),
        (SampledTokenOPD, {"teacher_temperature": 0.0}),
        (ExOPD, {"teacher_temperature": -1.0}),
        (FullVocabularyKL, {"teacher_temperature": math.nan}),
        (FullVocabularyKL, {"reward_scale": -0.1}),
        (FullVocabularyKL, {"divergence": "kl"}),
        (FullVocabularyKL, {"divergence": "jsd", "beta": 1.1}),
    ],
)
def test_settings_of_distillation_out_of_range(node: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        node(**setting)


def changes(settings: PolicyGradient) -> dict[str, Any]:
    """What differs from the defaults."""
    default = dataclasses.asdict(PolicyGradient())
    return {k: v for k, v in dataclasses.asdict(settings).items() if v != default[k]}


def test_defaults_with_rewards_need_no_other_model() -> None:
    settings = PolicyGradient()
    assert dataclasses.asdict(settings) == {
        "type": "policy_gradient",
        "advantage": "group",
        "group_scale": "std",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "aggregation": "token",
        "kl_coefficient": 0.0,
        "importance_cap": 5.0,
        "dynamic_sampling": False,
        "max_refills": 10,
        "overlong_buffer": 0,
        "gae_gamma": 1.0,
        "gae_lambda": 0.95,
        "value_clip": 0.2,
        "critic_lr": 1e-5,
        "critic_warmup_steps": 0,
        "distillation": 0.0,
    }
    assert not settings.needs_critic
    assert not settings.needs_reference
    assert not settings.needs_teacher


def test_published_settings() -> None:
    assert changes(PolicyGradient.dapo()) == {"dynamic_sampling": True, "overlong_buffer": 4096}
    assert changes(PolicyGradient.grpo()) == {
        "clip_high": 0.2,
        "aggregation": "sequence",
        "kl_coefficient": 1e-3,
    }
    assert changes(PolicyGradient.dr_grpo()) == {
        "clip_high": 0.2,
        "group_scale": "none",
        "aggregation": "constant",
    }
    assert changes(PolicyGradient.ppo()) == {"clip_high": 0.2, "advantage": "gae"}


def test_what_the_settings_need() -> None:
    assert PolicyGradient.ppo().needs_critic
    assert PolicyGradient.grpo().needs_reference
    assert PolicyGradient(distillation=0.1).needs_teacher


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"advantage": "reinforce"}, "advantage is 'reinforce'; expected one of"),
        ({"group_scale": "batch"}, "group_scale is 'batch'; expected one of"),
        ({"aggregation": "mean"}, "aggregation is 'mean'; expected one of"),
        ({"clip_low": 0.0}, "clip_low is 0.0; expected a positive"),
        ({"clip_low": 1.1}, "clip_low is 1.1; expected a number from"),
        ({"clip_high": math.inf}, "clip_high is infinite"),
        ({"kl_coefficient": -1.0}, "kl_coefficient is -1.0"),
        ({"kl_coefficient": math.nan}, "kl_coefficient is nan"),
        ({"importance_cap": 0.0}, "importance_cap is 0.0"),
        ({"max_refills": 0}, "max_refills is 0; expected a number from 1"),
        ({"overlong_buffer": -1}, "overlong_buffer is -1"),
        ({"gae_gamma": 1.01}, "gae_gamma is 1.01; expected a number from 0"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1"),
        ({"value_clip": 0.0}, "value_clip is 0.0"),
        ({"critic_lr": 0.0}, "critic_lr is 0.0"),
        ({"critic_lr": math.inf}, "critic_lr is infinite"),
        ({"critic_warmup_steps": -1}, "critic_warmup_steps is -1"),
        ({"distillation": -0.5}, "distillation is -0.5"),
        ({"critic_warmup_steps": 2}, "critic_warmup_steps = 2, but .* no critic"),
        ({"advantage": "gae", "dynamic_sampling": True}, "dynamic_sampling with advantage = 'gae'"),
    ],
)
def test_settings_of_rewards_out_of_range(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyGradient(**setting)


# What an objective needs --------------------------------------------------------------------------

NEEDS = ("teacher", "vocabulary", "reference", "rewards", "critic")
OBJECTIVES: dict[str, tuple[Objective, set[str]]] = {
    "sampled token": (SampledTokenOPD(), {"teacher"}),
    "exopd": (ExOPD(reward_scale=1.0), {"teacher", "reference"}),
    "full_kl": (FullVocabularyKL(), {"teacher", "vocabulary"}),
    "full_kl, scaled": (
        FullVocabularyKL(reward_scale=1.25),
        {"teacher", "vocabulary", "reference"},
    ),
    "dapo": (PolicyGradient.dapo(), {"rewards"}),
    "grpo": (PolicyGradient.grpo(), {"rewards", "reference"}),
    "ppo": (PolicyGradient.ppo(), {"rewards", "critic"}),
    "mixed": (PolicyGradient(distillation=0.1), {"rewards", "teacher"}),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_says_what_it_needs(name: str) -> None:
    objective, needs = OBJECTIVES[name]
    assert {need for need in NEEDS if getattr(objective, f"needs_{need}")} == needs
    assert objective.refills == (10 if name == "dapo" else 0)
    distils = "teacher" in needs and "rewards" not in needs
    assert objective.divergence == ("reverse" if distils else None)


# Registration -------------------------------------------------------------------------------------


def test_a_name_is_needed_and_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Objective, "choices", [*Objective.choices])

    class Nameless(Objective):
        def learner(self, resources: Resources) -> Learner:
            raise NotImplementedError

    class Other(Nameless):
        type: Literal["full_kl"] = "full_kl"

    class Method(Nameless):
        type: Literal["opd"] = "opd"

    with pytest.raises(ConfigError, match="Nameless has no name: give its field `type`"):
        register(Nameless)
    for taken in (Other, Method):
        with pytest.raises(ConfigError, match="is taken: choose another name"):
            register(taken)
    assert "full_kl" not in METHODS
    assert Config.of("opd").objective == FullVocabularyKL()
