"""What a step trains on: groups, refills and horizons, with an engine that needs no model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import FakeEngine, bigram_table, writer

from effopd.data.problem import Answer, Problem
from effopd.errors import ConfigError
from effopd.methods import Batch
from effopd.rollouts.engine import derive_seed
from effopd.rollouts.rollout import total_tokens
from effopd.training.collect import Collector, step_problems
from effopd.training.settings import Horizon, TrainSettings

PROBLEMS = [Problem(id=str(i), prompt=f"{i % 7} + {i // 7} =") for i in range(40)]
TABLE = bigram_table(1, spread=0.5)
SEED = 11


class Numbered:
    """Rewards an answer with the number of its problem, so that a group knows its prompt."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls = 0
        self.seen = {"even": 0, "odd": 0, "never": 0}

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        self.calls += 1
        self.texts += [answer.completion for answer in answers]
        return [float(answer.problem.id) for answer in answers]


class Counting(Numbered):
    """Also says how many problems had an even number."""

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.seen)

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        found = super().rewards(answers)
        for number in found:
            self.seen["odd" if number % 2 else "even"] += 1
        return found

    def close(self) -> None:
        """Nothing to end."""


def keeps(numbers: set[int]) -> Any:
    """Groups of these problems are informative."""
    return lambda rewards: int(rewards[0]) in numbers


def collector(prompts: int = 4, responses: int = 3, **more: Any) -> Collector:
    horizon = more.pop("horizon", Horizon())
    return Collector(
        writer=writer(FakeEngine(TABLE), max_new_tokens=9),
        problems=PROBLEMS,
        settings=TrainSettings(
            prompts_per_step=prompts, responses_per_prompt=responses, horizon=horizon
        ),
        seed=SEED,
        **more,
    )


def portion(step: int, refill: int, prompts: int) -> list[int]:
    """Numbers of the problems of a portion."""
    stream = SEED if refill == 0 else derive_seed(SEED, "refill", refill)
    return [int(p.id) for p in step_problems(PROBLEMS, stream, step, prompts)]


def groups(batch: Batch) -> list[int]:
    """Problem of each group, whose answers stand together."""
    numbers = [int(rollout.problem.id) for rollout in batch.rollouts]
    size = batch.responses
    found = [numbers[i : i + size] for i in range(0, len(numbers), size)]
    assert all(len(group) == size and len(set(group)) == 1 for group in found)
    return [group[0] for group in found]


def text(batch: Batch) -> list[tuple[int, ...]]:
    return [rollout.completion.token_ids for rollout in batch.rollouts]


# Whole batches ------------------------------------------------------------------------------------


def test_answers_to_one_prompt_stand_together_and_differ() -> None:
    batch = collector().collect(2)
    assert groups(batch) == portion(2, 0, 4)
    assert (batch.step, batch.responses, len(batch.rollouts)) == (2, 3, 12)
    for start in range(0, 12, 3):
        assert len(set(text(batch)[start : start + 3])) == 3
    assert (batch.rewards, batch.reward) == ((), None)
    assert (batch.refills, batch.horizon) == (0, None)
    assert batch.written_tokens == total_tokens(batch.rollouts)


def test_every_answer_has_a_seed_of_its_own() -> None:
    own = collector()
    own.collect(3)
    engine = own.writer.engine
    assert isinstance(engine, FakeEngine)
    seeds = [request.seed for request in engine.requests]
    assert seeds == [derive_seed(SEED, "train", 3, i) for i in range(12)]


def test_rewards_are_those_of_the_completions() -> None:
    verifier = Numbered()
    batch = collector(verifier=verifier).collect(1)
    assert batch.rewards == tuple(float(n) for n in portion(1, 0, 4) for _ in range(3))
    assert batch.reward == sum(batch.rewards) / 12
    assert verifier.texts == [rollout.completion.text for rollout in batch.rollouts]
    assert verifier.calls == 1, "one call for all answers of a portion"
    assert batch.verdicts is None


def test_verdicts_count_everything_written_for_the_step() -> None:
    """Those of dropped groups too, and not those of earlier steps."""
    own = collector(verifier=Counting(), informative=keeps(set()), max_refills=2)
    own.collect(1)
    batch = own.collect(2)
    numbers = [n for refill in range(3) for n in portion(2, refill, 4)]
    odd = sum(n % 2 for n in numbers)
    assert batch.verdicts == {"even": 3 * (12 - odd), "odd": 3 * odd}


def test_a_batch_is_a_function_of_the_step_alone() -> None:
    """In any order, from any number of collectors, whatever was collected before."""
    more = {"verifier": Numbered(), "informative": keeps(set(range(0, 40, 2))), "max_refills": 3}
    forwards = [collector(**more).collect(step) for step in (1, 2, 3)]
    own = collector(**more)
    assert [own.collect(step) for step in (3, 2, 1)] == forwards[::-1]
    assert len({str(text(batch)) for batch in forwards}) == 3
    assert text(replace(own, seed=12).collect(1)) != text(forwards[0])


# Refills ------------------------------------------------------------------------------------------


