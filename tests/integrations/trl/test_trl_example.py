"""The example script, on models and prompts on disk, killed and resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.trl import PROMPTS, whole_models

from effopd.records import read_jsonl

EXAMPLE = Path(__file__).parents[3] / "examples" / "trl_effopd.py"


@pytest.mark.slow
def test_example_trains_and_resumes(tmp_path: Path) -> None:
    student, teacher = whole_models(tmp_path, write=True)
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(steps: int, *more: str) -> None:
        command = [sys.executable, str(EXAMPLE), "--cpu", "--batch", "8", "--longest", "6"]
        paths = {"--student": student, "--teacher": teacher, "--out": tmp_path / "out"}
        paths["--prompts"] = tmp_path / "prompts.jsonl"
        named = [part for name, path in paths.items() for part in (name, str(path))]
        lengths = ["--steps", str(steps), "--lr", "1e-3"]
        cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *named, *lengths, *more],
            env=os.environ | cache,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    run(17)
    assert (
        tmp_path / "out" / "checkpoint-16" / "effopd" / "search-00000-of-00001.safetensors"
    ).is_file()
    run(18, "--resume")
    found = read_jsonl(tmp_path / "out" / "effopd" / "search.jsonl")
    assert sorted({row["step"] for row in found}) == [1, 2, 4, 8, 16]
    assert all(row["score"] is None or row["score"] < 0 for row in found)
