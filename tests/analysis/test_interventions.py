"""Every intervention against whole-model arithmetic in float64, and its limits."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.fakes import tiny_model
from tests.reference import interventions_twin as twin
from tests.reference.core_twin import bits
from tests.support.checkpoints import save_adapter
from torch import Tensor

from effopd.analysis.interventions import (
    BlockSwap,
    EmbeddingReplacement,
    Intervention,
    NormScaling,
    SlidingWindow,
    WholeScaling,
    sliding_windows,
)
from effopd.analysis.modules import Changed, module_norms, update_norm
from effopd.analysis.ranks import BottomRank, TopRank, components
from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.layout import Heads
from effopd.models.updates import AdapterUpdate, PairUpdate
from effopd.models.weights import MemoryWeights
from effopd.search.ray import Ray

Point = dict[str, Tensor]
SMALL = 1e-3


def base_point(dtype: torch.dtype = torch.float32) -> Point:
    return {n: t.detach().clone().to(dtype) for n, t in tiny_model(0).named_parameters()}


def moved(base: Point, seed: int, unmoved: tuple[str, ...] = ()) -> Point:
    """Every tensor a little away, except those whose name holds one of `unmoved`."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in base.items():
        step = SMALL * (1 + seed) * torch.randn(tensor.shape, generator=rng)
        stays = any(each in name for each in unmoved)
        found[name] = tensor.clone() if stays else (tensor.float() + step).to(tensor.dtype)
    return found


def pair(base: Point, tuned: Point) -> PairUpdate:
    return PairUpdate(MemoryWeights(base), MemoryWeights(tuned))


BASE = base_point()
TUNED, OTHER = moved(BASE, 1), moved(BASE, 2)
UPDATE = pair(BASE, TUNED)


def read_all(changed: Changed) -> Point:
    return {name: changed.read(name) for name in changed.shapes}


def assert_equal_to_rounding(found: Point, expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        eps = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(tensor.double(), expected[name], rtol=2 * eps, atol=eps / 4)


def assert_same_bits(found: Point, expected: Point) -> None:
    assert found.keys() == expected.keys()
    assert [n for n in found if bits(found[n]) != bits(expected[n])] == []


# Scaling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [-1.0, 0.25, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_whole_scaling(scale: float, dtype: torch.dtype) -> None:
    base = base_point(dtype)
    tuned = moved(base, 1)
    found = read_all(WholeScaling(scale=scale).apply(pair(base, tuned)))
    assert {t.dtype for t in found.values()} == {dtype}
    assert_equal_to_rounding(found, twin.scaled(base, tuned, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scales_0_and_1_are_the_endpoints_bit_for_bit(dtype: torch.dtype) -> None:
    base = base_point(dtype)
    tuned = moved(base, 1)
    assert_same_bits(read_all(WholeScaling(scale=0).apply(pair(base, tuned))), base)
    assert_same_bits(read_all(WholeScaling(scale=1).apply(pair(base, tuned))), tuned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [3.0, 0.3])
def test_a_scaled_model_is_the_point_of_the_search(dtype: torch.dtype, scale: float) -> None:
    base = base_point(dtype)
    tuned = moved(base, 1)
    live = {n: t.clone() for n, t in base.items()}
    ray = Ray(live)
    for name, tensor in live.items():
        tensor.copy_(tuned[name])
    ray.capture_tip_()
    ray.move_to_(scale)
    assert_same_bits(read_all(WholeScaling(scale=scale).apply(pair(base, tuned))), live)


def test_two_methods_get_one_norm() -> None:
    for tuned in (TUNED, OTHER):
        changed = WholeScaling.to_norm(pair(BASE, tuned), 0.5).apply(pair(BASE, tuned))
        assert twin.whole_norm(BASE, read_all(changed)) == pytest.approx(0.5, rel=1e-5)


def test_norms_of_modules_and_of_the_whole() -> None:
    assert module_norms(UPDATE) == pytest.approx(twin.norms(BASE, TUNED), rel=1e-6)
    assert update_norm(UPDATE) == pytest.approx(twin.whole_norm(BASE, TUNED), rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 1.2])
def test_norm_scaling_of_each_module(beta: float) -> None:
    early, final = twin.norms(BASE, TUNED), twin.norms(BASE, OTHER)
    factors = {n: 1 + beta * (final[n] - early[n]) / early[n] for n in early}
    setting = NormScaling(final=module_norms(pair(BASE, OTHER)), beta=beta)
    found = read_all(setting.apply(UPDATE))
    assert_equal_to_rounding(found, twin.scaled_each(BASE, TUNED, factors))
    expected = {n: early[n] + beta * (final[n] - early[n]) for n in early}
    assert twin.norms(BASE, found) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.8, 1.0])
