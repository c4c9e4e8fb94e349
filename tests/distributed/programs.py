"""Programs of two gloo ranks in one launch: the documented trainer, an odd net, a transformer.

Run as a script, this file is one rank: it writes a report and tensors of each program.
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.support.architectures import make
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode

import effopd
from effopd import AlphaPLS, Draw, EveryN, Extrapolator, GeometricScales, Search, SearchResult
from effopd.errors import ConfigError, ValidatorError

RANKS = 2
ROOT = Path(__file__).parents[2]


def local(parameter: Tensor) -> Tensor:
    shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return shard.detach()


def whole(tensor: Tensor) -> Tensor:
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().clone()


# The trainer of docs/integrate.md -----------------------------------------------------------------

PAGE_STEPS = 16
REJECTING = 4
"""The search at this step is made to reject; the others go as they go."""
COLLECTIVES = {"c10d", "_c10d_functional", "c10d_functional"}


class Collectives(TorchDispatchMode):
    """Counts collectives by what is going on when they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.during = "training"

    @contextmanager
    def named(self, during: str) -> Iterator[None]:
        before, self.during = self.during, during
        yield
        self.during = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it calls again with its shards
        if func.namespace in COLLECTIVES:
            self.counts[self.during] += 1
        return func(*args, **(kwargs or {}))


class Watched:
    """An extrapolator that remembers every candidate in full, and what the search left behind."""

    def __init__(
        self, module: nn.Module, validate: Callable[[Draw], float], *, search: Search
    ) -> None:
        self.parameters = dict(module.named_parameters())
        self.collectives = Collectives()
        self.validate = validate
        self.tensors: dict[str, Tensor] = {}
        self.scales: list[float] = []
        self.trials: list[tuple[float, float, bool | None]] = []
        self.rejections_leave_shards = True
        self.inner = Extrapolator(module, self.scored, search=search)

    def scored(self, draw: Draw) -> float:
        with self.collectives.named("recording"):
            self.keep(f"candidate-{len(self.tensors)}")
        with self.collectives.named("validation"):
            score = self.validate(draw)
        return score - 1e6 if draw.is_candidate and draw.step == REJECTING else score

    def step(self, step: int) -> SearchResult | None:
        before = {name: local(p).clone() for name, p in self.parameters.items()}
        with self.collectives, self.collectives.named("search"):
            result = self.inner.step(step)
        if result is None:
            return None
        self.scales.append(result.accepted_scale)
        for trial in result.trials:
            assert trial.score is not None
            self.trials.append((trial.scale, trial.score.value, trial.accepted))
        if result.accepted_scale == 1.0:
            same = [torch.equal(local(p), before[name]) for name, p in self.parameters.items()]
            self.rejections_leave_shards &= all(same)
        self.keep(f"after-{step}")
        return result

    def keep(self, label: str) -> None:
        for name, parameter in self.parameters.items():
            self.tensors[f"{label}/{name}"] = whole(parameter)


Report = dict[str, Any]


def page(rank: int, folder: Path) -> Report:
    """The page's program as it stands, but for the watched search."""
    built: list[Watched] = []

    def watched(*arguments: Any, **options: Any) -> Watched:
        built.append(Watched(*arguments, **options))
        return built[-1]

    effopd.Extrapolator = watched  # type: ignore[assignment, misc]
    exec(compile(program(), "fsdp2.py", "exec"), {"__name__": "__main__"})
    effopd.Extrapolator = Extrapolator  # type: ignore[misc]
    (watch,) = built
    anchor = watch.inner.state_dict()["anchor"]
    save_file(watch.tensors, folder / f"page-{rank}.safetensors")
    return {
        "kinds": sorted({type(p).__name__ for p in watch.parameters.values()}),
        "elements": sum(local(p).numel() for p in watch.parameters.values()),
        "anchor_elements": sum(shard.numel() for shard in anchor.values()),
        "scales": watch.scales,
        "trials": watch.trials,
        "collectives": watch.collectives.counts,
        "rejections_leave_shards": watch.rejections_leave_shards,
    }


