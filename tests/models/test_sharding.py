"""What one rank holds: against the parts that torch cuts, and the tensors of real models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import ARCHITECTURES
from tests.support.shapes import model_and_shape

from effopd.errors import ConfigError
from effopd.models.published import PUBLISHED
from effopd.models.shape_tensors import TensorShape
from effopd.models.shapes import shape_of
from effopd.models.sharding import (
    gathered_elements,
    moved_tensors,
    received_bytes,
    shard_elements,
    sharded_elements,
)
from effopd.search.selection import select_parameters

RECIPES = Path(__file__).parents[2] / "recipes" / "paper" / "shapes.json"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", [*ARCHITECTURES, "deepseek_v3"])
def test_tensors_are_those_of_the_model(kind: str, tied: bool, tmp_path: Path) -> None:
    model, shape = model_and_shape(kind, tmp_path, tie_word_embeddings=tied)
    found = {tensor.name: tensor.sizes for tensor in shape.tensors()}
    assert found == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shape.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("changed", [{"q_lora_rank": None}, {"attention_bias": True}])
def test_variants_of_latent_attention(changed: dict[str, Any], tmp_path: Path) -> None:
    model, shape = model_and_shape("deepseek_v3", tmp_path, **changed)
    found = {tensor.name: tensor.sizes for tensor in shape.tensors()}
    assert found == {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("selection", ["attention_mlp", "matrices", "all", r"re:layers\.0\."])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe", "deepseek_v3"])
def test_the_search_moves_the_tensors_that_it_selects(
    kind: str, selection: str, tmp_path: Path
) -> None:
    model, shape = model_and_shape(kind, tmp_path)
    expected = select_parameters(model, selection)
    assert {t.name for t in moved_tensors(shape, selection)} == expected.keys()


def test_a_selection_of_nothing_is_refused(tmp_path: Path) -> None:
    _, shape = model_and_shape("qwen2", tmp_path)
    with pytest.raises(ConfigError, match="matches none"):
        moved_tensors(shape, "re:vision")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 40])
def test_the_first_rank_holds_the_first_chunk(ranks: int, tmp_path: Path) -> None:
    model, shape = model_and_shape("qwen3", tmp_path)
    chunks = [p.detach().chunk(ranks)[0].numel() for p in model.parameters()]
    assert sharded_elements(shape, ranks) == sum(chunks)


def test_experts_are_distributed_before_they_are_cut() -> None:
    experts = TensorShape("model.layers.0.mlp.experts.down_proj", (8, 3, 5))
    assert shard_elements(experts, 16) == 15  # eight ranks have none
    assert shard_elements(experts, 16, expert_ranks=2) == 15
    assert shard_elements(experts, 4, expert_ranks=4) == 2 * 15
    assert shard_elements(TensorShape("model.norm.weight", (8,)), 4, expert_ranks=4) == 2


def test_what_is_gathered_is_the_rest_and_one_layer(tmp_path: Path) -> None:
    model, shape = model_and_shape("deepseek_v3", tmp_path)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    rest = sum(p.numel() for p in model.parameters()) - sum(sizes)
    assert gathered_elements(shape) == (rest, max(sizes))
    experts = sum(p.numel() for p in model.model.layers[1].mlp.experts.parameters())
    assert gathered_elements(shape, 4) == (rest, sizes[1] - experts * 3 // 4)


def test_a_rank_receives_all_but_its_own_part() -> None:
    assert received_bytes(80, 8) == 70
    assert received_bytes(80, 1) == 0


def test_active_parameters_of_experts_and_of_what_all_tokens_go_through(tmp_path: Path) -> None:
    model, shape = model_and_shape("deepseek_v3", tmp_path)
    idle = sum(p.numel() // 2 for name, p in model.named_parameters() if ".mlp.experts." in name)
    embedding = model.get_input_embeddings().weight.numel()
    assert shape.active_parameters == shape.parameters - idle - embedding


def test_the_cache_of_latent_attention_holds_one_vector_a_layer(tmp_path: Path) -> None:
    _, shape = model_and_shape("deepseek_v3", tmp_path)
    assert shape.cached_per_token == 3 * (6 + 2)


def test_published_sizes_are_those_of_the_recipes_and_of_the_model_cards() -> None:
    recipes = json.loads(RECIPES.read_text())
    counts = {}
    for size, (repository, content) in PUBLISHED.items():
        counts[size] = shape_of(content, repository).parameters / 1e9
        if size in {"1.5B", "4B"}:
            assert content.items() <= recipes[repository].items()
    cards = {"1.5B": 1.78, "4B": 4.02, "14B": 14.77, "32B": 32.76, "671B": 671.03}
    assert {size: round(count, 2) for size, count in counts.items()} == cards


def test_deepseek_v3_uses_37_billion_parameters_a_token() -> None:
    repository, content = PUBLISHED["671B"]
    assert shape_of(content, repository).active_parameters == pytest.approx(37e9, rel=0.02)


def test_sparse_layers_in_between_are_refused() -> None:
    repository, content = PUBLISHED["671B"]
    with pytest.raises(ConfigError, match="experts in some layers only"):
        shape_of({**content, "moe_layer_freq": 2}, repository)


def test_torch_chunks_as_described() -> None:
    assert [len(part) for part in torch.arange(10).chunk(4)] == [3, 3, 3, 1]
