"""Who answers the questions of benchmarks: a model, or the benchmark itself."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol

import torch

from effopd.data.benchmarks import Question, Questions
from effopd.errors import ConfigError
from effopd.evaluation.config import EvalConfig
from effopd.models.architecture import position_limit
from effopd.models.loading import load_model, load_tokenizer
from effopd.models.tokenizers import end_token_ids
from effopd.rollouts.engine import Completion, Engine
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.prompts import prompt_remarks
from effopd.rollouts.rollout import Rollout, Writer
from effopd.rollouts.vllm import open_vllm


class Answerer(Protocol):
    """Answers questions."""

    def check(self, questions: Questions) -> list[str]:
        """Refuses prompts that it cannot answer, before any is; what there is to say of others."""
        ...

    def answer(self, questions: Sequence[Question], seeds: Sequence[int]) -> list[Rollout]:
        """One answer a question, each with its own seed."""
        ...


class ModelAnswers:
    """Answers of a model.

    Args:
        writer: Engine, tokenizer, prompt and sampling.
        model: Who answers.
    """

    def __init__(self, writer: Writer, model: Any) -> None:
        self._writer, self._model = writer, model

    def check(self, questions: Questions) -> list[str]:
        """Encodes every prompt, so that one that is too long is known at once."""
        template, tokenizer = self._writer.template, self._writer.tokenizer
        problems = [question.problem for question in questions.questions]
        for problem in problems:
            template.encode(tokenizer, problem)
        found = prompt_remarks(
            template,
            tokenizer,
            problems,
            ends=end_token_ids(tokenizer, self._model),
            cap=self._writer.sampling.max_new_tokens,
            positions=position_limit(self._model.config.to_dict()),
        )
        return list(found)

    def answer(self, questions: Sequence[Question], seeds: Sequence[int]) -> list[Rollout]:
        """One answer a question, each with its own seed."""
        return self._writer.answer([question.problem for question in questions], seeds)


class OwnSolutions:
    """The benchmark's own solutions, which have to be found right."""

    def check(self, questions: Questions) -> list[str]:
        """Refuses a benchmark without solutions."""
        if not all(question.solution for question in questions.questions):
            raise ConfigError(f"{questions.name} brings no solutions that could be checked")
        return []

    def answer(self, questions: Sequence[Question], seeds: Sequence[int]) -> list[Rollout]:
        """The solution of each question; no tokens."""
        return [
            Rollout(
                problem=question.problem,
                prompt_ids=(),
                completion=Completion(
                    token_ids=(), log_probs=(), finish_reason="stop", text=question.solution
                ),
            )
            for question in questions
        ]


@contextmanager
def open_answerer(config: EvalConfig) -> Iterator[Answerer]:
    """Loads the model that the settings name; without one, solutions answer."""
    if config.model is None:
        yield OwnSolutions()
        return
    torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.model)
    config.prompt.check_arguments(tokenizer)
    model = load_model(config.model, config.device, print)
    rows = model.get_output_embeddings().weight.shape[0]
    size = min(rows, len(tokenizer))

    def answers(engine: Engine) -> ModelAnswers:
        return ModelAnswers(
            Writer(
                engine=engine,
                tokenizer=tokenizer,
                template=config.prompt,
                sampling=config.sampling,
            ),
            model,
        )

    if config.engine == "hf":
        tokens = config.generation_tokens or None
        yield answers(
            HFEngine(
                model,
                tokenizer,
                batch_size=config.batch,
                batch_tokens=tokens,
                vocabulary_size=size,
            )
        )
        return
    longest = config.prompt.max_tokens + config.sampling.max_new_tokens
    with closing(
        open_vllm(
            config.vllm, config.model.path, model, tokenizer, vocabulary_size=size, longest=longest
        )
    ) as vllm:
        vllm.sync_weights()
        yield answers(vllm)
