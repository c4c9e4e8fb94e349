"""What a run keeps and what its phases add, in closed forms of the sizes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from effopd.doctor.footprint import CONTEXT_BYTES, Bytes, cache_bytes
from effopd.doctor.phases import Estimate, Phase, step_seconds
from effopd.doctor.sizes import model_shape
from effopd.models.gpus import Gpu, gpu_named
from effopd.training.config import load_config, make_config

RECIPE = Path(__file__).parents[2] / "recipes" / "paper" / "math-4b.toml"
SHAPE = model_shape(
    {
        "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 192, "vocab_size": 1000,
        "tie_word_embeddings": True,
    },
    "config.json",
)  # fmt: skip
P = SHAPE.parameters
HEAD = 2 * SHAPE.vocabulary * SHAPE.hidden
CARD = gpu_named("H100 80GB")


def estimate(*overrides: str, gpu: Gpu | None = CARD) -> Estimate:
    config = load_config(RECIPE, overrides)
    return Estimate(config=config, shapes=dict.fromkeys(("student", "teacher"), SHAPE), gpu=gpu)


def phases(*overrides: str, gpu: Gpu | None = CARD) -> dict[str, Phase]:
    return {phase.name: phase for phase in estimate(*overrides, gpu=gpu).phases()}


def kept(*overrides: str) -> Bytes:
    """What is there throughout: writing by a server adds nothing to it."""
    where = "{url='http://127.0.0.1:9', model='m'}"
    server = f"rollouts={{engine='server', weights_directory='/x', server={where}}}"
    return phases(server, *overrides)["writing"].memory


def test_what_stays_is_that_of_docs_memory() -> None:
    base = kept("memory.offload_optimizer=false")
    student, masters, teacher = 2 * P, 16 * P, 2 * P
    assert base.device == CONTEXT_BYTES + student + masters + teacher
    assert base.host == 8 * P  # anchor and tip
    offloaded = kept()
    assert offloaded.device == CONTEXT_BYTES + student + teacher
    assert offloaded.host == masters + 8 * P


@pytest.mark.parametrize(
    ("override", "device", "host"),
    [
        ("method=opd", 0, -8 * P),
        ("method=exopd", 2 * P, -8 * P),  # a copy of the student as reference, and no search
        ("memory.anchor_device=student", 8 * P, -8 * P),
        ("memory.teacher_offload=true", HEAD - 2 * P, 2 * P),
        ("teacher.dtype=float32", 2 * P, 0),
    ],
)
def test_what_a_setting_adds(override: str, device: int, host: int) -> None:
    before, after = kept(), kept(override)
    assert (after.device - before.device, after.host - before.host) == (device, host)


def test_teachers_on_another_card_are_not_judged() -> None:
    elsewhere = phases("teacher_device=cuda:1")
    assert elsewhere["scoring"].memory.device == kept().device - 2 * P


def test_vllm_takes_its_share_while_it_is_awake() -> None:
    share = int(0.55 * CARD.memory_bytes)
    asleep = phases("rollouts.vllm.gpu_memory=0.55")
    assert asleep["writing"].memory == kept() + Bytes(device=share, host=2 * P)
    awake = phases("rollouts.vllm.gpu_memory=0.55", "rollouts.vllm.sleep=false")
    assert awake["writing"].memory == kept() + Bytes(device=share)
    assert awake["update"].memory.device == asleep["update"].memory.device + share
    unknown = phases(gpu=None)["writing"].memory.device - kept().device
    assert unknown == estimate().engine_needs


def test_transformers_holds_the_cache_of_what_it_writes_together() -> None:
    def writing(answers: int) -> int:
        bound = f"memory.generation_tokens={answers * (64 + 16384)}"
        found = phases("rollouts.engine=hf", "prompt.max_tokens=64", bound)
        return found["writing"].memory.device - kept().device

    one = cache_bytes(SHAPE, 64 + 16384, 2)
    assert writing(8) - writing(4) == 4 * (one + one // SHAPE.layers + 16 * SHAPE.vocabulary)


def test_an_offloaded_teacher_comes_to_score() -> None:
    away, here = phases("memory.teacher_offload=true"), phases()
    assert away["scoring"].memory.device == here["scoring"].memory.device
    assert away["update"].memory.device == here["update"].memory.device - 2 * P + HEAD


def test_a_critic_is_as_large_as_the_student_and_its_moments() -> None:
    def rewarded(method: str) -> Estimate:
        raw: dict[str, Any] = {
            "method": method,
            "student": {"path": "s", "dtype": "bfloat16"},
            "task": {"type": "dataset", "train": {"path": "x", "answer_field": "a"}},
            "objective": {"kl_coefficient": 0.0},
        }
        return Estimate(config=make_config(raw), shapes={"student": SHAPE})

    without, critic = (rewarded(method).phases()[0] for method in ("dr_grpo", "ppo"))
    assert critic.memory.device - without.memory.device == 4 * 2 * P


def test_the_whole_vocabulary_is_scored_once_where_there_is_room_for_states() -> None:
    everything = "objective={type='full_kl'}", "train.epochs=3"
    sampled, whole = phases(), phases(*everything)
    assert whole["scoring"].seconds == sampled["scoring"].seconds
    assert whole["update"].seconds == pytest.approx(3 * (sampled["update"].seconds or 0))
    hidden = 2 * SHAPE.hidden * 22_000
    assert whole["update"].memory.device - sampled["update"].memory.device == hidden
    anew = phases(*everything, "memory.teacher_states_gb=0")
    assert anew["scoring"].seconds == pytest.approx(3 * (sampled["scoring"].seconds or 0))


def test_hidden_states_are_counted_where_they_are_kept() -> None:
    full, room = "objective={type='full_kl'}", "memory.teacher_states_gb"
    train, new = estimate().config.train, estimate().config.sampling.max_new_tokens
    batch = train.prompts_per_step * train.responses_per_prompt * new * SHAPE.hidden * 2
    none = kept(full, f"{room}=0")
    assert kept(full, f"{room}=1000").host - none.host == batch
    assert kept(full, f"{room}=0.1").host - none.host == 10**8
    here = kept(full, f"{room}=1000", "memory.teacher_states_device=student")
    assert (here.device - none.device, here.host) == (batch, none.host)
    tip = kept(f"{room}=1000", "validation={type='importance_kl', prompts=50}")
    assert tip.host - none.host == 50 * new * 2 * SHAPE.hidden * 2  # teacher and student


@pytest.mark.parametrize(
    ("server", "token_bytes"),
    [({"top_k": 20}, 12 * 20 + 8), ({"flavor": "effopd"}, 4 * 2560), ({"flavor": "effopd"}, 0)],
)
def test_what_a_served_teacher_says_is_counted_alike(
    server: dict[str, Any], token_bytes: int
) -> None:
    """Likely tokens, or states and a head of the server's width, nothing where it is unknown."""
    whole = "objective={type='full_kl'}", "memory.teacher_states_gb=1000"
    local = estimate(*whole, "evaluation.teacher=false").config
    found = {"url": "http://127.0.0.1:9", "model": "m"} | server
    raw = local.model_dump(mode="json", exclude={"teacher"}, exclude_none=True)
    config = make_config(raw | {"teacher_server": found})
    train = config.train
    answers = train.prompts_per_step * train.responses_per_prompt
    width = (2560, 4) if token_bytes == 4 * 2560 else None
    made, without = (
        Estimate(config=config, shapes={"student": SHAPE}, gpu=CARD, served_width=each)
        for each in (width, None)
    )
    head = made._kept.device - without._kept.device
    assert head == (SHAPE.vocabulary * token_bytes if width else 0)
    batch = answers * config.sampling.max_new_tokens * token_bytes
    assert made._kept_states[0] == batch


def test_a_step_is_writing_scoring_and_update() -> None:
    found = phases()
    names = ("writing", "scoring", "update")
    assert step_seconds([*found.values()]) == sum(found[name].seconds or 0 for name in names)
    assert step_seconds([*phases(gpu=replace(CARD, flops=0.0)).values()]) is None
