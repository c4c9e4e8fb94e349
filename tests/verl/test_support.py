"""Every configuration that was not tested is refused, with the remedy."""

from typing import Any

import pytest

from effopd import AlphaPLS, Search, SlopeSettings
from effopd.errors import ConfigError
from effopd.integrations.verl.settings import PluginSettings, RewardValidation, ServedKLValidation
from effopd.integrations.verl.support import check_supported, lookup

REWARD = PluginSettings(search=Search(), validation=RewardValidation())


def configuration(**changes: Any) -> dict[str, Any]:
    """What is supported, with dotted keys (`__` for `.`) changed."""
    values = {
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "sync",
        "trainer.critic_warmup": 0,
        "actor_rollout_ref.hybrid_engine": True,
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.actor.fsdp_config.param_offload": False,
        "actor_rollout_ref.actor.fsdp_config.model_dtype": "fp32",
        "actor_rollout_ref.actor.fsdp_config.fsdp_size": -1,
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.temperature": 1.0,
        "actor_rollout_ref.rollout.top_p": 1,
        "actor_rollout_ref.rollout.top_k": -1,
        "algorithm.adv_estimator": "grpo",
        "distillation.enabled": True,
        "distillation.distillation_loss.loss_mode": "k1",
    }
    nested: dict[str, Any] = {}
    for key, value in {**values, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        *sections, last = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return nested


def test_what_is_supported_passes() -> None:
    check_supported(configuration(), REWARD)
    check_supported(configuration(), PluginSettings())
    check_supported(configuration(trainer__v1__trainer_mode="effopd"), REWARD)


ACTOR, ROLLOUT = "actor_rollout_ref__actor", "actor_rollout_ref__rollout"
MODEL = "actor_rollout_ref__model"
REFUSED = [
    ("trainer__use_v1", False),
    ("trainer__v1__trainer_mode", "colocate_async"),
    ("trainer__v1__trainer_mode", "separate_async"),
    ("actor_rollout_ref__hybrid_engine", False),
    (f"{ACTOR}__strategy", "fsdp"),
    (f"{ACTOR}__strategy", "megatron"),
    (f"{ACTOR}__strategy", "veomni"),
    (f"{ACTOR}__fsdp_config__param_offload", True),
    (f"{ACTOR}__fsdp_config__optimizer_offload", True),
    (f"{ACTOR}__fsdp_config__offload_policy", True),
    (f"{ACTOR}__fsdp_config__model_dtype", "bf16"),
    (f"{ACTOR}__fsdp_config__fsdp_size", 8),
    (f"{ACTOR}__fsdp_config__qat__enable", True),
    (f"{ACTOR}__checkpoint__async_save", True),
    (f"{ROLLOUT}__name", "sglang"),
    (f"{ROLLOUT}__name", "trtllm"),
    (f"{ROLLOUT}__agent__agent_loop_manager_class", "mine.Manager"),
    (f"{ROLLOUT}__checkpoint_engine__backend", "nccl"),
    (f"{MODEL}__lora_rank", 8),
    (f"{MODEL}__lora__rank", 8),
    (f"{MODEL}__lora_adapter_path", "adapter"),
    ("algorithm__adv_estimator", "gae"),
    ("trainer__critic_warmup", 3),
    ("trainer__default_hdfs_dir", "hdfs://x"),
    ("skip__rollout_tq__enable", True),
    ("reward__reward_model__enable", True),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_the_rest_is_refused_with_one_line(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_supported(configuration(**{key: value}), REWARD)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{key.replace('__', '.')} = {value!r}")
    assert "is not supported by effopd: " in lines[0]


NO_ESTIMATE = [
    ("distillation__enabled", False),
    ("distillation__distillation_loss__loss_mode", "forward_kl_topk"),
    (f"{ROLLOUT}__temperature", 0.7),
    (f"{ROLLOUT}__top_p", 0.95),
    (f"{ROLLOUT}__top_k", 50),
]


@pytest.mark.parametrize(("key", "value"), NO_ESTIMATE)
def test_the_teacher_kl_needs_samples_of_the_student_and_their_scores(key: str, value: Any) -> None:
    config = configuration(**{key: value})
    check_supported(config, REWARD)
    with pytest.raises(ConfigError, match=r"effopd\.validation\.type = 'reward'"):
        check_supported(config, PluginSettings())


@pytest.mark.parametrize(
    ("search", "named"),
    [
        (Search(direction=AlphaPLS()), "alpha_pls"),
        (Search(learning_rate="follow"), "follow"),
    ],
)
def test_searches_that_verl_cannot_feed_are_refused(search: Search, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_supported(configuration(), PluginSettings(search=search))


def test_pairs_need_two_prompts() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        check_supported(configuration(), PluginSettings(validation=ServedKLValidation(prompts=1)))


def test_all_problems_are_named_at_once() -> None:
    config = configuration(trainer__use_v1=False, algorithm__adv_estimator="gae")
    with pytest.raises(ConfigError) as caught:
        check_supported(config, REWARD)
    assert len(str(caught.value).splitlines()) == 2


LOSS = "distillation__distillation_loss"
DENSE = {f"{LOSS}__loss_mode": "forward_kl_topk", f"{LOSS}__use_policy_gradient": False}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("distillation__enabled", False),
        (f"{LOSS}__loss_mode", "k1"),
        (f"{LOSS}__use_policy_gradient", True),
        (f"{ACTOR}__optim__optimizer", "Muon"),
    ],
)
def test_slopes_need_a_dense_loss_and_adamw(key: str, value: Any) -> None:
    settings = PluginSettings(slope=SlopeSettings())
    check_supported(configuration(**DENSE), settings)
    with pytest.raises(ConfigError, match=key.replace("__", r"\.")):
        check_supported(configuration(**(DENSE | {key: value})), settings)


def test_lookup_of_an_absent_key_is_none() -> None:
    assert lookup({"a": {"b": 1}}, "a.b") == 1
    assert lookup({"a": {"b": 1}}, "a.c") is None
    assert lookup({"a": {"b": 1}}, "a.b.c") is None
