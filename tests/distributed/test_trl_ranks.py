"""The search in TRL under torchrun, two gloo ranks: DDP, and FSDP2 by Transformers' own sharding.

Run as a script, this file is one rank.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.ranks import torchrun
from torch import Tensor
from torch.distributed.tensor import DTensor

RANKS = 2
pytestmark = pytest.mark.distributed


def whole(trainer: Any) -> dict[str, Tensor]:
    """Copies of all parameters, gathered where they are sharded."""
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    }


# One rank -----------------------------------------------------------------------------------------


def ddp(rank: int, folder: Path) -> dict[str, Any]:
    """A run whose searches reject, and one whose searches accept, both at bf16=True."""
    from tests.support.trl import distillation
    from torch.nn.parallel import DistributedDataParallel

    from effopd import AtLeast, EveryN, LadderScales, PairedMargin, Search
    from effopd.integrations.trl import EffOPDCallback
    from effopd.records import read_jsonl

    report: dict[str, Any] = {}
    rules = {"rejected": PairedMargin(z=1e9), "accepted": AtLeast(), "plain": None}
    for name, rule in rules.items():
        output = folder / name
        trainer = distillation(output, bf16=True, max_steps=3, save_strategy="steps", save_steps=3)
        if rule is not None:
            ladder = LadderScales(scales=(1.2,))
            search = Search(schedule=EveryN(n=1), scales=ladder, accept=rule, guard=None)
            trainer.add_callback(EffOPDCallback(trainer, search=search, prompts=7))
        trainer.train()
        assert isinstance(trainer.model_wrapped, DistributedDataParallel)
        save_file(whole(trainer), folder / f"{name}-{rank}.safetensors")
        if rule is not None and rank == 0:
            report[name] = read_jsonl(output / "effopd" / "search.jsonl")
    return report


def fsdp(rank: int, folder: Path) -> dict[str, Any]:
    """A sharded run: candidates, collectives of the moves, and the trainer's own score."""
    from tests.support.trl import sharded_distillation, whole_models
    from torch.distributed.tensor.debug import CommDebugMode

    from effopd import AtLeast, EveryN, LadderScales, Search
    from effopd.integrations.trl import EffOPDCallback
    from effopd.records import read_jsonl

    models = whole_models(folder, write=rank == 0)
    torch.distributed.barrier()
    trainer = sharded_distillation(folder / "fsdp", models, RANKS, max_steps=2)
    search = Search(
        schedule=EveryN(n=2), scales=LadderScales(scales=(2.0,)), accept=AtLeast(), guard=None
    )
    seen: list[dict[str, Tensor]] = []
    looking = True

    def score(draw: Any) -> float:
        if looking:
            seen.append(whole(trainer))
        return float(draw.is_candidate)

    callback = EffOPDCallback(trainer, search=search, validate=score)
    trainer.add_callback(callback)
    base = whole(trainer)
    trainer.train()
    parameters = dict(trainer.model.named_parameters())
    assert all(isinstance(p, DTensor) for p in parameters.values()), "not sharded"
    for kind, tensors in (("base", base), ("tip", seen[0]), ("candidate", seen[1])):
        save_file(tensors, folder / f"{kind}-{rank}.safetensors")
    looking = False
    with torch.no_grad(), CommDebugMode() as sent:
        for parameter in parameters.values():
            parameter.to_local().mul_(1.01)
        result = callback.extrapolator.step(4)
    assert result.accepted_scale == 2.0
    scored = sharded_distillation(folder / "scored", models, RANKS, max_steps=1, bf16=True)
    first = Search(schedule=EveryN(n=1), scales=LadderScales(scales=(2.0,)), guard=None)
    scored.add_callback(EffOPDCallback(scored, search=first, prompts=8))
    scored.train()
    rows = read_jsonl(folder / "scored" / "effopd" / "search.jsonl") if rank == 0 else []
    return {"collectives": sent.get_total_counts(), "scored": rows}


def one_rank(folder: Path) -> None:
    os.environ.update(ACCELERATE_USE_CPU="true", HF_HUB_OFFLINE="1")
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    report = ddp(rank, folder) | fsdp(rank, folder)
    (folder / f"{rank}.json").write_text(json.dumps(report))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


# The tests ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what both ranks left after both kinds of runs."""
    folder = tmp_path_factory.mktemp("trl")
    torchrun(__file__, folder, RANKS)
    return folder


def of_rank(folder: Path, name: str, rank: int) -> dict[str, Tensor]:
    return load_file(folder / f"{name}-{rank}.safetensors")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize("name", ["rejected", "accepted"])
def test_ranks_are_equal_after_searches(ran: Path, name: str) -> None:
    assert same(of_rank(ran, name, 0), of_rank(ran, name, 1))
    plain = of_rank(ran, "plain", 0)
    assert same(of_rank(ran, name, 0), plain) == (name == "rejected")
    rows = json.loads((ran / "0.json").read_text())[name]
    taken = [row for row in rows if row["accepted"] and row["scale"] == 1.2]
    assert bool(taken) == (name == "accepted")
    assert (ran / name / "checkpoint-3" / "effopd" / "search-00000-of-00001.safetensors").is_file()


def test_sharded_candidates_are_those_of_one_process(ran: Path) -> None:
    base, tip, candidate = (of_rank(ran, k, 0) for k in ("base", "tip", "candidate"))
    moved = 0
    for name, tensor in candidate.items():
        moves = any(part in name for part in ("self_attn", "mlp", "post_attention"))
        moved += moves
        expected = torch.lerp(base[name], tip[name], 2.0) if moves else tip[name]
        assert torch.equal(tensor, expected), name
    assert moved > 10
    assert not same(candidate, tip)


def test_moves_of_shards_send_nothing(ran: Path) -> None:
    for rank in range(RANKS):
        assert json.loads((ran / f"{rank}.json").read_text())["collectives"] == 0


def test_a_sharded_student_is_scored_against_its_teacher(ran: Path) -> None:
    rows = json.loads((ran / "0.json").read_text())["scored"]
    assert [row["scale"] for row in rows] == [1.0, 2.0]
    assert all(row["score"] < 0 for row in rows)


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))
