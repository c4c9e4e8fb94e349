"""Answers checked: in training, and those to the questions of a benchmark."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from effopd.data.benchmarks import Questions
from effopd.data.problem import CountingVerifier, JudgingVerifier, Verifier
from effopd.errors import ConfigError, RecordError
from effopd.evaluation.statistics import Estimate, average, majority, mean, pass_at_k
from effopd.rewards.extraction import final_answer
from effopd.rewards.math import MathVerifier
from effopd.rollouts.rollout import Rollout

Verdicts = Mapping[str, int]
"""Verdict -> number of answers, of the verdicts that occurred."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a verifier said about some answers: rewards in [0, 1], () where nobody checks.

    The verdicts sum to the number of answers; None where the verifier only gives rewards.
    """

    rewards: tuple[float, ...] = ()
    verdicts: Verdicts | None = None


def judge(verifier: Verifier | None, rollouts: Sequence[Rollout]) -> Judgement:
    """Checks all answers in one call; None checks nothing."""
    if verifier is None:
        return Judgement()
    answers = [rollout.answer for rollout in rollouts]
    if not isinstance(verifier, CountingVerifier):
        return Judgement(rewards=tuple(verifier.rewards(answers)))
    before = dict(verifier.counts)
    rewards = tuple(verifier.rewards(answers))
    new = {name: count - before.get(name, 0) for name, count in verifier.counts.items()}
    return Judgement(rewards=rewards, verdicts={name: n for name, n in new.items() if n})


def sum_counts(verdicts: Sequence[Verdicts | None]) -> Verdicts | None:
    """The sum of several counts; None when none was counted."""
    counted = [each for each in verdicts if each is not None]
    if not counted:
        return None
    names = dict.fromkeys(name for each in counted for name in each)
    return {name: sum(each.get(name, 0) for each in counted) for name in names}


# Benchmarks --------------------------------------------------------------------------------------

RIGHT = {"correct", "passed"}
"""Verdicts that earn an answer its reward of 1."""


@dataclass(frozen=True, kw_only=True)
class GradedAnswer:
    """One answer, checked: `sample` says which to its question, from 0, `tokens` were written.

    It is truncated at the length cap; `answer` is in its last box, None for programs. In an
    environment `completion` is the last turn, `said` all between the question and it.
    """

    question: str
    sample: int
    seed: int
    prompt_tokens: int
    tokens: int
    truncated: bool
    verdict: str
    answer: str | None
    completion: str
    said: Sequence[Mapping[str, str]] = ()

    @property
    def reward(self) -> float:
        """1 for a right answer, else 0."""
        return float(self.verdict in RIGHT)

    def row(self) -> dict[str, Any]:
        """As `samples.jsonl` has it."""
        found = asdict(self) | {"reward": self.reward}
        return found if self.said else {name: found[name] for name in found if name != "said"}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "GradedAnswer":
        """What `row` wrote."""
        try:
            read = {field.name: row[field.name] for field in fields(cls) if field.name != "said"}
            return cls(**read, said=row.get("said", ()))
        except KeyError as error:
            raise RecordError(f"a sample has no field {error}: it was written otherwise") from None


def grade(
    verifier: JudgingVerifier, rollouts: Sequence[Rollout], samples: Sequence[int],
    seeds: Sequence[int],
) -> list[GradedAnswer]:  # fmt: skip
    """Checks answers side by side; `samples` says which answer to its question each one is."""
    verdicts = verifier.verdicts([rollout.answer for rollout in rollouts])
    return [
        GradedAnswer(
            question=rollout.problem.id,
            sample=sample,
            seed=seed,
            prompt_tokens=len(rollout.prompt_ids),
            tokens=rollout.completion.sampled_tokens,
            truncated=rollout.completion.finish_reason == "length",
            verdict=verdict,
            answer=None if rollout.problem.tests else final_answer(rollout.completion.text),
            completion=rollout.completion.text,
            said=tuple({"role": m.role, "content": m.content} for m in rollout.completion.said),
        )
        for rollout, sample, seed, verdict in zip(rollouts, samples, seeds, verdicts, strict=True)
    ]


def readable(questions: Questions) -> tuple[Questions, list[str]]:
    """Leaves out, and names, questions of mathematics whose reference cannot be read."""
    if questions.verifier != "math":
        return questions, []
    with MathVerifier() as verifier:
        unread = verifier.unreadable([each.problem for each in questions.questions])
    bad = [problem.id for problem in unread]
    kept = tuple(each for each in questions.questions if each.problem.id not in bad)
    if not kept:
        raise ConfigError(
            f"no reference answer of {questions.name} ({questions.source}) can be read as "
            "mathematics: each row needs the answer alone, or a solution with the answer in "
            r"\boxed{...}"
        )
    dropped = dict(questions.counts.dropped)
    if bad:
        dropped["reference that cannot be read as mathematics"] = len(bad)
    counts = replace(questions.counts, kept=questions.counts.kept - len(bad), dropped=dropped)
    return replace(questions, questions=kept, counts=counts), bad


def by_question(graded: Sequence[GradedAnswer]) -> list[list[GradedAnswer]]:
    """Answers grouped by question, in the order in which questions come up; samples sorted."""
    groups: dict[str, list[GradedAnswer]] = {}
    for each in graded:
        groups.setdefault(each.question, []).append(each)
    return [sorted(group, key=lambda each: each.sample) for group in groups.values()]


def rewards_of(groups: Sequence[Sequence[GradedAnswer]]) -> list[list[float]]:
    """Rewards in the shape of `effopd.evaluation.statistics`."""
    return [[each.reward for each in group] for group in groups]


def summarise(graded: Sequence[GradedAnswer], *, votes: bool) -> dict[str, Any]:
    """Accuracies with errors, lengths, and how checks ended."""
    groups = by_question(graded)
    rewards = rewards_of(groups)
    samples = len(groups[0])
    voting = votes and samples > 1
    answers = [[each.answer for each in group] for group in groups]
    numbers = [2**i for i in range(samples.bit_length())]  # and the number of samples itself
    return {
        "questions": len(groups),
        "samples": samples,
        "avg": _json(average(rewards)),
        "pass": {str(k): _json(pass_at_k(rewards, k)) for k in dict.fromkeys([*numbers, samples])},
        "maj": _json(majority(answers, rewards)) if voting else None,
        "truncated_share": mean([float(each.truncated) for each in graded]),
        "no_answer_share": mean([float(each.verdict == "no_answer") for each in graded]),
        "mean_tokens": mean([float(each.tokens) for each in graded]),
        "tokens": sum(each.tokens for each in graded),
        "verdicts": dict(Counter(each.verdict for each in graded).most_common()),
    }


def _json(estimate: Estimate) -> dict[str, Any]:
    interval = estimate.interval
    return asdict(estimate) | {"interval": None if interval is None else list(interval)}
