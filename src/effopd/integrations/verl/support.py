"""What of verl the plug-in supports: everything else is refused before a process is started."""

from collections.abc import Callable, Iterable, Mapping
from operator import not_ as off
from typing import Any

from effopd.errors import ConfigError
from effopd.integrations.verl.settings import PluginSettings, ServedKLValidation
from effopd.search.direction import AlphaPLS
from effopd.search.validation import PairedMargin

TRAINER_MODE = "effopd"
"""Name of the plug-in's trainer in verl's registry."""
AGENT_LOOP_MANAGER = "effopd.integrations.verl.agent_loop.SeededAgentLoopManager"

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
FSDP, MODEL = f"{ACTOR}.fsdp_config", "actor_rollout_ref.model"

Condition = Callable[[Any], bool]


def one_of(*values: Any) -> Condition:
    """A key has one of these values; an absent key has the value None."""
    return lambda value: value in values


def none_of(*values: Any) -> Condition:
    """A key has another value than these."""
    return lambda value: value not in values


UNTESTED = "set it to False: the search was not tested with it"
RANK = "set it to 0: a candidate of the product of two factors has twice their rank"
REQUIREMENTS: tuple[tuple[str, Condition, str], ...] = (
    ("trainer.use_v1", one_of(True), "set it to True: the legacy trainer has other hooks"),
    ("trainer.v1.trainer_mode", one_of("sync", TRAINER_MODE),
     "set it to 'sync': asynchronous trainers generate while weights would be moved"),
    ("actor_rollout_ref.hybrid_engine", one_of(True),
     "set it to True: candidates go to rollout servers on the training devices"),
    (f"{ACTOR}.strategy", one_of("fsdp2"),
     "set it to 'fsdp2': FSDP1 flattens parameters, Megatron cuts them differently"),
    # those two do not sample a request by a seed of its own
    (f"{ROLLOUT}.name", none_of("sglang", "trtllm"),
     "use 'vllm': all candidates of a search are sampled with the same seeds"),
    (f"{ROLLOUT}.agent.agent_loop_manager_class", one_of(None, AGENT_LOOP_MANAGER),
     "remove it: the plug-in brings one that passes seeds on"),
    (f"{ROLLOUT}.checkpoint_engine.backend", one_of(None, "naive"),
     "set it to 'naive': other backends were not tested with the search"),
    (f"{FSDP}.model_dtype", one_of(None, "fp32", "float32"),
     "set it to 'fp32': updates at small learning rates vanish in bfloat16 masters"),
    (f"{FSDP}.fsdp_size", one_of(None, -1),
     "set it to -1: hybrid sharding was not tested with the search"),
    (f"{FSDP}.param_offload", off, UNTESTED),
    (f"{FSDP}.optimizer_offload", off, UNTESTED),
    (f"{FSDP}.offload_policy", off, UNTESTED),
    (f"{FSDP}.qat.enable", off, UNTESTED),
    (f"{ACTOR}.checkpoint.async_save", off, UNTESTED),
    (f"{MODEL}.lora_rank", off, RANK),
    (f"{MODEL}.lora.rank", off, RANK),
    (f"{MODEL}.lora_adapter_path", off, "remove it: merge the adapter into the model first"),
    ("algorithm.adv_estimator", none_of("gae"),
     "use 'grpo' for distillation: training with a critic was not tested"),
    ("trainer.critic_warmup", off,
     "set it to 0: a step without an actor update has nothing to search"),
    ("trainer.default_hdfs_dir", off,
     "remove it: the anchor is saved to trainer.default_local_dir alone"),
    ("skip.rollout_tq.enable", off, UNTESTED),
)  # fmt: skip
"""Key of verl's configuration, when it is supported, and what to do where it is not."""

ANOTHER = "samples another distribution than the student's: set it to {}"
TEACHER: tuple[tuple[str, Condition, str], ...] = (
    ("distillation.enabled", bool, "scores nothing: set it, and distillation.teacher_models"),
    ("distillation.distillation_loss.loss_mode", lambda value: "topk" not in str(value),
     "asks the teacher for its own likeliest tokens instead of the student's: use 'k1'"),
    (f"{ROLLOUT}.temperature", one_of(1), ANOTHER.format(1)),
    (f"{ROLLOUT}.top_p", one_of(1), ANOTHER.format(1)),
    (f"{ROLLOUT}.top_k", one_of(-1, 0, None), ANOTHER.format(-1)),
)  # fmt: skip
"""The same where the teacher scores: the estimate of the divergence is unbiased for samples of the
student itself, scored token by token."""

LOSS = "distillation.distillation_loss"
DENSE: tuple[tuple[str, Condition, str], ...] = (
    ("distillation.enabled", bool, "effopd.slope follows a divergence from a teacher: set it"),
    (f"{LOSS}.loss_mode", lambda value: "topk" in str(value),
     "effopd.slope follows a loss over many tokens of the vocabulary: set it to 'forward_kl_topk'"),
    (f"{LOSS}.use_policy_gradient", off,
     "effopd.slope follows the divergence itself, not a surrogate: set it to False"),
    (f"{ACTOR}.optim.optimizer", one_of(None, "AdamW", "Adam"),
     "effopd.slope knows the steps of AdamW: set it to 'AdamW'"),
)  # fmt: skip
"""The same where the rate follows slopes in the place of a search."""


def check_supported(config: Mapping[str, Any], settings: PluginSettings) -> None:
    """Refuses what the plug-in does not support."""
    problems = _unmet(config, REQUIREMENTS, " is not supported by effopd: {}")
    search, validation, reward = settings.search, settings.validation, "reward.reward_model"
    if settings.slope is not None:
        problems += _unmet(config, DENSE, ": {}")
        if problems:
            raise ConfigError("\n".join(problems))
        return
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
    if lookup(config, f"{reward}.enable") and not lookup(config, f"{reward}.enable_resource_pool"):
        problems.append(
            f"{reward}.enable = True is not supported by effopd: on the training devices there is "
            f"no room for it; set {reward}.enable_resource_pool to True, or use a reward function"
        )
    if isinstance(validation, ServedKLValidation):
        ending = " {}, or score by effopd.validation.type = 'reward'"
        problems += _unmet(config, TEACHER, ending)
    if problems:
        raise ConfigError("\n".join(problems))


def _unmet(
    config: Mapping[str, Any], table: Iterable[tuple[str, Condition, str]], ending: str
) -> list[str]:
    """A sentence for each key of a table whose value is not supported."""
    found = ((key, lookup(config, key), is_met, remedy) for key, is_met, remedy in table)
    return [
        f"{key} = {value!r}{ending.format(remedy)}"
        for key, value, is_met, remedy in found
        if not is_met(value)
    ]


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    found: Any = config
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found