def program() -> str:
    page = (ROOT / "docs" / "integrate.md").read_text("utf-8")
    (found,) = re.findall(r"^```py\n(# fsdp2\.py\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


# An odd net ---------------------------------------------------------------------------------------

NET_STEPS = 4
NET_SEARCH = Search(
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


class Training:
    """A few optimizer steps, each followed by a search; remembers every candidate in full."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.parameters = dict(net.named_parameters())  # before a forward pass gathers the root's
        self.candidates: list[dict[str, Tensor]] = []
        self.trials: list[tuple[float, float, bool | None]] = []
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        self.extrapolator = Extrapolator(net, self.validate, search=NET_SEARCH)

    def validate(self, draw: Draw) -> float:
        self.candidates.append({name: whole(p) for name, p in self.parameters.items()})
        return -loss(self.net).item()

    def run(self) -> None:
        for step in range(1, NET_STEPS + 1):
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


def count_collectives(net: nn.Module) -> dict[str, int]:
    """In a forward pass and backward pass, and in a search whose validator is silent."""
    with CommDebugMode() as training:
        loss(net).backward()
    with torch.no_grad():
        loss(net)  # leaves the root's tensors gathered: the extrapolator must not take those
    answers = iter(range(100))
    extrapolator = Extrapolator(net, lambda draw: float(next(answers)), search=NET_SEARCH)
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


def restores_its_own_shards(net: nn.Module, parameters: dict[str, Tensor]) -> bool:
    """A validator that writes to the shards is found out on every rank."""
    shards = [p.to_local() for p in parameters.values()]
    before = [shard.detach().clone() for shard in shards]

    def validate(draw: Draw) -> float:
        for shard in shards:
            shard.data.add_(1.0)
        return 0.0

    try:
        Extrapolator(net, validate, search=NET_SEARCH).step(1)
    except ValidatorError:
        return all(torch.equal(a, b) for a, b in zip(shards, before, strict=True))
    return False


def refusal_of(net: nn.Module) -> str:
    try:
        Extrapolator(net, search=Search(direction=AlphaPLS(), parameters="all"))
    except ConfigError as error:
        return str(error)
    return ""


def net(rank: int, folder: Path) -> Report:
    """A few steps, each with a search; then what the search sends, puts back and refuses."""
    module = Net()
    mesh = init_device_mesh("cpu", (RANKS,))
    for block in module.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    training = Training(module)
    training.run()
    anchor = training.extrapolator.state_dict()["anchor"]
    tensors = training.tensors()
    parameters = training.parameters
    save_file(tensors, folder / f"net-{rank}.safetensors")
    return {
        "kinds": sorted({type(p).__name__ for p in parameters.values()}),
        "elements": sum(p.to_local().numel() for p in parameters.values()),
        "anchor_elements": sum(shard.numel() for shard in anchor.values()),
        "trials": training.trials,
        "collectives": count_collectives(module),
        "restores": restores_its_own_shards(module, parameters),
        "refusal": refusal_of(module),
    }


# A transformer ------------------------------------------------------------------------------------

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
    return sum(local(t).nbytes for t in tensors)


def transformer(rank: int, folder: Path) -> Report:
    """Bytes of a rank: weights and optimizer, anchor and tip, one pass."""
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
    return {
        "kinds": sorted({type(p).__name__ for p in parameters.values()}),
        "weights": local_bytes([*parameters.values(), *gradients, *states]),
        "anchor_and_tip": local_bytes([*ray.anchor.values(), *ray.tip.values()]),
        "pass": passing.bytes,
    }


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    reports = {"page": page(rank, folder)}  # it makes a group of its own, and ends it
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    reports |= {"net": net(rank, folder), "transformer": transformer(rank, folder)}
    (folder / f"{rank}.json").write_text(json.dumps(reports))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
