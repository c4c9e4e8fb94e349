"""Intervals over seeds, the verdicts they decide, and the page that says so."""

import math
from pathlib import Path
from typing import Any

import pytest
from studies.paper.claims import Claim
from studies.paper.page import (
    Interval,
    interval,
    judge,
    load_measurements,
    verdict,
    write_reproduction,
)

from effopd.errors import RecordError
from effopd.records import write_json_atomic

TABLE = {"spectral_share": 0.25, "effective_rank": 1234.0}
METHODS = {"titles": {"opd": "vanilla OPD"}, "opd": {"steps": 20, "seconds": 12.5}}


def measurements(directory: Path, gains: list[float | None]) -> Path:
    """A directory of measurements, seed 10 last."""
    seeds = [*range(len(gains) - 1), 10]
    plain = {"full": 0.9, "top": {"0.05": 0.5, "0.1": 0.6}, "bottom": {"0.5": 0.3}}
    embeddings, early = {"base_embeddings": 0.8}, {"early": 0.4, "rescaled": 0.7}
    for seed, gain in zip(seeds, gains, strict=True):
        found: dict[str, Any] = {
            "gain": {"gain": gain},
            "geometry": {name: {"table1": TABLE} for name in ("grpo", "dapo", "opd")},
            "ranks": {"grpo": plain, "opd": plain},
            "embeddings": {"grpo": embeddings, "opd": embeddings},
            "rescaling": {"grpo": early, "opd": early},
            "methods": METHODS,
        }
        for name, row in found.items():
            path = directory / "measurements" / name / f"seed-{seed}.json"
            write_json_atomic(path, {"schema": 1, **row})
    return directory


def claim(neutral: float = 0.0) -> Claim:
    return Claim(
        figure="9z",
        text="it | gains",
        paper="much",
        quantity="gain",
        measurement="gain",
        statistic=lambda row: row["gain"],
        neutral=neutral,
    )


def test_an_interval_of_known_values() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 4.303 * 1.0 / math.sqrt(3)  # Student's t with two degrees of freedom, deviation 1
    assert found.mean == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2.0 - half, 2.0 + half))
    assert found.text() == "2.00 [-0.48, 4.48]"


def test_a_single_seed_decides_nothing() -> None:
    found = interval([5.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert verdict(found) == "not"
    assert found.text() == "5.00"


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf], [0.0] * 11])
def test_what_has_no_interval_is_refused(values: list[float]) -> None:
    with pytest.raises(RecordError, match="1 to 10 finite values"):
        interval(values)


@pytest.mark.parametrize(
    ("low", "high", "neutral", "expected"),
    [
        (0.1, 0.3, 0.0, "reproduced"),
        (-0.3, -0.1, 0.0, "opposite"),
        (-0.1, 0.3, 0.0, "not"),
        (0.1, 0.3, 0.2, "not"),
        (0.1, 0.3, 0.5, "opposite"),
        (0.0, 0.3, 0.0, "not"),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, neutral: float, expected: str) -> None:
    assert verdict(Interval(mean=(low + high) / 2, low=low, high=high, n=5), neutral) == expected


def test_a_directory_without_measurements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no measurements"):
        load_measurements(tmp_path)
    (measurements(tmp_path, [1.0]) / "measurements/gain/seed-10.json").write_text("{")
    with pytest.raises(RecordError, match="damaged"):
        load_measurements(tmp_path)


@pytest.mark.parametrize(
    ("gains", "neutral", "expected"),
    [
        ([1.0, 1.1, 0.9], 0.0, "reproduced"),
        ([1.0, 1.1, 0.9], 2.0, "opposite"),
        ([1.0, -1.1, 0.9], 0.0, "not"),
        ([1.0, None, 0.9], 0.0, "not"),
    ],
)
def test_a_claim_is_judged_by_its_seeds(
    tmp_path: Path, gains: list[float | None], neutral: float, expected: str
) -> None:
    found = load_measurements(measurements(tmp_path, gains))
    interval, decided = judge(claim(neutral), found)
    assert decided == expected
    assert (interval is None) == (None in gains)


def test_the_page_holds_claims_values_and_figures(tmp_path: Path) -> None:
    found = load_measurements(measurements(tmp_path, [1.0, 1.1, 0.9]))
    page, picture = tmp_path / "docs" / "page.md", tmp_path / "docs" / "assets" / "norms.png"
    counts = write_reproduction(
        found,
        page,
        setup="A small model.",
        figures=[(picture, "Norms")],
        claims=[claim(), claim(neutral=2.0)],
    )
    assert counts == {"reproduced": 1, "not": 0, "opposite": 1}
    text = page.read_text("utf-8")
    row = "| 9z | it \\| gains | much | gain | > 0 | 1.000 [0.752, 1.248] | reproduced |"
    assert row in text.splitlines()
    assert "| > 2 | 1.000 [0.752, 1.248] | **opposite** |" in text
    assert "Of 2 claims 1 are reproduced, 0 are not,\n1 came out opposite" in text
    assert "| effective rank | 1234 | 1234 | 1234 |" in text
    assert "| vanilla OPD | 20 | 12.5 |" in text
    assert "![Norms](assets/norms.png)" in text
