"""Our policy gradient against TRL's GRPO trainer: advantages, loss, gradient of every parameter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER, tiny_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from effopd.methods import PolicyGradient
from effopd.models.policy import Policy, Sample
from effopd.objectives import (
    clipped_surrogate,
    group_advantages,
    k3_divergence,
    token_log_probs,
    token_weights,
)

# TRL 1.16 sets and asks for what transformers 5.24 has renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing. is deprecated:FutureWarning"
)

LONGEST = 9
TOLERANCE = 1e-5
CASES: list[tuple[str, PolicyGradient]] = [
    ("grpo", replace(PolicyGradient.grpo(), kl_coefficient=0.04)),
    ("grpo", replace(PolicyGradient.grpo(), kl_coefficient=0.0, clip_low=0.1, clip_high=0.4)),
    ("dapo", PolicyGradient()),
    ("dapo", PolicyGradient(kl_coefficient=0.5)),
    ("bnpo", PolicyGradient(kl_coefficient=0.04, clip_high=0.2)),
    ("dr_grpo", PolicyGradient.dr_grpo()),
    ("dr_grpo", replace(PolicyGradient.dr_grpo(), kl_coefficient=0.04)),
]


class Batch:
    """Six responses of two prompts, unequal in length, and numbers for each of their tokens."""

    def __init__(self, policy: Policy) -> None:
        rng = torch.Generator().manual_seed(3)
        size = len(TOKENIZER)

        def draw(length: int) -> tuple[int, ...]:
            return tuple(torch.randint(3, size, (length,), generator=rng).tolist())

        prompts = [draw(4), draw(6)]
        self.lengths = [3, 9, 1, 5, 7, 4]
        self.samples = [
            Sample(prompt_ids=prompts[i // 3], completion_ids=draw(length))
            for i, length in enumerate(self.lengths)
        ]
        self.advantages_S = torch.randn(6, generator=rng)
        with torch.no_grad():
            exact_N = log_probs(policy, self.samples)
        spread = torch.randn(2, len(exact_N), generator=rng) * 0.4
        self.old_N, self.reference_N = exact_N + spread[0], exact_N + spread[1]

    def for_trl(self, part: slice) -> dict[str, Tensor]:
        """Prompts padded on the left, responses on the right."""
        samples, lengths = self.samples[part], self.lengths[part]
        prompts = [torch.tensor(sample.prompt_ids) for sample in samples]
        longest = max(map(len, prompts))
        completions = [torch.tensor(sample.completion_ids) for sample in samples]
        return {
            "prompt_ids": pad_sequence(prompts, batch_first=True, padding_side="left"),
            "prompt_mask": torch.stack(
                [torch.arange(longest) >= longest - len(p) for p in prompts]
            ).long(),
            "completion_ids": pad_sequence(completions, batch_first=True),
            "completion_mask": padded(torch.ones(sum(lengths)), lengths).long(),
            "advantages": self.advantages_S[part],
            "old_per_token_logps": padded(self.tokens(self.old_N, part), lengths),
            "ref_per_token_logps": padded(self.tokens(self.reference_N, part), lengths),
            "num_items_in_batch": torch.tensor(sum(self.lengths)),
        }

    def tokens(self, values_N: Tensor, part: slice) -> Tensor:
        """The numbers of some responses' tokens."""
        return torch.cat(values_N.split(self.lengths)[part])

    def loss(self, policy: Policy, settings: PolicyGradient, part: slice) -> tuple[Tensor, float]:
        """Ours: the part's share of the loss, and the share of its tokens that was clipped."""
        lengths = self.lengths[part]
        log_probs_N = log_probs(policy, self.samples[part])
        advantages_N = self.advantages_S[part].repeat_interleave(torch.tensor(lengths))
        surrogate = clipped_surrogate(
            log_probs_N,
            self.tokens(self.old_N, part),
            advantages_N,
            settings.clip_low,
            settings.clip_high,
        )
        divergence_N = k3_divergence(log_probs_N, self.tokens(self.reference_N, part))
        weights_N = token_weights(
            lengths,
            settings.aggregation,
            longest=LONGEST,
            sequences=len(self.lengths),
            tokens=sum(self.lengths),
        )
        per_token_N = surrogate.loss_N + settings.kl_coefficient * divergence_N
        return (
            weights_N.to(per_token_N) * per_token_N
        ).sum(), surrogate.clipped_N.double().mean().item()


