"""The estimate on a cluster, against counted operations, transfers, tokens, and closed forms."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import make
from tests.support.shapes import DEEPSEEK
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from effopd import Draw, Extrapolator, Search
from effopd.cli.main import app
from effopd.doctor.cluster import (
    Cluster,
    ClusterEstimate,
    SearchCost,
    estimate_cluster,
    gathered_elements,
    search_costs,
    shard_elements,
)
from effopd.doctor.footprint import COMPUTE_SHARE, forward_operations
from effopd.doctor.report import _paper_run
from effopd.doctor.sizes import ModelShape, model_shape
from effopd.errors import ConfigError
from effopd.methods.registry import EFFOPD_SEARCH
from effopd.models.gpus import gpu_named
from effopd.search.direction import SinceBase
from effopd.search.selection import select_parameters
from effopd.search.validation import Score
from effopd.training.config import make_config

SIZES: dict[str, dict[str, Any]] = {
    "1.5B": {
        "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
        "vocab_size": 151936,
    },
    "4B": {
        "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 9728, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "32B": {
        "model_type": "qwen2", "hidden_size": 5120, "num_hidden_layers": 64,
        "num_attention_heads": 40, "num_key_value_heads": 8, "intermediate_size": 27648,
        "vocab_size": 152064,
    },
}  # fmt: skip
H20 = gpu_named("H20")


def shape_of(size: str) -> ModelShape:
    return model_shape(SIZES[size], size)


def estimated(
    shape: ModelShape, *settings: str, teacher: ModelShape | None = None, **cluster: Any
) -> ClusterEstimate:
    """Of the paper's run."""
    config = make_config(_paper_run("m"), settings)
    shapes = {"student": shape, "teacher": teacher or shape}
    machines = Cluster(**{"gpu": H20, "gpus": 64} | cluster)
    return estimate_cluster(config, shapes, machines)


def one(size: str, *settings: str, **cluster: Any) -> ClusterEstimate:
    return estimated(shape_of(size), *settings, **cluster)


# Searches -----------------------------------------------------------------------------------------

SEARCHES = {
    "paper": Search.paper(),
    "release": Search.release(),
    "ours": EFFOPD_SEARCH,
    "from the base": Search(direction=SinceBase()),
}


