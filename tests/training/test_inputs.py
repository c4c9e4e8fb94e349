"""Whole runs on tokenizers, templates and data as users bring them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.chat import CHATML, SIZE, chat_model, chat_tokenizer, save_chat
from tests.support.tiny import train_tiny

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.lora import LoraStudent, add_adapters_, factor_pairs, save_adapters
from effopd.records import read_json, read_jsonl
from effopd.training.config import Config, make_config
from effopd.training.run import config_of_run

PLAIN = [{"prompt": f"{i} + {i}?", "answer": str(2 * i)} for i in range(12)]


def run_config(
    directory: Path, rows: Sequence[Any] = PLAIN, overrides: Sequence[str] = (), **settings: Any
) -> Config:
    """A run of one step on `student` and `teacher` in the directory; both are made if need be."""
    for name, seed in (("student", 0), ("teacher", 1)):
        if not (directory / name).exists():
            save_chat(directory / name, model=chat_model(seed=seed))
    (directory / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(directory / "p.jsonl"), "prompt_field": "prompt"}
    raw: dict[str, Any] = {
        "method": "opd",
        "student": {"path": str(directory / "student")},
        "teacher": {"path": str(directory / "teacher")},
        "task": {"type": "dataset", "test_size": 2, "verifier": "none", "train": source},
        "sampling": {"max_new_tokens": 4},
        "train": {"steps": 1, "prompts_per_step": 4},
        "evaluation": {"problems": 2, "recorded": 2},
        "checkpoint": {"every": 1},
    }
    return make_config(raw | settings, overrides)


def said(config: Config, out: Path) -> list[str]:
    is_over, messages = train_tiny(config, out)
    assert is_over
    return messages


def test_one_token_more_in_the_student_trains_with_a_remark(tmp_path: Path) -> None:
    save_chat(tmp_path / "student", chat_tokenizer("<pad>", pad="<pad>"), chat_model(SIZE + 1))
    save_chat(tmp_path / "teacher", model=chat_model(320, seed=1))
    messages = said(run_config(tmp_path), tmp_path / "run")
    remark = "only the student has '<pad>' (259), only the teacher has none: these tokens are left"
    assert [message for message in messages if message.startswith(remark)]
    (row,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert row["skipped"] is None
    assert 0 < row["reverse_kl"] < 10


def test_a_prompt_with_a_token_that_the_teacher_does_not_know_is_refused(tmp_path: Path) -> None:
    template = CHATML.replace("assistant\n", "assistant\n<think>")
    save_chat(tmp_path / "student", chat_tokenizer("<think>", chat=template), chat_model(SIZE + 1))
    with pytest.raises(ParameterMismatchError, match="holds '<think>', token 259, which is not"):
        said(run_config(tmp_path), tmp_path / "run")


@pytest.mark.parametrize("eos_token_id", [[0, 2], 0])
def test_all_ends_are_recorded_that_of_the_templates_turns_too(
    tmp_path: Path, eos_token_id: int | list[int]
) -> None:
    base = chat_tokenizer(eos="<|endoftext|>")
    save_chat(tmp_path / "student", base, chat_model(eos_token_id=eos_token_id))
    said(run_config(tmp_path), tmp_path / "run")
    ends = read_json(tmp_path / "run" / "run.json")["end_tokens"]
    assert ends == {"<|endoftext|>": 0, "<|im_end|>": 2}


def test_a_teacher_without_a_template_is_evaluated_with_the_students(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(chat=None)
    save_chat(tmp_path / "teacher", tokenizer, chat_model(seed=1))
    messages = said(run_config(tmp_path), tmp_path / "run")
    assert "the teacher has no chat template: its own evaluation uses the student's" in messages
    assert {row["model"] for row in read_jsonl(tmp_path / "run" / "evals.jsonl")} == {
        "student", "teacher",
    }  # fmt: skip


def test_a_student_without_a_template_is_named(tmp_path: Path) -> None:
    save_chat(tmp_path / "student", chat_tokenizer(chat=None))
    message = rf"{tmp_path}/student has no chat template: set prompt\.chat = false, or write one"
    with pytest.raises(ConfigError, match=message):
        said(run_config(tmp_path), tmp_path / "run")


def test_arguments_of_the_template_are_given_and_those_without_effect_refused(
    tmp_path: Path,
) -> None:
    reading = chat_tokenizer(chat="{{ 'deep ' if thinking }}" + CHATML)
    save_chat(tmp_path / "student", reading)
    config = run_config(tmp_path, overrides=["prompt.template_kwargs={thinking=true}"])
    messages = said(config, tmp_path / "run")
    assert (
        "the chat template of the teacher never reads 'thinking' (prompt.template_kwargs): in its "
        "own evaluation they have no effect"
    ) in messages
    assert "thinking = true" in (tmp_path / "run" / "config.toml").read_text()
    assert config_of_run(tmp_path / "run").prompt.template_kwargs == {"thinking": True}
    config = run_config(tmp_path, overrides=["prompt.template_kwargs.thinkng=true"])
    with pytest.raises(ConfigError, match="template_kwargs has 'thinkng', which the chat template"):
        said(config, tmp_path / "b")


def test_conversations_are_asked_whole_and_answers_at_the_end_counted(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
    rows = [{"prompt": [user, answer, user | {"content": f"+{i}?"}, answer]} for i in range(12)]
    template = "{% for m in messages %}{{ m['content'] }},{% endfor %}"
    save_chat(tmp_path / "student", chat_tokenizer(chat=template))
    config = run_config(tmp_path, rows)
    messages = said(config, tmp_path / "run")
    assert (
        f"{tmp_path}/p.jsonl: 12 of 12 rows kept; answers left out at the end of 12 conversations"
    ) in messages
    (counts,) = read_json(tmp_path / "run" / "run.json")["problems"]
    assert counts["answered"] == 12


def test_the_day_of_the_start_stays_in_the_prompts(tmp_path: Path) -> None:
    template = "{{ strftime_now('%Y') }}{{ messages[0].content }}"
    save_chat(tmp_path / "student", chat_tokenizer(chat=template))
    run = tmp_path / "run"
    config = run_config(tmp_path, train={"steps": 2, "prompts_per_step": 4})
    train_tiny(config, run, stop_after=1)
    info = read_json(run / "run.json")
    assert config_of_run(run).prompt.date == info["date"]
    (run / "run.json").write_text(json.dumps(info | {"date": "1999-12-31"}))
    said(config, run)
    assert read_json(run / "run.json")["date"] == "1999-12-31"
    assert config_of_run(run).prompt.date == "1999-12-31"
    assert 'date = "' not in (run / "config.toml").read_text(), "another day is no other setting"


def test_prompts_without_answers_name_the_way_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}"} for i in range(8)]
    config = run_config(tmp_path, rows, overrides=["task.verifier=math"])
    with pytest.raises(ConfigError, match=r'are kept by task\.verifier = "none"'):
        said(config, tmp_path / "run")


def test_rows_that_are_left_out_say_why(tmp_path: Path) -> None:
    image = [{"role": "user", "content": [{"type": "image"}]}]
    messages = said(run_config(tmp_path, [*PLAIN, {"prompt": image}]), tmp_path / "run")
    assert (
        f"the first row that cannot be read: {tmp_path}/p.jsonl line 13: field 'prompt' has a part "
        "of type 'image'; prompts are text alone"
    ) in messages


def test_engines_that_would_write_tokens_of_the_student_alone_are_refused(tmp_path: Path) -> None:
    save_chat(tmp_path / "student", chat_tokenizer("<pad>"), chat_model(SIZE + 1))
    config = run_config(tmp_path, rollouts={"engine": "vllm"})
    message = "'vllm' may write any of the student's 260 tokens, of which the teacher knows 259"
    with pytest.raises(ConfigError, match=message):
        said(config, tmp_path / "run")


def test_too_few_prompts_say_what_was_left_out(tmp_path: Path) -> None:
    config = run_config(tmp_path, [PLAIN[0]] * 8)
    with pytest.raises(ConfigError, match=r"lower test_size \(.*7: the prompt of an earlier row\)"):
        said(config, tmp_path / "run")


def test_a_shape_of_conversation_that_the_template_refuses_stops_before_the_run(
    tmp_path: Path,
) -> None:
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    save_chat(tmp_path / "student", chat_tokenizer(chat=refusal + CHATML))
    system = {"role": "system", "content": "s"}
    rows: list[Any] = [*PLAIN]
    rows[3] = {"prompt": [system, {"role": "user", "content": "q"}]}
    with pytest.raises(ConfigError, match=r"refuses prompt p-4: no system .*system = 'drop'"):
        said(run_config(tmp_path, rows), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_teacher_whose_template_refuses_is_needed_for_its_own_evaluation_alone(
    tmp_path: Path,
) -> None:
    config = run_config(tmp_path)
    save_chat(tmp_path / "teacher", chat_tokenizer(chat="{{ raise_exception('no') }}"))
    remedy = r"teacher refuses prompt p-\d+: no. Only .* own eval.*evaluation.teacher = false"
    with pytest.raises(ConfigError, match=remedy):
        said(config, tmp_path / "run")
    unmeasured = replace(config.evaluation, teacher=False)
    said(config.model_copy(update={"evaluation": unmeasured}), tmp_path / "other")


def test_a_teacher_of_a_base_and_an_adapter_teaches_as_the_merged_model_does(
    tmp_path: Path,
) -> None:
    run_config(tmp_path)
    base = chat_model(seed=1)
    add_adapters_(base, LoraStudent(r=2, alpha=4.0))
    generator = torch.Generator().manual_seed(0)
    parameters = dict(base.named_parameters())
    merged = chat_model(seed=1)
    for left, right in factor_pairs(base):
        module = right.removesuffix(".lora_A.default.weight")
        with torch.no_grad():
            parameters[left].normal_(std=0.3, generator=generator)
            weight = merged.get_submodule(module).weight
            weight += 2.0 * parameters[left] @ parameters[right]
    (tmp_path / "adapter").mkdir()
    save_adapters(base, tmp_path / "adapter")
    save_chat(tmp_path / "merged", model=merged)
    lora = {"adapter": str(tmp_path / "adapter"), "r": 2, "alpha": 4.0}
    teachers = {
        "base": {"path": str(tmp_path / "teacher")},
        "adapted": {"path": str(tmp_path / "teacher"), "lora": lora},
        "merged": {"path": str(tmp_path / "merged")},
    }
    found = {}
    for name, teacher in teachers.items():
        config = run_config(tmp_path, teacher=teacher)
        said(config, tmp_path / name)
        (row,) = read_jsonl(tmp_path / name / "metrics.jsonl")
        found[name] = row["reverse_kl"]
    assert found["adapted"] == pytest.approx(found["merged"], rel=1e-4)
    assert found["adapted"] != pytest.approx(found["base"], rel=1e-2)


def test_an_adapter_as_the_path_of_a_teacher_is_refused_with_what_to_write(tmp_path: Path) -> None:
    run_config(tmp_path)
    base = chat_model(seed=1)
    add_adapters_(base, LoraStudent(r=2, alpha=4.0))
    (tmp_path / "adapter").mkdir()
    save_adapters(base, tmp_path / "adapter")
    config = run_config(tmp_path, teacher={"path": str(tmp_path / "adapter")})
    with pytest.raises(ConfigError, match=r"this directory as lora\.adapter"):
        train_tiny(config, tmp_path / "run")
