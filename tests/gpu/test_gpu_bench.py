"""`bench/gpu.py` at full size on a GPU, and small on the CPU so that its code is always run.

The script itself raises when a weight is not finite, when a peer computes another loss, and when a
search with its anchor on the host ends elsewhere than one beside the weights.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def rows(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_everything_runs_small_on_the_cpu() -> None:
    found = rows("--device", "cpu", "--small", "--peers", "naive", "trl", "--repeats", "1")
    named = [(row["name"], row["unit"], row["peer_name"]) for row in found]
    assert named == [
        ("step", "MiB", "bound"),
        ("step", "s", "itself"),
        *(("kl", unit, peer) for unit in ("s", "MiB") for peer in ("naive", "trl")),
        ("search-host", "s", "release arithmetic"),
        ("search-device", "s", "release arithmetic"),
    ]
    assert all(row["device"] == "CPU" for row in found)
    assert all(row["ours"] > 0 for row in found if row["unit"] == "s")


@pytest.mark.slow
def test_every_contender_learns_small_on_the_cpu() -> None:
    found = rows("--device", "cpu", "--small", "--only", "learning")
    settings = [row["setting"] for row in found if row["unit"] == "tokens"]
    assert settings == [row["setting"] for row in found if row["unit"] == "s"]
    assert len({*settings}) == 8
    assert {row["name"] for row in found} == {"learning"}


@pytest.mark.gpu
@on_a_gpu
def test_a_student_of_35_million_learns() -> None:
    found = {(row["setting"], row["unit"]): row for row in rows("--only", "learning")}
    assert found["slope, 0.001", "tokens"]["ours"] > 0  # it got there


@pytest.mark.gpu
@on_a_gpu
def test_a_step_of_16k_tokens_stays_within_its_bound() -> None:
    memory, seconds = rows("--only", "step")
    assert memory["setting"].endswith("16384 tokens")
    assert memory["ours"] < memory["peer"]
    assert seconds["ours"] > 0


@pytest.mark.gpu
@on_a_gpu
def test_the_divergence_takes_less_memory_than_whole_logits() -> None:
    found = rows("--only", "kl", "--peers", "naive", "--repeats", "1")
    (memory,) = [row for row in found if row["unit"] == "MiB"]
    assert memory["ratio"] > 4


@pytest.mark.gpu
@on_a_gpu
def test_an_anchor_on_the_host_leads_to_the_same_point() -> None:
    assert {row["name"] for row in rows("--only", "search", "--repeats", "1")} == {
        "search-host",
        "search-device",
    }