class Transfers(TorchDispatchMode):
    """Numbers read or written on the live tensors' side: one end copied, or both interpolated."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "copy_.default" and args[0].data_ptr() != args[1].data_ptr():
            self.numbers += args[0].numel()
        elif func.__name__ == "lerp.Scalar_out":
            self.numbers += 2 * args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("helpful", [True, False], ids=["accepted", "rejected"])
@pytest.mark.parametrize("name", SEARCHES)
def test_search_costs_are_those_of_the_extrapolator(name: str, helpful: bool) -> None:
    search = replace(SEARCHES[name], parameters="all", guard=None)
    module, slope = nn.Linear(3, 4), 1.0 if helpful else -1.0
    values = iter(range(1000))
    found = []

    def validate(draw: Draw) -> Score:
        value = slope * next(values)
        return Score(value=value, per_prompt=(value, value))

    extrapolator = Extrapolator(module, validate, search=search)
    for step in range(1, 9):
        with torch.no_grad():
            module.weight.add_(0.01)
        with Transfers() as transfers:
            result = extrapolator.step(step)
        if result is not None:
            copies = transfers.numbers // 16
            found.append(SearchCost(step=step, evaluations=len(result.trials), copies=copies))
    assert search_costs(search, 8, helpful=helpful) == found


@pytest.mark.parametrize(
    "settings",
    [["search.schedule.first=4"], ["search.schedule.type=every_n", "search.schedule.n=10"]],
)
def test_the_schedule_is_that_of_the_settings(settings: list[str]) -> None:
    assert one("4B", *settings).searches == 4


# Operations and tokens ----------------------------------------------------------------------------


def test_validation_against_a_step_in_counted_operations() -> None:
    """One scored point with given answers, against scoring by the teacher and the update."""
    model = make("qwen3", hidden_size=64, intermediate_size=192)
    validation, step = torch.ones(4, 24, dtype=torch.long), torch.ones(8, 24, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as trial:
        model(input_ids=validation)
        model(input_ids=validation)  # the teacher's pass
    with FlopCounterMode(display=False) as whole:
        with torch.no_grad():
            model(input_ids=step)
        model(input_ids=step, labels=step).loss.backward()
    found = estimated(
        model_shape(model.config.to_dict(), "config.json"),
        "validation={type='importance_kl', source='batch', prompts=4}", "train.prompts_per_step=8",
        "prompt.max_tokens=8", "sampling.max_new_tokens=16",
        "student.gradient_checkpointing=false",
        gpus=1,
    )  # fmt: skip
    share = found.trial_s / (found.scoring_s + found.update_s)
    counted = trial.get_total_flops() / whole.get_total_flops()
    assert share == pytest.approx(counted, rel=0.2)


def test_a_step_of_written_answers_in_closed_form() -> None:
    """One engine a GPU, one round: each token reads the weights and half of the cache."""
    found, shape = one("4B", "validation.prompts=64"), shape_of("4B")
    assert found.engine_gpus == 1
    reading = 2 * shape.parameters + 2 * shape.cached_per_token * 16 * 8192
    assert found.writing_s == pytest.approx(16384 * reading / (0.6 * 4.0e12))
    tokens = 16 * 18432
    operations = forward_operations(shape, tokens, 18432)
    assert found.scoring_s == pytest.approx(operations / (COMPUTE_SHARE * 148e12))
    assert found.update_s == pytest.approx(4 * found.scoring_s)
    alone = 2 * shape.parameters + 2 * shape.cached_per_token * 8192
    sync = 2 * shape.parameters * 63 / 64 / 50e9
    assert found.trial_s == pytest.approx(16384 * alone / (0.6 * 4.0e12) + sync, rel=1e-6)
    assert found.step_s == pytest.approx(found.writing_s + 5 * found.scoring_s + sync)


# What the search has to save ----------------------------------------------------------------------


def cost_until(found: ClusterEstimate, steps: int) -> float:
    """Of the searches of the paper that accept all, in steps."""
    searches = sum(2**i <= steps for i in range(20))
    return searches * (6 * found.trial_s + found.moved_bytes / 50e9) / found.step_s


@pytest.mark.parametrize("size", ["1.5B", "32B"])
def test_break_even_steps_are_the_fewest_that_repay(size: str) -> None:
    found = one(size)
    saved = found.break_even_steps
    assert saved is not None
    assert 40 - saved + cost_until(found, 40 - saved) <= 40
    assert 40 - saved + 1 + cost_until(found, 40 - saved + 1) > 40
    assert found.accepted_share == pytest.approx(cost_until(found, 40) / 40)
    assert found.rejected_share < found.accepted_share


def test_a_search_that_costs_more_than_the_run_never_repays() -> None:
    found = one("1.5B", "train.steps=1", "validation.prompts=1024", gpus=8)
    assert found.break_even_steps is None
    assert one("4B", "method=opd").searches == 0


def test_scores_on_given_answers_cost_less_than_written_ones() -> None:
    written = one("4B", "validation={type='teacher_kl', prompts=50}")
    given = one("4B", "validation={type='importance_kl', source='batch', prompts=50}")
    once = one("4B", "validation={type='importance_kl', source='fresh', prompts=50}")
    writing = written.trial_s - given.trial_s
    assert writing > 0
    assert once.trial_s == given.trial_s
    spent = [each.accepted_share * 40 * each.step_s for each in (given, once)]
    assert spent[1] - spent[0] == pytest.approx(6 * writing)


def test_an_engine_takes_the_fewest_gpus_that_hold_the_weights() -> None:
    assert one("32B").engine_gpus == 2
    assert one("32B", engine_gpus=4).engine_gpus == 4


# Memory and traffic -------------------------------------------------------------------------------


def test_memory_of_a_rank_in_closed_form() -> None:
    found, numbers = one("4B", "search.parameters=all", gpus=8), shape_of("4B").parameters
    assert found.weights_bytes == pytest.approx(16 * numbers / 8, rel=1e-3)
    assert found.teacher_bytes == pytest.approx(2 * numbers / 8, rel=1e-3)
    assert found.search_host_bytes == pytest.approx(2 * 4 * numbers / 8, rel=1e-3)
    parts = (found.weights_bytes, found.teacher_bytes, found.gathered_bytes)
    assert found.device_bytes == sum(parts) + found.activation_bytes
    # The tip is captured, five points are read from both ends, the last of which is accepted.
    assert found.moved_bytes == pytest.approx(11 * 4 * numbers / 8, rel=1e-3)
    assert found.scored_bytes == 2 * numbers * 7 // 8  # to the engines


def shards(shape: ModelShape, ranks: int) -> int:
    return sum(shard_elements(*each, ranks) for each in shape.tensors.items())


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 40])
def test_the_first_rank_holds_the_first_chunk_that_torch_cuts(ranks: int) -> None:
    model = make("qwen3")
    shape = model_shape(model.config.to_dict(), "config.json")
    chunks = [p.detach().chunk(ranks)[0].numel() for p in model.parameters()]
    assert shards(shape, ranks) == sum(chunks)


def test_experts_are_distributed_before_they_are_cut() -> None:
    experts = ("model.layers.0.mlp.experts.down_proj", (8, 3, 5))
    assert shard_elements(*experts, 16) == 15  # eight ranks have none
    assert shard_elements(*experts, 16, expert_ranks=2) == 15
    assert shard_elements(*experts, 4, expert_ranks=4) == 2 * 15
    assert shard_elements("model.norm.weight", (8,), 4, expert_ranks=4) == 2


def test_what_is_gathered_is_the_rest_and_one_layer() -> None:
    model = make("deepseek_v3", **DEEPSEEK)
    shape = model_shape(model.config.to_dict(), "config.json")
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    rest = sum(p.numel() for p in model.parameters()) - sum(sizes)
    assert gathered_elements(shape) == (rest, max(sizes))
    experts = sum(p.numel() for p in model.model.layers[1].mlp.experts.parameters())
    assert gathered_elements(shape, 4) == (rest, sizes[1] - experts * 3 // 4)


@pytest.mark.parametrize("selection", ["attention_mlp", "matrices", "all", r"re:layers\.0\."])
def test_the_search_keeps_the_tensors_that_it_selects(selection: str) -> None:
    model = make("qwen3_moe")
    shape = model_shape(model.config.to_dict(), "config.json")
    found = estimated(shape, f"search.parameters={selection}", "train.prompts_per_step=1", gpus=1)
    moved = select_parameters(model, selection).values()
    assert found.search_host_bytes == 2 * 4 * sum(p.numel() for p in moved)


# The command and its refusals ---------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *arguments])


def file_of(directory: Path, content: Mapping[str, Any]) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_the_command_estimates_a_model(tmp_path: Path) -> None:
    path = file_of(tmp_path, SIZES["4B"])
    result = run(path, "train.steps=20", "--gpus", "8", "--gpu", "H20", "--json")
    assert result.exit_code == 0
    found = one("4B", "train.steps=20", gpus=8)
    row = json.loads(result.stdout)["cluster"]
    assert row["weights_bytes"] == found.weights_bytes
    assert (row["step_s"], row["break_even_steps"]) == (found.step_s, found.break_even_steps)
    shown = run(path, "--gpus", "64", "--gpu", "H20").stdout
    assert "the search has to save 5 of 40 steps" in shown
    assert math.isclose(one("4B").step_s / 60, 8.71, abs_tol=0.005)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such model": (["nowhere.json"], "no model directory at nowhere.json"),
    "unknown key": (["train.step=8"], "unknown setting train.step; did you mean 'steps'"),
    "batch": (["train.prompts_per_step=1001"], "answers divide over --gpus 8, got 1001"),
    "engines": (["--engine-gpus", "3"], "--engine-gpus must divide --gpus 8, got 3"),
    "ranks": (["--expert-ranks", "3"], "--expert-ranks must divide --gpus 8, got 3"),
    "unknown speed": (["--gpu", "80GB"], "--gpu '80GB' has no known speed"),
    "no cards": (["--gpus", "0"], "--gpus must be 1 or more, got 0"),
    "too small": (["--gpu", "RTX4090 8GB"], "an engine of 8 RTX4090 8GB has no room for"),
    "selection": (["search.parameters=re:vision"], "matches none of"),
    "adapters": (["student.lora={r=2}"], "--gpus has no estimate for student.lora"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_sentence(name: str, tmp_path: Path) -> None:
    arguments, message = MISTAKES[name]
    model = [] if name == "no such model" else [file_of(tmp_path, SIZES["4B"])]
    result = run(*model, "--gpus", "8", "--gpu", "H20", *arguments)
    assert result.exit_code != 0
    said = " ".join((result.stdout + result.stderr).split())
    assert message in said, said


def test_a_cluster_refuses_what_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="must divide --gpus 8, got -1"):
        Cluster(gpu=H20, gpus=8, engine_gpus=-1)
    shape = model_shape(make("qwen3_moe").config.to_dict(), "config.json")
    with pytest.raises(ConfigError, match="must divide the 4 experts of student, got 8"):
        estimated(shape, gpus=8, expert_ranks=8)
