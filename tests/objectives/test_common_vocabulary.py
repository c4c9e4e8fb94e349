"""Divergences on classes of tokens, against sets of outcomes written out at every position."""

from typing import Any

import pytest
import torch
from tests.objectives.test_fused_kl import KINDS, Fresh
from tests.reference import common_twin
from tests.reference import objectives_twin as twin
from tests.reference.objectives_models import DOUBLE, Models, close, models
from torch import Tensor

from effopd.errors import ParameterMismatchError
from effopd.objectives.common_vocabulary import Classes, Places, Ragged, common_divergence
from effopd.objectives.projection import Head

OURS = ["a", "b", "c", "d", "ab", "abc", "abd", "abcd", "bc", "cab"]
THEIRS = ["a", "b", "c", "d", "ca", "dd", "cd"]
TEXTS = ["a", "ab", "abc", "cab", "b", "bc", "d", "abcd", "c", "abd"]
"""Tokens of the student that were written, in an order with every kind of split."""


def classes_of(ours: list[str], theirs: list[str]) -> Classes:
    """The classes of two vocabularies whose tokens are cut longest first."""
    found = common_twin.classes(ours, theirs)
    sides = [
        torch.tensor([next(i for i, each in enumerate(found) if t in each[side]) for t in tokens])
        for side, tokens in enumerate((ours, theirs))
    ]
    more = {
        s: {t: common_twin.cut(theirs, t)[len(begin) :] for t in ours
            if t != s and common_twin.cut(theirs, t)[: len(begin)] == begin}
        for s in ours
        for begin in [common_twin.cut(theirs, s)]
    }  # fmt: skip
    one = [[t for t, rest in more[s].items() if len(rest) == 1] for s in ours]
    others = [[t for t, rest in more[s].items() if len(rest) > 1] for s in ours]
    onward = [[theirs.index(more[s][t][0]) for t in own] for s, own in zip(ours, one, strict=True)]
    lists = (Ragged.of([[ours.index(t) for t in each] for each in kind]) for kind in (one, others))
    return Classes(*sides, len(found) + 1, *lists, Ragged.of(onward))


def places_of(texts: list[str], classes: Classes) -> Places:
    """One place for each token of an answer, as its own and the teacher's tokens write it."""
    cuts = [[THEIRS.index(t) for t in common_twin.cut(THEIRS, text)] for text in texts]
    begins = [sum(map(len, cuts[:i])) for i in range(len(cuts))]
    written = torch.tensor([OURS.index(text) for text in texts])
    path = torch.tensor([*map(len, cuts)])
    ids = torch.tensor([token for cut in cuts for token in cut])
    return Places(torch.arange(len(texts)), torch.tensor(begins), written, path, ids)


def given(tokens: int = len(TEXTS)) -> tuple[Models, Places, Classes]:
    """A student of these tokens, and a teacher that reads one token more."""
    classes = classes_of(OURS, THEIRS)
    places = places_of(TEXTS[:tokens], classes)
    m = models(tokens, len(OURS))
    rng = torch.Generator().manual_seed(2)
    rows, width = len(places.teacher_ids_M) + 1, m.teacher_hidden.shape[1]
    m.teacher_hidden = torch.randn(rows, width, generator=rng, dtype=DOUBLE)
    m.teacher_weight = torch.randn(len(THEIRS), width, generator=rng, dtype=DOUBLE)
    m.teacher_bias = torch.randn(len(THEIRS), generator=rng, dtype=DOUBLE)
    ids = torch.cat([places.teacher_ids_M, torch.zeros(1, dtype=torch.int64)])
    return m, places._replace(teacher_ids_M=ids), classes


def common(m: Models, places: Places, classes: Classes, **settings: Any) -> Any:
    teacher = Head(m.teacher_hidden, m.teacher_weight, m.teacher_bias)
    return common_divergence(
        m.student_hidden,
        m.student_weight,
        teacher,
        places,
        classes,
        bias=m.student_bias,
        **settings,
    )


def naive(
    m: Models, places: Places, kind: str, beta: float, teacher_temperature: float = 1.0
) -> Tensor:
    log_p_NV = twin.log_distributions(*m.trained)
    q_MW = twin.log_distributions(
        m.teacher_hidden, m.teacher_weight, m.teacher_bias, teacher_temperature
    ).exp()
    values = []
    for row, begin, token, length in zip(*(part.tolist() for part in places[:4]), strict=True):
        split: dict[str, Any] = {}
        if length:
            ids = places.teacher_ids_M[begin : begin + length].tolist()
            path = torch.stack([q_MW[begin + i, t] for i, t in enumerate(ids)])
            split = {"written": OURS[token], "path": path, "behind": q_MW[begin + length]}
        found = common_twin.outcomes(OURS, THEIRS, q_MW[begin], **split)
        ours, theirs = common_twin.grouped(log_p_NV[row], found)
        values.append(twin.divergences(kind, ours[None], theirs[None], beta)[0])
    return torch.stack(values)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_equals_the_outcomes_element_by_element(kind: str, beta: float, chunk: int | None) -> None:
    m, places, classes = given()
    settings: dict[str, Any] = {"divergence": kind, "beta": beta, "teacher_temperature": 0.7}
    result = common(m, places, classes, chunk_tokens=chunk, normalizer=3, **settings)
    expected = naive(m, places, kind, beta, 0.7)
    assert close(result.per_token_N, expected)
    assert (result.per_token_N >= 0).all()
    assert bool(result.known_N.all())
    assert close(result.covered_N, torch.ones(len(TEXTS), dtype=DOUBLE))
    for found, wanted in zip(
        m.gradients(result.loss * 0.3), m.gradients(expected.sum() * 0.1), strict=True
    ):
        assert close(found, wanted)


