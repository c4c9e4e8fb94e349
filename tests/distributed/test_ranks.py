"""Two ranks with `fully_shard` against one process: same candidates and scores, nothing sent.

One launch runs the programs of `programs.py`; each test reads what the ranks reported.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed import programs
from tests.distributed.programs import PAGE_STEPS, RANKS, SIZES, Net, Training, Watched
from tests.support.architectures import make
from tests.support.ranks import torchrun
from torch import Tensor, nn

from effopd import Draw, Search
from effopd.doctor.cluster import Cluster, ClusterEstimate, estimate_cluster
from effopd.doctor.report import _paper_run
from effopd.doctor.sizes import model_shape
from effopd.models.gpus import gpu_named
from effopd.training.config import make_config

pytestmark = pytest.mark.distributed


class Launch(NamedTuple):
    """What the ranks left: reports by rank and program, the folder of tensors, and the output."""

    reports: list[dict[str, dict[str, Any]]]
    folder: Path
    printed: str

    def of(self, program: str) -> list[dict[str, Any]]:
        return [report[program] for report in self.reports]

    def tensors(self, program: str) -> list[dict[str, Tensor]]:
        return [load_file(self.folder / f"{program}-{rank}.safetensors") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    folder = tmp_path_factory.mktemp("ranks")
    printed = torchrun(programs.__file__, folder, RANKS)
    reports = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    return Launch(reports, folder, printed)


# The trainer of docs/integrate.md -----------------------------------------------------------------


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
        for step in range(1, PAGE_STEPS + 1):
            optimizer.zero_grad()
            for divergence in self.divergences(step):
                divergence.backward()
            for parameter in self.student.parameters():
                assert parameter.grad is not None
                parameter.grad /= RANKS
            optimizer.step()
            self.watch.step(step)
        return self


@pytest.fixture(scope="module")
def alone() -> Watched:
    return Alone().run().watch


def test_parameters_are_sharded_and_so_is_the_anchor(ranks: Launch) -> None:
    total = 8 * 16 + 16 + 16 * 5 + 5
    reports = ranks.of("page")
    assert [report["kinds"] for report in reports] == [["DTensor"]] * RANKS
    assert sum(report["elements"] for report in reports) == total
    assert all(report["anchor_elements"] == report["elements"] < total for report in reports)


def test_candidates_and_scores_are_those_of_one_process(ranks: Launch, alone: Watched) -> None:
    for report, tensors in zip(ranks.of("page"), ranks.tensors("page"), strict=True):
        assert [tuple(trial) for trial in report["trials"]] == alone.trials
        assert tensors.keys() == alone.tensors.keys()
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, msg=name)


def test_ranks_agree_after_accepted_and_after_rejected_searches(
    ranks: Launch, alone: Watched
) -> None:
    first, second = ranks.of("page")
    ours, theirs = ranks.tensors("page")
    assert first["scales"] == second["scales"] == alone.scales
    assert alone.scales[2] == 1.0  # step 4
    assert max(alone.scales) > 1.0
    after = [name for name in ours if name.startswith("after-")]
    assert len(after) == 4 * len(alone.scales)
    assert all(torch.equal(ours[name], theirs[name]) for name in after)
    assert first["rejections_leave_shards"]
    assert second["rejections_leave_shards"]


def test_the_search_sends_nothing_of_its_own(ranks: Launch, alone: Watched) -> None:
    """Per validation: two layers gathered, one sum of scores."""
    for report in ranks.of("page"):
        counts = report["collectives"]
        assert counts.get("search", 0) == 0
        assert counts["validation"] == 3 * len(alone.trials)
        assert counts["recording"] > 0


def test_the_program_prints_its_searches_once(ranks: Launch, alone: Watched) -> None:
    lines = [line.split() for line in ranks.printed.splitlines()]
    assert [int(line[0]) for line in lines] == [1, 2, 4, 8, 16]
    assert [float(line[1]) for line in lines] == alone.scales


# An odd net ---------------------------------------------------------------------------------------


def test_sharded_search_equals_the_one_process_run(ranks: Launch) -> None:
    single = Training(Net())
    single.run()
    expected = single.tensors()
    assert any(scale > 1 and accepted for scale, _, accepted in single.trials)
    assert any(accepted is False for _, _, accepted in single.trials)
    for report, tensors in zip(ranks.of("net"), ranks.tensors("net"), strict=True):
        assert [tuple(trial) for trial in report["trials"]] == single.trials
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, msg=name)


def test_each_rank_moves_and_keeps_its_shard_alone(ranks: Launch) -> None:
    total = sum(p.numel() for p in Net().parameters())
    reports = ranks.of("net")
    assert [report["kinds"] for report in reports] == [["DTensor"]] * RANKS
    assert sum(report["elements"] for report in reports) == total
    assert all(report["elements"] < total for report in reports)
    assert all(report["anchor_elements"] == report["elements"] for report in reports)
    assert all(report["collectives"]["anchor"] == report["elements"] for report in reports)


def test_the_search_communicates_nothing(ranks: Launch) -> None:
    for report in ranks.of("net"):
        assert report["collectives"]["trials"] == 7
        assert report["collectives"]["training"] > 0  # the counter counts
        assert report["collectives"]["search"] == 0


def test_a_validator_that_writes_to_shards_is_found_out(ranks: Launch) -> None:
    assert [report["restores"] for report in ranks.of("net")] == [True] * RANKS


def test_singular_vectors_of_shards_are_refused(ranks: Launch) -> None:
    for report in ranks.of("net"):
        assert "singular vectors of whole matrices" in report["refusal"]


# A transformer, and the estimate of its bytes -----------------------------------------------------


@pytest.fixture(scope="module")
def estimate() -> ClusterEstimate:
    shape = model_shape(make("qwen3", **SIZES).config.to_dict(), "config.json")
    settings = ["search.parameters=attention_mlp", "train.prompts_per_step=2"]
    settings += ["validation={type='importance_kl', prompts=2}"]
    config = make_config(_paper_run("m"), settings)
    cluster = Cluster(gpu=gpu_named("H20"), gpus=RANKS)
    return estimate_cluster(config, {"student": shape, "teacher": shape}, cluster)


def test_weights_gradients_and_moments_of_a_rank(ranks: Launch, estimate: ClusterEstimate) -> None:
    assert [report["kinds"] for report in ranks.of("transformer")] == [["DTensor"]] * RANKS
    largest = max(report["weights"] for report in ranks.of("transformer"))
    assert estimate.weights_bytes == pytest.approx(largest, rel=0.01)


def test_anchor_and_tip_of_a_rank(ranks: Launch, estimate: ClusterEstimate) -> None:
    largest = max(report["anchor_and_tip"] for report in ranks.of("transformer"))
    assert estimate.search_host_bytes == largest


def test_a_pass_brings_the_weights_of_the_others(ranks: Launch, estimate: ClusterEstimate) -> None:
    """Student and teacher, one pass each in bfloat16; no padding is counted."""
    for report in ranks.of("transformer"):
        assert estimate.scored_bytes == pytest.approx(2 * report["pass"], rel=0.05)
