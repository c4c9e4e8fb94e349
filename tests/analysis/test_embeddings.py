"""Shifts of representations against a twin in plain Python, and against real tiny models."""

import copy

import pytest
import torch
from tests.fakes import TOKENIZER, ids, tiny_policy
from tests.reference import behavior_twin as twin
from torch import Tensor

from effopd.analysis import embeddings
from effopd.analysis.embeddings import (
    ShiftSums,
    embedding_shift,
    frequent_tokens,
    shift_points,
    shift_vectors,
    spread_tokens,
    state_shift,
)
from effopd.errors import NonFiniteError
from effopd.models.policy import Policy, Sample

SAMPLES = [
    Sample(prompt_ids=ids("<bos> 3 + 4 ="), completion_ids=ids("3 + 4 = 0 ; # 0 <eos>")),
    Sample(prompt_ids=ids("<bos>"), completion_ids=ids("1")),
    Sample(prompt_ids=ids("<bos> 5 * 2 ="), completion_ids=ids("# 3 <eos>")),
]
COMPLETION = torch.tensor([token for sample in SAMPLES for token in sample.completion_ids])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shift_row(before: Tensor, after: Tensor) -> dict[str, float | int | None]:
    sums = ShiftSums()
    sums.add(before, after)
    return sums.row()


@pytest.mark.parametrize(("tokens", "width"), [(2, 3), (9, 1), (20, 8)])
def test_row_equals_the_twin(tokens: int, width: int) -> None:
    before = normal(tokens, width) + 0.5
    after = before + 0.3 * normal(tokens, width, seed=1)
    found = shift_row(before, after)
    for name, value in twin.shift(before.tolist(), after.tolist()).items():
        assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-14), name


@pytest.mark.parametrize("elements", [1, 16, 10**6])
def test_portions_and_chunks_do_not_matter(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_CHUNK_ELEMENTS", elements)
    before, after = normal(11, 4), normal(11, 4, seed=1)
    sums = ShiftSums()
    for start, end in ((0, 5), (5, 6), (6, 11)):
        sums.add(before[start:end], after[start:end])
    expected = twin.shift(before.tolist(), after.tolist())
    found = sums.row()
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)


def test_what_did_not_move_has_cosine_1_and_no_shift() -> None:
    before = normal(30, 6).float()
    found = shift_row(before, before.clone())
    assert found["mean_cosine"] == pytest.approx(1.0, abs=1e-15)
    assert found["mean_cosine"] <= 1.0
    assert found["centred_cosine"] == pytest.approx(1.0, abs=1e-14)
    assert (found["relative_shift"], found["norm_ratio"]) == (0.0, 1.0)


def test_zero_representations_are_counted_and_left_out_of_cosines() -> None:
    before, after = torch.eye(4), torch.eye(4)
    before[0], after[1] = 0, 0
    after[3] = torch.tensor([1.0, 0, 0, 0])
    found = shift_row(before, after)
    assert (found["tokens"], found["zero_tokens"]) == (4, 2)
    assert (found["mean_cosine"], found["min_cosine"]) == (0.5, 0.0)
    assert found["unrelated_cosine"] == 0.0
    assert found["relative_shift"] == pytest.approx((4 / 3) ** 0.5, rel=1e-12)


def test_numbers_that_are_not_defined_are_none() -> None:
    found = shift_row(torch.zeros(2, 3), torch.ones(2, 3))
    undefined = ("mean_cosine", "p05_cosine", "min_cosine", "centred_cosine", "relative_shift")
    assert all(found[name] is None for name in (*undefined, "unrelated_cosine", "norm_ratio"))
    single = shift_row(torch.ones(1, 3), torch.ones(1, 3))
    assert (single["centred_cosine"], single["unrelated_cosine"]) == (None, None)
    alike = shift_row(torch.full((7, 3), 0.1), normal(7, 3))
    assert alike["centred_cosine"] is None


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        ShiftSums().add(torch.ones(1, 2), torch.tensor([[1.0, torch.nan]]))