def test_norm_scaling_of_the_whole(beta: float) -> None:
    early = twin.whole_norm(BASE, TUNED)
    found = read_all(NormScaling(final=2.0, beta=beta).apply(UPDATE))
    factor = 1 + beta * (2.0 - early) / early
    assert_equal_to_rounding(found, twin.scaled(BASE, TUNED, factor))


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_what_never_moved_stays_at_the_base(beta: float) -> None:
    tuned = moved(BASE, 1, unmoved=("layers.0", "norm"))
    setting = NormScaling(final=module_norms(pair(BASE, OTHER)), beta=beta)
    found = read_all(setting.apply(pair(BASE, tuned)))
    still = [n for n in BASE if "layers.0" in n or "norm" in n]
    assert still
    assert_same_bits({n: found[n] for n in still}, {n: BASE[n] for n in still})
    assert all(torch.isfinite(t).all() for t in found.values())
    nothing = pair(BASE, BASE)
    assert_same_bits(read_all(NormScaling(final=2.0).apply(nothing)), BASE)
    with pytest.raises(ParameterMismatchError, match="update is zero and cannot be scaled to norm"):
        WholeScaling.to_norm(nothing, 1.0)


# Exchanging ---------------------------------------------------------------------------------------

EMBEDDING, HEAD = {"model.embed_tokens.weight"}, {"lm_head.weight"}


@pytest.mark.parametrize(
    ("part", "names"),
    [("embeddings", EMBEDDING), ("head", HEAD), ("both", EMBEDDING | HEAD)],
)
def test_embedding_replacement(part: str, names: set[str]) -> None:
    into_tuned = EmbeddingReplacement(part=part).apply(UPDATE)  # type: ignore[arg-type]
    others = set(BASE) - names
    assert_same_bits(read_all(into_tuned), {n: (TUNED if n in others else BASE)[n] for n in BASE})
    into_base = EmbeddingReplacement(part=part, into="base").apply(UPDATE)  # type: ignore[arg-type]
    assert_same_bits(read_all(into_base), {n: (TUNED if n in names else BASE)[n] for n in BASE})


def stacked(layers: int) -> Point:
    """A model of many layers with one matrix and one bias of each block, and norms inside."""
    names = ["self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.q_norm.weight",
             "mlp.up_proj.weight", "input_layernorm.weight"]  # fmt: skip
    each = {f"model.layers.{i}.{name}": torch.zeros(2, 2) for i in range(layers) for name in names}
    return {"model.embed_tokens.weight": torch.zeros(3, 2), **each}


@pytest.mark.parametrize(
    ("centre", "half_width", "layers"),
    [(1, 8, range(1, 10)), (10, 8, range(2, 19)), (20, 8, range(12, 21)), (4, 0, [4])],
)
@pytest.mark.parametrize("block", ["mlp", "attention"])
def test_a_window_holds_the_update_and_everything_else_the_base(
    centre: int, half_width: int, layers: range, block: str
) -> None:
    base = stacked(20)
    tuned = {n: t + 1 for n, t in base.items()}
    setting = SlidingWindow(centre=centre, half_width=half_width, block=block)  # type: ignore[arg-type]
    found = read_all(setting.apply(pair(base, tuned)))
    parts = {"mlp": ["mlp.up_proj.weight"],
             "attention": ["self_attn.q_proj.weight", "self_attn.q_proj.bias"]}[block]  # fmt: skip
    names = {f"model.layers.{layer - 1}.{part}" for layer in layers for part in parts}
    assert_same_bits(found, {n: (tuned if n in names else base)[n] for n in base})


def test_windows_around_every_layer_or_only_whole_ones() -> None:
    assert [w.centre for w in sliding_windows(20)] == list(range(1, 21))
    whole = sliding_windows(20, only_whole=True)
    assert [w.centre for w in whole] == [9, 10, 11, 12]
    with pytest.raises(ConfigError, match="no whole window of 17 layers fits into 16 layers"):
        sliding_windows(16, only_whole=True)