def filled(
    step: int, prompts: int, numbers: set[int], max_refills: int
) -> tuple[list[int], list[int]]:
    """Groups of the batch, and all groups that were written for it."""
    kept: list[int] = []
    written: list[int] = []
    for refill in range(max_refills + 1):
        own = portion(step, refill, prompts)
        written += own
        kept += [number for number in own if number in numbers]
        if len(kept) >= prompts:
            break
    return kept[:prompts] or own, written


@settings(deadline=None, max_examples=25)
@given(
    step=st.integers(1, 5),
    prompts=st.integers(1, 5),
    responses=st.integers(1, 3),
    numbers=st.sets(st.integers(0, 39), max_size=40),
    max_refills=st.integers(0, 4),
)
def test_informative_groups_fill_the_batch(
    step: int, prompts: int, responses: int, numbers: set[int], max_refills: int
) -> None:
    own = collector(
        prompts,
        responses,
        verifier=Numbered(),
        informative=keeps(numbers),
        max_refills=max_refills,
    )
    batch = own.collect(step)
    expected, written = filled(step, prompts, numbers, max_refills)
    assert groups(batch) == expected
    assert len(batch.rollouts) <= prompts * responses
    assert batch.refills == len(written) // prompts - 1
    assert batch.reward == pytest.approx(sum(written) / len(written))
    assert batch.rewards == tuple(float(n) for n in expected for _ in range(responses))


def test_what_is_more_than_the_batch_is_dropped() -> None:
    """Three of four are informative here, so the second portion brings two too many."""
    step = next(s for s in range(1, 99) if sum(n % 4 > 0 for n in portion(s, 0, 4)) == 3)
    numbers = {n for n in range(40) if n % 4 > 0}
    own = collector(verifier=Numbered(), informative=keeps(numbers), max_refills=9)
    kept = [n for refill in (0, 1) for n in portion(step, refill, 4) if n in numbers]
    assert len(kept) > 4
    batch = own.collect(step)
    assert groups(batch) == kept[:4]
    assert (batch.refills, len(batch.rollouts)) == (1, 12)


def test_dropped_answers_are_counted() -> None:
    own = collector(verifier=Numbered(), informative=keeps({*range(0, 40, 3)}), max_refills=9)
    engine = own.writer.engine
    assert isinstance(engine, FakeEngine)
    batch = own.collect(1)
    assert batch.refills > 0
    answers = FakeEngine(TABLE).generate(engine.requests, own.writer.sampling)
    assert batch.written_tokens == sum(len(answer.token_ids) for answer in answers)
    assert batch.written_tokens > total_tokens(batch.rollouts)


def test_the_last_portion_is_kept_when_nothing_is_informative() -> None:
    own = collector(verifier=Numbered(), informative=keeps(set()), max_refills=2)
    batch = own.collect(4)
    assert groups(batch) == portion(4, 2, 4) != portion(4, 0, 4)
    assert batch.refills == 2


def test_refills_have_other_seeds_than_the_first_portion() -> None:
    own = collector(verifier=Numbered(), informative=keeps(set()), max_refills=3)
    own.collect(1)
    engine = own.writer.engine
    assert isinstance(engine, FakeEngine)
    assert len({request.seed for request in engine.requests}) == len(engine.requests) == 4 * 12


def test_groups_are_not_chosen_without_rewards() -> None:
    with pytest.raises(ConfigError, match="chosen by their rewards: pass a verifier"):
        collector(informative=keeps(set()))


# Horizons -----------------------------------------------------------------------------------------


def horizons(horizon: Horizon, steps: Sequence[int]) -> list[int | None]:
    return [collector(horizon=horizon).collect(step).horizon for step in steps]


def test_a_horizon_grows_up_to_the_length_cap() -> None:
    assert horizons(Horizon(tokens=3), (1, 50)) == [3, 3]
    growing = Horizon(tokens=2, growth=1.5)
    assert horizons(growing, (1, 2, 3, 4, 5, 6, 99)) == [2, 3, 5, 6, 8, None, None]
    assert horizons(Horizon(tokens=8), (1,)) == [8]
    assert horizons(Horizon(tokens=9), (1,)) == [None]  # the length cap itself
    assert horizons(Horizon(), (1, 50)) == [None, None]


def test_a_horizon_cuts_the_answers_and_leaves_their_first_tokens() -> None:
    whole, cut = collector().collect(1), collector(horizon=Horizon(tokens=3)).collect(1)
    assert [tokens[:3] for tokens in text(whole)] == text(cut)
    assert max(map(len, text(cut))) == 3 < max(map(len, text(whole)))
    assert cut.written_tokens == sum(map(len, text(cut)))


@pytest.mark.parametrize("bad", [{"tokens": -1}, {"growth": -0.1}, {"growth": float("inf")}])
def test_impossible_horizons_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"train.horizon needs tokens >= 0 and growth >= 0"):
        Horizon(**bad)


def test_a_horizon_grows_from_somewhere() -> None:
    with pytest.raises(ConfigError, match=r"needs train.horizon.tokens, the length to grow from"):
        Horizon(growth=1.0)
