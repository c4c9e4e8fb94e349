"""Tiny models together with the sizes that are read from their config.json."""

import json
from pathlib import Path
from typing import Any

from tests.support.architectures import make

from effopd.models.shape_tensors import ModelShape
from effopd.models.shapes import shape_of

DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 12, "q_lora_rank": 10,
    "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 5,
    "num_key_value_heads": 2, "num_nextn_predict_layers": 0, "num_hidden_layers": 3,
}  # fmt: skip


def model_and_shape(kind: str, directory: Path, **sizes: Any) -> tuple[Any, ModelShape]:
    model = make(kind, **(DEEPSEEK if kind == "deepseek_v3" else {}) | sizes)
    model.config.save_pretrained(directory)
    path = directory / "config.json"
    return model, shape_of(json.loads(path.read_text()), path)
