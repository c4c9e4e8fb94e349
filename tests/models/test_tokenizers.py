"""Tokens at which answers end, and tokens that two models share."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.chat import (
    CHATML,
    SIZE,
    TEXT_END,
    TURN_END,
    chat_model,
    chat_tokenizer,
    save_chat,
)

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.policy import Policy, Sample
from effopd.models.tokenizers import (
    SharedVocabulary,
    end_token_ids,
    end_token_ids_in,
    end_token_remarks,
    shared_vocabulary,
    turn_end_id,
    unused_ids,
)
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine

BASE = chat_tokenizer(eos="<|endoftext|>")
PLAIN = chat_tokenizer()


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
        ([0, 2], 2, (0, 2)), ([2], 2, (0, 2)), (2, None, (0, 2)), (None, 2, (0, 2)),
        (None, [2, 5], (0, 2, 5)), ([5, 2], 1, (0, 5, 2, 1)), (None, None, (0, 2)),
        (50_256, 10**6, (0, 2)), ([5], 1, (0, 5, 1, 2)),
    ],
)  # fmt: skip
def test_ends_come_from_four_places(
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


def test_a_base_model_stops_where_its_chat_template_ends_a_turn(tmp_path: Path) -> None:
    model = chat_model(eos_token_id=TEXT_END)
    assert turn_end_id(BASE) == TURN_END
    assert end_token_ids(BASE, model) == (TEXT_END, TURN_END)
    requests = [Request(prompt_ids=(5, 6), seed=i) for i in range(16)]
    found = HFEngine(model, BASE).generate(requests, Sampling(max_new_tokens=300))
    assert {c.token_ids[-1] for c in found if c.finish_reason == "stop"} == {TEXT_END, TURN_END}
    without = chat_tokenizer(eos="<|endoftext|>", chat=None)
    assert end_token_ids(without, model) == (TEXT_END,)


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
    assert turn_end_id(chat_tokenizer(chat=template)) is None


def test_the_first_special_token_behind_an_answer_is_the_end() -> None:
    template = CHATML.replace("<|im_end|>", " <|endoftext|><|im_end|>")
    assert turn_end_id(chat_tokenizer(chat=template)) == TEXT_END


def test_an_ordinary_token_that_ends_answers_is_told() -> None:
    (remark,) = end_token_remarks(chat_tokenizer(), (TURN_END, 70))
    token = chat_tokenizer().convert_ids_to_tokens(70)
    assert remark.startswith(
        f"answers end with {token!r}, which the tokenizer has as ordinary text"
    )


# Rows without a token -----------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [(), (7, 100)])
def test_rows_without_a_token_are_never_drawn_and_log_probabilities_stay_the_policys(
    holes: tuple[int, ...],
) -> None:
    model = chat_model(SIZE + 5)
    tokenizer = chat_tokenizer()
    for hole in holes:
        without(tokenizer, tokenizer.convert_ids_to_tokens(hole))
    unused = (*holes, *range(SIZE, SIZE + 5))
    assert unused_ids(tokenizer, SIZE + 5) == unused
    with torch.no_grad():
        model.lm_head.weight[list(unused)] = 20 * model.lm_head.weight[[90]]
    requests = [Request(prompt_ids=(5, 6), seed=i) for i in range(12)]
    for size in (SIZE + 5, SIZE + 1, SIZE):
        policy = Policy(model, tokenizer, vocabulary_size=size)
        engine = HFEngine(model, tokenizer, vocabulary_size=size)
        for temperature in (1.0, 0.0):
            sampling = Sampling(max_new_tokens=20, temperature=temperature)
            for request, found in zip(requests, engine.generate(requests, sampling), strict=True):
                assert not {*found.token_ids} & {*unused}
                sample = Sample(prompt_ids=request.prompt_ids, completion_ids=found.token_ids)
                with torch.no_grad():
                    states = policy.states([sample])
                    logits_NV = states.hidden_ND @ policy.head_weight_VD.T
                    log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
                expected = log_probs_NV.gather(1, states.targets_N[:, None])[:, 0]
                assert found.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_without_padding_rows_the_draw_is_the_policys() -> None:
    model, requests = chat_model(), [Request(prompt_ids=(5, 6), seed=i) for i in range(8)]
    sampling = Sampling(max_new_tokens=20)
    padded = chat_model(SIZE + 5)
    padded.load_state_dict(
        {
            name: torch.cat([w, torch.full((5, w.shape[1]), 0.3)]) if len(w) == SIZE else w
            for name, w in model.state_dict().items()
        }
    )
    ours = HFEngine(model, PLAIN).generate(requests, sampling)
    theirs = HFEngine(padded, PLAIN).generate(requests, sampling)
    assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
    cut = HFEngine(padded, PLAIN, vocabulary_size=SIZE).generate(requests, sampling)
    for one, other in zip(ours, cut, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)


# Which tokens student and teacher share -----------------------------------------------------------


def test_the_same_tokens_share_every_row() -> None:
    assert shared_vocabulary(PLAIN, chat_tokenizer(), "x") == SharedVocabulary()


@pytest.mark.parametrize(
    ("student", "teacher", "lists"),
    [
        (chat_tokenizer("<pad>"), PLAIN, "student has '<pad>' (259), only the teacher has none"),
        (
            PLAIN,
            chat_tokenizer("<think>"),
            "student has none, only the teacher has '<think>' (259)",
        ),
        (
            PLAIN,
            chat_tokenizer(*(f"<{i}>" for i in range(6))),
            "has '<0>' (259), '<1>' (260), '<2>' (261), '<3>' (262) and 2 more",
        ),
    ],
)
def test_added_tokens_of_one_side_are_left_out_by_name(
    student: Any, teacher: Any, lists: str
) -> None:
    found = shared_vocabulary(student, teacher, "the teacher")
    assert found.size == SIZE
    assert lists in found.remark
    assert "the student cannot write them; the 259 tokens that both have agree" in found.remark


def test_an_id_with_two_meanings_is_refused_by_name() -> None:
    with pytest.raises(ParameterMismatchError) as error:
        shared_vocabulary(chat_tokenizer("<pad>"), chat_tokenizer("<think>"), "the teacher")
    assert str(error.value).startswith(
        "student and the teacher have different tokenizers: 1 of 260 tokens have other ids "
        "(id 259 is '<pad>' for the student and '<think>' for the teacher)"
    )
    assert "Leave these added tokens out of one of the two tokenizers" in str(error.value)


def test_a_token_with_two_ids_is_refused() -> None:
    teacher = without(chat_tokenizer("<a>", "<b>"), "<a>")
    message = r"1 of 260 tokens have other ids \(id 259 is '<b>' for the student and unknown to the"
    with pytest.raises(ParameterMismatchError, match=message):
        shared_vocabulary(chat_tokenizer("<b>"), teacher, "the teacher")


def without(tokenizer: Any, token: str) -> Any:
    """The same tokenizer, which does not know a token of its vocabulary."""
    vocabulary = {t: i for t, i in tokenizer.get_vocab().items() if t != token}
    tokenizer.get_vocab = lambda: vocabulary
    return tokenizer


@pytest.mark.parametrize("missing", ["A", "\u0120", "<|im_start|>"])
def test_a_hole_among_shared_tokens_is_another_tokenizer(missing: str) -> None:
    for student, teacher in (
        (PLAIN, without(chat_tokenizer(), missing)),
        (without(chat_tokenizer(), missing), PLAIN),
    ):
        with pytest.raises(ParameterMismatchError, match="only added tokens behind all shared"):
            shared_vocabulary(student, teacher, "the teacher")


def test_ordinary_tokens_at_the_end_are_another_tokenizer() -> None:
    last = PLAIN.convert_ids_to_tokens(SIZE - 1)
    with pytest.raises(ParameterMismatchError, match="have different tokenizers, though shared"):
        shared_vocabulary(PLAIN, without(chat_tokenizer(), last), "the teacher")


def test_an_end_token_that_the_teacher_does_not_know_is_refused() -> None:
    student = chat_tokenizer("<end>", eos="<end>")
    assert student.eos_token_id >= SIZE
    with pytest.raises(ParameterMismatchError, match="the teacher does not know '<end>', with"):
        shared_vocabulary(student, PLAIN, "the teacher")
