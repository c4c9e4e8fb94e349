"""The study of a real model: what its runs start from, and its page."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from studies.paper import wide
from studies.paper.study import run_settings
from studies.paper.wide import WideStudy, masters_of, page, stored

from effopd.data.world import TinyWorld, make_model
from effopd.models.updates import open_update

TABLE = {"effective_rank": 300.0, "top_1_ratio": 0.25}
MASTERS = {"effective_rank": 120.0, "top_1_ratio": 0.5}


def test_reinforcement_learning_starts_from_the_taught_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide, "ensure", lambda to, report, make: None)
    monkeypatch.setattr(wide, "smollm2_models", lambda *a, **k: type("Models", (), {"base": None}))
    config = run_settings(WideStudy(out=tmp_path), "grpo", 0)
    assert config.student.path == str(tmp_path / "base")
    assert config.student.dtype == config.task.dtype == "bfloat16"
    assert config.memory.master_weights
    assert (config.train.prompts_per_step, config.train.responses_per_prompt) == (8, 16)


def test_masters_hold_what_the_stored_weights_round_away(tmp_path: Path) -> None:
    model = make_model(TinyWorld(hidden=32, layers=2)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    moved = {name: p.detach().float() * (1 + 2**-12) for name, p in model.named_parameters()}
    saved = tmp_path / "step-00001"
    model.save_pretrained(saved)  # too small a step for bfloat16
    (saved / "trainer").mkdir()
    save_file(moved, saved / "trainer" / "masters.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    assert not open_update(tmp_path / "base", saved).read(name).any()
    for _ in range(2):  # links that are there already are made anew
        exact = open_update(tmp_path / "base", masters_of(saved, tmp_path / "masters"))
        base = model.get_parameter(name).detach().float()
        torch.testing.assert_close(exact.read(name).float(), base * 2**-12)
    study = SimpleNamespace(out=tmp_path, saved_steps=lambda *_: [1], checkpoint=lambda *_: saved)
    update = open_update(tmp_path / "base", saved)
    scene: Any = SimpleNamespace(
        study=study, seed=0, base=tmp_path / "base", update=lambda method: update
    )
    for tables in stored(scene).values():
        assert tables["masters"]["spectral_norm"] > 0
        assert tables["stored"]["spectral_norm"] is None  # nothing moved


def test_numbers_stand_beside_the_tiny_worlds() -> None:
    rows = [{"grpo": {"tail_norm": n}, "opd": {"tail_norm": 1.0}} for n in (4.0, 5.0)]
    for row in rows:
        row["matched"] = row["grpo"]
        for name in ("grpo", "opd"):
            row[name] |= {"full": 0.8, "top": {"0.1": 0.6, "1.0": 0.8}, "bottom": {"0.5": 0.2}}
            row[name]["tail_share"] = 0.5
    spectra = [{name: {"stored": TABLE, "masters": MASTERS} for name in ("grpo", "opd")}]
    lines = page({"ranks": rows[:1], "stored": spectra}, {"ranks": rows}).splitlines()
    tail = next(line for line in lines if "RL's tail is larger" in line)
    assert tail.split(" | ")[-2] == "1.386"  # log 4
    assert "1.498 [" in tail.split(" | ")[-1]  # mean of log 4 and log 5
    assert "| effective rank | 120 | 300 | 120 | 300 |" in lines
    assert not any("Table 3" in line for line in lines)  # not measured here
