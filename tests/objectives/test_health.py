"""What student and teacher share, token by token, against sets and sums."""

import pytest
import torch
from tests.reference import objectives_twin as twin
from tests.reference.objectives_models import Models, close, models
from torch import Tensor

from effopd.errors import ParameterMismatchError
from effopd.objectives.health import health_row, health_sums
from effopd.objectives.projection import Head


def heads(m: Models) -> tuple[Head, Head]:
    teacher = Head(m.teacher_hidden, m.teacher_weight, m.teacher_bias, 2.5)
    return Head(*m.trained), teacher


def row(log_p: Tensor, log_q: Tensor, k: int) -> list[float]:
    """One token, from the definitions."""
    ours, theirs = (set(each.topk(k).indices.tolist()) for each in (log_p, log_q))
    shared = sorted(ours & theirs)
    p, q = (each[shared].exp() / each[shared].exp().sum() for each in (log_p, log_q))
    entropies = [-(each.exp() * each).sum().item() for each in (log_p, log_q)]
    return [1.0, len(shared) / k, (p * (q / p).log()).sum().item(), *entropies]


def expected(m: Models, deciles: list[int], kept: list[int], k: int) -> Tensor:
    log_p = twin.log_distributions(*m.trained).detach()
    log_q = twin.log_distributions(m.teacher_hidden, m.teacher_weight, m.teacher_bias, cap=2.5)
    sums = torch.zeros(10, 5, dtype=torch.float64)
    for token in kept:
        sums[deciles[token]] += torch.tensor(row(log_p[token], log_q[token], k)).double()
    return sums


def test_equals_the_definitions_by_decile() -> None:
    m = models(tokens=7)
    deciles = [0, 2, 5, 7, 0, 3, 6]  # of an answer of four tokens and one of three
    found = health_sums(*heads(m), (4, 0, 3), k=4)
    assert close(found, expected(m, deciles, list(range(7)), 4), 1e-6)
    every_third = health_sums(*heads(m), (4, 3), k=4, at_most=3)
    assert close(every_third, expected(m, deciles, [0, 3, 6], 4), 1e-6)
    from_the_second = health_sums(*heads(m), (4, 3), k=4, every=4, first=1)
    assert close(from_the_second, expected(m, deciles, [1, 5], 4), 1e-6)
    nothing = health_sums(*heads(m), (4, 3), k=4, every=64, first=9)
    assert nothing.eq(0).all()


def test_a_teacher_s_temperature() -> None:
    m = models(tokens=7)
    student, teacher = Head(*m.trained), Head(m.teacher_hidden, m.teacher_weight, m.teacher_bias)
    hot = health_sums(student, teacher, (7,), teacher_temperature=2.0)
    halved = Head(m.teacher_hidden, m.teacher_weight / 2, m.teacher_bias / 2)
    assert close(hot, health_sums(student, halved, (7,)), 1e-6)


def test_fields_are_means() -> None:
    m = models(tokens=7)
    sums = health_sums(*heads(m), (4, 3), k=4)
    row, means = health_row(sums), sums.sum(0) / 7
    assert row["overlap"] == pytest.approx(means[1].item())
    assert row["overlap_advantage"] == pytest.approx(means[2].item())
    assert row["entropy_gap"] == pytest.approx((means[3] - means[4]).item())
    assert [value is None for value in row["overlap_by_decile"]] == sums[:, 0].eq(0).tolist()
    assert row["overlap_by_decile"][0] == pytest.approx((sums[0, 1] / sums[0, 0]).item())
    last = row["entropy_gap_by_decile"][7]
    assert last == pytest.approx((sums[7, 3] - sums[7, 4]).item() / sums[7, 0].item())
    assert set(health_row(torch.full((10, 5), torch.nan))) == set(row)
    assert health_row(torch.zeros(10, 5))["overlap"] is None


def test_a_student_that_is_its_teacher() -> None:
    m = models(tokens=20, vocabulary=40)
    student, _ = heads(m)
    sums = health_sums(student, student, (20,)).sum(0)
    assert sums[:2].tolist() == [20, 20]
    assert sums[2].abs() < 1e-12
    assert sums[3] == sums[4]


def test_nothing_shared_and_no_tokens() -> None:
    weight = torch.eye(4)
    rows = torch.tensor([[5.0, 4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0, 4.0]])
    sums = health_sums(Head(rows[0], weight), Head(rows[1], weight), (1,), k=2).sum(0)
    assert sums[:3].tolist() == [1, 0, 0]
    assert health_sums(Head(rows[0][:0], weight), Head(rows[1][:0], weight), ()).sum() == 0


def test_other_tokens_are_refused() -> None:
    student, teacher = heads(models(tokens=7))
    with pytest.raises(ParameterMismatchError, match="6 in answers"):
        health_sums(student, teacher, (4, 2))
