"""The FSDP2 trainer of docs/integrate.md under torchrun, two gloo ranks against one process.

Run as a script, this file is one rank: the page's own text with a watched search.
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

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.ranks import torchrun
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import effopd
from effopd import Draw, Search, SearchResult
from effopd.search.extrapolator import Extrapolator

ROOT = Path(__file__).parents[2]
RANKS = 2
STEPS = 16
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
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            self.tensors[f"{label}/{name}"] = full.detach().clone()


def local(parameter: Tensor) -> Tensor:
    shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return shard.detach()


# One of the two ranks -----------------------------------------------------------------------------


def one_rank(folder: Path) -> None:
    """The page's program as it stands, but for the watched search."""
    rank, built = os.environ["RANK"], []

    def watched(*arguments: Any, **options: Any) -> Watched:
        built.append(Watched(*arguments, **options))
        return built[-1]

    effopd.Extrapolator = watched  # type: ignore[assignment, misc]
    exec(compile(program(), "fsdp2.py", "exec"), {"__name__": "__main__"})
    (watch,) = built
    anchor = watch.inner.state_dict()["anchor"]
    report = {
        "kinds": sorted({type(p).__name__ for p in watch.parameters.values()}),
        "elements": sum(local(p).numel() for p in watch.parameters.values()),
        "anchor_elements": sum(shard.numel() for shard in anchor.values()),
        "scales": watch.scales,
        "trials": watch.trials,
        "collectives": watch.collectives.counts,
        "rejections_leave_shards": watch.rejections_leave_shards,
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(report))
    save_file(watch.tensors, folder / f"rank{rank}.safetensors")


def program() -> str:
    page = (ROOT / "docs" / "integrate.md").read_text("utf-8")
    (found,) = re.findall(r"^```py\n(# fsdp2\.py\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


# One process without sharding ---------------------------------------------------------------------


class Alone:
    """The same training in one process: what the ranks compute apart, one after the other."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.teacher = nn.Linear(8, 5)
        self.student = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5))
        self.watch = Watched(self.student, self.validate, search=Search(parameters="all"))

    def divergences(self, seed: int) -> list[Tensor]:
        """The mean divergence of each rank's share."""
        batch = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))
        found = []
        for share in batch.chunk(RANKS):
            ours = self.student(share).log_softmax(-1)
            theirs = self.teacher(share).log_softmax(-1).detach()
            found.append((ours.exp() * (ours - theirs)).sum(-1).mean())
        return found

    def validate(self, draw: Draw) -> float:
        first, second = self.divergences(10_000 + 2 * draw.step)
        return (-first - second).item() / RANKS

    def run(self) -> "Alone":
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-3)
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            for divergence in self.divergences(step):
                divergence.backward()
            for parameter in self.student.parameters():
                assert parameter.grad is not None
                parameter.grad /= RANKS
            optimizer.step()
            self.watch.step(step)
        return self


# The tests ----------------------------------------------------------------------------------------

Rank = tuple[dict[str, Any], dict[str, Tensor], str]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    """Report and tensors of each rank, and what all of them printed."""
    folder = tmp_path_factory.mktemp("fsdp2")
    printed = torchrun(__file__, folder, RANKS)
    return [
        (
            json.loads((folder / f"rank{rank}.json").read_text()),
            load_file(folder / f"rank{rank}.safetensors"),
            printed,
        )
        for rank in range(RANKS)
    ]


@pytest.fixture(scope="module")
def alone() -> Watched:
    return Alone().run().watch


@pytest.mark.distributed
def test_parameters_are_sharded_and_so_is_the_anchor(ranks: list[Rank]) -> None:
    total = 8 * 16 + 16 + 16 * 5 + 5
    reports = [report for report, *_ in ranks]
    assert [report["kinds"] for report in reports] == [["DTensor"]] * RANKS
    assert sum(report["elements"] for report in reports) == total
    assert all(report["anchor_elements"] == report["elements"] < total for report in reports)


@pytest.mark.distributed
def test_candidates_and_scores_are_those_of_one_process(ranks: list[Rank], alone: Watched) -> None:
    for report, tensors, _ in ranks:
        assert [tuple(trial) for trial in report["trials"]] == alone.trials
        assert tensors.keys() == alone.tensors.keys()
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.distributed
def test_ranks_agree_after_accepted_and_after_rejected_searches(
    ranks: list[Rank], alone: Watched
) -> None:
    (first, ours, _), (second, theirs, _) = ranks
    assert first["scales"] == second["scales"] == alone.scales
    assert alone.scales[2] == 1.0  # step 4
    assert max(alone.scales) > 1.0
    after = [name for name in ours if name.startswith("after-")]
    assert len(after) == 4 * len(alone.scales)
    assert all(torch.equal(ours[name], theirs[name]) for name in after)
    assert first["rejections_leave_shards"]
    assert second["rejections_leave_shards"]


@pytest.mark.distributed
def test_the_search_sends_nothing_of_its_own(ranks: list[Rank], alone: Watched) -> None:
    """Per validation: two layers gathered, one sum of scores."""
    for report, *_ in ranks:
        counts = report["collectives"]
        assert counts.get("search", 0) == 0
        assert counts["validation"] == 3 * len(alone.trials)
        assert counts["recording"] > 0


@pytest.mark.distributed
def test_the_program_prints_its_searches_once(ranks: list[Rank], alone: Watched) -> None:
    lines = [line.split() for line in ranks[0][2].splitlines()]
    assert [int(line[0]) for line in lines] == [1, 2, 4, 8, 16]
    assert [float(line[1]) for line in lines] == alone.scales


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))
