"""How long a text a model is made for, by its configuration."""

from typing import Any

import pytest

from effopd.models.positions import position_limit

YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 512, "text_config": {"max_position_embeddings": 64}}, 64),
        ({"model_type": "mamba"}, None),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": 512, "rope_scaling": None}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"type": "linear", "factor": 2}}, 1024),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "default"}}, 512),
        ({"max_position_embeddings": 512, "rope_parameters": YARN}, 2048),
        (
            {
                "max_position_embeddings": 2048,
                "rope_parameters": YARN | {"original_max_position_embeddings": 512},
            },
            2048,
        ),
        ({"max_position_embeddings": 512, "rope_scaling": {"type": "llama3", "factor": 8}}, 512),
    ],
)
def test_limits(config: dict[str, Any], limit: int | None) -> None:
    assert position_limit(config) == limit
