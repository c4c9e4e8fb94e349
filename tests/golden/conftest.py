"""Rewards of an untrained student, which is never right: a digest of its answer."""

import zlib
from collections.abc import Sequence

import pytest

from effopd.data.problem import Answer
from effopd.data.world import ChainVerifier


def _reward(self: ChainVerifier, answers: Sequence[Answer]) -> list[float]:
    return [float(zlib.crc32(answer.completion.encode()) % 2) for answer in answers]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChainVerifier, "rewards", _reward)
