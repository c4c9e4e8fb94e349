"""The estimated bytes of a rank against those of a tiny transformer with `fully_shard`.

Run as a script, this file is one of two gloo ranks.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import make
from tests.support.ranks import run_ranks
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from effopd import Draw, EveryN, Extrapolator, Search
from effopd.config import make_config
from effopd.doctor.cluster import Cluster, ClusterEstimate, estimate_cluster
from effopd.doctor.report import _paper_run
from effopd.doctor.sizes import model_shape
from effopd.models.gpus import gpu_named

RANKS = 2
SIZES = {
    "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
TOKENS = torch.arange(32).reshape(2, 16) % 200


class Received(TorchDispatchMode):
    """Bytes that all-gathers bring from the other ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it calls again with its shards
        found = func(*args, **(kwargs or {}))
        if "allgather_base" in func.__name__:
            self.bytes += args[0].nbytes - args[1].nbytes
        elif func.__name__.startswith("all_gather_into_tensor"):
            self.bytes += found.nbytes - args[0].nbytes
        return found


def local_bytes(tensors: list[Tensor]) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def one_process(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    model = make("qwen3", **SIZES)
    mesh = init_device_mesh("cpu", (RANKS,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    scores = iter(range(100))

    def validate(draw: Draw) -> float:
        return float(next(scores))

    search = Search(schedule=EveryN(n=1), parameters="attention_mlp")
    extrapolator = Extrapolator(model, validate, search=search)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    states = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert extrapolator.step(1) is not None
    ray = extrapolator._ray
    with torch.no_grad(), Received() as passing:
        model(input_ids=TOKENS)
    report = {
        "kinds": sorted({type(p).__name__ for p in parameters.values()}),
        "weights": local_bytes([*parameters.values(), *gradients, *states]),
        "anchor_and_tip": local_bytes([*ray.anchor.values(), *ray.tip.values()]),
        "pass": passing.bytes,
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


# The tests ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder, RANKS)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def estimate() -> ClusterEstimate:
    shape = model_shape(make("qwen3", **SIZES).config.to_dict(), "config.json")
    settings = ["search.parameters=attention_mlp", "train.prompts_per_step=2"]
    settings += ["validation={type='cached_kl', prompts=2}"]
    config = make_config(_paper_run("m"), settings)
    cluster = Cluster(gpu=gpu_named("H20"), gpus=RANKS)
    return estimate_cluster(config, {"student": shape, "teacher": shape}, cluster)


@pytest.mark.distributed
def test_weights_gradients_and_moments_of_a_rank(measured: Any, estimate: ClusterEstimate) -> None:
    assert [report["kinds"] for report in measured] == [["DTensor"]] * RANKS
    largest = max(report["weights"] for report in measured)
    assert estimate.weights_bytes == pytest.approx(largest, rel=0.01)


@pytest.mark.distributed
def test_anchor_and_tip_of_a_rank(measured: Any, estimate: ClusterEstimate) -> None:
    largest = max(report["anchor_and_tip"] for report in measured)
    assert estimate.search_host_bytes == largest


@pytest.mark.distributed
def test_a_pass_brings_the_weights_of_the_others(measured: Any, estimate: ClusterEstimate) -> None:
    """Student and teacher, one pass each in bfloat16; no padding is counted."""
    for report in measured:
        assert estimate.scored_bytes == pytest.approx(2 * report["pass"], rel=0.05)


if __name__ == "__main__":
    one_process(int(sys.argv[1]), Path(sys.argv[2]))
