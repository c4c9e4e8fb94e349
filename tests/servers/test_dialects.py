"""What is asked of vLLM and SGLang, and what is read from what they answer."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effopd.servers.client import IncompleteAnswerError, TransientServerError
from effopd.servers.dialects import Api, SGLangApi, VLLMApi
from effopd.servers.handshake import api_of
from effopd.servers.settings import ServerSettings

VLLM, SGLANG = VLLMApi("qwen"), SGLangApi("qwen")
ASKED: dict[str, Any] = {
    "seed": 2**62 + 3, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7,
    "stop": ("#",), "stop_token_ids": (2, 7),
}  # fmt: skip


def test_flavors() -> None:
    found = [
        api_of(ServerSettings(url="http://h", model="m", flavor=f)) for f in ("vllm", "sglang")
    ]  # type: ignore[arg-type]
    assert [type(api) for api in found] == [VLLMApi, SGLangApi]


# vLLM ---------------------------------------------------------------------------------------------


def test_what_vllm_is_asked_to_write() -> None:
    call = VLLM.generate_request((5, 6), **ASKED)
    assert call.path == "/v1/completions"
    assert call.payload == {
        "model": "qwen", "prompt": [5, 6], "seed": 2**62 + 3, "max_tokens": 9, "temperature": 0.5,
        "top_p": 0.9, "top_k": 7, "stop": ["#"], "include_stop_str_in_output": True,
        "stop_token_ids": [2, 7],
        "skip_special_tokens": False, "logprobs": 0, "return_token_ids": True, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip


def vllm_written(**changes: Any) -> Any:
    plain = {
        "token_ids": [7, 8],
        "logprobs": {"token_logprobs": [-0.5, -1]},
        "finish_reason": "stop",
    }
    return {"choices": [plain | changes]}


def test_what_vllm_wrote() -> None:
    found = VLLM.read_generation(vllm_written())
    assert (found.token_ids, found.log_probs, found.stopped) == ((7, 8), (-0.5, -1.0), True)
    assert not VLLM.read_generation(vllm_written(finish_reason="length")).stopped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": [7]}, "2 log-probabilities for 1 tokens"),
        ({"token_ids": [7, "8"]}, "no list of numbers"),
        ({"token_ids": [7, True]}, "no list of numbers"),
        ({"token_ids": [7, -1]}, "no list of numbers"),
        ({"token_ids": None}, "no list of numbers"),
        ({"logprobs": None}, "without logprobs.token_logprobs"),
        ({"logprobs": {"token_logprobs": 3}}, "no log-probabilities for 2 tokens"),
        ({"finish_reason": "abort"}, "ended by 'abort'"),
        ({"finish_reason": None}, "ended by None"),
    ],
)
def test_what_vllm_cannot_have_written(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TransientServerError, match=message):
        VLLM.read_generation(vllm_written(**changes))


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), None, "-1", True])
def test_log_probabilities_must_be_finite(value: Any) -> None:
    with pytest.raises(IncompleteAnswerError, match="the log-probability of token 1 is"):
        VLLM.read_generation(vllm_written(logprobs={"token_logprobs": [-0.5, value]}))
    with pytest.raises(IncompleteAnswerError):
        SGLANG.read_scores(sglang_scores([[None, 5], [-1, 6], [value, 7]]), (5, 6, 7), 1)


def place(token: int, value: float) -> Any:
    return {str(token): {"logprob": value}, "99": {"logprob": -0.1}}


def vllm_scores(**changes: Any) -> Any:
    plain = {
        "prompt_token_ids": [5, 6, 7],
        "prompt_logprobs": [None, place(6, -1.5), place(7, -2.5)],
    }
    return {"choices": [plain | changes]}


def test_scores_by_vllm() -> None:
    call = VLLM.score_request((5, 6, 7))
    assert call.payload == {
        "model": "qwen", "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0.0,
        "prompt_logprobs": 1, "return_token_ids": True,
    }  # fmt: skip
    assert VLLM.read_scores(vllm_scores(), (5, 6, 7), 1) == (-1.5, -2.5)
    assert VLLM.read_scores(vllm_scores(), (5, 6, 7), 2) == (-2.5,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_token_ids": [5, 6]}, "other tokens than were asked for"),
        ({"prompt_token_ids": [1, 5, 6]}, "other tokens than were asked for"),
        ({"prompt_logprobs": [None, place(6, -1)]}, "2 log-probabilities for 3 tokens"),
        ({"prompt_logprobs": 3}, "no log-probabilities for 3 tokens"),
        ({"prompt_logprobs": [None, place(6, -1), place(8, -1)]}, "without the one of token 7"),
        ({"prompt_logprobs": [None, place(6, -1), []]}, "without the one of token 7"),
    ],
)
def test_broken_scores_by_vllm(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TransientServerError, match=message):
        VLLM.read_scores(vllm_scores(**changes), (5, 6, 7), 1)


def test_reloading_by_vllm() -> None:
    reload, forget = VLLM.reload_requests("/weights")
    assert reload.path == "/collective_rpc"
    assert reload.payload == {
        "method": "reload_weights",
        "kwargs": {"weights_path": "/weights", "is_checkpoint_format": True},
    }
    assert (forget.path, forget.payload) == ("/reset_prefix_cache", {})


# SGLang -------------------------------------------------------------------------------------------


def test_what_sglang_is_asked_to_write() -> None:
    call = SGLANG.generate_request((5, 6), **ASKED)
    assert call.path == "/generate"
    assert call.payload == {
        "input_ids": [5, 6],
        "return_logprob": True,
        "sampling_params": {
            "sampling_seed": 3, "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7,
            "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0,
            "presence_penalty": 0.0, "stop": ["#"], "stop_token_ids": [2, 7], "no_stop_trim": True,
            "skip_special_tokens": False,
        },
    }  # fmt: skip


def test_sglang_keeps_all_tokens_by_minus_one() -> None:
    payload = SGLANG.generate_request((5,), seed=0, max_tokens=1).payload
    assert payload is not None
    assert payload["sampling_params"]["top_k"] == -1


def sglang_written(**changes: Any) -> Any:
    plain = {
        "output_token_logprobs": [[-0.5, 7, None], [-1, 8, None]],
        "finish_reason": {"type": "stop", "matched": 8},
        "completion_tokens": 2,
    }
    return {"meta_info": plain | changes}


def test_what_sglang_wrote() -> None:
    found = SGLANG.read_generation(sglang_written())
    assert (found.token_ids, found.log_probs, found.stopped) == ((7, 8), (-0.5, -1.0), True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completion_tokens": 3}, "2 log-probabilities for 3 tokens"),
        ({"completion_tokens": "2"}, "2 log-probabilities for '2' tokens"),
        ({"output_token_logprobs": [[-0.5]]}, "an answer without 1"),
        ({"output_token_logprobs": None}, "0 log-probabilities for 2 tokens"),
        ({"finish_reason": None}, "without type|without finish_reason.type"),
        ({"finish_reason": {"type": "abort"}}, "ended by 'abort'"),
    ],
)
def test_what_sglang_cannot_have_written(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TransientServerError, match=message):
        SGLANG.read_generation(sglang_written(**changes))


def sglang_scores(entries: Any) -> Any:
    return {"meta_info": {"input_token_logprobs": entries}}


def test_scores_by_sglang() -> None:
    call = SGLANG.score_request((5, 6, 7))
    assert call.payload is not None
    assert call.payload["logprob_start_len"] == 0
    assert call.payload["sampling_params"] == {"max_new_tokens": 1, "temperature": 0.0}
    answer = sglang_scores([[None, 5, None], [-1.5, 6, None], [-2.5, 7, None]])
    assert SGLANG.read_scores(answer, (5, 6, 7), 2) == (-2.5,)
    with pytest.raises(TransientServerError, match="other tokens than were asked for"):
        SGLANG.read_scores(answer, (5, 6, 8), 1)
    with pytest.raises(TransientServerError, match="3 log-probabilities for 2 tokens"):
        SGLANG.read_scores(answer, (5, 6), 1)


def test_reloading_by_sglang() -> None:
    (reload,) = SGLANG.reload_requests("/weights")
    assert (reload.path, reload.payload) == (
        "/update_weights_from_disk",
        {"model_path": "/weights"},
    )


# Likely tokens ------------------------------------------------------------------------------------


def ranked(*entries: tuple[int, int, Any]) -> Any:
    return {str(token): {"logprob": value, "rank": rank} for token, rank, value in entries}


def test_likely_tokens_by_vllm() -> None:
    """The token that was asked for comes first, whatever its rank; ranks decide."""
    payload = VLLM.score_request((5, 6, 7), 2).payload
    assert payload is not None
    assert payload["prompt_logprobs"] == 2
    places = [
        None,
        ranked((6, 9, -4.0), (3, 1, -0.5), (8, 2, -1.5)),
        ranked((7, 2, -2), (4, 1, -1)),
    ]
    answer = vllm_scores(prompt_logprobs=places)
    assert VLLM.read_top(answer, (5, 6, 7), 1, 2) == ([[3, 8], [4, 7]], [[-0.5, -1.5], [-1, -2]])
    assert VLLM.read_scores(answer, (5, 6, 7), 1) == (-4.0, -2.0)
    with pytest.raises(TransientServerError, match="2 likely tokens where 3 were asked for"):
        VLLM.read_top(answer, (5, 6, 7), 2, 3)
    with pytest.raises(TransientServerError, match="without rank"):
        VLLM.read_top(vllm_scores(), (5, 6, 7), 1, 2)


def test_likely_tokens_by_sglang() -> None:
    payload = SGLANG.score_request((5, 6, 7), 2).payload
    assert payload is not None
    assert payload["top_logprobs_num"] == 2
    answer = sglang_scores([[None, 5, None], [-4.0, 6, None], [-2.0, 7, None]])
    tops = [None, [[-0.5, 3, None], [-1.5, 8, None]], [[-1.0, 4, None], [-2.0, 7, None]]]
    answer["meta_info"]["input_top_logprobs"] = tops
    assert SGLANG.read_top(answer, (5, 6, 7), 1, 2) == ([[3, 8], [4, 7]], [[-0.5, -1.5], [-1, -2]])
    answer["meta_info"]["input_top_logprobs"] = tops[1:]
    with pytest.raises(TransientServerError, match="2 log-probabilities for 3 tokens"):
        SGLANG.read_top(answer, (5, 6, 7), 1, 2)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), None, "-1"])
def test_a_missing_value_takes_its_place_along(value: Any) -> None:
    places = [None, ranked((6, 1, -1.0), (3, 2, value)), ranked((7, 1, -1.0), (4, 2, -2.0))]
    with pytest.raises(IncompleteAnswerError, match="in the place of token 0 are missing") as error:
        VLLM.read_top(vllm_scores(prompt_logprobs=places), (5, 6, 7), 1, 2)
    ids, log_probs = error.value.partial
    assert ids == [[0, 0], [7, 4]]
    assert str(log_probs) == "[[nan, nan], [-1.0, -2.0]]"


@pytest.mark.parametrize("answer", [None, {"choices": []}, vllm_scores(prompt_logprobs=None)])
def test_an_answer_without_any_value_by_vllm(answer: Any) -> None:
    with pytest.raises(IncompleteAnswerError, match="no log-probabilities for 2 tokens") as error:
        VLLM.read_scores(answer, (5, 6, 7), 1)
    assert str(error.value.partial) == "(nan, nan)"


@pytest.mark.parametrize("answer", [None, sglang_scores([]), sglang_scores(None)])
def test_an_answer_without_any_value_by_sglang(answer: Any) -> None:
    with pytest.raises(IncompleteAnswerError, match="no log-probabilities for 2 tokens"):
        SGLANG.read_scores(answer, (5, 6, 7), 1)
    with pytest.raises(IncompleteAnswerError) as error:
        SGLANG.read_top(answer, (5, 6, 7), 1, 2)
    assert error.value.partial[0] == [[0, 0], [0, 0]]


# Both ---------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["choices", "token_ids", "prompt_token_ids", "prompt_logprobs", "logprobs", "token_logprobs",
     "meta_info", "output_token_logprobs", "input_token_logprobs", "finish_reason", "type",
     "completion_tokens", "tokens", "max_model_len", "6", "logprob", "rank", "input_top_logprobs"]
)  # fmt: skip
ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["stop", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)


@pytest.mark.parametrize("api", [VLLM, SGLANG], ids=["vllm", "sglang"])
@given(answer=ANSWERS)
def test_any_answer_is_read_or_may_pass(api: Api, answer: Any) -> None:
    reads = (
        api.read_generation,
        api.read_tokens,
        lambda a: api.read_scores(a, (5, 6), 1),
        lambda a: api.read_top(a, (5, 6), 1, 1),
    )
    for read in reads:
        try:
            read(answer)
        except TransientServerError:
            continue


@pytest.mark.parametrize("api", [VLLM, SGLANG], ids=["vllm", "sglang"])
def test_tokens(api: Api) -> None:
    call = api.tokenize_request("3 + 4")
    assert call.path == "/tokenize"
    assert call.payload == {"model": "qwen", "prompt": "3 + 4", "add_special_tokens": False}
    found = api.read_tokens({"tokens": [5, 6], "count": 2, "max_model_len": 64})
    assert found == ((5, 6), 64)
    assert json.dumps(call.payload)
