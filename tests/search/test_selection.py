import pytest
import torch
from torch import nn

from effopd.errors import ConfigError
from effopd.search.selection import select_parameters, selected_names

LAYER = {
    "self_attn.q_proj.weight": (4, 4),
    "self_attn.k_proj.weight": (2, 4),
    "self_attn.v_proj.weight": (2, 4),
    "self_attn.o_proj.weight": (4, 4),
    "self_attn.q_norm.weight": (2,),
    "self_attn.k_norm.weight": (2,),
    "mlp.gate_proj.weight": (6, 4),
    "mlp.up_proj.weight": (6, 4),
    "mlp.down_proj.weight": (4, 6),
    "input_layernorm.weight": (4,),
    "post_attention_layernorm.weight": (4,),
}
"""Names and shapes in a Qwen3 decoder layer."""

OUTSIDE = {"model.embed_tokens.weight": (9, 4), "model.norm.weight": (4,), "lm_head.weight": (9, 4)}
LAYERS = ("model.layers.0", "model.layers.1")


def module_with(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A tree of empty modules that carries parameters of these dotted names."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if part not in dict(node.named_children()):
                node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        node.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
    return root


@pytest.fixture
def qwen3() -> nn.Module:
    inside = {f"{layer}.{name}": shape for layer in LAYERS for name, shape in LAYER.items()}
    embed, *last = OUTSIDE.items()
    return module_with(dict([embed, *inside.items(), *last]))


def in_layers(*names: str) -> list[str]:
    return [f"{layer}.{name}" for layer in LAYERS for name in names]


MATRICES = [name for name, shape in LAYER.items() if len(shape) == 2]
RELEASED = [name for name in LAYER if name != "input_layernorm.weight"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("attention_mlp", in_layers(*RELEASED)),  # with post_attention_layernorm, by accident
        ("matrices", in_layers(*MATRICES)),
        ("re:q_proj", in_layers("self_attn.q_proj.weight")),
        (r"re:layers\.0\.mlp", [n for n in in_layers(*MATRICES) if "0.mlp" in n]),
        (r"re:^lm_head|norm\.weight$", [*in_layers(
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
        ), "model.norm.weight", "lm_head.weight"]),
    ],
)  # fmt: skip
def test_selected_names(qwen3: nn.Module, selection: str, expected: list[str]) -> None:
    assert list(select_parameters(qwen3, selection)) == expected


def test_all_selects_every_parameter_as_the_live_tensor(qwen3: nn.Module) -> None:
    chosen = select_parameters(qwen3, "all")
    assert list(chosen) == [name for name, _ in qwen3.named_parameters()]
    assert all(chosen[name] is tensor for name, tensor in qwen3.named_parameters())


def test_default_selection_is_the_released_one(qwen3: nn.Module) -> None:
    assert list(select_parameters(qwen3)) == in_layers(*RELEASED)


def test_names_and_numbers_of_axes_are_enough() -> None:
    axes = {"layers.1.mlp.up.weight": 2, "layers.0.mlp.up.bias": 1, "lm_head.weight": 2}
    assert selected_names(axes, "matrices") == ["layers.1.mlp.up.weight"]
    assert selected_names(axes) == ["layers.1.mlp.up.weight", "layers.0.mlp.up.bias"]
    assert selected_names(axes, "all") == list(axes)


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("transformer.h.0.attn.c_attn.weight", True),
        ("transformer.h.0.MLP.c_fc.weight", True),  # the release compares lower-case names
        ("layers.0.feed_forward.w1.weight", True),
        ("layers.0.ffn.w1.weight", True),
        ("encoder.Attention.out.bias", True),
        ("layers.0.linear.weight", True),  # a matrix of the layers, under whatever name
        ("h.11.mixer.in_proj.weight", True),
        ("model.blocks.3.x.lora_A.default.weight", True),
        ("wte.weight", False),
        ("embeddings.0.weight", False),
        ("layers.weight", False),
    ],
)
def test_names_of_other_architectures(name: str, moves: bool) -> None:
    model = module_with({name: (2, 2), "always.attn.weight": (2, 2)})
    assert (name in select_parameters(model)) is moves


@pytest.mark.parametrize("selection", ["attention_mlp", "matrices"])
@pytest.mark.parametrize(
    ("name", "shape", "moves"),
    [
        ("conv.conv.weight", (8, 1, 3), True),
        ("mamba.A_log", (8, 4), True),
        ("mamba.dt_bias", (8,), False),
        ("input_layernorm.weight", (4,), False),
        ("block_sparse_moe.router.weight", (2, 4), True),
        ("experts.down", (2, 4, 8), True),
        ("fc1.weight", (8, 4), True),
        ("fc1.bias", (8,), False),
    ],
)
def test_every_matrix_of_the_layers_moves(
    name: str, shape: tuple[int, ...], moves: bool, selection: str
) -> None:
    name = f"model.layers.1.{name}"
    model = module_with({name: shape, "model.layers.0.self_attn.q_proj.weight": (4, 4)})
    assert (name in select_parameters(model, selection)) is moves


def test_frozen_parameters_never_move(qwen3: nn.Module) -> None:
    qwen3.get_submodule("model.layers.0").requires_grad_(False)
    chosen = select_parameters(qwen3, "re:down_proj")
    assert list(chosen) == ["model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("attention", "unknown selection 'attention'"),
        ("", "unknown selection ''"),
        ("re:(", "no regular expression"),
        ("re:no_such_name", "matches none of 25 parameters that can move"),
    ],
)
def test_bad_selections(qwen3: nn.Module, selection: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_parameters(qwen3, selection)


def test_nothing_trainable_is_an_error(qwen3: nn.Module) -> None:
    with pytest.raises(ConfigError, match="none of 0 parameters that can move"):
        select_parameters(qwen3.requires_grad_(False), "all")
