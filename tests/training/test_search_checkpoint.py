"""The state of a search beside a checkpoint, and the record of its trials."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from effopd import EveryN, Extrapolator, Score, Search
from effopd.errors import CheckpointError
from effopd.records import read_jsonl
from effopd.search.scales import Trial
from effopd.training.search_checkpoint import (
    SearchLog,
    read_search,
    restore_search,
    save_search,
    search_file,
)

SEARCH = Search(parameters="all", schedule=EveryN(n=2))


def searched(updates: int) -> tuple[nn.Linear, Extrapolator]:
    """A run of some updates, each adding 1, whose searches accept while weights stay below 9."""
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, 0.0)
    nn.init.constant_(net.bias, 0.0)
    extrapolator = Extrapolator(net, lambda draw: -abs(net.bias[0].item() - 9.0), search=SEARCH)
    go_on(net, extrapolator, range(1, updates + 1))
    return net, extrapolator


def go_on(net: nn.Linear, extrapolator: Extrapolator, steps: range) -> None:
    for step in steps:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1.0)
        extrapolator.step(step)


def test_a_resumed_search_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    net, extrapolator = searched(3)  # the last search was at step 2: not at the anchor
    path = search_file(tmp_path, 0, 2)
    save_search(path, extrapolator)
    other, resumed = searched(0)
    other.load_state_dict(net.state_dict())
    restore_search(resumed, read_search(path), path)
    assert [p.name for p in tmp_path.iterdir()] == ["search-00000-of-00002.safetensors"]
    for each in ((net, extrapolator), (other, resumed)):
        go_on(*each, range(4, 7))
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    ours, theirs = extrapolator.state_dict(), resumed.state_dict()
    assert ours["past"] == theirs["past"]
    assert len(ours["past"]) == 3
    for name, tensor in ours["anchor"].items():
        assert torch.equal(tensor, theirs["anchor"][name])


def test_an_empty_shard_is_saved_too(tmp_path: Path) -> None:
    path, extrapolator = tmp_path / "x.safetensors", Extrapolator({"w": torch.empty(0, 3)})
    save_search(path, extrapolator)
    assert read_search(path)["anchor"]["w"].shape == (0, 3)


def test_a_state_belongs_to_its_weights(tmp_path: Path) -> None:
    net, extrapolator = searched(3)
    path = search_file(tmp_path)
    save_search(path, extrapolator)
    with torch.no_grad():
        net.bias[0] += 1
    with pytest.raises(CheckpointError, match="belongs to other weights"):
        restore_search(extrapolator, read_search(path), path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is missing: .*another number of processes"):
        read_search(search_file(tmp_path, 1, 4))


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_search(path)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _, extrapolator = searched(3)
    save_search(path, extrapolator)
    whole = path.read_bytes()
    refused = 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        try:
            found = read_search(path)
        except CheckpointError:
            refused += 1
        else:  # blanks that fill up the header
            assert whole[i : i + 1] == b" "
            assert_same(found, extrapolator.state_dict() | {"weights": extrapolator.checksum()})
    assert refused >= len(whole) - 8


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if key in {"anchor", "history"}:
            assert found[key].keys() == value.keys()
            assert all(torch.equal(found[key][name], tensor) for name, tensor in value.items())
        else:
            assert found[key] == value


# The record -------------------------------------------------------------------------------------

TRIALS = [
    Trial(kind="incumbent", scale=1.0, score=Score(value=-1.0, tokens=7), accepted=None),
    Trial(kind="candidate", scale=2.0, score=Score(value=-2.0, tokens=7), accepted=False),
]


def test_a_resumed_log_has_no_row_twice(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    for start, steps in ((0, (1, 2, 4)), (2, (4,))):
        log = SearchLog(path, start)
        for step in steps:
            for index, trial in enumerate(TRIALS):
                log.write(step, index, trial)
    rows = read_jsonl(path)
    assert [(row["step"], row["trial"]) for row in rows] == [
        (step, trial) for step in (1, 2, 4) for trial in (0, 1)
    ]
    assert rows[1] == {
        "schema": 1, "step": 1, "trial": 1, "kind": "candidate", "scale": 2.0, "score": -2.0,
        "score_se": None, "accepted": False, "reason": "", "truncation": 0.0, "tokens": 7,
        "seconds": 0.0,
    }  # fmt: skip


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    SearchLog(path, 0).write(1, 0, TRIALS[0])
    SearchLog(path, 0).close()
    assert read_jsonl(path) == []
