"""The in-process engine around a stand-in for `vllm.LLM`: order of calls, sync, refusals."""

import importlib.util
from typing import Any

import pytest
from tests.fakes import TOKENIZER, ids, tiny_model
from tests.support.fake_vllm import FakeLLM

from effopd.errors import ConfigError, MissingExtraError, NonFiniteError, ServerError
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.settings import VLLMSettings
from effopd.rollouts.vllm import VLLMEngine, open_vllm, sampling_arguments

SIZE = len(TOKENIZER)
ASKED = [Request(prompt_ids=ids("<bos> 3 + 4 ="), seed=i) for i in range(3)]
SHORT = Sampling(max_new_tokens=5)


def engine_of(model: Any, *, sleep: bool = True, size: int = SIZE) -> tuple[VLLMEngine, FakeLLM]:
    llm = FakeLLM(model, TOKENIZER)
    settings = VLLMSettings(sleep=sleep)
    engine = VLLMEngine(llm, dict, model, TOKENIZER, vocabulary_size=size, settings=settings)
    return engine, llm


def test_it_sleeps_between_rollouts_and_wakes_for_weights_first() -> None:
    engine, llm = engine_of(tiny_model())
    engine.sync_weights()
    engine.generate(ASKED, SHORT)
    engine.generate(ASKED, SHORT)
    engine.close()
    assert llm.calls == [
        ("sleep", 1),
        ("wake", "weights"), ("rpc", "load_weights_"), ("wake", "kv_cache"), "reset",
        ("generate", 1),  # the comparison with the student
        ("generate", 3), ("sleep", 1),
        ("wake", "weights", "kv_cache"), ("generate", 3), ("sleep", 1),
        ("sleep", 1),
    ]  # fmt: skip


def test_without_sleep_it_stays_awake() -> None:
    engine, llm = engine_of(tiny_model(), sleep=False)
    engine.sync_weights()
    engine.generate(ASKED, SHORT)
    assert llm.calls == [("rpc", "load_weights_"), "reset", ("generate", 1), ("generate", 3)]


def test_nothing_asked_wakes_nobody() -> None:
    engine, llm = engine_of(tiny_model())
    assert engine.generate([], SHORT) == []
    assert llm.calls == [("sleep", 1)]


def test_weights_that_did_not_arrive_are_noticed() -> None:
    model = tiny_model()
    engine, llm = engine_of(model)
    llm.drops_weights = True
    engine.sync_weights()
    model.lm_head.weight.data.neg_()
    with pytest.raises(ServerError, match="does not have the student's weights after a sync"):
        engine.sync_weights()


def test_nan_is_not_brought_over() -> None:
    model = tiny_model()
    engine, llm = engine_of(model)
    model.lm_head.weight.data[3].fill_(float("nan"))
    before = list(llm.calls)
    engine.sync_weights()
    assert llm.calls == before
    with pytest.raises(NonFiniteError, match="logits are not finite"):
        engine.generate(ASKED, SHORT)


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    engine, _ = engine_of(tiny_model(), size=2)
    with pytest.raises(ServerError, match="the student's vocabulary has 2"):
        engine.generate(ASKED, SHORT)


def test_what_vllm_is_asked() -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, max_new_tokens=9, stop=("#",))
    assert sampling_arguments(2**62, sampling, [2, 7], [9]) == {
        "seed": 2**62, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7,
        "stop": ["#"], "include_stop_str_in_output": True, "skip_special_tokens": False,
        "logprobs": 0, "stop_token_ids": [2, 7], "logit_bias": {9: -100.0},
    }  # fmt: skip
    assert sampling_arguments(1, sampling, [2], [])["logit_bias"] is None


def test_rows_without_a_token_are_biased_away() -> None:
    model = tiny_model()
    model.resize_token_embeddings(SIZE + 3)
    engine, llm = engine_of(model)
    asked = []

    def listen(prompts: Any, parameters: Any, *, use_tqdm: bool) -> Any:
        asked.extend(parameters)
        return FakeLLM.generate(llm, prompts, parameters, use_tqdm=use_tqdm)

    llm.generate = listen  # type: ignore[method-assign]
    engine.generate(ASKED, SHORT)
    never = dict.fromkeys(range(SIZE, SIZE + 3), -100.0)
    assert [each["logit_bias"] for each in asked] == [never] * len(ASKED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu_memory": 0.0}, "gpu_memory must be above 0 and below 1, got 0.0"),
        ({"gpu_memory": 1.0}, "gpu_memory must be above 0 and below 1"),
        ({"tolerance_nats": 0.0}, "tolerance_nats must be positive, got 0.0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VLLMSettings(**settings)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    with pytest.raises(MissingExtraError, match=r"pip install 'effopd\[vllm\]'"):
        open_vllm(VLLMSettings(), "base", tiny_model(), TOKENIZER, vocabulary_size=SIZE, longest=64)
