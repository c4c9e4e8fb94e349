"""The tiny world in TRL: the search reaches the teacher in half the steps of training alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "trl_steps.py"


@pytest.mark.slow
def test_the_search_halves_the_steps_to_the_teacher() -> None:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--json", "--rates", "1e-4"]
    command += ["--seeds", "0", "1", "2", "--searches", "default", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout.splitlines()[0])
    assert (steps["unit"], steps["setting"]) == ("steps", "default, 0.0001")
    assert steps["ratio"] >= 2, steps
