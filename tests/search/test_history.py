import pytest
import torch

from effopd.errors import ParameterMismatchError
from effopd.search.history import History


def recorded(history: History, last: int) -> History:
    for step in range(1, last + 1):
        if history.is_due(step):
            history.append_(step, {"w": torch.full((2,), float(step))})
    return history


@pytest.mark.parametrize(
    ("every", "keep", "last", "steps"),
    [
        (1, 4, 4, [1, 2, 3, 4]),
        (1, 4, 5, [2, 4]),  # five would be too many
        (1, 4, 8, [2, 4, 6, 8]),
        (1, 4, 10, [4, 8]),
        (3, 2, 8, [3, 6]),
        (3, 2, 9, [6]),
        (3, 2, 100, [48, 96]),
        (2, 32, 64, list(range(2, 65, 2))),
    ],
)
def test_the_interval_doubles_when_there_are_too_many(
    every: int, keep: int, last: int, steps: list[int]
) -> None:
    history = recorded(History(every, keep), last)
    assert list(history.entries) == steps
    assert all(entry["w"].tolist() == [s, s] for s, entry in history.entries.items())


def test_a_copy_goes_on_as_the_original() -> None:
    history = recorded(History(1, 4), 7)
    copy = History(1, 4)
    copy.load_(history.tensors(), history.notes(), {"w": torch.zeros(2)})
    assert copy.notes() == history.notes() == {"interval": 2, "steps": [2, 4, 6]}
    assert copy.tensors().keys() == {"step-2/w", "step-4/w", "step-6/w"}
    copy.entries[2]["w"] += 1
    assert history.entries[2]["w"].tolist() == [2, 2]
    assert list(recorded(copy, 10).entries) == [4, 8]


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    history, copy = recorded(History(1, 4), 3), History(1, 4)
    tensors = history.tensors()
    del tensors["step-2/w"]
    with pytest.raises(ParameterMismatchError, match=r"missing \['step-2/w'\]"):
        copy.load_(tensors, history.notes(), {"w": torch.zeros(2)})
    with pytest.raises(ParameterMismatchError, match=r"step-1/w: expected \(3,\)"):
        copy.load_(history.tensors(), history.notes(), {"w": torch.zeros(3)})
    assert (copy.entries, copy.interval) == ({}, 1)
