"""The benchmarks as tasks of inspect-ai: the same questions, prompts and verifiers.

inspect-ai finds them by the entry point of the package: `inspect eval effopd/math500 --model ...`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

from effopd.data.benchmarks import load_benchmark
from effopd.data.dataset import registry
from effopd.data.problem import Answer, JudgingVerifier
from effopd.evaluation.grading import RIGHT, readable
from effopd.rewards.code import CodeVerifier
from effopd.rewards.extraction import final_answer
from effopd.rewards.math import MathVerifier


@scorer(metrics=[accuracy(), stderr()])
def verified(name: str, path: str = "", seed: int = 42) -> Scorer:
    """Scores 1 for an answer that the benchmark's verifier finds right, else 0."""
    questions = load_benchmark(name, path, seed=seed)
    problems = {question.problem.id: question.problem for question in questions.questions}
    verifier: JudgingVerifier = CodeVerifier() if questions.verifier == "code" else MathVerifier()

    async def score(state: TaskState, target: Target) -> Score:
        answer = Answer(
            problem=problems[str(state.sample_id)],
            completion=state.output.completion,
            is_truncated=state.output.stop_reason == "max_tokens",
        )
        (verdict,) = await asyncio.to_thread(verifier.verdicts, [answer])
        box = final_answer(answer.completion)
        return Score(value=float(verdict in RIGHT), answer=box, explanation=verdict)

    return score


def benchmark_task(name: str, path: str = "", seed: int = 42) -> Task:
    """A benchmark as a task, one answer an epoch."""
    questions, _ = readable(load_benchmark(name, path, seed=seed))
    samples = [
        Sample(id=q.problem.id, input=q.problem.prompt, target=q.problem.answer or "passed")
        for q in questions.questions
    ]
    return Task(
        dataset=MemoryDataset(samples, name=name),
        solver=generate(),
        scorer=verified(name, path, seed),
    )


def _registered(name: str) -> Callable[..., Any]:
    """The task of one benchmark, by the name that a command line can write."""

    def benchmark(path: str = "", seed: int = 42) -> Task:
        return benchmark_task(name, path, seed)

    return task(benchmark, name=name.replace("+", "_plus"))


TASKS = {name: _registered(name) for name in registry().benchmarks}
"""Benchmark -> its task in inspect-ai's registry."""
