"""What of verl the plug-in supports: everything else is refused before a process is started."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from effopd.errors import ConfigError
from effopd.integrations.verl.settings import PluginSettings, ServedKLValidation
from effopd.search.direction import AlphaPLS
from effopd.search.validation import PairedMargin

TRAINER_MODE = "effopd"
"""Name of the plug-in's trainer in verl's registry."""
AGENT_LOOP_MANAGER = "effopd.integrations.verl.agent_loop.SeededAgentLoopManager"
UNSEEDED_ROLLOUTS = {"sglang", "trtllm"}
"""Rollout engines that do not sample a request by a seed of its own."""

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
FSDP, MODEL = f"{ACTOR}.fsdp_config", "actor_rollout_ref.model"

SAMPLES_OF_THE_STUDENT: Mapping[str, tuple[int | None, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (-1, 0, None),
}
"""Sampling parameter -> values that leave the student's distribution as it is."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One condition on verl's configuration.

    Attributes:
        key: Dotted key.
        is_met: Whether a value is supported; an absent key has the value None.
        remedy: What to set, and why.
    """

    key: str
    is_met: Callable[[Any], bool]
    remedy: str


def _off(key: str, why: str) -> Requirement:
    return Requirement(key=key, is_met=lambda value: not value, remedy=f"set it to False: {why}")


def _untested(key: str) -> Requirement:
    return _off(key, "the search was not tested with it")


REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement(
        key="trainer.use_v1",
        is_met=lambda value: value is True,
        remedy="set it to True: the legacy trainer has other hooks",
    ),
    Requirement(
        key="trainer.v1.trainer_mode",
        is_met=lambda value: value in {"sync", TRAINER_MODE},
        remedy="set it to 'sync': asynchronous trainers generate while weights would be moved",
    ),
    Requirement(
        key="actor_rollout_ref.hybrid_engine",
        is_met=lambda value: value is True,
        remedy="set it to True: candidates go to rollout servers on the training devices",
    ),
    Requirement(
        key=f"{ACTOR}.strategy",
        is_met=lambda value: value == "fsdp2",
        remedy="set it to 'fsdp2': FSDP1 flattens parameters, Megatron cuts them differently",
    ),
    Requirement(
        key=f"{ROLLOUT}.name",
        is_met=lambda value: value not in UNSEEDED_ROLLOUTS,
        remedy="use 'vllm': all candidates of a search are sampled with the same seeds",
    ),
    Requirement(
        key=f"{ROLLOUT}.agent.agent_loop_manager_class",
        is_met=lambda value: value in {None, AGENT_LOOP_MANAGER},
        remedy="remove it: the plug-in brings one that passes seeds on",
    ),
    Requirement(
        key=f"{ROLLOUT}.checkpoint_engine.backend",
        is_met=lambda value: value in {None, "naive"},
        remedy="set it to 'naive': other backends were not tested with the search",
    ),
    Requirement(
        key=f"{FSDP}.model_dtype",
        is_met=lambda value: value in {None, "fp32", "float32"},
        remedy="set it to 'fp32': updates at small learning rates vanish in bfloat16 masters",
    ),
    Requirement(
        key=f"{FSDP}.fsdp_size",
        is_met=lambda value: value in {None, -1},
        remedy="set it to -1: hybrid sharding was not tested with the search",
    ),
    _untested(f"{FSDP}.param_offload"),
    _untested(f"{FSDP}.optimizer_offload"),
    _untested(f"{FSDP}.offload_policy"),
    _untested(f"{FSDP}.qat.enable"),
    _untested(f"{ACTOR}.checkpoint.async_save"),
    Requirement(
        key=f"{MODEL}.lora_rank",
        is_met=lambda value: not value,
        remedy="set it to 0: a candidate of the product of two factors has twice their rank",
    ),
    Requirement(
        key=f"{MODEL}.lora.rank",
        is_met=lambda value: not value,
        remedy="set it to 0: a candidate of the product of two factors has twice their rank",
    ),
    Requirement(
        key=f"{MODEL}.lora_adapter_path",
        is_met=lambda value: not value,
        remedy="remove it: merge the adapter into the model first",
    ),
    Requirement(
        key="algorithm.adv_estimator",
        is_met=lambda value: value != "gae",
        remedy="use 'grpo' for distillation: training with a critic was not tested",
    ),
    Requirement(
        key="trainer.critic_warmup",
        is_met=lambda value: not value,
        remedy="set it to 0: a step without an actor update has nothing to search",
    ),
    Requirement(
        key="trainer.default_hdfs_dir",
        is_met=lambda value: not value,
        remedy="remove it: the anchor is saved to trainer.default_local_dir alone",
    ),
    _untested("skip.rollout_tq.enable"),
)


def check_supported(config: Mapping[str, Any], settings: PluginSettings) -> None:
    """Refuses what the plug-in does not support."""
    problems = [
        f"{each.key} = {value!r} is not supported by effopd: {each.remedy}"
        for each in REQUIREMENTS
        if not each.is_met(value := lookup(config, each.key))
    ]
    problems += _search_problems(settings)
    problems += _reward_problems(config)
    if isinstance(settings.validation, ServedKLValidation):
        problems += _teacher_problems(config)
    if problems:
        raise ConfigError("\n".join(problems))


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    found: Any = config
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


def _search_problems(settings: PluginSettings) -> list[str]:
    search, validation, problems = settings.search, settings.validation, []
    if isinstance(search.direction, AlphaPLS):
        problems.append(
            "effopd.search.direction = 'alpha_pls' regresses on progress, which verl does not "
            "measure: use 'since_accepted'"
        )
    if search.learning_rate != "keep":
        problems.append(
            "effopd.search.learning_rate = 'follow' is not supported: verl's scheduler sets the "
            "learning rate; use 'keep'"
        )
    if isinstance(search.accept, PairedMargin) and validation.prompts < 2:
        problems.append("effopd.validation.prompts must be at least 2 to compare them in pairs")
    return problems


def _reward_problems(config: Mapping[str, Any]) -> list[str]:
    key = "reward.reward_model"
    shares = not lookup(config, f"{key}.enable_resource_pool")
    if lookup(config, f"{key}.enable") and shares:
        return [
            f"{key}.enable = True on the training devices is not supported by effopd: set "
            f"{key}.enable_resource_pool to True, or use a reward function"
        ]
    return []


def _teacher_problems(config: Mapping[str, Any]) -> list[str]:
    """The estimate is unbiased for samples of the student itself, scored token by token."""
    problems = []
    if not lookup(config, "distillation.enabled"):
        problems.append(
            "effopd.validation.type = 'teacher_kl' needs a teacher: set distillation.enabled and "
            "distillation.teacher_models, or use effopd.validation.type = 'reward'"
        )
    loss = lookup(config, "distillation.distillation_loss.loss_mode")
    if loss is not None and "topk" in str(loss):
        problems.append(
            f"distillation.distillation_loss.loss_mode = {loss!r} asks the teacher for its own "
            "likeliest tokens, not for the student's: use 'k1', or score by "
            "effopd.validation.type = 'reward'"
        )
    for name, values in SAMPLES_OF_THE_STUDENT.items():
        value = lookup(config, f"{ROLLOUT}.{name}")
        if value not in values:
            problems.append(
                f"{ROLLOUT}.{name} = {value!r} samples another distribution than the student's: "
                f"set it to {values[0]}, or use effopd.validation.type = 'reward'"
            )
    return problems
