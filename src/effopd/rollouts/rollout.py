"""Problems answered by the student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from effopd.data.problem import Answer, Problem
from effopd.models.policy import Sample
from effopd.rollouts.engine import Completion, Engine, Request, Sampling
from effopd.rollouts.environment import Interaction
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
        """What a verifier checks: the last turn, with those before it in `problem.after`."""
        problem, said = self.problem, self.completion.said
        return Answer(
            problem=replace(problem, after=(*problem.after, *said)) if said else problem,
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


def environment_statistics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over answers of what an environment wrote in them; {} where there is none."""
    found = [r.completion for r in rollouts if r.completion.learned is not None]
    if not found:
        return {}
    tokens = sum(len(c.token_ids) - c.sampled_tokens for c in found)
    replies = sum(sum(m.role != "assistant" for m in c.said) for c in found)
    return {
        "environment_tokens": tokens / len(rollouts),
        "environment_replies": replies / len(rollouts),
    }


@dataclass(frozen=True, kw_only=True)
class Writer:
    """An engine with everything it needs to answer problems, maybe in an environment."""

    engine: Engine
    tokenizer: Any
    template: PromptTemplate
    sampling: Sampling
    interaction: Interaction | None = None

    def answer(self, problems: Sequence[Problem], seeds: Sequence[int]) -> list[Rollout]:
        """One rollout a problem, each with its own seed."""
        prompts = [self.template.encode(self.tokenizer, problem) for problem in problems]
        if self.interaction is None:
            pairs = zip(prompts, seeds, strict=True)
            requests = [Request(prompt_ids=prompt, seed=seed) for prompt, seed in pairs]
            completions = self.engine.generate(requests, self.sampling)
        else:
            completions = self.interaction.completions(
                self.engine, self.tokenizer, self.template, self.sampling, problems, prompts, seeds
            )
        return [
            Rollout(problem=problem, prompt_ids=prompt, completion=completion)
            for problem, prompt, completion in zip(problems, prompts, completions, strict=True)
        ]
