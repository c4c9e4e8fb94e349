"""Candidates judged on the tip's answers: what is written, what is trusted, what it estimates."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, WORLD, policy_writer, tiny_policy, writer
from tests.reference import importance_twin as twin
from tests.reference.kl_twin import log_probs_TV, reverse_kl

from effopd.errors import ConfigError, ValidatorError
from effopd.evaluation import importance_kl
from effopd.evaluation.importance_kl import (
    ImportanceKLValidation,
    ImportanceWeightedKLValidator,
    outside_trust_region,
    weighted_kl,
)
from effopd.evaluation.kept_states import KeptStates
from effopd.evaluation.logprobs import completion_log_probs
from effopd.evaluation.rollout_sources import FreshRollouts
from effopd.evaluation.routing import Teachers, routed_reverse_kl
from effopd.models.policy import Policy, micro_batches
from effopd.rollouts.engine import Completion, Request, Sampling
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.rollout import Rollout, total_tokens
from effopd.search.extrapolator import Extrapolator, Search
from effopd.search.scales import LadderScales
from effopd.search.schedule import EveryN
from effopd.search.validation import Draw, Score, Strict

PROBLEMS = list(WORLD.load().train)
REDUCTIONS = ["token", "sequence"]
V = len(TOKENIZER)
TRUSTING: dict[str, Any] = {"trust_nats": 1e9, "trust_share": 0.0}


class Replay:
    """Gives answers that were written before, so that nobody is asked."""

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self._completions = [rollout.completion for rollout in rollouts]

    def sync_weights(self) -> None:
        pass

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return self._completions


class CountingEngine:
    """Passes everything on to the live student and remembers what it was asked."""

    def __init__(self, policy: Policy) -> None:
        self._engine = HFEngine(policy.model, policy.tokenizer)
        self.requests: list[Request] = []

    def sync_weights(self) -> None:
        self._engine.sync_weights()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.requests += requests
        return self._engine.generate(requests, sampling)


def nearby_policy(share: float = 0.3) -> Policy:
    """The policy of seed 0, some way towards another: a teacher within reach."""
    policy, goal = tiny_policy(0), dict(tiny_policy(5, sharpness=4.0).model.named_parameters())
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            p.lerp_(goal[name], share)
    return policy


class Bench:
    """A validator with its student, whose weights lie on the segment to the teacher's."""

    def __init__(self, **settings: Any) -> None:
        self.student, self.teacher = tiny_policy(0), nearby_policy()
        self.engine = CountingEngine(self.student)
        self.source = FreshRollouts(
            writer=writer(self.engine), problems=PROBLEMS, prompts=12, resample=True, seed=0
        )
        self.validate = ImportanceWeightedKLValidator(
            self.source,
            self.student,
            Teachers.single(self.teacher),
            ImportanceKLValidation(**settings),
        )
        self._start = {n: p.detach().clone() for n, p in self.student.model.named_parameters()}

    @torch.no_grad()
    def move_(self, share: float) -> None:
        goal = dict(self.teacher.model.named_parameters())
        for name, p in self.student.model.named_parameters():
            p.copy_(torch.lerp(self._start[name], goal[name], share))

    def score(self, share: float, step: int = 1, tip: float = 0.0) -> Score:
        """The score at `share`, as the tip's or a candidate's."""
        self.move_(share)
        return self.validate(Draw(step=step, scale=1.0 + share - tip))


# What is written and what is counted --------------------------------------------------------------


def test_only_the_tip_writes_and_the_teacher_reads_it_once() -> None:
    bench = Bench(**TRUSTING)
    tip, *candidates = [bench.score(share) for share in (0.0, 0.1, 0.2)]
    assert len(bench.engine.requests) == 12
    assert tip.tokens > 12
    assert [c.tokens for c in candidates] == [0, 0]
    assert [c.teacher_tokens for c in (tip, *candidates)] == [tip.tokens, 0, 0]
    assert len({c.value for c in (tip, *candidates)}) == 3


def test_the_next_draw_has_answers_of_its_own_by_the_weights_of_its_tip() -> None:
    bench = Bench(**TRUSTING)
    first = [bench.score(share, step=1) for share in (0.0, 0.2)]
    second = [bench.score(share, step=2, tip=0.2) for share in (0.2, 0.4)]
    assert len(bench.engine.requests) == 24
    assert second[0].tokens > 0
    alone = Bench(**TRUSTING)
    assert [alone.score(share, step=2, tip=0.2) for share in (0.2, 0.4)] == second
    assert first[1] != second[0]


def test_a_tip_that_changed_writes_anew_for_the_same_draw() -> None:
    bench = Bench(**TRUSTING)
    bench.score(0.0)
    changed = bench.score(0.2, tip=0.2)
    assert changed.tokens > 0
    assert Bench(**TRUSTING).score(0.2, tip=0.2) == changed
    alone = Bench(**TRUSTING)
    alone.score(0.2, tip=0.2)
    assert bench.score(0.4) == alone.score(0.4)


