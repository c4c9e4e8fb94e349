import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.reference.core_twin import bits, copied, lerp_rounded_once
from torch import Tensor

from effopd.errors import ParameterMismatchError
from effopd.search.direction import SinceAccepted, SinceRaw
from effopd.search.ray import Ray, bit_sum, displace_, interpolate_

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Machines are shared: a slow example is no failure."""

LADDER = (3.0, 5.0, 7.0, 9.0, 11.0)
SCALES = (*LADDER, 2.0, 4.0, 64.0, 256.0, 0.3, 1.7, 3.3, -1.0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def endpoints(dtype: torch.dtype, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights of size 0.02 and a tip a few hundredths of that away, as after a few updates."""
    rng = torch.Generator().manual_seed(seed)
    anchor = torch.randn(size, generator=rng) * 0.02
    tip = anchor + torch.randn(size, generator=rng) * 0.0005
    return anchor.to(dtype), tip.to(dtype)


def ray_at(tip: dict[str, Tensor], anchor: dict[str, Tensor]) -> tuple[dict[str, Tensor], Ray]:
    """A ray whose live tensors are at `tip`, which it has captured."""
    live = copied(anchor)
    ray = Ray(live)
    for name, tensor in live.items():
        tensor.copy_(tip[name])
    ray.capture_tip_()
    return live, ray


# Points -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_one_is_the_tip_bit_for_bit(dtype: torch.dtype) -> None:
    anchor, tip = endpoints(dtype, 999)
    tip[:5] = torch.tensor([0.0, -0.0, 1e-40, 6e4, -1e-7]).to(dtype)
    live, ray = ray_at({"w": tip}, {"w": anchor})
    assert bits(live["w"]) == bits(tip)
    for round_trip in range(3):
        for scale in SCALES:
            ray.move_to_(scale)
            assert bits(live["w"]) != bits(tip)
        ray.move_to_(1.0)
        assert bits(live["w"]) == bits(tip), round_trip


