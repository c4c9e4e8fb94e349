"""Answers of a trainer that calls tools: what the tool wrote is attended to, and not scored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER
from tests.support.trl import distillation

from effopd import Draw
from effopd.evaluation.logprobs import completion_reverse_kl
from effopd.evaluation.statistics import mean
from effopd.integrations.trl import EffOPDCallback
from effopd.integrations.trl.validators import TeacherKL, TrainerRolloutSource, TrainerValidator
from effopd.models.policy import Sample
from effopd.records import read_jsonl


def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: The first number.
        b: The second number.

    Returns:
        Their sum.
    """
    return a + b


def test_the_score_is_of_the_tokens_that_the_student_wrote(tmp_path: Path) -> None:
    trainer = distillation(tmp_path)
    trainer.tools = [add]
    EffOPDCallback(trainer)  # not refused
    asked: list[Any] = []

    def generate(prompts: list[Any]) -> tuple[Any, ...]:
        """As TRL's: prompt ids, completion ids, the tools' mask, and more."""
        asked.extend(prompts)
        trainer._metrics["train"]["tools/call_frequency"].append(1.0)
        drawn = torch.randint(3, 10, (len(prompts), 6)).tolist()
        masks = [[1, 1, 0, 0, 1, 1]] * len(prompts)
        return [[1, 5, 6]] * len(prompts), drawn, masks, None, None

    trainer._generate = generate
    source = TrainerRolloutSource(
        trainer=trainer, dataset=trainer.train_dataset, prompts=10, resample=True, seed=0
    )
    written = source.rollouts(Draw(step=1))
    assert len(asked) == len(written.samples) == 10
    assert {sample.learned for sample in written.samples} == {
        (True, True, False, False, True, True)
    }
    validator = TrainerValidator(
        source=source, measure=TeacherKL.of(trainer), scores_with_teacher=True
    )
    score = validator(Draw(step=1))
    assert (score.tokens, score.teacher_tokens, score.mean_length) == (40, 40, 4.0)
    # the same tokens, every one scored, and the mean over those of the student
    policies = TeacherKL.of(trainer)
    whole = [
        Sample(prompt_ids=sample.prompt_ids, completion_ids=sample.completion_ids)
        for sample in written.samples
    ]
    values = completion_reverse_kl(policies.student, policies.teacher, whole)
    kept = [[row[i] for i in (0, 1, 4, 5)] for row in values]
    assert score.value == pytest.approx(-mean([mean(row) for row in kept]), rel=1e-5)
    before = list(trainer._metrics["train"]["tools/call_frequency"])
    validator(Draw(step=1))
    assert trainer._metrics["train"]["tools/call_frequency"] == before, "scoring leaves no trace"


def look(number: str) -> str:
    """Looks a number up.

    Args:
        number: The number.

    Returns:
        What is there.
    """
    return "5 ;"


def test_a_step_and_its_search_in_the_trainers_own_loop_of_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL parses the calls of an untrained student, makes them, and has it go on."""
    template = """{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% for call in
        m.get('tool_calls', []) %}{{ call['function'] }}{% endfor %} ; {% endfor %}"""
    monkeypatch.setattr(TOKENIZER, "chat_template", template)
    calls = {
        "open_pattern": r"(?P<number>\d)", "close_pattern": r"\D", "repeats": True,
        "transform": {
            "type": "function",
            "function": {"name": "look", "arguments": {"number": "{number}"}},
        },
    }  # fmt: skip
    answers = {"defaults": {"role": "assistant"}, "start_anchor": "=", "fields": {
        "tool_calls": calls, "content": {},
    }}  # fmt: skip
    monkeypatch.setattr(TOKENIZER, "response_template", answers, raising=False)
    settings = {"max_completion_length": 24, "max_tool_calling_iterations": 1, "max_steps": 1}
    trainer = distillation(tmp_path, tools=[look], **settings)
    callback = EffOPDCallback(trainer, prompts=16)
    trainer.add_callback(callback)
    source = TrainerRolloutSource(
        trainer=trainer, dataset=trainer.train_dataset, prompts=16, resample=True, seed=0
    )
    written = source.rollouts(Draw(step=1)).samples
    replies = [
        [token for token, own in zip(s.completion_ids, s.learned or (), strict=True) if not own]
        for s in written
    ]
    said = trainer._get_tool_suffix_ids([{"role": "tool", "name": "look", "content": "5 ;"}])
    answered = [reply for reply in replies if reply]
    assert answered
    assert all(reply == said * (len(reply) // len(said)) for reply in answered)
    trainer.train()
    (row, *_) = trainer.state.log_history
    assert row["tools/call_frequency"] > 0
    assert row["tools/failure_frequency"] == 0
    tried = read_jsonl(tmp_path / "effopd" / "search.jsonl")
    assert [each["step"] for each in tried] == [1] * len(tried)
    assert all(0 < each["tokens"] < 16 * 24 for each in tried)
