"""Portions of sequences: a partition in order, within both limits, none of them wasted."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.errors import ConfigError
from effopd.models.portions import portions

lengths = st.lists(st.integers(1, 40), max_size=30)
limits = st.integers(1, 120)
counts = st.one_of(st.none(), st.integers(1, 5))


@given(lengths=lengths, tokens=limits, sequences=counts)
def test_a_partition_in_order_within_the_limits_and_none_of_them_wasted(
    lengths: list[int], tokens: int, sequences: int | None
) -> None:
    found = list(portions(lengths, tokens=tokens, sequences=sequences))
    assert [i for portion in found for i in portion] == list(range(len(lengths)))
    assert all(found)

    def fits(indices: list[int]) -> bool:
        padded = max(lengths[i] for i in indices) * len(indices)
        return padded <= tokens and (sequences is None or len(indices) <= sequences)

    assert all(fits(portion) or len(portion) == 1 for portion in found)
    assert not any(fits([*portion, after[0]]) for portion, after in pairwise(found))


def test_known_portions() -> None:
    assert list(portions([3, 3, 4, 9, 1], tokens=9)) == [[0, 1], [2], [3], [4]]
    assert list(portions([3, 3, 3, 20, 1, 1], tokens=9)) == [[0, 1, 2], [3], [4, 5]]
    assert list(portions([1, 1, 1], tokens=9, sequences=2)) == [[0, 1], [2]]
    assert list(portions([], tokens=9)) == []


@pytest.mark.parametrize("limit", [{"tokens": 0}, {"tokens": 5, "sequences": 0}])
def test_limits_below_one_are_refused(limit: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least one token and one sequence"):
        list(portions([1], **limit))  # type: ignore[arg-type]