def test_blocks_of_one_method_within_another() -> None:
    setting = BlockSwap(donor=pair(BASE, OTHER), blocks=("mlp", "head"))
    names = {n for n in BASE if ".mlp." in n or n == "lm_head.weight"}
    assert_same_bits(
        read_all(setting.apply(UPDATE)), {n: (OTHER if n in names else TUNED)[n] for n in BASE}
    )


# Ranks --------------------------------------------------------------------------------------------

MATRICES = {n for n in BASE if "proj" in n}


def random(rows: int, columns: int, seed: int = 0, rank: int | None = None) -> Tensor:
    """float64; of a rank, and with values that fall by half from one to the next if rank is set."""
    rng = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    left, right = (
        torch.linalg.qr(torch.randn(size, rank, generator=rng, dtype=torch.float64)).Q
        for size in (rows, columns)
    )
    return left * 0.5 ** torch.arange(rank, dtype=torch.float64) @ right.T


@pytest.mark.parametrize("end", ["top", "bottom"])
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
@pytest.mark.parametrize(
    "update",
    [random(20, 50), random(50, 20), random(30, 30), random(1, 9), random(9, 1),
     random(40, 60, rank=5), random(60, 40, rank=30), torch.zeros(4, 6), 1e-9 * random(8, 8),
     random(24, 36).bfloat16()],
    ids=lambda t: f"{t.shape[0]}x{t.shape[1]}",
)  # fmt: skip
def test_components(update: Tensor, share: float, end: str) -> None:
    found = components(update, share, end)  # type: ignore[arg-type]
    expected = twin.singular_part(update, share, end)
    assert found.dtype == torch.float64
    error = float((found - expected).norm())
    assert error <= 1e-9 * float(expected.norm()) + 1e-13 * float(update.double().norm())


def test_seven_percent_of_a_hundred_are_seven() -> None:
    assert torch.linalg.matrix_rank(components(random(100, 100), 0.07, "top")) == 7


@pytest.mark.parametrize("others", ["base", "tuned"])
def test_ranks_change_matrices_and_leave_the_rest_as_asked(others: str) -> None:
    rest = {"base": BASE, "tuned": TUNED}[others]
    for end, setting in (
        ("top", TopRank(share=0.2, others=others)),  # type: ignore[arg-type]
        ("bottom", BottomRank(share=0.2, others=others)),  # type: ignore[arg-type]
    ):
        found = read_all(setting.apply(UPDATE))
        expected = {n: rest[n].double() for n in BASE}
        for name in MATRICES:
            update = TUNED[name] - BASE[name]
            expected[name] = BASE[name].double() + twin.singular_part(update, 0.2, end)
        assert_equal_to_rounding(found, expected)


def test_top_rank_at_the_norm_of_each_module() -> None:
    norms = twin.norms(BASE, OTHER)
    found = read_all(TopRank(share=0.1, norm=norms).apply(UPDATE))
    given = {n: found[n] for n in MATRICES}
    expected = {n: norms[n] for n in MATRICES}
    assert twin.norms({n: BASE[n] for n in MATRICES}, given) == pytest.approx(expected, rel=1e-4)


def test_top_rank_at_one_norm_of_the_whole() -> None:
    kept = {n: twin.singular_part(TUNED[n] - BASE[n], 0.1, "top") for n in MATRICES}
    total = math.sqrt(sum(float(t.square().sum()) for t in kept.values()))
    found = read_all(TopRank(share=0.1, norm=0.7).apply(UPDATE))
    expected = {n: t.double() for n, t in BASE.items()}
    expected |= {n: BASE[n].double() + 0.7 / total * kept[n] for n in MATRICES}
    assert_equal_to_rounding(found, expected)
    assert twin.whole_norm(BASE, found) == pytest.approx(0.7, rel=1e-5)


@pytest.mark.parametrize(
    "norm", [None, 0.5, dict.fromkeys(BASE, 0.5)], ids=["kept", "whole", "module"]
)
def test_ranks_of_what_never_moved(norm: float | dict[str, float] | None) -> None:
    nothing = pair(BASE, BASE)
    assert_same_bits(read_all(TopRank(share=0.1, norm=norm).apply(nothing)), BASE)
    assert_same_bits(read_all(BottomRank(share=0.5).apply(nothing)), BASE)


# Fused and batched tensors ------------------------------------------------------------------------


