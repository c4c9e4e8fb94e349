"""The settings of `effopd plan`, from overrides alone."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from effopd.config.mistakes import sentences, unknown_settings
from effopd.config.reading import merged, parse_override
from effopd.errors import ConfigError
from effopd.evaluation.importance_kl import ImportanceKLValidation
from effopd.evaluation.validators import AccuracyValidation, TeacherKLValidation
from effopd.search.settings import Search
from effopd.training.methods import Preset, method_settings

Count = Annotated[int, Field(ge=1, le=2**40)]


class PlanConfig(BaseModel):
    """A run on a cluster: the paper's, where nothing else is said.

    Attributes:
        preset: Where `search`, `validation` and `epochs` start from, as in a recipe.
        gpus: Ranks, one a GPU, that share every tensor by `fully_shard` (FSDP2).
        gpus_per_node: Of them on one machine, whose memory they share.
        gpu: Card, as `effopd doctor --gpu` names it; its speed has to be known.
        rollout_gpus: GPUs of one inference engine, which hold a whole copy of the weights; 0 takes
            the fewest whose free half holds them.
        expert_ranks: Ranks that experts are distributed over, instead of being gathered.
        network_gb_s: What a GPU receives over the network, GB a second.
        host_gb_s: What a GPU exchanges with its host, GB a second.
        dtype: Of weights, gradients and moments as they are kept; layers compute in bfloat16.
        gradient_checkpointing: Whether activations are recomputed.
        anchor_device: Where the search keeps anchor and tip: "cpu", or next to what it moves.
        teacher: Size or path of the teacher, "" for the student's; its weights are in bfloat16.
        prompt_tokens: Longest prompt.
        max_new_tokens: Length cap of an answer.
        prompts_per_step: Prompts a step.
        responses_per_prompt: Answers to each.
        epochs: Passes over the answers of a step.
        micro_batch_tokens: Prompt and answer tokens of a pass with gradient on one rank.
        steps: Steps of a run without the search.
        steps_with_search: Steps to the same quality with it.
        search: The search.
        validation: How it scores candidates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Preset = "paper"
    gpus: Count = 8
    gpus_per_node: Count = 8
    gpu: str = "H20"
    rollout_gpus: int = Field(default=0, ge=0)
    expert_ranks: Count = 1
    network_gb_s: float = Field(default=50.0, gt=0, allow_inf_nan=False)
    host_gb_s: float = Field(default=50.0, gt=0, allow_inf_nan=False)
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = True
    anchor_device: Literal["cpu", "student"] = "cpu"
    teacher: str = ""
    prompt_tokens: Count = 2048
    max_new_tokens: Count = 16384
    prompts_per_step: Count = 1024
    responses_per_prompt: Count = 1
    epochs: Count = 1
    micro_batch_tokens: Count = 18432
    steps: int = Field(default=40, ge=1, le=10_000)
    steps_with_search: int = Field(default=10, ge=1, le=10_000)
    search: Search = Search.paper()
    validation: Annotated[
        AccuracyValidation | TeacherKLValidation | ImportanceKLValidation,
        Field(discriminator="type"),
    ] = AccuracyValidation()

    @property
    def answers(self) -> int:
        """Answers a step."""
        return self.prompts_per_step * self.responses_per_prompt

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_tokens + self.max_new_tokens

    @model_validator(mode="after")
    def _is_consistent(self) -> "PlanConfig":
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ValueError(
                f"gpus must be a multiple of gpus_per_node = {self.gpus_per_node}, got {self.gpus}"
            )
        for name in ("rollout_gpus", "expert_ranks"):
            if (value := getattr(self, name)) and self.gpus % value:
                raise ValueError(f"{name} must divide gpus = {self.gpus}, got {value}")
        if self.answers % self.gpus:
            raise ValueError(
                f"prompts_per_step must make a step's {self.answers} answers divide over "
                f"{self.gpus} GPUs, got {self.prompts_per_step}"
            )
        if self.steps_with_search > self.steps:
            raise ValueError(
                f"steps_with_search must be at most steps = {self.steps}, got "
                f"{self.steps_with_search}"
            )
        if self.search.direction.type == "alpha_pls":
            raise ValueError(
                f"search.direction has no estimate of what {self.search.direction.type!r} "
                "remembers: use 'since_accepted', 'since_raw' or 'since_base'"
            )
        return self


def make_plan_config(overrides: Sequence[str] = ()) -> PlanConfig:
    """Validated settings.

    Args:
        overrides: `key=value` with a TOML value, for example `search.scales.cap=64`.

    Returns:
        The settings.

    Raises:
        ConfigError: An unknown key, a wrong value, or numbers that do not divide; names the key.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        given = merged(given, parse_override(override))
    whole = merged(_defaults(given), given)
    if isinstance(whole["search"], Mapping) and whole["search"].get("guard") == "none":
        whole["search"] = {**whole["search"], "guard": None}
    if mistakes := list(unknown_settings(whole, PlanConfig)):
        raise ConfigError("\n".join(mistakes))
    try:
        return PlanConfig.model_validate_json(json.dumps(whole, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error, whole))) from None


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a preset in raw form; an unknown one is reported later."""
    config = PlanConfig()
    found = method_settings("effopd", str(given.get("preset", config.preset)), 1)
    chosen = {
        "search": found["search"],
        "validation": found["validation"],
        "epochs": found["train"].epochs,
    }
    return PlanConfig(**chosen).model_dump(exclude={"preset"})
