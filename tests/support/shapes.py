"""Sizes of a tiny DeepSeek-V3: latent attention, and experts from the second layer on."""

from typing import Any

DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 12, "q_lora_rank": 10,
    "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 5,
    "num_key_value_heads": 2, "num_nextn_predict_layers": 0, "num_hidden_layers": 3,
}  # fmt: skip
