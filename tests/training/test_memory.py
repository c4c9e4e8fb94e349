"""What is kept where: the documented bytes, and that no setting changes what a run computes."""

import gc
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model, tiny_policy
from tests.support.learning import batch, rollouts
from tests.support.tiny import Raw, metrics_of, outcome, tiny_config, train_tiny
from torch import Tensor

from effopd.evaluation.routing import Teachers
from effopd.methods import FullVocabularyKL, Resources
from effopd.models.lora import LoraStudent, add_adapters_
from effopd.models.policy import Policy
from effopd.records import list_checkpoints
from effopd.search.extrapolator import Search
from effopd.search.schedule import EveryN
from effopd.training.search_checkpoint import read_search
from effopd.training.settings import LoopSettings, MemorySettings
from effopd.training.update import Updater, extrapolator_of

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"


# Bytes --------------------------------------------------------------------------------------------


def documented() -> dict[str, tuple[list[int], set[str]]]:
    """Student -> bytes a parameter, and which of them are on the host."""
    columns = ("weights", "masters", "gradients", "moments", "anchor and tip")
    rows = [line for line in PAGE.read_text(encoding="utf-8").split("\n") if line.startswith("|")]
    start = rows.index("| student | " + " | ".join(columns) + " |")
    found = {}
    for row in rows[start + 2 :]:
        name, *cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) != len(columns):
            break
        host = {c for c, cell in zip(columns, cells, strict=True) if cell.endswith(" host")}
        found[name] = [int(cell.removesuffix(" host")) for cell in cells], host
    return found


STUDENTS: dict[str, tuple[str, MemorySettings, bool]] = {
    "float32": ("float32", MemorySettings(), False),
    "bfloat16": ("bfloat16", MemorySettings(), False),
    "bfloat16, master_weights": ("bfloat16", MemorySettings(master_weights=True), False),
    "bfloat16, master_weights, offload_optimizer": (
        "bfloat16",
        MemorySettings(master_weights=True, offload_optimizer=True),
        False,
    ),
    "adapters, each of their parameters": ("bfloat16", MemorySettings(), True),
}


def persistent(dtype: str, memory: MemorySettings, adapted: bool) -> list[list[Tensor]]:
    """What is held after an update and a search, in the order of the table."""
    model = tiny_model(0).to(getattr(torch, dtype))
    if adapted:
        add_adapters_(model, LoraStudent(r=4))
    policy = Policy(model, TOKENIZER)
    teachers = Teachers.single(tiny_policy(1))
    learner = FullVocabularyKL().learner(Resources(student=policy, teachers=teachers))
    answers = rollouts(3, 1)
    learner.prepare(batch(answers))
    settings = LoopSettings(memory=memory)
    updater = Updater(policy, learner, settings)
    search = Search(schedule=EveryN(n=1), parameters="all")
    extrapolator = extrapolator_of(
        policy, updater, settings, search=search, validate=lambda d: 0.0, on_trial=lambda i, t: None
    )
    assert extrapolator is not None
    updater.set_lr_(1)
    updater.update_(answers, 1)
    extrapolator.step(1)
    ray, live = extrapolator._ray, list(updater.live.values())
    masters = list(updater.masters.tensors.values()) if updater.masters else []
    moments = [entry for state in updater.optimizer.state.values() for entry in state.values()]
    return [
        live,
        masters,
        [p.grad for p in (*live, *masters) if p.grad is not None],
        [moment for moment in moments if moment.ndim],
        [*ray.anchor.values(), *ray.tip.values()],
    ]


@pytest.mark.parametrize("name", STUDENTS)
def test_bytes_per_parameter_are_as_documented(name: str) -> None:
    held = persistent(*STUDENTS[name])
    parameters = sum(tensor.numel() for tensor in held[0])
    found = [sum(t.numel() * t.element_size() for t in tensors) / parameters for tensors in held]
    assert found == documented()[name][0]


def test_the_table_has_every_student_and_says_what_is_on_the_host() -> None:
    table = documented()
    assert table.keys() == STUDENTS.keys()
    for name, (_, host) in table.items():
        memory = STUDENTS[name][1]
        moved = {"masters", "gradients", "moments"} if memory.offload_optimizer else set()
        assert host == {"anchor and tip"} | moved


def test_the_example_of_four_billion_parameters() -> None:
    table, sums = documented(), []
    for name in ("bfloat16, master_weights", "bfloat16, master_weights, offload_optimizer"):
        numbers, host = table[name]
        columns = ("weights", "masters", "gradients", "moments", "anchor and tip")
        there = sum(n for n, c in zip(numbers, columns, strict=True) if c in host)
        sums += [4 * (sum(numbers) - there), 4 * there]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    said = re.search(
        r"takes (\d+) GB on the device and (\d+) GB on the host; with `offload_optimizer` (\d+) GB "
        r"and (\d+) GB",
        text,
    )
    assert said is not None
    assert [int(number) for number in said.groups()] == sums