def test_a_token_that_begins_another_is_told_apart_by_what_stands_behind() -> None:
    """The teacher writes `ab` as `a`, `b`: the student's `a` has what is left of `a`."""
    m, places, classes = given(2)
    q_MW = twin.log_distributions(m.teacher_hidden, m.teacher_weight, m.teacher_bias).exp()
    found = common_twin.outcomes(OURS, THEIRS, q_MW[0], "a", q_MW[0, :1], q_MW[1])
    masses = {frozenset(OURS[i] for i in ids): float(mass) for ids, mass in found}
    a, b = THEIRS.index("a"), THEIRS.index("b")
    longer = float(q_MW[0, a] * q_MW[1, b])
    assert masses[frozenset({"ab"})] == pytest.approx(longer)
    assert masses[frozenset({"a", "abc", "abd", "abcd"})] == pytest.approx(
        float(q_MW[0, a]) - longer
    )
    assert sum(masses.values()) == pytest.approx(1.0)
    # Unsplit, the class is one outcome.
    whole = places._replace(path_N=torch.zeros(2, dtype=torch.int64))
    assert close(common(m, whole, classes).per_token_N, naive(m, whole, "reverse", 0.5))
    assert (common(m, whole, classes).per_token_N <= common(m, places, classes).per_token_N).all()


def test_gradcheck() -> None:
    m, places, classes = given(5)
    fixed = m.teacher_hidden, m.teacher_weight, m.teacher_bias

    def loss(*trained: Tensor) -> Tensor:
        return common(Models(*trained, *fixed), places, classes, cap=4.0, chunk_tokens=2).loss

    assert torch.autograd.gradcheck(lambda *trained: Fresh.apply(loss, *trained), m.trained)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_with_a_class_for_every_token_it_is_the_whole_divergence(kind: str, beta: float) -> None:
    m = models()
    size = len(m.student_weight)
    none = Ragged.of([[]] * size)
    classes = Classes(torch.arange(size), torch.arange(size), size + 1, none, none, none)
    every = torch.arange(7)
    places = Places(every, every, every, torch.zeros_like(every), every)
    settings: dict[str, Any] = {"divergence": kind, "beta": beta, "chunk_tokens": 3}
    found, whole = common(m, places, classes, **settings), m.fused(**settings)
    assert close(found.per_token_N, whole.per_token_N)
    for ours, theirs in zip(m.gradients(found.loss), m.gradients(whole.loss), strict=True):
        assert close(ours, theirs)


def test_tokens_outside_the_places_have_no_weight_and_the_tail_is_not_covered() -> None:
    """Rows without a counterpart are one outcome of both; the others are not compared."""
    m, places, classes = given(5)
    tail = classes.size - 1
    apart = classes._replace(
        student_V=classes.student_V.clone().index_fill_(0, torch.tensor([OURS.index("d")]), tail),
        teacher_W=classes.teacher_W.masked_fill(classes.teacher_W == classes.student_V[3], tail),
    )
    some = Places(*(part[[0, 3]] for part in places[:4]), places.teacher_ids_M)
    found = common(m, some, apart)
    assert found.known_N.tolist() == [True, False, False, True, False]
    assert found.per_token_N[[1, 2, 4]].tolist() == [0.0] * 3
    q_MW = twin.log_distributions(m.teacher_hidden, m.teacher_weight, m.teacher_bias).exp()
    lost_W = apart.teacher_W == tail
    assert 0 < int(lost_W.sum()) < len(THEIRS)
    assert close(found.covered_N[[0, 3]], 1.0 - q_MW[some.teacher_N][:, lost_W].sum(-1))
    slopes = m.gradients(found.loss)
    assert slopes[0][[1, 2, 4]].abs().max() == 0
    assert slopes[0][[0, 3]].abs().min() > 0


def test_no_place_is_no_loss() -> None:
    m, places, classes = given(3)
    none = Places(*(part[:0] for part in places[:4]), places.teacher_ids_M)
    found = common(m, none, classes)
    assert found.loss.item() == 0.0
    assert all(slope.abs().max() == 0 for slope in m.gradients(found.loss))


@pytest.mark.parametrize("sharpness", [1.0, 6.0])
def test_single_precision_stays_near_double(sharpness: float) -> None:
    """Also where the teacher gives less than a rounding unit to what was written."""
    m, places, classes = given()
    m.teacher_hidden = m.teacher_hidden * sharpness
    wide = common(m, places, classes)
    if sharpness > 1:
        log_q_MW = twin.log_distributions(m.teacher_hidden, m.teacher_weight, m.teacher_bias)
        written_N = log_q_MW[places.teacher_N, places.teacher_ids_M[places.teacher_N]]
        assert float(written_N.exp().min()) < 0.1 * torch.finfo(torch.float32).eps
    trained = (part.detach().float().requires_grad_() for part in m.trained)
    fixed = (m.teacher_hidden, m.teacher_weight, m.teacher_bias)
    low = Models(*trained, *(part.float() for part in fixed))
    found = common(low, places, classes)
    assert close(found.per_token_N.double(), wide.per_token_N, 1e-3)


def test_a_teacher_that_is_certain_leaves_finite_values() -> None:
    """Differences of probabilities that round to 0 count as one rounding unit."""
    m, places, classes = given()
    m.teacher_hidden = m.teacher_hidden * 1e3
    result = common(m, places, classes)
    assert bool(result.per_token_N.isfinite().all())
    assert all(bool(slope.isfinite().all()) for slope in m.gradients(result.loss))


def test_a_head_that_does_not_fit_is_refused() -> None:
    m, places, classes = given(3)
    m.teacher_weight = m.teacher_weight[:, :-1]
    with pytest.raises(ParameterMismatchError, match="teacher: hidden states of shape"):
        common(m, places, classes)
