"""Sampling settings, seeds, and statistics of rollouts."""

import math
from typing import Any

import pytest
from tests.fakes import WORLD, FakeEngine, bigram_table, ids, script, writer

from effopd.data.problem import Problem
from effopd.errors import ConfigError
from effopd.models.policy import Sample
from effopd.rollouts.engine import Completion, Sampling, derive_seed
from effopd.rollouts.rollout import Rollout, mean_length, total_tokens, truncated_share


def rollout(length: int, reason: Any) -> Rollout:
    completion = Completion(
        token_ids=tuple(range(length)), log_probs=(-1.0,) * length, finish_reason=reason, text=""
    )
    return Rollout(problem=Problem(id="p", prompt="x"), prompt_ids=(1, 2), completion=completion)


def test_statistics() -> None:
    rollouts = [rollout(1, "stop"), rollout(4, "length"), rollout(4, "length"), rollout(2, "stop")]
    assert mean_length(rollouts) == 11 / 4
    assert total_tokens(rollouts) == 11
    assert truncated_share(rollouts) == 0.5
    assert rollouts[1].sample == Sample(prompt_ids=(1, 2), completion_ids=(0, 1, 2, 3))


def test_writer_pairs_problems_with_prompts_seeds_and_completions() -> None:
    engine = FakeEngine(bigram_table())
    problems = list(WORLD.load().train[:5])
    rollouts = writer(engine, max_new_tokens=3).answer(problems, [9, 8, 7, 6, 5])
    assert [r.problem for r in rollouts] == problems
    assert [request.seed for request in engine.requests] == [9, 8, 7, 6, 5]
    again = FakeEngine(bigram_table())
    for problem, request, rollout in zip(problems, engine.requests, rollouts, strict=True):
        assert request.prompt_ids == rollout.prompt_ids == ids(f"<bos> {problem.prompt}")
        assert rollout.completion == again.generate([request], Sampling(max_new_tokens=3))[0]


def test_writer_refuses_a_wrong_number_of_seeds() -> None:
    with pytest.raises(ValueError, match="shorter"):
        writer(FakeEngine(script("# 3"))).answer(WORLD.load().train[:2], [1])


def test_seeds_depend_on_every_part_and_its_place() -> None:
    parts: list[tuple[Any, ...]] = [
        (0, "train", 1, 2), (1, "train", 1, 2), (0, "eval", 1, 2), (0, "train", 2, 1),
        (0, "train", 1), (0, "train", 12), (0, "train", 1, 3), (-1, "train", 1, 2), (),
    ]  # fmt: skip
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert seeds == [derive_seed(*p) for p in parts]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_never_change() -> None:
    """Stored runs and stored results depend on this number."""
    assert derive_seed(0, "train", 1, 0) == 7556034566078426757


REFUSED = [
    ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
    ({"temperature": math.nan}, "temperature must be at least 0, got nan"),
    ({"temperature": math.inf}, "temperature must be at least 0, got inf"),
    ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
    ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ({"top_p": math.nan}, "top_p must be above 0 and at most 1, got nan"),
    ({"top_k": -1}, "top_k must be at least 0, got -1"),
    ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
    ({"stop": "END"}, "stop must be a list of non-empty strings, got 'END'"),
    ({"stop": ["END", ""]}, "stop must be a list of non-empty strings, got ['END', '']"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda case: str(case))
def test_refused_sampling(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Sampling(**settings)
    assert str(error.value) == message


def test_stop_strings_become_a_tuple() -> None:
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
