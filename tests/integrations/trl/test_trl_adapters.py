"""LoRA in TRL: the product of the factors is extrapolated."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tests.support.trl import distillation
from torch import Tensor
from torch.testing import assert_close

from effopd import AtLeast, Draw, EveryN, LadderScales, Search
from effopd.integrations.trl import EffOPDCallback
from effopd.models.lora import factor_pairs
from effopd.records import read_jsonl

SEARCH = Search(
    schedule=EveryN(n=2), scales=LadderScales(scales=(3.0,)), accept=AtLeast(), guard=None
)


def products(model: Any) -> list[Tensor]:
    """Left times right factor of every adapter."""
    own = dict(model.named_parameters())
    return [(own[left] @ own[right]).detach() for left, right in factor_pairs(model)]


def test_products_of_factors_move(tmp_path: Path) -> None:
    """From a product of zero every point has the factors' rank, so that nothing is cut off."""
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
    trainer = distillation(tmp_path, max_steps=2, peft_config=lora)
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    seen: list[list[Tensor]] = []

    def score(draw: Draw) -> float:
        seen.append(products(trainer.model))
        return float(len(seen))

    trainer.add_callback(EffOPDCallback(trainer, search=SEARCH, validate=score))
    trainer.train()
    tip, candidate = seen
    assert len(tip) == 4
    for before, after in zip(tip, candidate, strict=True):
        assert before.norm() > 0
        assert_close(after, 3 * before, rtol=1e-4, atol=1e-6)
    assert all(map(torch.equal, products(trainer.model), candidate))
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())


def test_adapters_are_scored_against_the_teacher(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    trainer = distillation(tmp_path, max_steps=2, peft_config=lora)
    trainer.add_callback(EffOPDCallback(trainer, search=SEARCH, prompts=4))
    trainer.train()
    rows = read_jsonl(tmp_path / "effopd" / "search.jsonl")
    assert [row["scale"] for row in rows] == [1.0, 3.0]
    assert all(row["score"] < 0 for row in rows)