def test_embedding_shift_counts_tokens_as_often_as_they_occur() -> None:
    before, after = normal(6, 3), normal(6, 3, seed=1)
    text = torch.tensor([4, 4, 1, 4])
    cosines = [twin.cosine(before[i].tolist(), after[i].tolist()) for i in (4, 4, 1, 4)]
    found = embedding_shift(before, after, text)
    assert found["mean_cosine"] == pytest.approx(twin.mean(cosines), rel=1e-12)
    once = embedding_shift(before, after, text.unique())
    assert once["mean_cosine"] == pytest.approx(twin.mean(cosines[1:3]), rel=1e-12)


# Models -------------------------------------------------------------------------------------------


def perturbed(size: float) -> Policy:
    model = copy.deepcopy(tiny_policy().model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return Policy(model, TOKENIZER)


@torch.no_grad()
def states_of(policy: Policy) -> Tensor:
    """Last hidden states before each completion token: one sequence at a time, float64."""
    model = copy.deepcopy(policy.model).double()
    found = []
    for sample in SAMPLES:
        sequence = torch.tensor([sample.prompt_ids + sample.completion_ids])
        hidden = model.base_model(sequence).last_hidden_state[0]
        found.append(hidden[len(sample.prompt_ids) - 1 : -1])
    return torch.cat(found)


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_state_shift_equals_the_twin(batch_tokens: int) -> None:
    base, tuned = tiny_policy(), perturbed(0.05)
    chosen = [0, 8, 9, 12]
    found = state_shift(base, tuned, SAMPLES, chosen=chosen, batch_tokens=batch_tokens)
    before, after = states_of(base), states_of(tuned)
    for name, value in twin.shift(before.tolist(), after.tolist()).items():
        assert found.row[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert 0.2 < found.row["mean_cosine"] < 0.99, "the models differ"
    torch.testing.assert_close(found.before_SD.double(), before[chosen], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.after_SD.double(), after[chosen], rtol=1e-4, atol=1e-5)


def test_state_shift_keeps_nothing_unless_asked() -> None:
    found = state_shift(tiny_policy(), tiny_policy(), SAMPLES)
    assert found.before_SD.shape == (0, 32)
    assert found.row["min_cosine"] == pytest.approx(1.0, abs=1e-12)


# Pictures -----------------------------------------------------------------------------------------


def test_frequent_tokens_come_first_and_equals_by_id() -> None:
    text = torch.tensor([7, 2, 9, 2, 9, 1, 2])
    assert frequent_tokens(text, 3) == [2, 9, 1]
    assert frequent_tokens(text, 99) == [2, 9, 1, 7]


def test_spread_tokens_are_a_seeded_draw_without_replacement() -> None:
    before = torch.get_rng_state()
    found = spread_tokens(1000, 50, seed=4)
    assert found == sorted(set(found)) == spread_tokens(1000, 50, seed=4)
    assert (len(found), max(found) < 1000) == (50, True)
    assert found != spread_tokens(1000, 50, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert spread_tokens(3, 50) == [0, 1, 2]


def first_two(points: Tensor) -> Tensor:
    return points[:, :2]


def test_points_are_labelled_in_their_order() -> None:
    before = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]])
    rows = shift_points(before, {"a": before + 10, "b": before + 20}, first_two)
    assert [(r["label"], r["token"], r["x"], r["y"]) for r in rows] == [
        ("base", 0, 1.0, 2.0), ("base", 1, 3.0, 4.0), ("a", 0, 11.0, 12.0),
        ("a", 1, 13.0, 14.0), ("b", 0, 21.0, 22.0), ("b", 1, 23.0, 24.0),
    ]  # fmt: skip


def test_vectors_start_where_nothing_moved() -> None:
    before = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    after = before + torch.tensor([[0.5, 0.0], [0.0, 0.25]])
    rows = shift_vectors(before, {"a": after}, first_two)
    assert [(r["label"], r["token"], r["x"], r["y"]) for r in rows] == [
        ("base", None, 0.0, 0.0), ("a", 0, 0.5, 0.0), ("a", 1, 0.0, 0.25),
    ]  # fmt: skip
