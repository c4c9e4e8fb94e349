"""`effopd extrapolate`: the points that a search would have tried, from checkpoints alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model
from tests.reference.core_twin import bits
from tests.support.checkpoints import save_adapter
from torch import Tensor
from typer.testing import CliRunner

from effopd.cli.main import app
from effopd.models.checkpoints import verify_checkpoint
from effopd.models.loading import ModelSettings, load_model
from effopd.models.weights import open_weights
from effopd.search.ray import Ray
from effopd.search.selection import select_parameters

Point = dict[str, Tensor]


def effopd(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["extrapolate", *map(str, arguments)])


def save(directory: Path, seed: int, dtype: torch.dtype, shard_size: str = "1GB") -> Path:
    tiny_model(seed).to(dtype).save_pretrained(directory, max_shard_size=shard_size)
    TOKENIZER.save_pretrained(directory)
    return directory


def read(directory: Path) -> Point:
    weights = open_weights(directory)
    return {name: weights.read(name) for name in weights.shapes}


def assert_same_bits(found: Point, expected: Point) -> None:
    assert found.keys() == expected.keys()
    assert [n for n in found if bits(found[n]) != bits(expected[n])] == []


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Anchor, and a tip of several shards."""
    anchor = save(tmp_path / "anchor", 0, request.param)
    return anchor, save(tmp_path / "tip", 1, request.param, shard_size="20KB")


def search_point(anchor: Path, tip: Path, scale: float, selection: str) -> Point:
    """What the search's own ray makes of a live model at the tip."""
    model, start = (
        load_model(ModelSettings(path=str(path))).to(next(iter(read(path).values())).dtype)
        for path in (anchor, tip)
    )
    live = select_parameters(model, selection)
    ray = Ray(live)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(start.get_parameter(name))
    ray.capture_tip_()
    ray.move_to_(scale)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("selection", ["attention_mlp", "matrices", "all", "re:layers.1"])
def test_points_are_those_of_the_search(
    checkpoints: tuple[Path, Path], tmp_path: Path, selection: str
) -> None:
    out = tmp_path / "points"
    scales = ["--scale", "3", "--scale", "0.5"]
    result = effopd(*checkpoints, *scales, "--out", out, "--select", selection)
    assert result.exit_code == 0, result.output
    for scale in (3.0, 0.5):
        directory = out / f"scale-{scale:g}"
        verify_checkpoint(directory)
        assert f"scale {scale:g}: {directory}" in result.stdout
        assert_same_bits(read(directory), search_point(*checkpoints, scale, selection))
    assert sorted(path.name for path in out.iterdir()) == ["scale-0.5", "scale-3"]


def test_the_paper_moves_attention_and_mlp_by_default(
    checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    result = effopd(*checkpoints, "--scale", "5", "--out", tmp_path / "point")
    assert "20 of 25 tensors move (attention_mlp); others are the tip's" in result.stdout
    found, expected = read(tmp_path / "point"), search_point(*checkpoints, 5.0, "attention_mlp")
    assert_same_bits(found, expected)
    assert_same_bits(
        {n: t for n, t in found.items() if "embed" in n or "lm_head" in n},
        {n: t for n, t in read(checkpoints[1]).items() if "embed" in n or "lm_head" in n},
    )
    assert load_model(ModelSettings(path=str(tmp_path / "point"))).config.hidden_size == 32


def test_scale_one_is_the_tip_bit_for_bit(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    for selection in ("attention_mlp", "all"):
        out = tmp_path / selection
        effopd(*checkpoints, "--scale", "1", "--out", out, "--select", selection)
        assert_same_bits(read(out), read(checkpoints[1]))
        assert (out / "tokenizer.json").is_file()


def test_a_tip_of_another_precision_keeps_its_own(tmp_path: Path) -> None:
    anchor = save(tmp_path / "anchor", 0, torch.bfloat16)
    tip = save(tmp_path / "tip", 1, torch.float32)
    effopd(anchor, tip, "--scale", "1", "--out", tmp_path / "one", "--select", "all")
    assert_same_bits(read(tmp_path / "one"), read(tip))
    effopd(anchor, tip, "--scale", "3", "--out", tmp_path / "three", "--select", "all")
    start, end = read(anchor), read(tip)
    for name, found in read(tmp_path / "three").items():
        expected = start[name].double() + 3 * (end[name].double() - start[name].double())
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_tip_may_be_an_adapter(tmp_path: Path) -> None:
    anchor = save(tmp_path / "anchor", 0, torch.float32)
    module = "model.layers.0.self_attn.q_proj"
    base = read(anchor)
    rng = torch.Generator().manual_seed(0)
    rows, columns = base[f"{module}.weight"].shape
    left, right = torch.randn(rows, 2, generator=rng), torch.randn(2, columns, generator=rng)
    tensors = {f"{module}.lora_A.weight": right, f"{module}.lora_B.weight": left}
    adapter = save_adapter(tmp_path / "adapter", tensors)
    result = effopd(anchor, adapter, "--scale", "3", "--out", tmp_path / "point")
    assert result.exit_code == 0, result.output
    found = read(tmp_path / "point")
    moved = base[f"{module}.weight"].double() + 3 * (8 / 2) * (left.double() @ right.double())
    torch.testing.assert_close(found.pop(f"{module}.weight").double(), moved, rtol=1e-5, atol=1e-5)
    assert_same_bits(found, {n: t for n, t in base.items() if n in found})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale", "3", "--scale", "3.0"], "--scale must be given once for each point, got 3"),
        (["--scale", "nan"], "--scale must be a finite number, got nan"),
        (["--scale", "3", "--select", "mpl"], "unknown selection 'mpl'"),
        (["--scale", "3", "--select", "re:nothing"], "matches none of 25 parameters that can move"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], message: str) -> None:
    anchor, tip = (save(tmp_path / str(s), s, torch.float32) for s in (0, 1))
    result = effopd(anchor, tip, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
