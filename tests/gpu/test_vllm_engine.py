"""The in-process vLLM engine on a GPU: the student's text, new weights, sleep, determinism.

Skipped where vLLM is not installed; the logic around it is tested with a stand-in elsewhere.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from effopd.data.world import TinyWorld, make_tokenizer
from effopd.models.loading import ModelSettings, load_model
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.settings import VLLMSettings
from effopd.rollouts.vllm import VLLMEngine, open_vllm

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WORLD = TinyWorld()
TOKENIZER = make_tokenizer(WORLD)
SAMPLING = Sampling(max_new_tokens=16)
ASKED = [Request(prompt_ids=tuple(range(3, 8 + i % 4)), seed=11 * i) for i in range(32)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    directory = tmp_path_factory.mktemp("student")
    config = Qwen3Config(
        vocab_size=len(TOKENIZER), hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=256,
        eos_token_id=TOKENIZER.eos_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    settings = ModelSettings(path=str(directory), dtype="bfloat16")
    return load_model(settings, "cuda"), directory


@pytest.fixture(scope="module")
def engine(student: tuple[Any, Path]) -> Iterator[VLLMEngine]:
    model, directory = student
    settings = VLLMSettings(gpu_memory=0.2, eager=True)
    found = open_vllm(
        settings, str(directory), model, TOKENIZER, vocabulary_size=len(TOKENIZER), longest=64
    )
    found.sync_weights()  # compares vLLM's log-probabilities with the student's
    yield found
    found.close()


def test_same_seeds_same_text(engine: VLLMEngine) -> None:
    first = engine.generate(ASKED, SAMPLING)
    again = engine.generate(ASKED, SAMPLING)
    same = sum(a.token_ids == b.token_ids for a, b in zip(first, again, strict=True))
    assert same >= len(ASKED) - 1
    assert len({completion.token_ids for completion in first}) > len(ASKED) // 2


@torch.no_grad()
def test_log_probabilities_are_those_of_the_student(
    engine: VLLMEngine, student: tuple[Any, Path]
) -> None:
    for request, written in zip(ASKED, engine.generate(ASKED, SAMPLING), strict=True):
        whole = torch.tensor([request.prompt_ids + written.token_ids], device="cuda")
        log_probs = torch.log_softmax(student[0](whole).logits[0].float(), -1)
        start = len(request.prompt_ids) - 1
        rows = log_probs[start:-1].gather(1, whole[0, start + 1 :, None])[:, 0].tolist()
        difference = sum(abs(a - b) for a, b in zip(rows, written.log_probs, strict=True))
        assert difference / len(rows) < 0.05


def test_new_weights_write_after_a_sync(engine: VLLMEngine, student: tuple[Any, Path]) -> None:
    before = engine.generate(ASKED, SAMPLING)
    student[0].lm_head.weight.data.neg_()
    engine.sync_weights()
    after = engine.generate(ASKED, SAMPLING)
    student[0].lm_head.weight.data.neg_()
    engine.sync_weights()
    assert sum(a.token_ids != b.token_ids for a, b in zip(before, after, strict=True)) > 16
