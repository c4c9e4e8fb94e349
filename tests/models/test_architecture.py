"""What a configuration says about attention and logits, and that models do as it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import make
from transformers import AutoConfig

from effopd.doctor.smoke import byte_tokenizer
from effopd.errors import ConfigError
from effopd.models.architecture import logit_cap, position_limit, read_architecture
from effopd.models.policy import Policy, Sample
from effopd.objectives import token_log_probs
from effopd.rollouts.engine import Request, Sampling
from effopd.rollouts.hf import HFEngine
from effopd.search.selection import RELEASED_NAMES, select_parameters

SAMPLES = [
    Sample(prompt_ids=(5, 6, 7), completion_ids=(8, 9, 2)),
    Sample(prompt_ids=(11,), completion_ids=(12, 40, 41, 2)),
]
STATE_SPACE = {
    "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}  # fmt: skip


def config_only(directory: Path, kind: str, **settings: Any) -> Path:
    """A directory with nothing but a config.json."""
    AutoConfig.for_model(kind, **settings).save_pretrained(directory)
    return directory


# Logits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "factor"),
    [
        ("granite", {"logits_scaling": 4.0}, 1 / 4),
        ("granite", {"logits_scaling": 6.0, "tie_word_embeddings": True}, 1 / 6),
        ("cohere", {"logit_scale": 0.0625}, 0.0625),
        ("cohere2", {"logit_scale": 0.25, "head_dim": 8}, 0.25),
        ("hyperclovax", {"logits_scaling": 0.125}, 0.125),
        ("falcon_h1", {"lm_head_multiplier": 0.3, **STATE_SPACE}, 0.3),
        ("granite", {"logits_scaling": 1.005}, 1 / 1.005),
        ("llama", {}, 1.0),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 0.5}, 1.0),
        ("nanochat", {"final_logit_softcapping": 0.3}, 1.0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_losses_see_the_models_own_distribution(
    kind: str, settings: dict[str, Any], factor: float
) -> None:
    model = make(kind, **settings).eval()
    policy = Policy(model, byte_tokenizer())
    assert policy.logit_factor == pytest.approx(factor, rel=1e-12)
    states = policy.states(SAMPLES)
    assert policy.head_cap == settings.get("final_logit_softcapping")
    head = {"bias": policy.head_bias_V, "cap": policy.head_cap}
    found = token_log_probs(
        states.hidden_ND, policy.head_weight_VD, states.targets_N, **head
    ).log_probs_N
    expected = []
    for sample in SAMPLES:
        ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
        log_probs = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
        expected.append(log_probs.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0])
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-5)
    requests = [Request(prompt_ids=sample.prompt_ids, seed=7) for sample in SAMPLES]
    asked = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=6)
    written = HFEngine(policy.model, policy.tokenizer).generate(requests, asked)
    states = policy.states(
        [
            Sample(prompt_ids=request.prompt_ids, completion_ids=answer.token_ids)
            for request, answer in zip(requests, written, strict=True)
        ]
    )
    scored = token_log_probs(states.hidden_ND, policy.head_weight_VD, states.targets_N, **head)
    engine = torch.tensor([value for answer in written for value in answer.log_probs])
    torch.testing.assert_close(scored.log_probs_N, engine, rtol=1e-4, atol=1e-4)


def test_gradients_go_through_the_factor_and_the_bias() -> None:
    model, twin = (make("granite", logits_scaling=4.0) for _ in range(2))
    for each in (model, twin):
        each.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, len(each.lm_head.weight)))
    policy = Policy(model, byte_tokenizer())
    states = policy.states(SAMPLES[:1])
    token_log_probs(
        states.hidden_ND, policy.head_weight_VD, states.targets_N, bias=policy.head_bias_V
    ).log_probs_N.sum().backward()
    ids = torch.tensor([SAMPLES[0].prompt_ids + SAMPLES[0].completion_ids])
    log_probs = twin(ids).logits[0, 2:-1].log_softmax(-1)
    log_probs.gather(1, torch.tensor(SAMPLES[0].completion_ids)[:, None]).sum().backward()
    for (name, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("kind", "settings", "cap"),
    [
        ("gemma2", {}, 30.0),
        ("nanochat", {}, 15.0),
        ("recurrent_gemma", {}, 30.0),
        ("gemma3", {"text_config": {"final_logit_softcapping": 20.0}}, 20.0),
        ("gemma2", {"final_logit_softcapping": None}, None),
        ("llama", {}, None),
    ],
)
def test_a_soft_cap_is_told_from_the_configuration(
    kind: str, settings: dict[str, Any], cap: float | None, tmp_path: Path
) -> None:
    architecture = read_architecture(config_only(tmp_path, kind, **settings))
    assert logit_cap(architecture.config) == cap


# Attention ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        ("llama", "sdpa"), ("qwen3", "sdpa"), ("gemma3", "sdpa"), ("gpt_oss", "eager"),
        ("bloom", "eager"), ("mpt", "eager"), ("mamba", "eager"), ("mamba2", "eager"),
    ],
)  # fmt: skip
def test_attention_is_what_the_architecture_has(kind: str, attention: str, tmp_path: Path) -> None:
    assert read_architecture(config_only(tmp_path, kind)).attention == attention


@pytest.mark.parametrize("asked", ["sdpa", "flash_attention_2"])
def test_attention_that_an_architecture_lacks_is_refused(asked: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"MptForCausalLM has no attention '{asked}'; .* eager"):
        read_architecture(config_only(tmp_path, "mpt"), attention=asked)


def test_attention_that_is_there_is_taken_as_asked(tmp_path: Path) -> None:
    directory = config_only(tmp_path, "llama")
    for asked in ("eager", "sdpa", "flash_attention_2"):
        assert read_architecture(directory, attention=asked).attention == asked  # type: ignore[arg-type]


# Other architectures ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "florence2", "speech_to_text", "qwen2_5_omni"])
def test_an_architecture_that_is_no_language_model(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{kind}', which is no language model") as refusal:
        read_architecture(config_only(tmp_path, kind))
    assert len(str(refusal.value)) < 400 + len(str(tmp_path))


def test_an_architecture_that_transformers_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama9"}))
    with pytest.raises(ConfigError, match="llama9"):
        read_architecture(tmp_path)


# What a search moves ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("falcon_h1", STATE_SPACE),
        ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}),
        ("granitemoehybrid", {
            "layer_types": ["mamba", "attention"], "mamba_n_heads": 2, "mamba_d_head": 16,
            "mamba_d_state": 8, "mamba_chunk_size": 8, "num_local_experts": 2,
            "num_experts_per_tok": 1, "shared_intermediate_size": 16,
        }),
        ("jamba", {
            "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2,
            "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
            "mamba_dt_rank": 4, "use_mamba_kernels": False,
        }),
        ("mamba", {"state_size": 8}),
        ("mpt", {"d_model": 16, "n_layers": 2, "n_heads": 2}),
        ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_search_moves_every_matrix_but_embeddings_and_head(
    kind: str, settings: dict[str, Any]
) -> None:
    model = make(kind, **settings)
    outside = {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) or module is model.get_output_embeddings()
        for parameter in module.parameters()
    }
    matrices = {n for n, p in model.named_parameters() if p.ndim > 1 and id(p) not in outside}
    assert set(select_parameters(model, "matrices")) == matrices
    assert set(select_parameters(model)) >= matrices


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral", "mixtral", "qwen3_moe"])
def test_of_the_usual_architectures_it_moves_what_the_release_does(kind: str) -> None:
    model = make(kind)
    released = [name for name, _ in model.named_parameters() if RELEASED_NAMES.search(name)]
    assert list(select_parameters(model)) == released


# How long a text a model is made for, by its configuration ----------------------------------------


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
