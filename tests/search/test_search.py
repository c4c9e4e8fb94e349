"""The line search, asked and told; knows nothing of tensors."""

import math
import time
from collections.abc import Callable, Sequence

import pytest

from effopd.errors import NonFiniteError, ValidatorError
from effopd.search.line_search import LineSearch, SearchResult
from effopd.search.scales import LadderScales, PastSearch, Trial
from effopd.search.settings import Search
from effopd.search.validation import AtLeast, Draw, LengthGuard, Score, Unconditional


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
    past: Sequence[PastSearch] = (),
    on_trial: Callable[[int, Trial], None] | None = None,
    **settings: object,
) -> SearchResult:
    plain = {"scales": LadderScales(), "guard": None}
    line = LineSearch(Search(**plain | settings), 7, past, on_trial)
    while (draw := line.ask()) is not None:
        line.tell(evaluate(draw.scale, draw))
    return line.result


def verdicts(trials: Sequence[Trial]) -> list[bool | None]:
    return [trial.accepted for trial in trials]


def test_ladder_keeps_the_last_accepted_candidate() -> None:
    evaluate = Recorded(0.1, 0.2, 0.3, 0.3, 0.9, 0.9)
    result = search(evaluate)
    assert evaluate.scales == [1, 3, 5, 7]
    assert [draw for _, draw in evaluate.asked] == [Draw(step=7, scale=s) for s in (1, 3, 5, 7)]
    assert verdicts(result.trials) == [None, True, True, False]
    assert (result.step, result.accepted_scale) == (7, 5)
    assert [t.reason for t in result.trials] == ["", "", "", "no improvement"]
    assert [t.kind for t in result.trials] == ["incumbent"] + ["candidate"] * 3
    assert [t.score for t in result.trials] == evaluate.answers[:4]


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


# The guard ----------------------------------------------------------------------------------------


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


# What it reports ----------------------------------------------------------------------------------


def test_on_trial_is_called_in_order_right_after_each_trial() -> None:
    events: list[object] = []
    recorded = Recorded(0.1, 0.2, 0.1)

    def evaluate(scale: float, draw: Draw) -> Score:
        events.append(scale)
        return recorded(scale, draw)

    def on_trial(index: int, trial: Trial) -> None:
        events.append((index, trial.kind, trial.scale))

    result = search(evaluate, on_trial=on_trial)
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


def test_questions_and_answers_alternate() -> None:
    line = LineSearch(Search(scales=LadderScales()), 7)
    with pytest.raises(ValidatorError, match="nothing was asked"):
        line.tell(1.0)
    assert line.ask() == Draw(step=7)
    with pytest.raises(ValidatorError, match="waits for its score"):
        line.ask()
    assert line.tell(1.0).accepted is None
    assert line.result.accepted_scale == 1.0
