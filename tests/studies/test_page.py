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
from studies.paper.quantities import Untested

from effopd.errors import RecordError
from effopd.records import write_json_atomic

TABLE = {"spectral_share": 0.25, "effective_rank": 1234.0}
RUN = {"steps": 20, "seconds": 12.5, "final": 0.95, "accepted": 0}
METHODS = {"titles": {"opd": "vanilla OPD"}, "opd": RUN}


def measurements(directory: Path, gains: list[float | None]) -> Path:
    """A directory of measurements, seed 10 last; bases in turn."""
    seeds = [*range(len(gains) - 1), 10]
    plain = {"full": 0.9, "top": {"0.05": 0.5, "0.1": 0.6}, "bottom": {"0.5": 0.3}}
    embeddings, early = {"base_embeddings": 0.8}, {"early": 0.4, "rescaled": 0.7}
    for seed, gain in zip(seeds, gains, strict=True):
        found: dict[str, Any] = {
            "gain": {"gain": gain},
            "geometry": {name: {"table1": TABLE} for name in ("grpo", "matched", "opd")},
            "ranks": {"grpo": plain, "opd": plain},
            "embeddings": {"grpo": embeddings, "opd": embeddings},
            "rescaling": {"grpo": early, "opd": early},
            "methods": METHODS,
        }
        for name, row in found.items():
            path = directory / "measurements" / name / f"seed-{seed}.json"
            write_json_atomic(path, {"schema": 2, "base_model": seeds.index(seed) % 2, **row})
    return directory


def claim(neutral: float = 0.0, size: float | None = None, *, second: bool = False) -> Claim:
    return Claim(
        figure="9z",
        text="it | gains",
        paper="much",
        quantity="gain",
        measurement="gain",
        statistic=lambda row: Untested("no search moved") if row["gain"] is None else row["gain"],
        neutral=neutral,
        size=size,
        settled_by="a larger model",
        second=second,
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
    ("low", "high", "neutral", "size", "expected"),
    [
        (0.1, 0.3, 0.0, None, "reproduced"),
        (-0.3, -0.1, 0.0, None, "opposite"),
        (-0.1, 0.3, 0.0, None, "not"),
        (0.1, 0.3, 0.2, None, "not"),
        (0.1, 0.3, 0.5, None, "opposite"),
        (0.0, 0.3, 0.0, None, "not"),
        (0.1, 0.3, 0.0, 0.4, "direction"),  # wholly below the paper's value
        (0.1, 0.3, 0.0, 0.3, "reproduced"),
        (0.1, 0.3, 0.0, 0.05, "reproduced"),  # more than the paper's
        (-0.1, 0.3, 0.0, 0.4, "not"),
        (-0.3, -0.1, 0.0, 0.4, "opposite"),
    ],
)
def test_the_whole_interval_decides(
    low: float, high: float, neutral: float, size: float | None, expected: str
) -> None:
    found = Interval(mean=(low + high) / 2, low=low, high=high, n=5)
    assert verdict(found, neutral, size) == expected


def test_a_directory_without_measurements_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no measurements"):
        load_measurements(tmp_path)
    (measurements(tmp_path, [1.0]) / "measurements/gain/seed-10.json").write_text("{")
    with pytest.raises(RecordError, match="damaged"):
        load_measurements(tmp_path)


def test_measurements_of_another_version_are_refused(tmp_path: Path) -> None:
    file = measurements(tmp_path, [1.0]) / "measurements" / "gain" / "seed-10.json"
    write_json_atomic(file, {"schema": 1, "gain": 1.0})
    with pytest.raises(RecordError, match="has schema 1, this version reads 2"):
        load_measurements(tmp_path)


@pytest.mark.parametrize(
    ("gains", "neutral", "expected"),
    [
        ([1.0, 1.1, 0.9], 0.0, "reproduced"),
        ([1.0, 1.1, 0.9], 2.0, "opposite"),
        ([1.0, -1.1, 0.9], 0.0, "not"),
        ([1.0, None, 0.9], 0.0, "untested"),
    ],
)
def test_a_claim_is_judged_by_its_seeds(
    tmp_path: Path, gains: list[float | None], neutral: float, expected: str
) -> None:
    found = load_measurements(measurements(tmp_path, gains))
    judged = judge(claim(neutral), found)
    assert judged.verdict == expected
    assert (judged.interval is None) == (None in gains)
    if None in gains:
        assert judged.reason == "1 of 3 seeds: no search moved"
    else:  # the first and the last seed start from one base, the second from the other
        first, second, third = (gain for gain in gains if gain is not None)
        assert judged.by_base == pytest.approx(((first + third) / 2, second))


def test_an_open_claim_says_how_many_seeds_would_settle_it(tmp_path: Path) -> None:
    found = load_measurements(measurements(tmp_path, [1.0, -1.1, 0.9]))
    open_claim = judge(claim(), found)
    deviation = math.sqrt(((1.0 - 0.8 / 3) ** 2 + (1.1 + 0.8 / 3) ** 2 + (0.9 - 0.8 / 3) ** 2) / 2)
    assert open_claim.seeds_to_settle == math.ceil((2 * deviation / (0.8 / 3)) ** 2) + 1
    assert judge(claim(-5.0), found).seeds_to_settle is None  # decided


def test_the_page_holds_claims_values_and_figures(tmp_path: Path) -> None:
    found = load_measurements(measurements(tmp_path, [1.0, 1.1, 0.9]))
    page, picture = tmp_path / "docs" / "page.md", tmp_path / "docs" / "assets" / "norms.png"
    counts = write_reproduction(
        found,
        page,
        setup="A small model.",
        figures=[(picture, "Norms")],
        claims=[claim(), claim(2.0), claim(0.0, 3.0), claim(0.95), claim(2.0, second=True)],
    )
    expected = {"reproduced": 1, "direction": 1, "not": 1, "opposite": 1, "untested": 0}
    assert counts == expected
    lines = page.read_text("utf-8").splitlines()
    begun = "| 9z | it \\| gains | much | gain |"
    ours = "1.000 [0.752, 1.248] | 0.950, 1.100"
    assert f"{begun} > 0 | {ours} | reproduced |" in lines
    assert f"{begun} > 2 | {ours} | **opposite** |" in lines
    assert f"{begun} > 0, paper 3 | {ours} | direction reproduced, size not |" in lines
    other = begun.replace("it", "*other reading:* it")
    assert f"{other} > 2 | {ours} | **opposite** |" in lines
    text = " ".join(lines)
    assert "Of 4 claims 1 are reproduced, 1 in direction alone, 1 are not, 1 came out" in text
    settled = [line for line in lines if line.startswith("- Figure 9z")]
    assert settled == [
        "- Figure 9z, it | gains (opposite): a larger model.",
        "- Figure 9z, it | gains (not reproduced): about 17 seeds at this spread; a larger model.",
    ]
    assert "| effective rank | 1234 | 1234 | 1234 |" in lines
    assert "| vanilla OPD | 20 | 12.5 | 0.95 | 0 |" in lines
    assert "![Norms](assets/norms.png)" in lines