def fused() -> tuple[Point, Point]:
    rng = torch.Generator().manual_seed(0)
    shapes = {"model.layers.0.self_attn.qkv_proj.weight": (8 + 4 + 4, 8),
              "model.layers.0.mlp.experts.gate_up_proj": (3, 12, 8),
              "model.layers.0.mlp.experts.down_proj": (3, 8, 6)}  # fmt: skip
    base = {n: torch.randn(s, generator=rng, dtype=torch.float64) for n, s in shapes.items()}
    tuned = {
        n: t + torch.randn(t.shape, generator=rng, dtype=torch.float64) for n, t in base.items()
    }
    return base, tuned


HEADS = Heads(query=4, key_value=2, width=2)


def fused_parts(point: Point) -> dict[str, Tensor]:
    """The modules inside, cut by hand."""
    qkv, gate_up, down = point.values()
    cuts = {"q": slice(0, 8), "k": slice(8, 12), "v": slice(12, 16)}
    found = {f"qkv {part}": qkv[rows] for part, rows in cuts.items()}
    for e in range(3):
        found |= {f"{e} gate": gate_up[e, :6], f"{e} up": gate_up[e, 6:], f"{e} down": down[e]}
    return found


def test_each_part_of_a_fused_tensor_and_each_expert_is_a_module() -> None:
    base, tuned = fused()
    norms = {label: 1.0 + i for i, label in enumerate(module_norms(pair(base, tuned), HEADS))}
    assert len(norms) == 3 + 3 * 3
    changed = NormScaling(final=norms).apply(pair(base, tuned), HEADS)
    found, parts = fused_parts(read_all(changed)), fused_parts(base)
    reached = sorted(float((found[n] - parts[n]).norm()) for n in parts)
    assert reached == pytest.approx(sorted(norms.values()), rel=1e-9)
    ranked = fused_parts(read_all(TopRank(share=0.2).apply(pair(base, tuned), HEADS)))
    for name, start in fused_parts(base).items():
        update = fused_parts(tuned)[name] - start
        torch.testing.assert_close(ranked[name] - start, twin.singular_part(update, 0.2, "top"))


# Adapters -----------------------------------------------------------------------------------------

ADAPTED = "model.layers.0.self_attn.q_proj"