@pytest.mark.parametrize("scale", SCALES)
def test_bf16_is_computed_in_fp32_and_rounded_once(scale: float) -> None:
    anchor, tip = endpoints(torch.bfloat16, 1_000_000)
    out = torch.empty_like(anchor)
    interpolate_(out, anchor, tip, scale)
    in_fp32 = torch.lerp(anchor.float(), tip.float(), scale).bfloat16()
    assert int((out != in_fp32).sum()) == 0
    if scale == int(scale):  # exact in bf16: the float64 twin agrees to the last bit as well
        assert int((out != lerp_rounded_once(anchor, tip, scale)).sum()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_interpolation_equals_its_twin(dtype: torch.dtype, scale: float) -> None:
    anchor, tip = endpoints(dtype, 10_000)
    out = torch.empty_like(anchor)
    interpolate_(out, anchor, tip, scale)
    twin = anchor.double() + scale * (tip.double() - anchor.double())
    rounding = torch.finfo(dtype).eps * (1 + abs(scale)) * 0.2  # weights are below 0.1
    torch.testing.assert_close(out.double(), twin, rtol=0, atol=rounding)


@settings(QUIET, max_examples=30)
@given(st.lists(st.sampled_from((0.0, 1.0, *SCALES)), min_size=1, max_size=8))
def test_a_point_does_not_depend_on_the_points_before(scales: list[float]) -> None:
    anchor, tip = endpoints(torch.bfloat16, 257)
    live, ray = ray_at({"w": tip}, {"w": anchor})
    for scale in scales:
        ray.move_to_(scale)
    direct = torch.empty_like(anchor)
    interpolate_(direct, anchor, tip, scales[-1])
    assert bits(live["w"]) == bits(direct)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_another_displacement_goes_through_the_tip_and_spares_the_anchor(
    dtype: torch.dtype,
) -> None:
    anchor, tip = endpoints(dtype, 999)
    tip[:4] = torch.tensor([0.0, -0.0, 1e-40, -1e-7]).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    along = 1e-3 * torch.randn(999, generator=torch.Generator().manual_seed(7)).to(wide)
    live, ray = ray_at({"w": tip}, {"w": anchor})
    ray.aim_({"w": along})
    for scale in SCALES:
        ray.move_to_(scale)
        expected = tip.double() + (scale - 1) * along.double()
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(live["w"].double(), expected, rtol=eps, atol=eps)
        ray.move_to_(1.0)
        assert bits(live["w"]) == bits(tip)
    assert bits(ray.anchor["w"]) == bits(anchor)


def test_a_displacement_is_added_in_fp32_and_rounded_once() -> None:
    tip = endpoints(torch.bfloat16, 100_000)[1]
    along = 1e-4 * torch.randn(100_000, generator=torch.Generator().manual_seed(8))
    out = torch.empty_like(tip)
    displace_(out, tip, along, 7.0)
    assert int((out != (tip.float() + 7 * along).bfloat16()).sum()) == 0
    assert int((out != (tip + (7 * along).bfloat16())).sum()) > 100  # what it is not


def test_a_displacement_ends_with_its_search() -> None:
    anchor, tip = endpoints(torch.float32, 50)
    live, ray = ray_at({"w": tip}, {"w": anchor})
    ray.aim_({"w": torch.ones(50)})
    ray.move_to_(4.0)
    torch.testing.assert_close(live["w"], tip + 3)
    ray.return_to_tip_()  # as after a failed search
    ray.capture_tip_()
    ray.move_to_(3.0)
    torch.testing.assert_close(live["w"], torch.lerp(anchor, tip, 3.0))


@pytest.mark.parametrize("elsewhere", [4.0, 2.0])
def test_a_point_along_another_displacement_becomes_the_anchor(elsewhere: float) -> None:
    anchor, tip = endpoints(torch.bfloat16, 500)
    live, ray = ray_at({"w": tip}, {"w": anchor})
    ray.aim_({"w": torch.full((500,), 1e-3)})
    ray.move_to_(4.0)
    accepted = live["w"].clone()
    ray.move_to_(elsewhere)
    ray.advance_anchor_(4.0)
    assert bits(ray.anchor["w"]) == bits(accepted)


def test_return_to_tip_mends_what_others_wrote() -> None:
    anchor, tip = endpoints(torch.float32, 50)
    live, ray = ray_at({"w": tip}, {"w": anchor})
    live["w"].data.zero_()  # behind the ray's back, at scale 1
    ray.return_to_tip_()
    assert bits(live["w"]) == bits(tip)


def test_moves_non_contiguous_parameters_and_nothing_between() -> None:
    storage = torch.arange(48.0).reshape(6, 8)
    before = storage.clone()
    live = {"columns": storage[:, ::2], "transposed": torch.arange(6.0).reshape(2, 3).t()}
    ray = Ray(live)
    live["columns"] += 1.0
    live["transposed"] += 2.0
    ray.capture_tip_()
    ray.move_to_(3.0)
    assert torch.equal(storage[:, ::2], before[:, ::2] + 3)
    assert torch.equal(storage[:, 1::2], before[:, 1::2])
    assert torch.equal(live["transposed"], torch.arange(6.0).reshape(2, 3).t() + 6)
    at_three = ray.checksum()
    live["columns"][4, 3] += 1
    assert ray.checksum() != at_three
    ray.return_to_tip_()
    assert torch.equal(storage[:, ::2], before[:, ::2] + 1)


def test_two_names_of_one_tensor_move_it_once() -> None:
    tensor = torch.ones(4)
    ray = Ray({"embed": tensor, "head": tensor})
    tensor.fill_(2.0)
    ray.capture_tip_()
    ray.move_to_(5.0)
    assert tensor.tolist() == [6.0] * 4


# Masters and mirrors ------------------------------------------------------------------------------


def test_mirrors_follow_their_masters() -> None:
    anchor, tip = endpoints(torch.float32, 10_000)
    masters = {"w": anchor.clone(), "norm": torch.ones(3)}
    mirrors = {"w": anchor.bfloat16()}
    ray = Ray(masters, mirrors=mirrors)
    masters["w"].copy_(tip)  # the mirror lags, as before a trainer's own cast
    ray.capture_tip_()
    ray.move_to_(1.0)
    assert bits(mirrors["w"]) == bits(tip.bfloat16())
    for scale in LADDER:
        ray.move_to_(scale)
        expected = torch.lerp(anchor, tip, scale)
        assert bits(masters["w"]) == bits(expected)
        assert bits(mirrors["w"]) == bits(expected.bfloat16())
    ray.return_to_tip_()
    assert bits(masters["w"]) == bits(tip)
    assert bits(mirrors["w"]) == bits(tip.bfloat16())


@pytest.mark.parametrize(
    ("mirrors", "named"),
    [
        ({"v": torch.zeros(4, dtype=torch.bfloat16)}, "'v'"),
        ({"w": torch.zeros(5, dtype=torch.bfloat16)}, r"'w'.*\(5,\)"),
        ({"w": torch.zeros(4, dtype=torch.int32)}, "'w'.*int32"),
    ],
    ids=["no master", "other shape", "whole numbers"],
)
def test_a_mirror_must_fit_its_master(mirrors: dict[str, Tensor], named: str) -> None:
    with pytest.raises(ParameterMismatchError, match=named):
        Ray({"w": torch.zeros(4)}, mirrors=mirrors)


def test_refuses_no_parameters_and_whole_numbers() -> None:
    with pytest.raises(ParameterMismatchError, match="at least one"):
        Ray({})
    with pytest.raises(ParameterMismatchError, match=r"ids is torch\.int64"):
        Ray({"ids": torch.zeros(3, dtype=torch.int64)})


# Anchors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accepted_point_becomes_the_anchor(dtype: torch.dtype) -> None:
    anchor, tip = endpoints(dtype, 1000)
    for elsewhere in (7.0, 3.0):  # the live tensors at the anchor's scale, or not
        live, ray = ray_at({"w": tip}, {"w": anchor})
        ray.move_to_(7.0)
        accepted = live["w"].clone()
        ray.move_to_(elsewhere)
        ray.advance_anchor_(SinceAccepted().anchor_scale(7.0))
        assert bits(ray.anchor["w"]) == bits(accepted)
        assert ray.anchor["w"].data_ptr() != live["w"].data_ptr()


def test_raw_tip_becomes_the_anchor() -> None:
    anchor, tip = endpoints(torch.bfloat16, 1000)
    live, ray = ray_at({"w": tip}, {"w": anchor})
    ray.move_to_(7.0)
    accepted = live["w"].clone()
    ray.advance_anchor_(SinceRaw().anchor_scale(7.0))
    assert bits(ray.anchor["w"]) == bits(tip)
    assert bits(live["w"]) == bits(accepted)


def test_next_ray_starts_from_the_new_anchor() -> None:
    live, ray = ray_at({"w": torch.full((2,), 1.0)}, {"w": torch.zeros(2)})
    ray.move_to_(3.0)
    ray.advance_anchor_(3.0)
    live["w"] += 0.5
    ray.capture_tip_()
    ray.move_to_(5.0)
    assert live["w"].tolist() == [5.5, 5.5]  # 3 + 5 * 0.5
    ray.advance_anchor_(0.0)  # the anchor stays
    assert ray.anchor["w"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a.pop("b"), "missing.*'b'"),
        (lambda a: a.update(c=torch.zeros(1)), "extra.*'c'"),
        (lambda a: a.update(b=torch.zeros(4)), r"tensor b: expected \(3,\).*\(4,\)"),
        (lambda a: a.update(b=torch.zeros(3).bfloat16()), "tensor b: .*float32.*bfloat16"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_an_anchor_that_does_not_fit_is_named_and_not_loaded(change, named: str) -> None:
    ray = Ray({"a": torch.ones(2), "b": torch.ones(3)})
    anchor = {"a": torch.zeros(2), "b": torch.zeros(3)}
    change(anchor)
    with pytest.raises(ParameterMismatchError, match=named):
        ray.load_anchor_(anchor)
    assert ray.anchor["a"].tolist() == [1.0, 1.0]


# The checksum -------------------------------------------------------------------------------------

INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@settings(QUIET, max_examples=200)
@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    size=st.integers(1, 40),
    start=st.integers(0, 5),
)
def test_checksum_changes_with_any_one_element(
    data: st.DataObject, dtype: torch.dtype, size: int, start: int
) -> None:
    integer = INTEGER.get(dtype, torch.int64)
    width = torch.iinfo(integer)
    whole = torch.randint(-(2**15), 2**15, (start + size,), dtype=torch.int64).to(integer)
    raw = whole[start:]  # any alignment
    ray = Ray({"other": torch.ones(3), "w": raw.view(dtype)})
    before = ray.checksum()
    where = data.draw(st.integers(0, size - 1))
    old = int(raw[where])
    new = data.draw(st.integers(width.min, width.max).filter(lambda value: value != old))
    raw[where] = new
    assert ray.checksum() != before
    raw[where] = old
    assert ray.checksum() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bit_sum_adds_words_of_eight_bytes(dtype: torch.dtype) -> None:
    tensor = torch.randn(1003).to(dtype)
    per_word, width = 8 // tensor.element_size(), 8 * tensor.element_size()
    whole = 1003 // per_word * per_word
    unsigned = [value % 2**width for value in bits(tensor)]
    words = [
        sum(lane << (width * i) for i, lane in enumerate(unsigned[at : at + per_word]))
        for at in range(0, whole, per_word)
    ]
    assert int(bit_sum(tensor)) % 2**64 == (sum(words) + sum(bits(tensor)[whole:])) % 2**64
    assert int(bit_sum(tensor[:0])) == 0