def padded(values_N: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence(values_N.split(lengths), batch_first=True)


def log_probs(policy: Policy, samples: list[Sample]) -> Tensor:
    states = policy.states(samples)
    return token_log_probs(
        states.hidden_ND, policy.head_weight_VD, states.targets_N, bias=policy.head_bias_V
    ).log_probs_N


def make_trainer(folder: Path, *, rollouts: Any = None, rewards: Any = len, **settings: Any) -> Any:
    """A GRPO trainer of the tiny model, which it reads from a folder, as it does its reference."""
    from datasets import Dataset
    from transformers import Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    tiny_model().save_pretrained(folder)
    config = GRPOConfig(
        output_dir=str(folder),
        max_completion_length=LONGEST,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        use_bias_correction_kl=False,
        **({"per_device_train_batch_size": 6, "num_generations": 3} | settings),
    )
    return GRPOTrainer(
        model=Qwen3ForCausalLM.from_pretrained(folder),
        reward_funcs=rewards,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
        processing_class=TOKENIZER,
        rollout_func=rollouts,
    )


def options(loss_type: str, settings: PolicyGradient) -> dict[str, Any]:
    return {
        "loss_type": loss_type,
        "beta": settings.kl_coefficient,
        "epsilon": settings.clip_low,
        "epsilon_high": settings.clip_high,
    }


def gradients(model: Any) -> dict[str, Tensor]:
    """Every parameter's gradient, taken out."""
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    largest = max(g.abs().max().item() for g in expected.values())
    assert largest > 1e-3
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() <= TOLERANCE * largest, name


@pytest.mark.parametrize(("loss_type", "settings"), CASES)
def test_loss_gradient_and_clipped_share_are_trls(
    loss_type: str, settings: PolicyGradient, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, **options(loss_type, settings))
    model = trainer.model.eval()
    policy = Policy(model, TOKENIZER)
    batch, everything = Batch(policy), slice(None)

    expected = trainer.compute_loss(model, batch.for_trl(everything))
    expected.backward()
    wanted = gradients(model)
    found, clipped_share = batch.loss(policy, settings, everything)
    found.backward()

    assert found.item() == pytest.approx(expected.item(), rel=TOLERANCE, abs=TOLERANCE)
    assert_same_gradients(gradients(model), wanted)
    (share,) = trainer._metrics["eval"]["clip_ratio/region_mean"]
    assert clipped_share == pytest.approx(share)
    assert 0.05 < clipped_share < 0.95


@pytest.mark.parametrize(("loss_type", "settings"), [c for c in CASES if c[0] != "bnpo"])
def test_accumulated_micro_batches_are_trls(
    loss_type: str, settings: PolicyGradient, tmp_path: Path
) -> None:
    """TRL's bnpo is left out: it averages over each micro-batch's own tokens."""
    halves = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    trainer = make_trainer(tmp_path, **options(loss_type, settings), **halves)
    trainer.current_gradient_accumulation_steps = 2  # set by the training loop
    model = trainer.model.train()
    policy = Policy(model, TOKENIZER)
    batch = Batch(policy)
    parts = slice(0, 3), slice(3, 6)

    expected = [trainer.compute_loss(model, batch.for_trl(part)) for part in parts]
    torch.stack(expected).sum().backward()
    wanted = gradients(model)
    found = [batch.loss(policy, settings, part)[0] for part in parts]
    torch.stack(found).sum().backward()

    for ours, theirs in zip(found, expected, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=TOLERANCE, abs=TOLERANCE)
    assert_same_gradients(gradients(model), wanted)


@pytest.mark.parametrize(("scale", "theirs"), [("std", "group"), ("none", "none")])
def test_group_advantages_are_trls(
    scale: Any, theirs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns of `rollout_func` otherwise
    rewards_GR = torch.tensor([[1.0, 0.0, 0.25], [0.5, 0.5, 0.5]])

    def written(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [[1, 5]] * len(prompts),
            "completion_ids": [[3, 4, 2]] * len(prompts),
            "logprobs": None,
            "reward": rewards_GR.flatten().tolist(),
        }

    def given(reward: list[float], **columns: Any) -> list[float]:
        return reward

    trainer = make_trainer(tmp_path, rollouts=written, rewards=given, scale_rewards=theirs)
    scored = trainer._generate_and_score_completions([{"prompt": p} for p in "aaabbb"])
    expected = scored["advantages"].view(2, 3)
    assert torch.allclose(group_advantages(rewards_GR, scale), expected, rtol=0, atol=1e-6)
    assert expected[0].abs().min() > 0.1
