"""The state of a search next to verl's checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from effopd import Averaged, EveryN, Extrapolator, Search
from effopd.errors import CheckpointError
from effopd.integrations.verl.shards import load_shard, shard_path
from effopd.training.search_file import save_shard

SEARCH = Search(parameters="all", schedule=EveryN(n=2), direction=Averaged(beta=0.5))


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
    path = shard_path(tmp_path, 0, 2)
    save_shard(path, extrapolator.state_dict())
    other, resumed = searched(0)
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(load_shard(path))
    assert [p.name for p in tmp_path.iterdir()] == ["effopd_world_size_2_rank_0.safetensors"]
    for each in ((net, extrapolator), (other, resumed)):
        go_on(*each, range(4, 7))
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    ours, theirs = extrapolator.state_dict(), resumed.state_dict()
    assert ours["past"] == theirs["past"]
    assert len(ours["past"]) == 3
    for name, tensor in ours["history"].items():
        assert torch.equal(tensor, theirs["history"][name])


def test_an_empty_shard_is_saved_too(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    state = {"anchor": {"w": torch.empty(0, 3)}, "history": {}, "last_step": 4}
    save_shard(path, state)
    loaded = load_shard(path)
    assert loaded["anchor"]["w"].shape == (0, 3)
    assert loaded["last_step"] == 4


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is missing: .*another number of processes"):
        load_shard(shard_path(tmp_path, 1, 4))


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_shard(path)


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _, extrapolator = searched(3)
    save_shard(path, extrapolator.state_dict())
    whole = path.read_bytes()
    refused = 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        try:
            found = load_shard(path)
        except CheckpointError:
            refused += 1
        else:  # blanks that fill up the header
            assert whole[i : i + 1] == b" "
            assert_same(found, extrapolator.state_dict())
    assert refused >= len(whole) - 8


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if key in {"anchor", "history"}:
            assert found[key].keys() == value.keys()
            assert all(torch.equal(found[key][name], tensor) for name, tensor in value.items())
        else:
            assert found[key] == value
