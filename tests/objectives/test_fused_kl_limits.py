"""What the fused divergences refuse, what they leave alone, and how much memory they take."""

import math
from typing import Any

import pytest
import torch
from tests.reference.objectives_models import Models, models
from tests.reference.objectives_storages import Storages
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.objectives import fused_divergence

# Errors -------------------------------------------------------------------------------------------


def test_vocabularies_must_agree() -> None:
    m = models()
    with pytest.raises(ParameterMismatchError, match=r"11 rows.*10.*aligned_vocabulary_size"):
        fused_divergence(
            m.student_hidden, m.student_weight, m.teacher_hidden, m.teacher_weight[:10]
        )


def test_tokens_must_agree() -> None:
    m = models()
    with pytest.raises(ParameterMismatchError, match="7 student tokens and 6 teacher"):
        fused_divergence(m.student_hidden, m.student_weight, m.teacher_hidden[:6], m.teacher_weight)


@pytest.mark.parametrize(
    "change",
    [
        {"student_hidden": torch.zeros(7, 4)},
        {"student_hidden": torch.zeros(1, 7, 5)},
        {"teacher_weight": torch.zeros(11, 5)},
        {"student_bias": torch.zeros(10)},
        {"teacher_bias": torch.zeros(11, 1)},
        {"student_weight": torch.zeros(11, 5, device="meta")},
    ],
    ids=str,
)
def test_wrong_shapes_and_devices(change: dict[str, Tensor]) -> None:
    m = Models(**(vars(models()) | change))
    with pytest.raises(ParameterMismatchError):
        m.fused()


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ({"divergence": "kl"}, "reverse"),
        ({"divergence": "jsd", "beta": -0.1}, "beta is -0.1; expected a number from 0.0 to 1.0"),
        ({"divergence": "jsd", "beta": math.nan}, "from 0.0 to 1.0"),
        ({"temperature": 0.0}, "positive"),
        ({"temperature": math.nan}, "positive"),
        ({"teacher_temperature": -1.0}, "teacher_temperature is -1.0; expected a positive"),
        ({"teacher_temperature": math.nan}, "teacher_temperature"),
        ({"student_cap": 0.0}, "student: the soft cap is 0.0; expected a positive"),
        ({"teacher_cap": math.nan}, "teacher: the soft cap"),
        ({"normalizer": 0}, "token count"),
        ({"chunk_tokens": 0}, "at least 1"),
    ],
    ids=str,
)
def test_settings_out_of_range(setting: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        models().fused(**setting)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_non_finite_hidden_states(bad: float, kind: str) -> None:
    m = models()
    m.teacher_hidden[4, 2] = bad
    found = m.fused(divergence=kind, chunk_tokens=2)
    assert not found.loss.isfinite()
    assert (~found.per_token_N.isfinite()).nonzero().flatten().tolist() == [4]


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reverse", "forward", "jsd"])
def test_no_tensor_of_tokens_times_vocabulary(kind: str) -> None:
    tokens, vocabulary, chunk, width = 256, 500, 4, 5
    m = models(tokens, vocabulary, torch.float32)
    with Storages() as seen:
        m.fused(divergence=kind, chunk_tokens=chunk).loss.backward()
    head, tiles = vocabulary * width, 2 * chunk * vocabulary
    assert max(seen.sizes) == max(head, tiles)
    assert max(seen.sizes) < tokens * vocabulary / 20
    # The gradient of the head exists once: accumulated, scaled and handed out in one buffer.
    assert seen.sizes.count(head) == 1


def test_a_capped_student_takes_one_more_tile_for_its_gradient() -> None:
    tokens, vocabulary, chunk = 256, 500, 4
    m = models(tokens, vocabulary, torch.float32)
    with Storages() as seen:
        m.fused(student_cap=3.0, chunk_tokens=chunk).loss.backward()
    assert max(seen.sizes) == 3 * chunk * vocabulary
    with Storages() as seen, torch.no_grad():
        m.fused(student_cap=3.0, chunk_tokens=chunk)
    assert max(seen.sizes) == 2 * chunk * vocabulary


def test_recorder_sees_full_logits() -> None:
    m = models(256, 500, torch.float32)
    with Storages() as seen:
        m.naive("reverse").mean().backward()
    assert max(seen.sizes) == 256 * 500


def test_head_gradient_becomes_the_parameters_gradient_without_a_copy() -> None:
    m = models(3, 500, torch.float32)
    with Storages() as seen:
        m.fused().loss.backward()
    assert m.student_weight.grad is not None
    assert seen.sizes.count(m.student_weight.numel()) == 1


def test_without_gradients_only_the_tiles() -> None:
    m = models(16, 500, torch.float32)
    with Storages() as seen, torch.no_grad():
        m.fused(chunk_tokens=1)
    assert max(seen.sizes) == 2 * 500
