"""Stored outcomes of short runs, an analysis and an evaluation: refactoring must not move them.

Numbers, not hashes: rounding differs between instruction sets, which may not fail here, while
another draw, another update or another accepted scale is far outside `TOLERANCE`. After a change
that is meant to move them, write them anew and say why in CHANGELOG.md:

    python -m pytest tests/golden --write-golden
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.runs import (
    RUNS,
    analysis_outcome,
    displacement,
    evaluation_outcome,
    run_outcome,
)

pytestmark = pytest.mark.usefixtures("no_pictures")
STORED = Path(__file__).with_name("outcomes.json")
TOLERANCE = 2e-3
"""Relative. SSE4.2, AVX2 and AVX-512 kernels agree within it; a rate 1% larger does not."""


@pytest.fixture(scope="module")
def vanilla(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Outcome and directory of the run that is analysed and evaluated too."""
    out = tmp_path_factory.mktemp("vanilla") / "run"
    return run_outcome("opd", models, out), out


def check(name: str, found: Any, request: pytest.FixtureRequest) -> None:
    """Compares with the stored outcome, or stores it where that was asked for."""
    if request.config.getoption("--write-golden"):
        kept = json.loads(STORED.read_text()) if STORED.exists() else {}
        kept |= {name: rounded(found)}
        lines = [f"{json.dumps(key)}: {json.dumps(kept[key])}" for key in sorted(kept)]
        STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert not (wrong := differences(found, json.loads(STORED.read_text())[name], name)), wrong


def rounded(found: Any) -> Any:
    """With seven digits of each number."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return float(f"{found:.7g}") if isinstance(found, float) else found


def differences(found: Any, stored: Any, where: str) -> list[str]:
    """Places where two outcomes differ by more than `TOLERANCE`."""
    if isinstance(stored, dict) and isinstance(found, dict) and stored.keys() == found.keys():
        return [d for key in stored for d in differences(found[key], stored[key], f"{where}.{key}")]
    if isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        pairs = enumerate(zip(found, stored, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]")]
    if isinstance(stored, float) and isinstance(found, float | int):
        same = found == pytest.approx(stored, rel=TOLERANCE, abs=1e-7)
    else:
        same = type(found) is type(stored) and found == stored
    return [] if same else [f"{where}: {stored} -> {found}"]


@pytest.mark.parametrize("name", [name for name in RUNS if name != "opd"])
def test_runs(name: str, models: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    check(name, run_outcome(name, models, tmp_path / "run"), request)


def test_vanilla(vanilla: tuple[Any, Path], request: pytest.FixtureRequest) -> None:
    check("opd", vanilla[0], request)


def test_an_analysis(
    vanilla: tuple[Any, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    check("analyze", analysis_outcome(vanilla[1], tmp_path / "analysis"), request)


def test_an_evaluation(
    vanilla: tuple[Any, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    check("eval", evaluation_outcome(vanilla[1], tmp_path), request)


def test_another_learning_rate_is_noticed(models: Path, tmp_path: Path) -> None:
    """The net is fine enough: a rate one percent larger falls through."""
    found = run_outcome("opd", models, tmp_path / "run", {"optimizer.lr": 1.01 * 3e-3})
    assert differences(found, json.loads(STORED.read_text())["opd"], "opd")


def test_what_the_differences_of_two_outcomes_are() -> None:
    stored = {"a": [1.0, 2], "b": None, "c": "x"}
    assert differences({"a": [1.001, 2], "b": None, "c": "x"}, stored, "o") == []
    found = {"a": [1.01, 2.0], "b": 0, "c": "y"}
    places = [line.split(":")[0] for line in differences(found, stored, "o")]
    assert places == ["o.a[0]", "o.a[1]", "o.b", "o.c"]
    assert differences({"a": []}, stored, "o") == [f"o: {stored} -> {{'a': []}}"]


def test_a_projection_is_that_of_the_displacement(tmp_path: Path) -> None:
    base = {"w": torch.zeros(3, 4), "still": torch.ones(2)}
    tuned = {"w": torch.full((3, 4), 2.0), "still": torch.ones(2)}
    norm, projection = displacement(base, tuned)["w"]
    assert norm == pytest.approx(2.0 * 12**0.5)
    assert abs(projection) <= norm
    assert displacement(base, tuned)["still"] == [0.0, 0.0]
