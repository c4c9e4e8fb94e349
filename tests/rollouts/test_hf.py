"""What is particular to the engine that runs transformers.generate."""

from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, ids, tiny_model
from transformers import GenerationConfig

from effopd.errors import NonFiniteError
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import FinishRecorder, HFEngine

PROMPT = ids("<bos> 3 + 4 * 2 =")
REQUESTS = [Request(prompt_ids=PROMPT[: 2 + i], seed=i) for i in range(4)]
SAMPLING = Sampling(max_new_tokens=12)

SHIPPED = {  # what model cards ship, and what would show if it leaked in
    "do_sample": True,
    "temperature": 0.3,
    "top_k": 2,
    "top_p": 0.5,
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 2,
    "suppress_tokens": [3, 4, 5],
    "bad_words_ids": [[6]],
    "max_new_tokens": 3,
    "num_return_sequences": 1,
}


def tokens_of(model: Any) -> list[tuple[int, ...]]:
    return [c.token_ids for c in HFEngine(model, TOKENIZER).generate(REQUESTS, SAMPLING)]


def test_generation_settings_of_the_model_have_no_influence() -> None:
    model = tiny_model()
    expected = tokens_of(model)
    shipped = GenerationConfig(**SHIPPED)
    model.generation_config = shipped
    assert tokens_of(model) == expected
    assert model.generation_config is shipped
    assert model.generation_config.to_dict() == GenerationConfig(**SHIPPED).to_dict()


@pytest.mark.parametrize("name", ["repetition_penalty", "suppress_tokens", "max_new_tokens"])
def test_generation_settings_would_have_had_influence(name: str) -> None:
    model, prompt = tiny_model(), torch.tensor([PROMPT])
    plain = {"max_new_tokens": 12, "pad_token_id": 0}
    written = [
        model.generate(prompt, generation_config=GenerationConfig(**settings))[0].tolist()
        for settings in (plain, plain | {name: SHIPPED[name]})
    ]
    assert written[0] != written[1]


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_settings_come_back_also_after_an_error(training: bool) -> None:
    model = tiny_model().train(training)
    settings = model.generation_config
    engine = HFEngine(model, TOKENIZER)
    engine.generate(REQUESTS, SAMPLING)
    assert model.training is training
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        engine.generate(REQUESTS, SAMPLING)
    assert model.training is training
    assert model.generation_config is settings


def test_dropout_is_off() -> None:
    model = tiny_model()
    expected = tokens_of(model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert tokens_of(model.train()) == expected


def test_no_gradient_is_kept() -> None:
    model = tiny_model()
    tokens_of(model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_padding_token_in_the_prompt_is_a_token_like_any_other() -> None:
    model, prompt = tiny_model(), (*PROMPT[:3], TOKENIZER.pad_token_id, *PROMPT[3:])
    engine = HFEngine(model, TOKENIZER)
    longer = Request(prompt_ids=PROMPT * 2, seed=9)
    alone, _ = engine.generate([Request(prompt_ids=prompt, seed=1), longer], SAMPLING)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert alone.log_probs[0] == pytest.approx(logits[alone.token_ids[0]].item(), abs=1e-4)


class ByteTokenizer:
    """Tokens are bytes, as in byte-level vocabularies, where one character spans several."""

    eos_token_id = 0

    def batch_decode(self, rows: torch.Tensor) -> list[str]:
        return [bytes(row.tolist()).decode(errors="replace") for row in rows]


@pytest.mark.parametrize("stop", ["é", "日本", "a b", "x"])
def test_stop_strings_of_many_bytes_are_found_when_their_last_byte_is_there(stop: str) -> None:
    text = ("..." * 20 + stop).encode()
    finish = FinishRecorder((1, 0), (stop,), ByteTokenizer(), [0], torch.device("cpu"))
    done = [finish(torch.tensor([list(text[: n + 1])]), None).item() for n in range(len(text))]
    assert done == [False] * (len(text) - 1) + [True]
    assert finish.lengths_B.tolist() == [len(text)]


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({}, [4]),
        ({"batch_size": 3}, [3, 1]),
        ({"batch_tokens": 15 + 15}, [2, 1, 1]),  # prompts of 2, 3, 4 and 5 tokens, 12 to write
        ({"batch_tokens": 3 * 16}, [3, 1]),
        ({"batch_tokens": 3 * 16, "batch_size": 2}, [2, 2]),
        ({"batch_tokens": 1}, [1, 1, 1, 1]),
    ],
    ids=str,
)
def test_requests_are_decoded_together_within_both_limits(
    limits: dict[str, int], sizes: list[int]
) -> None:
    model, found = tiny_model(), []

    def noted(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] > 1:  # the prompts, not single tokens after them
            found.append(len(kwargs["input_ids"]))

    expected = tokens_of(model)
    watch = model.register_forward_pre_hook(noted, with_kwargs=True)
    engine = HFEngine(model, TOKENIZER, **limits)  # type: ignore[arg-type]
    assert [c.token_ids for c in engine.generate(REQUESTS, SAMPLING)] == expected
    watch.remove()
    assert found == sizes
    assert engine.generate([], SAMPLING) == []


def test_answers_to_one_prompt_read_it_once_and_are_those_of_each_alone() -> None:
    model, read = tiny_model(), []
    prompts = [PROMPT, PROMPT[:4], PROMPT, PROMPT, PROMPT[:4], PROMPT[:3]]
    requests = [Request(prompt_ids=prompt, seed=i) for i, prompt in enumerate(prompts)]
    engine = HFEngine(model, TOKENIZER)
    alone = [engine.generate([request], SAMPLING)[0].token_ids for request in requests]
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    together = engine.generate(requests, SAMPLING)
    assert [completion.token_ids for completion in together] == alone
    assert read[:2] == [3 * (len(PROMPT) - 1), len(prompts)]


def test_finished_answers_are_left_out_and_the_others_stay_what_they_were() -> None:
    model, rows, sampling = tiny_model(), [], Sampling(max_new_tokens=60)
    requests = [Request(prompt_ids=PROMPT[: 2 + i % 5], seed=i) for i in range(24)]
    engine = HFEngine(model, TOKENIZER)
    alone = [engine.generate([request], sampling)[0] for request in requests]
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    together = engine.generate(requests, sampling)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    assert len({c.finish_reason for c in alone}) == 2
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert len(set(rows[1:])) > 2
