"""A model may end its answers with several tokens, and names them in three places."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.chat import (
    CHATML,
    TEXT_END,
    TURN_END,
    chat_model,
    chat_tokenizer,
    save_chat,
)

from effopd.errors import ConfigError
from effopd.models.end_tokens import end_token_ids, end_token_ids_in, end_token_remarks
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine

BASE = chat_tokenizer(eos="<|endoftext|>")


def edited(directory: Path, name: str, **changes: Any) -> Path:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def loaded(directory: Path) -> tuple[Any, Any]:
    settings = ModelSettings(path=str(directory))
    return load_model(settings), load_tokenizer(settings)


def test_an_answer_ends_at_every_end_token(tmp_path: Path) -> None:
    model, tokenizer = loaded(
        edited(save_chat(tmp_path / "m", BASE), "generation_config.json", eos_token_id=[0, 2])
    )
    requests = [Request(prompt_ids=(5, 6), seed=i) for i in range(16)]
    found = HFEngine(model, tokenizer).generate(requests, Sampling(max_new_tokens=300))
    ends = {TEXT_END, TURN_END}
    assert {c.token_ids[-1] for c in found if c.finish_reason == "stop"} == ends, "both occur"
    assert all(not ends & {*c.token_ids[:-1]} for c in found)
    assert all((c.finish_reason == "stop") == (c.token_ids[-1] in ends) for c in found)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ([0, 2], 2, (0, 2)),
        ([2], 2, (0, 2)),
        (2, None, (0, 2)),
        (None, 2, (0, 2)),
        (None, [2, 5], (0, 2, 5)),
        ([5, 2], 1, (0, 5, 2, 1)),
        (None, None, (0,)),
        (50_256, 10**6, (0,)),
    ],
)
def test_ends_come_from_three_places(
    tmp_path: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    save_chat(tmp_path, BASE, chat_model(eos_token_id=None))
    edited(tmp_path, "config.json", eos_token_id=config)
    edited(tmp_path, "generation_config.json", eos_token_id=generation)
    model, tokenizer = loaded(tmp_path)
    assert end_token_ids(tokenizer, model) == expected
    assert end_token_ids_in(tmp_path, tokenizer) == expected


def test_without_generation_settings_the_configuration_counts(tmp_path: Path) -> None:
    (save_chat(tmp_path, BASE) / "generation_config.json").unlink()
    model, tokenizer = loaded(tmp_path)
    assert end_token_ids(tokenizer, model) == end_token_ids_in(tmp_path, tokenizer) == (0, 2)


@pytest.mark.parametrize("content", ["{", "\ufeff{}", "[]"])
def test_damaged_generation_settings_are_refused(tmp_path: Path, content: str) -> None:
    """Transformers passes over them, and their end tokens would be lost without a word."""
    (save_chat(tmp_path) / "generation_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"generation_config\.json is damaged"):
        loaded(tmp_path)


def test_of_several_towers_the_text_counts(tmp_path: Path) -> None:
    (save_chat(tmp_path, BASE) / "generation_config.json").unlink()
    edited(tmp_path, "config.json", eos_token_id=[5], text_config={"eos_token_id": 2})
    assert end_token_ids_in(tmp_path, BASE) == (0, 5, 2)


def test_a_visible_end_token_is_no_part_of_the_text() -> None:
    model = chat_model(eos_token_id=None)
    model.generation_config.eos_token_id = [70]
    requests = [Request(prompt_ids=(5, 6), seed=i) for i in range(8)]
    found = HFEngine(model, BASE).generate(requests, Sampling(max_new_tokens=300))
    ended = [c for c in found if c.token_ids[-1] == 70]
    assert ended
    for completion in ended:
        assert completion.finish_reason == "stop"
        assert completion.text == BASE.decode(completion.token_ids[:-1], skip_special_tokens=True)


def test_a_turn_that_ends_with_another_token_is_told() -> None:
    (remark,) = end_token_remarks(BASE, (TEXT_END,))
    assert remark == (
        "the chat template ends a turn with '<|im_end|>', but answers end with '<|endoftext|>': "
        "add 2 to eos_token_id in generation_config.json, or set sampling.stop = ['<|im_end|>']"
    )
    assert not list(end_token_remarks(BASE, (TEXT_END, TURN_END)))
    assert not list(end_token_remarks(chat_tokenizer(), (TURN_END,)))


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ messages[0]['content'] }}",
        "{% for m in messages %}{{ m['content'] }}\n\n{% endfor %}",
        "{% if messages | length > 1 %}{{ raise_exception('one question') }}{% endif %}",
    ],
)
def test_templates_that_say_nothing_about_the_end(template: str | None) -> None:
    assert not list(end_token_remarks(chat_tokenizer(chat=template), (TEXT_END,)))


def test_the_first_special_token_behind_an_answer_is_the_end() -> None:
    template = CHATML.replace("<|im_end|>", " <|endoftext|><|im_end|>")
    assert not list(end_token_remarks(chat_tokenizer(chat=template), (TEXT_END,)))


def test_an_ordinary_token_that_ends_answers_is_told() -> None:
    (remark,) = end_token_remarks(chat_tokenizer(), (TURN_END, 70))
    token = chat_tokenizer().convert_ids_to_tokens(70)
    assert remark.startswith(
        f"answers end with {token!r}, which the tokenizer has as ordinary text"
    )
