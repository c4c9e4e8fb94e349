"""Directions on two gloo processes with `fully_shard` against one process.

Run as a script, this file is one of the two processes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.ranks import run_ranks
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from effopd import AlphaPLS, Averaged, Draw, EveryN, Extrapolator, Relex, Search
from effopd.errors import ConfigError
from effopd.search.direction import Direction

RANKS = 2
STEPS = 6
DIRECTIONS: dict[str, Direction] = {"averaged": Averaged(), "relex": Relex(keep=3)}
INPUTS = torch.linspace(-1, 1, 21).reshape(7, 3)
TARGETS = torch.stack([INPUTS.sum(1), INPUTS.prod(1)], dim=1)


class Net(nn.Module):
    """Odd sizes, so that shards differ in size, and a tensor of which one shard is empty."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 5)])
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = torch.tanh(block(inputs))
        return self.head(inputs * self.gain)


def search(direction: Direction) -> Search:
    return Search(schedule=EveryN(n=2), direction=direction, parameters="all")


def trained(net: nn.Module, direction: Direction) -> tuple[dict[str, Tensor], list[float], int]:
    """Parameters in full after some searches, the accepted scales, elements of the history."""
    parameters = dict(net.named_parameters())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)

    def loss() -> Tensor:
        return (net(INPUTS) - TARGETS).square().mean()

    def validate(draw: Draw) -> float:
        return -loss().item()

    extrapolator = Extrapolator(net, validate, search=search(direction))
    scales = []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if result := extrapolator.step(step):
            scales.append(result.accepted_scale)
    history = extrapolator.state_dict()["history"].values()
    return {n: whole(p) for n, p in parameters.items()}, scales, sum(t.numel() for t in history)


def whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


# One of the two processes -------------------------------------------------------------------------


def sharded_net() -> nn.Module:
    net, mesh = Net(), init_device_mesh("cpu", (RANKS,))
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def refusal() -> str:
    try:
        Extrapolator(sharded_net(), lambda draw: 0.0, search=search(AlphaPLS()))
    except ConfigError as error:
        return str(error)
    return ""


def one_process(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    report: dict[str, Any] = {"refusal": refusal()}
    for name, direction in DIRECTIONS.items():
        tensors, scales, elements = trained(sharded_net(), direction)
        save_file(tensors, folder / f"{name}-{rank}.safetensors")
        report[name] = {"scales": scales, "elements": elements}
    (folder / f"{rank}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


# The test -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes left their reports and tensors."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder, RANKS)
    return folder


def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.distributed
@pytest.mark.parametrize("name", DIRECTIONS)
def test_shards_move_as_the_whole_tensors_would(folder: Path, name: str) -> None:
    expected, scales, elements = trained(Net(), DIRECTIONS[name])
    assert any(scale > 1 for scale in scales)
    found = [report[name] for report in reports(folder)]
    assert [each["scales"] for each in found] == [scales] * RANKS
    assert sum(each["elements"] for each in found) == elements  # each keeps its shard alone
    for rank in range(RANKS):
        tensors = load_file(folder / f"{name}-{rank}.safetensors")
        for parameter, tensor in expected.items():
            torch.testing.assert_close(tensors[parameter], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.distributed
def test_singular_vectors_of_shards_are_refused(folder: Path) -> None:
    for report in reports(folder):
        assert "singular vectors of whole matrices" in report["refusal"]


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