def adapter(tmp_path: Path, dtype: torch.dtype) -> tuple[AdapterUpdate, Point, Point]:
    """A LoRA adapter of rank 2 on one matrix, its base, and the merged model in float64."""
    base, rng = base_point(dtype), torch.Generator().manual_seed(0)
    rows, columns = base[f"{ADAPTED}.weight"].shape
    left, right = torch.randn(rows, 2, generator=rng), torch.randn(2, columns, generator=rng)
    tensors = {f"{ADAPTED}.lora_A.weight": 1e-3 * right, f"{ADAPTED}.lora_B.weight": left}
    update = AdapterUpdate(MemoryWeights(base), save_adapter(tmp_path / "adapter", tensors))
    merged = {n: t.double() for n, t in base.items()}
    product = 8 / 2 * left.double() @ (1e-3 * right).double()
    merged[f"{ADAPTED}.weight"] = merged[f"{ADAPTED}.weight"] + product
    return update, base, merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_update_of_an_adapter_is_scaled_before_it_is_rounded(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    update, base, merged = adapter(tmp_path, dtype)
    for scale in (0.5, 1.0, 3.0):
        found = read_all(WholeScaling(scale=scale).apply(update))
        assert_equal_to_rounding(found, twin.scaled(base, merged, scale))
    norm = twin.norms(base, merged)[f"{ADAPTED}.weight"]
    found = read_all(NormScaling(final=2 * norm, beta=0.5).apply(update))
    assert_equal_to_rounding(found, twin.scaled(base, merged, 1.5))


@pytest.mark.parametrize(("end", "kind"), [("top", TopRank), ("bottom", BottomRank)])
def test_components_of_an_adapter_are_those_of_its_factors(
    tmp_path: Path, end: str, kind: type[TopRank] | type[BottomRank]
) -> None:
    update, base, merged = adapter(tmp_path, torch.float64)
    name = f"{ADAPTED}.weight"
    left, values, right = torch.linalg.svd(merged[name] - base[name], full_matrices=False)
    i = 0 if end == "top" else 1  # one of the two that are not zero
    found = read_all(kind(share=0.5).apply(update))
    kept = values[i] * torch.outer(left[:, i], right[i])
    torch.testing.assert_close(found[name] - base[name], kept, rtol=1e-8, atol=1e-12)
    assert_same_bits(
        {n: t for n, t in found.items() if n != name}, {n: t for n, t in base.items() if n != name}
    )


# Contracts and refusals ---------------------------------------------------------------------------

ALL: list[Intervention] = [
    WholeScaling(scale=0.5),
    NormScaling(final=2.0, beta=0.5),
    NormScaling(final=module_norms(pair(BASE, OTHER))),
    EmbeddingReplacement(),
    SlidingWindow(centre=2, half_width=0),
    BlockSwap(donor=pair(BASE, OTHER), blocks=("attention",)),
    TopRank(share=0.1, norm=1.0),
    BottomRank(share=0.5),
]


@pytest.mark.parametrize("setting", ALL, ids=lambda each: f"{each.kind} {each.setting}")
def test_every_intervention_is_pure_and_spares_its_endpoints(setting: Intervention) -> None:
    base, tuned = base_point(torch.bfloat16), moved(base_point(torch.bfloat16), 1)
    base["steps"] = tuned["steps"] = torch.tensor([3])
    kept = [{n: t.clone() for n, t in point.items()} for point in (base, tuned)]
    changed = setting.apply(pair(base, tuned)) if setting.kind != "swap" else setting.apply(UPDATE)
    first, second = read_all(changed), read_all(changed)
    assert_same_bits(first, second)
    assert {n: t.shape for n, t in first.items()} == {
        n: tuple(s) for n, s in changed.shapes.items()
    }
    assert all(t.dtype == changed.dtype(n) for n, t in first.items())
    assert changed.read("lm_head.weight", (2, 4)).equal(first["lm_head.weight"][2:4])
    for point, before in zip((base, tuned), kept, strict=True):
        assert_same_bits(point, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WholeScaling(scale=math.nan), "scale must be a finite number, got nan"),
        (lambda: NormScaling(final=-1.0), "final: the norm of the whole update must be at least 0"),
        (lambda: NormScaling(final={"w": math.inf}), "the norm of w must be at least 0, got inf"),
        (lambda: NormScaling(final=1.0, beta=math.inf), "beta must be a finite number"),
        (lambda: EmbeddingReplacement(part="tail"), "part must be one of embeddings, head, both"),
        (lambda: EmbeddingReplacement(into="both"), "into must be one of tuned, base"),
        (lambda: SlidingWindow(centre=0), "centre must be a layer counted from 1, got 0"),
        (lambda: SlidingWindow(centre=1, half_width=-1), "half_width must be at least 0, got -1"),
        (lambda: SlidingWindow(centre=1, block="norm"), "block must be one of mlp, attention"),
        (lambda: BlockSwap(donor=UPDATE, blocks=()), "blocks must name at least one of attention"),
        (lambda: BlockSwap(donor=UPDATE, blocks=("mpl",)), "blocks must be one of attention, mlp"),
        (lambda: TopRank(share=0.0), r"fractions in \(0, 1\], got 0.0"),
        (lambda: TopRank(share=0.1, norm=-2.0), "norm: the norm of the whole update must be"),
        (lambda: TopRank(share=0.1, others="both"), "others must be one of base, tuned"),
        (lambda: BottomRank(share=1.5), r"fractions in \(0, 1\], got 1.5"),
    ],
)
def test_wrong_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_a_model_without_what_is_asked_for_is_refused() -> None:
    tied = {n: t for n, t in BASE.items() if n != "lm_head.weight"}
    update = pair(tied, tied)
    with pytest.raises(ParameterMismatchError, match="no tensor of block head; its head is tied"):
        EmbeddingReplacement(part="head").apply(update)
    with pytest.raises(ParameterMismatchError, match="centre 3 is no layer of this model"):
        SlidingWindow(centre=3).apply(UPDATE)
    with pytest.raises(ParameterMismatchError, match=r"final has no norm of .* \(25 such modules"):
        NormScaling(final={}).apply(UPDATE)
    with pytest.raises(ParameterMismatchError, match=r"donor has other tensors .* lm_head.weight"):
        BlockSwap(donor=update, blocks=("mlp",)).apply(UPDATE)
    unknown = pair({"w": torch.zeros(2, 2)}, {"w": torch.zeros(2, 2)})
    with pytest.raises(ParameterMismatchError, match=r"no attention or MLP matrix .* example w"):
        TopRank(share=0.1).apply(unknown)
