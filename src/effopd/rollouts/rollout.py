"""Problems answered by the student."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effopd.data.problem import Answer, Problem
from effopd.models.policy import Sample
from effopd.rollouts.engine import Completion, Engine, Request, Sampling
from effopd.rollouts.prompts import PromptTemplate


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One problem and the completion written for it."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completion: Completion

    @property
    def sample(self) -> Sample:
        """The token ids alone."""
        return Sample(
            prompt_ids=self.prompt_ids,
            completion_ids=self.completion.token_ids,
            learned=self.completion.learned,
        )

    @property
    def answer(self) -> Answer:
        """What a verifier checks."""
        return Answer(
            problem=self.problem,
            completion=self.completion.text,
            is_truncated=self.completion.finish_reason == "length",
        )


def mean_length(rollouts: Sequence[Rollout]) -> float:
    """Mean completion length in sampled tokens."""
    return total_tokens(rollouts) / len(rollouts)


def truncated_share(rollouts: Sequence[Rollout]) -> float:
    """Share of completions cut at the length cap, in [0, 1]."""
    return sum(r.completion.finish_reason == "length" for r in rollouts) / len(rollouts)


def total_tokens(rollouts: Sequence[Rollout]) -> int:
    """Tokens that the student sampled in all rollouts: those that are learned and scored."""
    return sum(r.completion.sampled_tokens for r in rollouts)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """An engine with everything it needs to answer problems."""

    engine: Engine
    tokenizer: Any
    template: PromptTemplate
    sampling: Sampling

    def answer(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Rollout]:
        """One rollout a problem, each with its own seed."""
        prompts = [self.template.encode(self.tokenizer, problem) for problem in problems]
        pairs = zip(prompts, seeds, strict=True)
        requests = [Request(prompt_ids=prompt, seed=seed) for prompt, seed in pairs]
        completions = self.engine.generate(requests, self.sampling)
        return [
            Rollout(problem=problem, prompt_ids=prompt, completion=completion)
            for problem, prompt, completion in zip(problems, prompts, completions, strict=True)
        ]