# Results ------------------------------------------------------------------------------------------


METHODS: dict[str, Raw] = {
    "full_kl": {"objective": {"type": "full_kl", "reward_scale": 1.25}, "train.epochs": 2},
    "sampled_token": {"validation": {"type": "importance_kl", "prompts": 8}},
    "distilling grpo": {
        "method": "grpo",
        "objective": {"distillation": 0.5, "kl_coefficient": 0.1},
        "train.responses_per_prompt": 2,
    },
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "memory",
    [
        {"teacher_offload": True, "anchor_device": "student"},
        {"master_weights": True, "offload_optimizer": True},
    ],
    ids=["teachers and anchor", "optimizer"],
)
def test_a_run_computes_the_same_wherever_things_are(
    models: Path, tmp_path: Path, method: str, memory: dict[str, Any]
) -> None:
    common = {"train.steps": 4, "optimizer.lr": 3e-3} | METHODS[method]
    for name, own in (("plain", {}), ("apart", {"memory": memory})):
        assert train_tiny(tiny_config(models, common | own), tmp_path / name)[0]
    plain, apart = outcome(tmp_path / "plain"), outcome(tmp_path / "apart")
    masters = {"masters.safetensors"} if "master_weights" in memory else set()
    assert apart.files.keys() - plain.files.keys() == masters
    search = "search-00000-of-00001.safetensors"  # names a checksum of masters and live weights
    assert {name: apart.files[name] for name in plain.files if name != search} == {
        name: digest for name, digest in plain.files.items() if name != search
    }
    states = [
        read_search(list_checkpoints(tmp_path / name / "checkpoints")[0] / "trainer" / search)
        for name in ("plain", "apart")
        if search in plain.files
    ]
    for state in states:
        del state["weights"]
        state["anchor"] = {name: tensor.tolist() for name, tensor in state["anchor"].items()}
    assert states[:1] == states[1:]
    for part in ("metrics", "evals", "rollouts", "search", "counters"):
        assert getattr(apart, part) == getattr(plain, part), part


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory", [{}, {"master_weights": True, "offload_optimizer": True}])
def test_a_run_leaves_no_weights_behind(
    models: Path, tmp_path: Path, method: str, memory: dict[str, Any]
) -> None:
    """The garbage collector may not come before the next run is short of memory."""

    def tensors() -> set[int]:
        return {id(each) for each in gc.get_objects() if isinstance(each, Tensor)}

    gc.collect()
    gc.disable()
    try:
        before = tensors()
        settings = {"train.steps": 2, "memory": memory} | METHODS[method]
        train_tiny(tiny_config(models, settings), tmp_path)
        assert tensors() <= before
    finally:
        gc.enable()


def test_small_passes_give_the_same_up_to_rounding(models: Path, tmp_path: Path) -> None:
    """And what is written does not depend on what is written beside it."""
    settings: Raw = {"train.steps": 1, "method": "opd", "objective": {"type": "sampled_token"}}
    small = {"memory": {"scoring_tokens": 1, "generation_tokens": 1}}
    runs = {}
    for name, own in (("large", {}), ("small", small)):
        train_tiny(tiny_config(models, settings | own), tmp_path / name)
        runs[name] = outcome(tmp_path / name)
    rows = [(tmp_path / name / "rollouts.jsonl").read_text() for name in runs]
    tokens = [re.findall(r'"tokens":\[[^\]]*\]', text) for text in rows]
    assert tokens[0] == tokens[1] != []


@pytest.mark.parametrize(
    "settings",
    [
        {"student.dtype": "float16", "memory.master_weights": True},
        {"student.dtype": "float16", "student.lora": {"r": 2, "alpha": 4.0}},
        {"teacher.dtype": "float16", "objective.type": "full_kl"},
    ],
    ids=["masters", "adapters", "teacher"],
)
def test_float16_trains_where_none_of_its_weights_moves_itself(
    models: Path, tmp_path: Path, settings: Raw
) -> None:
    common: Raw = {"train.steps": 3, "method": "opd", "evaluation.problems": 0}
    assert train_tiny(tiny_config(models, common | settings), tmp_path)[0]
    rows = metrics_of(tmp_path)
    assert [row["skipped"] for row in rows] == [None] * 3
    assert all(row["loss"] is not None for row in rows)