@pytest.mark.parametrize("before", [[], [Draw(step=2)]])
def test_a_candidate_without_its_tip_is_an_error(before: list[Draw]) -> None:
    bench = Bench()
    for draw in before:
        bench.validate(draw)
    with pytest.raises(ValidatorError, match="score the tip, at scale 1, first"):
        bench.validate(Draw(step=1, scale=2.0))


def test_a_tip_that_is_not_finite_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.student.model.lm_head.weight.data.fill_(torch.nan)
    assert not bench.validate(Draw(step=1)).is_finite
    good = bench.score(0.0)
    assert good.is_finite
    assert good.tokens > 0


# The score ----------------------------------------------------------------------------------------


def rows(policy: Policy, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """Log-probabilities of the answers' tokens by the float64 twin."""
    found = []
    for rollout in rollouts:
        log_probs = log_probs_TV(policy.model, rollout.sample, V)
        tokens = rollout.completion.token_ids
        found.append([log_probs[t][token].item() for t, token in enumerate(tokens)])
    return found


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_scores_of_tip_and_candidate_equal_the_twin(reduce: str) -> None:
    bench = Bench(reduce=reduce, **TRUSTING)
    rollouts = bench.source.rollouts(Draw(step=1))
    behaviour = rows(bench.student, rollouts)
    for share in (0.0, 0.15):
        found = bench.score(share)
        kl = [reverse_kl(bench.student.model, bench.teacher.model, r.sample, V) for r in rollouts]
        arguments = rows(bench.student, rollouts), behaviour, kl
        assert found.value == pytest.approx(-twin.estimate(*arguments, reduce), rel=1e-4)
        expected = [-value for value in twin.per_answer(*arguments, reduce)]
        assert found.per_prompt == pytest.approx(expected, rel=1e-3, abs=1e-4)
        lengths = twin.weighted_sum(*arguments[:2], twin.ones(kl))
        assert found.mean_length == pytest.approx(lengths, rel=1e-4)
        weights = twin.weights_at(*arguments[:2], max(map(len, kl)))
        cut = [r.completion.finish_reason == "length" for r in rollouts]
        truncated = sum(w for w, is_cut in zip(weights, cut, strict=True) if is_cut) / 12
        assert found.truncated_share == pytest.approx(truncated, rel=1e-4)
    assert any(cut)


def test_a_search_keeps_what_scores_best_and_writes_one_set_of_answers() -> None:
    bench = Bench(**TRUSTING)
    extrapolator = Extrapolator(
        bench.student.model,
        bench.validate,
        search=Search(
            schedule=EveryN(n=1),
            scales=LadderScales(scales=(2.0, 3.0)),
            accept=Strict(),
            parameters="all",
        ),
    )
    bench.move_(0.1)
    result = extrapolator.step(1)
    assert result is not None
    assert result.accepted_scale == 3.0
    tip, *candidates = [t.score.tokens for t in result.trials if t.score]
    assert (result.tokens, sum(candidates)) == (tip, 0)
    assert len(bench.engine.requests) == 12


# Trust --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (TRUSTING, ""),
        (
            {"trust_nats": 1e-3, "trust_share": 0.0},
            "nats per token from the tip, trusted are 0.001",
        ),
        ({"trust_nats": 1e9, "trust_share": 0.99}, "effective share of the answers 0."),
    ],
)
def test_beyond_the_bounds_a_candidate_is_rejected_before_a_divergence_is_computed(
    settings: dict[str, float], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def counted(*arguments: Any, **keywords: Any) -> list[tuple[float, ...]]:
        compared.append(1)
        return routed_reverse_kl(*arguments, **keywords)

    monkeypatch.setattr(importance_kl, "routed_reverse_kl", counted)
    bench = Bench(**settings)
    assert bench.score(0.0).is_finite
    assert len(compared) == 1
    found = bench.score(0.2)
    assert found.is_finite is (reason == "")
    assert (found.reason == "") if reason == "" else (reason in found.reason)
    assert (len(compared) == 1) is (reason != "")


def passes(policy: Policy) -> list[int]:
    """Grows by one with every forward pass of a policy."""
    found: list[int] = []
    policy.model.model.register_forward_hook(lambda module, inputs, out: found.append(1))
    return found


@pytest.mark.parametrize("batch_tokens", [10_000, 20])
def test_a_candidate_is_one_pass_of_the_student_and_none_of_the_teacher(batch_tokens: int) -> None:
    bench = Bench(**TRUSTING)
    rollouts = bench.source.rollouts(Draw(step=1))
    lengths = [rollout.sample.length for rollout in rollouts]
    batches = len(list(micro_batches(lengths, tokens=batch_tokens)))
    bench.source = replace(bench.source, writer=writer(Replay(rollouts)))
    bench.validate = ImportanceWeightedKLValidator(
        bench.source,
        bench.student,
        Teachers.single(bench.teacher),
        ImportanceKLValidation(**TRUSTING),
        batch_tokens=batch_tokens,
    )
    ours, theirs = passes(bench.student), passes(bench.teacher)
    for number, share in enumerate((0.0, 0.1, 0.2), start=1):
        bench.score(share)
        assert (len(ours), len(theirs)) == (number * batches, batches)


@pytest.mark.parametrize("gigabytes", [0.0, 4e-6])
def test_without_room_scores_are_the_same_and_every_token_read_is_counted(
    gigabytes: float,
) -> None:
    kept, anew = Bench(**TRUSTING), Bench(**TRUSTING)
    teachers = Teachers(policies={"": anew.teacher}, kept=KeptStates(gigabytes))
    anew.validate = ImportanceWeightedKLValidator(
        anew.source, anew.student, teachers, ImportanceKLValidation(**TRUSTING)
    )
    for share in (0.0, 0.2):
        expected, found = kept.score(share), anew.score(share)
        assert found.value == pytest.approx(expected.value, rel=1e-5)
        assert found.per_prompt == pytest.approx(expected.per_prompt, rel=1e-4, abs=1e-5)
    tokens = teachers.tokens_read - found.teacher_tokens
    assert 0 < found.teacher_tokens <= tokens
    assert (found.teacher_tokens == tokens) is (gigabytes == 0)


def test_the_bounds_are_met_by_equality() -> None:
    log2 = math.log(2)
    tip, candidate = [[-1.0, -1.0], [-1.0, -1.0]], [[-1.0 + log2, -1.0], [-1.0, -1.0]]
    k3 = (1 - log2) / 4  # ratios 2, 1, 1, 1
    share = (2 + 1) ** 2 / (2**2 + 1) / 2
    exact = {"trust_nats": k3 + 1e-12, "trust_share": share - 1e-12}
    assert outside_trust_region(candidate, tip, ImportanceKLValidation(**exact)) == ""
    for name, value in (("trust_nats", k3 - 1e-12), ("trust_share", share + 1e-12)):
        assert (
            outside_trust_region(candidate, tip, ImportanceKLValidation(**(exact | {name: value})))
            != ""
        )


@pytest.mark.parametrize("sampling", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
def test_answers_that_are_no_samples_of_the_policy_are_refused(sampling: dict[str, Any]) -> None:
    policy = tiny_policy()
    source = FreshRollouts(
        writer=policy_writer(policy, **sampling),
        problems=PROBLEMS,
        prompts=2,
        resample=True,
        seed=0,
    )
    with pytest.raises(ConfigError, match="samples of the policy itself"):
        ImportanceWeightedKLValidator(
            source, policy, Teachers.single(policy), ImportanceKLValidation()
        )


# What it estimates --------------------------------------------------------------------------------

COPIES = 20
"""Answers to each of 60 problems: 1,200 of the tip and as many of the candidate."""


class Pool:
    """Many answers of the tip, scored by a candidate a quarter of the way to the teacher."""

    def __init__(self) -> None:
        bench = Bench()
        self.tip_rollouts = self._answers(bench, "tip")
        samples = [r.sample for r in self.tip_rollouts]
        self.tip = completion_log_probs(bench.student, samples)
        bench.move_(0.25)
        self.candidate = completion_log_probs(bench.student, samples)
        teachers = Teachers.single(bench.teacher)
        self.kl = routed_reverse_kl(bench.student, teachers, self.tip_rollouts)
        own = self._answers(bench, "candidate")
        self.own_kl = routed_reverse_kl(bench.student, teachers, own)
        self.own_tokens = total_tokens(own)

    @staticmethod
    def _answers(bench: Bench, name: str) -> list[Rollout]:
        seeds = [random.Random(f"{name}/{i}").getrandbits(40) for i in range(COPIES * 60)]
        return writer(bench.engine, max_new_tokens=8).answer(PROBLEMS * COPIES, seeds)

    def estimate(self, indices: Sequence[int], reduce: str) -> tuple[float, ...]:
        chosen = [[each[i] for i in indices] for each in (self.candidate, self.tip, self.kl)]
        return weighted_kl(*chosen, reduce).per_answer_nats


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool()


def test_on_many_answers_the_estimate_is_the_candidates_own_divergence(pool: Pool) -> None:
    own = [sum(row) for row in pool.own_kl]
    weighted = pool.estimate(range(len(own)), "sequence")
    error = math.hypot(stdev(own), stdev(weighted)) / math.sqrt(len(own))
    assert error < 0.025 * mean(own), "tight enough to tell"
    assert abs(mean(weighted) - mean(own)) < 2 * error
    unweighted = mean(map(sum, pool.kl))
    assert abs(unweighted - mean(own)) > 4 * error, "so that the weights matter"
    per_token = mean(pool.estimate(range(len(own)), "token"))
    assert per_token == pytest.approx(mean(own) * len(own) / pool.own_tokens, rel=0.03)
