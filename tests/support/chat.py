"""A tokenizer of bytes with a chat template, and small models of any architecture for it."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT_END, TURN_START, TURN_END = range(3)
SIZE = 259
"""Tokens of `chat_tokenizer` without more."""

transformers_logging.disable_progress_bar()


def chat_tokenizer(
    *more: str, eos: str = "<|im_end|>", chat: str | None = CHATML, pad: str = "<|endoftext|>"
) -> Any:
    """Three special tokens, the bytes, and `more` special tokens behind them."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({t: i for i, t in enumerate(special + alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, pad_token=pad)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *more]})
    found.chat_template = chat
    return found


def chat_model(rows: int = SIZE, *, kind: str = "llama", seed: int = 0, **more: Any) -> Any:
    """An untrained model whose head has `rows` rows."""
    sizes = {
        "vocab_size": rows, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": TURN_END,
        "pad_token_id": TEXT_END,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | more))).eval()


def save_chat(directory: Path, tokenizer: Any = None, model: Any = None) -> Path:
    """Writes both as transformers does; returns `directory`."""
    (model or chat_model()).save_pretrained(directory)
    (tokenizer or chat_tokenizer()).save_pretrained(directory)
    return directory
