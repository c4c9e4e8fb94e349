"""Two gloo processes with `fully_shard` against one process: the same search, no communication.

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
from torch.distributed.tensor.debug import CommDebugMode

from effopd import AlphaPLS, Draw, EveryN, Extrapolator, GeometricScales, Search
from effopd.errors import ConfigError, ValidatorError

RANKS = 2
STEPS = 4
SEARCH = Search(
    schedule=EveryN(n=1),
    scales=GeometricScales(cap=64.0),
    parameters="all",  # the root's own tensors too: it stays gathered after a forward pass
)
INPUTS = torch.linspace(-1, 1, 21).reshape(7, 3)
TARGETS = torch.stack([INPUTS.sum(1), INPUTS.prod(1)], dim=1)


class Net(nn.Module):
    """Odd sizes, so that shards differ in size, and a scalar-like tensor of which one is empty."""

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


def loss(net: nn.Module) -> Tensor:
    return (net(INPUTS) - TARGETS).square().mean()


def whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


class Training:
    """A few optimizer steps, each followed by a search; remembers every candidate in full."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.parameters = dict(net.named_parameters())  # before a forward pass gathers the root's
        self.candidates: list[dict[str, Tensor]] = []
        self.trials: list[tuple[float, float, bool | None]] = []
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        self.extrapolator = Extrapolator(net, self.validate, search=SEARCH)

    def validate(self, draw: Draw) -> float:
        self.candidates.append({name: whole(p) for name, p in self.parameters.items()})
        return -loss(self.net).item()

    def run(self) -> None:
        for step in range(1, STEPS + 1):
            self.optimizer.zero_grad()
            loss(self.net).backward()
            self.optimizer.step()
            result = self.extrapolator.step(step)
            assert result is not None
            for trial in result.trials:
                assert trial.score is not None
                self.trials.append((trial.scale, trial.score.value, trial.accepted))

    def tensors(self) -> dict[str, Tensor]:
        """Every candidate, the final parameters and Adam's first moments, by name."""
        found = {f"{i}/{n}": t for i, point in enumerate(self.candidates) for n, t in point.items()}
        for name, tensor in self.parameters.items():
            found[f"final/{name}"] = whole(tensor)
            found[f"exp_avg/{name}"] = whole(self.optimizer.state[tensor]["exp_avg"])
        return found


# One of the two processes -------------------------------------------------------------------------


def count_collectives(net: nn.Module) -> dict[str, int]:
    """In a forward pass and backward pass, and in a search whose validator is silent."""
    with CommDebugMode() as training:
        loss(net).backward()
    with torch.no_grad():
        loss(net)  # leaves the root's tensors gathered: the extrapolator must not take those
    answers = iter(range(100))
    extrapolator = Extrapolator(net, lambda draw: float(next(answers)), search=SEARCH_ALONE)
    with CommDebugMode() as searching:
        result = extrapolator.step(1)
    assert result is not None
    assert result.accepted_scale == 64
    return {
        "training": training.get_total_counts(),
        "search": searching.get_total_counts(),
        "trials": len(result.trials),
        "anchor": sum(shard.numel() for shard in extrapolator.state_dict()["anchor"].values()),
    }


SEARCH_ALONE = Search(schedule=EveryN(n=1), parameters="all", scales=GeometricScales(cap=64.0))


def restores_its_own_shards(net: nn.Module, parameters: dict[str, Tensor]) -> bool:
    """A validator that writes to the shards is found out on every rank."""
    shards = [p.to_local() for p in parameters.values()]
    before = [shard.detach().clone() for shard in shards]

    def validate(draw: Draw) -> float:
        for shard in shards:
            shard.data.add_(1.0)
        return 0.0

    try:
        Extrapolator(net, validate, search=SEARCH_ALONE).step(1)
    except ValidatorError:
        return all(torch.equal(a, b) for a, b in zip(shards, before, strict=True))
    return False


def refusal(net: nn.Module) -> str:
    try:
        Extrapolator(net, search=Search(direction=AlphaPLS(), parameters="all"))
    except ConfigError as error:
        return str(error)
    return ""


def one_process(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    net = Net()
    mesh = init_device_mesh("cpu", (RANKS,))
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    training = Training(net)
    training.run()
    anchor = training.extrapolator.state_dict()["anchor"]
    tensors = training.tensors()
    parameters = training.parameters
    report = {
        "kinds": sorted({type(p).__name__ for p in parameters.values()}),
        "elements": sum(p.to_local().numel() for p in parameters.values()),
        "anchor_elements": sum(shard.numel() for shard in anchor.values()),
        "trials": training.trials,
        "collectives": count_collectives(net),
        "restores": restores_its_own_shards(net, parameters),
        "refusal": refusal(net),
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    save_file(tensors, folder / f"rank{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


# The test -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], dict]]:
    """Report and tensors of each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder, RANKS)
    return [
        (
            json.loads((folder / f"rank{rank}.json").read_text()),
            load_file(folder / f"rank{rank}.safetensors"),
        )
        for rank in range(RANKS)
    ]


@pytest.mark.distributed
def test_sharded_search_equals_the_one_process_run(ranks) -> None:
    single = Training(Net())
    single.run()
    expected = single.tensors()
    assert any(scale > 1 and accepted for scale, _, accepted in single.trials)
    assert any(accepted is False for _, _, accepted in single.trials)
    for report, tensors in ranks:
        assert [tuple(trial) for trial in report["trials"]] == single.trials
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.distributed
def test_each_rank_moves_and_keeps_its_shard_alone(ranks) -> None:
    total = sum(p.numel() for p in Net().parameters())
    reports = [report for report, _ in ranks]
    assert [report["kinds"] for report in reports] == [["DTensor"]] * RANKS
    assert sum(report["elements"] for report in reports) == total
    assert all(report["elements"] < total for report in reports)
    assert all(report["anchor_elements"] == report["elements"] for report in reports)
    assert all(report["collectives"]["anchor"] == report["elements"] for report in reports)


@pytest.mark.distributed
def test_the_search_communicates_nothing(ranks) -> None:
    for report, _ in ranks:
        assert report["collectives"]["trials"] == 7
        assert report["collectives"]["training"] > 0  # the counter counts
        assert report["collectives"]["search"] == 0


@pytest.mark.distributed
def test_a_validator_that_writes_to_shards_is_found_out(ranks) -> None:
    assert [report["restores"] for report, _ in ranks] == [True] * RANKS


@pytest.mark.distributed
def test_singular_vectors_of_shards_are_refused(ranks) -> None:
    for report, _ in ranks:
        assert "singular vectors of whole matrices" in report["refusal"]


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
