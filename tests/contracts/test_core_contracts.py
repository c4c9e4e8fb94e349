"""What every schedule, scale rule, accept rule and direction must do, one table per protocol."""

import dataclasses
import json
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.reference.core_twin import bits
from torch import Tensor

from effopd import (
    AlphaPLS,
    AtLeast,
    AtSteps,
    Draw,
    EveryN,
    Extrapolator,
    GeometricScales,
    LadderScales,
    LengthGuard,
    PairedMargin,
    PastSearch,
    PowersOfTwo,
    Score,
    Search,
    SinceAccepted,
    SinceBase,
    SinceRaw,
    Strict,
    Unconditional,
)
from effopd.search.direction import Direction
from effopd.search.scales import Scales, Trial
from effopd.search.schedule import Schedule
from effopd.search.validation import AcceptRule

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Machines are shared: a slow example is no failure."""

SCHEDULES = [
    PowersOfTwo(),
    PowersOfTwo(first=5),
    EveryN(),
    EveryN(n=7),
    AtSteps(steps=(1, 5, 6)),
]
SCALES = [
    LadderScales(),
    LadderScales(scales=(1.5,)),
    GeometricScales(),
    GeometricScales(floor=0.125),
    GeometricScales(ratio=1.3, cap=9.0, floor=0.01),
]
ACCEPT_RULES = [Strict(), AtLeast(), PairedMargin(), PairedMargin(z=0.0), PairedMargin(z=2.5)]
DIRECTIONS = [
    SinceAccepted(),
    SinceRaw(),
    SinceBase(),
    AlphaPLS(),
    AlphaPLS(rank=2, every=1, min_snapshots=3, keep=7, min_r2=-1e9),
]
SETTINGS: list[Any] = [
    *SCHEDULES,
    *SCALES,
    *ACCEPT_RULES,
    Unconditional(),
    *DIRECTIONS,
    LengthGuard(),
]

MOST_TRIALS = 100

values = st.floats(-10, 10) | st.sampled_from([0.0, 0.5, 1e-12, 1e6, -1e6])
verdicts = st.lists(st.tuples(st.booleans(), values | st.none()), max_size=2 * MOST_TRIALS)
scores = st.lists(st.tuples(values, values), min_size=2, max_size=20)
ends = st.sampled_from([1.0, 1.5, 2.0, 4.0, 9.0, 64.0, 256.0])


def tables_by_field() -> dict[str, list[Any]]:
    return {
        "schedule": SCHEDULES,
        "scales": SCALES,
        "accept": [*ACCEPT_RULES, Unconditional()],
        "direction": DIRECTIONS,
    }


def test_tables_hold_every_class_the_settings_admit() -> None:
    admitted = get_type_hints(Search)
    for field, table in tables_by_field().items():
        assert {type(entry) for entry in table} == set(get_args(admitted[field])), field


# All settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_settings_survive_json(setting: Any) -> None:
    stored = json.loads(json.dumps(dataclasses.asdict(setting)))
    assert type(setting)(**stored) == setting
    assert hash(type(setting)(**stored)) == hash(setting)


def test_types_tell_the_classes_of_a_protocol_apart() -> None:
    for table in tables_by_field().values():
        classes = {type(entry) for entry in table}
        assert len({entry.type for entry in table}) == len(classes)


# Schedule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@settings(QUIET, max_examples=10)
@given(accepted=st.lists(ends, min_size=200, max_size=200))
def test_schedule_is_a_pure_function_of_what_it_is_told(
    schedule: Schedule, accepted: list[float]
) -> None:
    past: list[PastSearch] = []
    pasts = []
    for step in range(1, 201):
        pasts.append(tuple(past))
        if schedule.is_due(step, past):
            past.append(PastSearch(step=step, accepted_scale=accepted[step - 1]))
    due = [search.step for search in past]
    again = [step for step in reversed(range(1, 201)) if schedule.is_due(step, pasts[step - 1])]
    assert again[::-1] == due
    assert due
    assert not any(schedule.is_due(step, ()) for step in range(-5, 1))


# Scales -------------------------------------------------------------------------------------------


def trial(scale: float, value: float | None, accepted: bool | None) -> Trial:
    score = None if value is None else Score(value=value)
    kind = "incumbent" if accepted is None else "candidate"
    return Trial(kind=kind, scale=scale, score=score, accepted=accepted)


@pytest.mark.parametrize("scales", SCALES, ids=str)
@settings(QUIET, max_examples=30)
@given(pattern=verdicts, tip=values, accepted=st.lists(st.floats(1.0, 300.0), max_size=3))
def test_scales_end_and_are_pure_whatever_is_accepted(
    scales: Scales, pattern: list[tuple[bool, float | None]], tip: float, accepted: list[float]
) -> None:
    past = [PastSearch(step=i, accepted_scale=s) for i, s in enumerate(accepted, start=1)]
    trials = [trial(1.0, tip, None)]
    for accepted, value in [*pattern, *[(True, 0.0)] * MOST_TRIALS]:
        scale = scales.propose(trials, past)
        assert scales.propose(tuple(trials), tuple(past)) == scale
        if scale is None:
            break
        assert 0 < scale < float("inf")
        assert scale not in [t.scale for t in trials]
        trials.append(trial(scale, value, accepted and value is not None))
    assert scale is None
    assert 2 <= len(trials) <= MOST_TRIALS


# Accept rule --------------------------------------------------------------------------------------


def score(per_prompt: list[float]) -> Score:
    return Score(value=sum(per_prompt) / len(per_prompt), per_prompt=tuple(per_prompt))


@pytest.mark.parametrize("rule", ACCEPT_RULES, ids=str)
@settings(QUIET, max_examples=30)
@given(pairs=scores)
def test_accept_rule_is_pure_and_never_prefers_both(
    rule: AcceptRule, pairs: list[tuple[float, float]]
) -> None:
    one, other = (score(list(side)) for side in zip(*pairs, strict=True))
    answers = rule.accepts(one, other), rule.accepts(other, one)
    assert answers == (rule.accepts(one, other), rule.accepts(other, one))
    assert all(type(answer) is bool for answer in answers)
    if one.value != other.value:
        assert not all(answers)


# Direction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@settings(QUIET)
@given(accepted=st.floats(0.1, 1e3))
def test_direction_is_pure_and_goes_on_from_the_tip_or_stays(
    direction: Direction, accepted: float
) -> None:
    assert direction.anchor_scale(accepted) == direction.anchor_scale(accepted)
    assert direction.anchor_scale(accepted) in {0.0, 1.0, accepted}
    assert direction.anchor_scale(1.0) in {0.0, 1.0}  # stays, or is the tip


class Walk:
    """Weights on a noisy way up, searched every third step; progress is how far up they are."""

    def __init__(self, direction: Direction, dtype: torch.dtype) -> None:
        self.rng = torch.Generator().manual_seed(0)
        self.live = {"mlp.a": torch.ones(4, 3, dtype=dtype), "mlp.b": torch.ones(5, dtype=dtype)}
        self.answers: list[float | None] = []
        self.seen: list[list[int]] = []
        self.extrapolator = Extrapolator(
            self.live,
            self.validate,
            search=Search(
                schedule=EveryN(n=3),
                scales=LadderScales(scales=(1.5, 2.0)),
                direction=direction,
                accept=AtLeast(),
            ),
        )

    def validate(self, draw: Draw) -> float:
        self.seen.append(self.bits())
        answer = self.answers[(len(self.seen) - 1) % len(self.answers)]
        if answer is None:
            raise OSError("no engine")
        return answer

    def bits(self) -> list[int]:
        return [bit for tensor in self.live.values() for bit in bits(tensor)]

    def update(self) -> None:
        self.progress = (self.live["mlp.a"].float().mean().item() - 1) / 20
        for tensor in self.live.values():
            tensor += (1 + 0.1 * torch.randn(tensor.shape, generator=self.rng)).to(tensor) / 8

    def search(self, step: int, *answers: float | None) -> float | None:
        """The accepted scale of the search at `step`, when the validator answers so."""
        self.answers, self.seen = list(answers), []
        result = self.extrapolator.step(step, progress=self.progress)
        return result and result.accepted_scale

    def advance(self, last: int) -> None:
        """Updates up to `last`; searches accept everything."""
        for step in range(1, last + 1):
            self.update()
            self.search(step, 1.0, 2.0, 3.0)


def state_bits(extrapolator: Extrapolator) -> dict[str, Any]:
    """The state with its tensors as bits."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return bits(value)
        return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value

    return {key: plain(value) for key, value in extrapolator.state_dict().items()}


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
def test_a_failed_search_leaves_no_trace_and_can_be_repeated(
    direction: Direction, dtype: torch.dtype
) -> None:
    walk, other = Walk(direction, dtype), Walk(direction, dtype)
    for each in (walk, other):
        each.advance(11)
        each.update()
    weights, state = walk.bits(), state_bits(walk.extrapolator)
    for answers in [(None,), (1.0, None), (1.0, 2.0, None)]:
        with pytest.raises(OSError, match="no engine"):
            walk.search(12, *answers)
        assert walk.bits() == weights
        assert state_bits(walk.extrapolator) == state
    assert walk.search(12, 1.0, 2.0, 0.0) == other.search(12, 1.0, 2.0, 0.0) == 1.5
    assert walk.bits() == other.bits() != weights
    assert state_bits(walk.extrapolator) == state_bits(other.extrapolator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
def test_a_rejected_search_leaves_the_tip_bit_for_bit(
    direction: Direction, dtype: torch.dtype
) -> None:
    walk = Walk(direction, dtype)
    walk.advance(11)
    walk.update()
    tip = walk.bits()
    assert walk.search(12, 1.0, 0.0) == 1.0
    assert walk.seen[0] == tip != walk.seen[1]
    assert walk.bits() == tip
