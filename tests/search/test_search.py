import math
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effopd.errors import NonFiniteError
from effopd.search.line_search import SearchResult, line_search
from effopd.search.past import PastSearch
from effopd.search.scales import (
    GeometricScales,
    LadderScales,
    QuadraticScales,
    Scales,
    TrackingScales,
    Trial,
)
from effopd.search.validation import (
    AcceptRule,
    AtLeast,
    Draw,
    LengthGuard,
    Score,
    Strict,
    Unconditional,
)

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Machines are shared: a slow example is no failure."""


class Recorded:
    """Scores from a list, in the order asked for; remembers the questions."""

    def __init__(self, *answers: float | Score) -> None:
        self.answers = [a if isinstance(a, Score) else Score(value=a) for a in answers]
        self.asked: list[tuple[float, Draw]] = []

    def __call__(self, scale: float, draw: Draw) -> Score:
        self.asked.append((scale, draw))
        return self.answers[len(self.asked) - 1]

    @property
    def scales(self) -> list[float]:
        return [scale for scale, _ in self.asked]


def search(
    evaluate: Callable[[float, Draw], Score],
    *,
    scales: Scales | None = None,
    accept: AcceptRule | Unconditional | None = None,
    guard: LengthGuard | None = None,
    retest: bool = False,
    past: Sequence[PastSearch] = (),
    on_trial: Callable[[int, Trial], None] | None = None,
) -> SearchResult:
    return line_search(
        evaluate,
        7,
        scales=scales or LadderScales(),
        accept=accept or Strict(),
        guard=guard,
        retest=retest,
        past=past,
        on_trial=on_trial,
    )


def verdicts(trials: Sequence[Trial]) -> list[bool | None]:
    return [trial.accepted for trial in trials]


def test_ladder_keeps_the_last_accepted_candidate() -> None:
    evaluate = Recorded(0.1, 0.2, 0.3, 0.3, 0.9, 0.9)
    result = search(evaluate)
    assert evaluate.scales == [1, 3, 5, 7]
    assert verdicts(result.trials) == [None, True, True, False]
    assert (result.step, result.accepted_scale) == (7, 5)
    assert [t.reason for t in result.trials] == ["", "", "", "no improvement"]
    assert [t.kind for t in result.trials] == ["incumbent"] + ["candidate"] * 3
    assert [t.score for t in result.trials] == evaluate.answers[:4]


def test_each_candidate_has_to_beat_the_last_accepted_one() -> None:
    peaked = Recorded(0.0, 0.5, 0.4)
    assert search(peaked).accepted_scale == 3
    assert peaked.scales == [1, 3, 5]
    assert search(Recorded(0.5, 0.5, 0.4), accept=AtLeast()).accepted_scale == 3


def test_all_accepted_ends_at_the_top() -> None:
    result = search(Recorded(*range(6)))
    assert result.accepted_scale == 11
    assert len(result.trials) == 6


def test_none_accepted_stays_at_the_tip() -> None:
    result = search(Recorded(0.5, 0.4))
    assert result.accepted_scale == 1.0
    assert verdicts(result.trials) == [None, False]


def test_refinement_moves_to_the_best_scale_of_the_bracket() -> None:
    by_scale = Recorded(0.0, 1.0, 2.0, 1.5, 2.5, 2.2)
    result = search(by_scale, scales=GeometricScales(refine=2))
    assert by_scale.scales == pytest.approx([1, 2, 4, 8, 2**2.5, 2**2.75])
    assert result.accepted_scale == pytest.approx(2**2.5)


@settings(QUIET)
@given(vertex=st.floats(1.5, 15.5), curvature=st.floats(-50.0, -0.01), offset=st.floats(-5.0, 5.0))
def test_quadratic_ends_at_the_maximum(vertex: float, curvature: float, offset: float) -> None:
    def evaluate(scale: float, draw: Draw) -> Score:
        return Score(value=curvature * (scale - vertex) ** 2 + offset)

    result = search(evaluate, scales=QuadraticScales())
    assert result.accepted_scale == pytest.approx(vertex, rel=0.03)  # or a probe next to it
    assert len(result.trials) <= 4


@pytest.mark.parametrize(
    "values", [(9.0, 0.0, 4.0), (0.5, 0.5, 0.5), (15.0, 12.0, 0.0)], ids=["convex", "flat", "line"]
)
def test_quadratic_without_a_maximum_keeps_the_tip(values: tuple[float, ...]) -> None:
    result = search(Recorded(*values), scales=QuadraticScales())
    assert result.accepted_scale == 1.0
    assert len(result.trials) == 3


# Scores that are not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_candidate_without_a_finite_score_is_rejected_and_recorded(bad: float) -> None:
    for answer in (Score(value=bad), Score(value=0.9, per_prompt=(0.9, bad))):
        evaluate = Recorded(0.1, 0.2, answer)
        result = search(evaluate, accept=AtLeast())
        assert result.accepted_scale == 3
        assert verdicts(result.trials) == [None, True, False]
        assert (result.trials[2].score, result.trials[2].reason) == (None, "score is not finite")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_tip_without_a_finite_score_is_an_error(bad: float) -> None:
    seen: list[Trial] = []
    with pytest.raises(NonFiniteError, match="at step 7 is not finite"):
        search(Recorded(bad, 1.0), on_trial=lambda _, trial: seen.append(trial))
    assert [(t.score, t.accepted) for t in seen] == [(None, None)]
    with pytest.raises(NonFiniteError):
        search(Recorded(0.0, 1.0, 0.0, bad), retest=True)


# Earlier searches ---------------------------------------------------------------------------------


@settings(QUIET)
@given(best=st.floats(1.0, 200.0), last=st.floats(1.0, 256.0))
def test_tracking_settles_in_three_trials_no_further_than_is_better_than_the_tip(
    best: float, last: float
) -> None:
    """On a score with one peak in the logarithm: `s` beats the tip up to the square of the best."""

    def evaluate(scale: float, draw: Draw) -> Score:
        return Score(value=-abs(math.log(scale / best)))

    past = [PastSearch(step=3, accepted_scale=last)]
    for step in range(4, 16):  # coming down from 256 and going up again takes a few
        result = search(evaluate, scales=TrackingScales(), past=past)
        past.append(PastSearch(step=step, accepted_scale=result.accepted_scale))
    assert best / 2 <= result.accepted_scale <= best**2 * (1 + 1e-9)
    assert len(result.trials) <= 3


# Without validation -------------------------------------------------------------------------------


def test_an_unconditional_jump_asks_nobody() -> None:
    seen: list[object] = []
    result = search(
        Recorded(),  # has no answer to give
        scales=LadderScales(scales=(6.0,)),
        accept=Unconditional(),
        on_trial=lambda index, trial: seen.append((index, trial)),
    )
    assert result.accepted_scale == 6
    (trial,) = result.trials
    assert (trial.kind, trial.scale, trial.score) == ("candidate", 6, None)
    assert (trial.accepted, trial.reason) == (True, "not validated")
    assert (result.tokens, result.teacher_tokens) == (0, 0)
    assert seen == [(0, trial)]


# The guard and the re-test ------------------------------------------------------------------------


def text(value: float, mean_length: float) -> Score:
    return Score(value=value, mean_length=mean_length)


def test_guard_rejects_what_the_rule_would_accept() -> None:
    evaluate = Recorded(text(0.1, 100), text(0.5, 60), text(0.9, 30))
    result = search(evaluate, guard=LengthGuard())
    assert result.accepted_scale == 3
    assert result.trials[2].reason == "mean length 100.0 -> 30.0 tokens"
    assert search(Recorded(*evaluate.answers, 0.0)).accepted_scale == 5


def test_guard_compares_with_the_tip_not_the_incumbent() -> None:
    shrinking = [text(float(i), 100 * 0.7**i) for i in range(6)]  # 100, 70, 49, ...
    result = search(Recorded(*shrinking), guard=LengthGuard())
    assert verdicts(result.trials) == [None, True, False]


def test_retest_confirms_the_winner_on_fresh_prompts() -> None:
    evaluate = Recorded(0.1, 0.2, 0.3, 0.2, 0.5, 0.6)
    result = search(evaluate, retest=True)
    assert result.accepted_scale == 5
    assert evaluate.scales == [1, 3, 5, 7, 1, 5]
    assert [draw for _, draw in evaluate.asked] == [
        Draw(step=7),
        *[Draw(step=7, candidate=True)] * 3,
        Draw(step=7, fresh=True),
        Draw(step=7, fresh=True, candidate=True),
    ]
    assert [t.kind for t in result.trials[4:]] == ["retest-incumbent", "retest-candidate"]
    assert verdicts(result.trials[4:]) == [None, True]


def test_retest_vetoes_a_lucky_winner() -> None:
    result = search(Recorded(0.1, 0.2, 0.3, 0.2, 0.5, 0.5), retest=True)
    assert result.accepted_scale == 1.0
    assert verdicts(result.trials) == [None, True, True, False, None, False]


def test_retest_guards_against_the_fresh_tip() -> None:
    lengths = [text(0.1, 100), text(0.2, 90), text(0.1, 90), text(0.1, 300), text(0.3, 90)]
    result = search(Recorded(*lengths), retest=True, guard=LengthGuard())
    assert result.accepted_scale == 1.0
    assert result.trials[-1].reason == "mean length 300.0 -> 90.0 tokens"


def test_no_retest_without_a_winner() -> None:
    evaluate = Recorded(0.5, 0.4)
    search(evaluate, retest=True)
    assert evaluate.scales == [1, 3]


# What it reports ----------------------------------------------------------------------------------


def test_on_trial_is_called_in_order_right_after_each_trial() -> None:
    events: list[object] = []
    recorded = Recorded(0.1, 0.2, 0.1, 0.5, 0.6)

    def evaluate(scale: float, draw: Draw) -> Score:
        events.append(scale)
        return recorded(scale, draw)

    def on_trial(index: int, trial: Trial) -> None:
        events.append((index, trial.kind, trial.scale))

    result = search(evaluate, retest=True, on_trial=on_trial)
    expected = [(i, trial.kind, trial.scale) for i, trial in enumerate(result.trials)]
    assert events[::2] == [trial.scale for trial in result.trials]
    assert events[1::2] == expected


def test_tokens_are_summed_over_trials_with_a_score() -> None:
    answers = [
        Score(value=0.0, tokens=10, teacher_tokens=1),
        Score(value=1.0, tokens=20, teacher_tokens=2),
        Score(value=math.nan, tokens=40, teacher_tokens=4),
    ]
    result = search(Recorded(*answers))
    assert (result.tokens, result.teacher_tokens) == (30, 3)


def test_seconds_are_the_time_of_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def slow(scale: float, draw: Draw) -> Score:
        now[0] += 10 + scale
        return Score(value=-scale)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert [trial.seconds for trial in search(slow).trials] == [
        10 + trial.scale for trial in search(slow).trials
    ]


def test_a_validator_says_why_it_gives_no_score() -> None:
    result = search(Recorded(0.1, Score(value=math.nan, reason="beyond trust"), 0.2))
    assert result.accepted_scale == 1.0
    assert result.trials[1].reason == "beyond trust"
    assert result.trials[1].score is None
