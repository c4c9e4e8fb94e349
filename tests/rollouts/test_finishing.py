"""Where a completion ends, whatever the engine says."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import EOS, TOKENIZER, ids

from effopd.errors import NonFiniteError, ServerError
from effopd.rollouts.engine import Completion, Sampling, check_written, finished


def finish(tokens: tuple[int, ...], *, stopped: bool = False, **sampling: Any) -> Completion:
    log_probs = [-0.5 * i for i in range(len(tokens))]
    return finished(
        tokens,
        log_probs,
        stopped=stopped,
        sampling=Sampling(**({"max_new_tokens": 30} | sampling)),
        tokenizer=TOKENIZER,
        ends=[EOS],
    )


def test_nothing_ends_it() -> None:
    tokens = ids("3 + 4 = 0 ;")
    found = finish(tokens)
    assert found == Completion(
        token_ids=tokens,
        log_probs=tuple(-0.5 * i for i in range(6)),
        finish_reason="length",
        text="3 + 4 = 0 ;",
    )
    assert finish(tokens, stopped=True).finish_reason == "stop"
    assert finish(tokens, max_new_tokens=2).token_ids == tokens[:2]


def test_the_first_end_of_sequence_ends_it() -> None:
    found = finish((*ids("3 + 4"), EOS, *ids("5"), EOS))
    assert found.token_ids == (*ids("3 + 4"), EOS)
    assert (found.finish_reason, found.text, len(found.log_probs)) == ("stop", "3 + 4", 4)


WORDS = st.lists(st.sampled_from(["3", "+", "=", "#", ";", "<eos>"]), min_size=1, max_size=12)


@given(WORDS, st.lists(st.sampled_from(["#", "3 +", "= 3", "; ;"]), max_size=2, unique=True))
def test_it_ends_at_the_first_token_that_completes_a_stop_string(
    words: list[str], stop: list[str]
) -> None:
    tokens = ids(" ".join(words))
    ends = [
        n
        for n in range(1, len(tokens) + 1)
        if tokens[n - 1] == EOS or any(s in TOKENIZER.decode(tokens[:n]) for s in stop)
    ]
    found = finish(tokens, stop=tuple(stop))
    assert found.token_ids == tokens[: min(ends, default=len(tokens))]
    assert found.finish_reason == ("stop" if ends else "length")


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_log_probabilities_of_a_scaled_policy_are_unknown(temperature: float) -> None:
    found = finish(ids("3 + 4"), temperature=temperature)
    assert all(map(math.isnan, found.log_probs))
    assert len(found.log_probs) == 3
    assert finish(ids("3 + 4"), temperature=0.0).log_probs == (0.0, -0.5, -1.0)


def test_nan_is_an_error() -> None:
    with pytest.raises(NonFiniteError, match="not finite"):
        finished(
            (3, 4),
            (0.0, math.nan),
            stopped=False,
            sampling=Sampling(),
            tokenizer=TOKENIZER,
            ends=[],
        )


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((), "x wrote a completion without any token"),
        ((3, 10), "x wrote token 10, the student's vocabulary has 10: serve the model"),
        ((3, 9, 8), "x wrote id 8, a row of the head that no token of the student's tokenizer has"),
    ],
)
def test_ids_that_are_no_tokens_are_refused(tokens: tuple[int, ...], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        check_written("x", tokens, 10, (8, 9))
    check_written("x", (0, 7), 10, (8, 9))
