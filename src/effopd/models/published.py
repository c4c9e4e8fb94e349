"""Sizes of published models, for estimates where no file of them is at hand."""

from collections.abc import Mapping
from typing import Any

PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "1.5B": (
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        {
            "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960,
            "vocab_size": 151936, "tie_word_embeddings": False,
        },
    ),
    "4B": (
        "Qwen/Qwen3-4B",
        {
            "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "intermediate_size": 9728, "vocab_size": 151936, "tie_word_embeddings": True,
        },
    ),
    "14B": (
        "Qwen/Qwen3-14B",
        {
            "model_type": "qwen3", "hidden_size": 5120, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128,
            "intermediate_size": 17408, "vocab_size": 151936, "tie_word_embeddings": False,
        },
    ),
    "32B": (
        "Qwen/Qwen2.5-32B",
        {
            "model_type": "qwen2", "hidden_size": 5120, "num_hidden_layers": 64,
            "num_attention_heads": 40, "num_key_value_heads": 8, "intermediate_size": 27648,
            "vocab_size": 152064, "tie_word_embeddings": False,
        },
    ),
    "671B": (
        "deepseek-ai/DeepSeek-V3",
        {
            "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61,
            "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "v_head_dim": 128, "intermediate_size": 18432, "first_k_dense_replace": 3,
            "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048, "vocab_size": 129280, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
"""Size -> repository, and what counts of its config.json.

The students of arXiv 2605.11739, and a mixture of experts (arXiv 2412.19437, section 4.2, without
its module for multi-token prediction, which `transformers` does not train).
"""
