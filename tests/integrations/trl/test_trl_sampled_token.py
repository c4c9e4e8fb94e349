"""The paper's objective in TRL against logits written out, and as a trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import TOKENIZER
from tests.support.architectures import make
from tests.support.learning import assert_same, gradient
from tests.support.trl import distillation
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.integrations.trl import SampledTokenTrainer
from effopd.methods import SampledTokenOPD


def batch() -> dict[str, Tensor]:
    """Prompts of 3 and 2 tokens, completions of 2 and 3."""
    pad = TOKENIZER.pad_token_id
    return {
        "prompt_ids": torch.tensor([[1, 5, 6], [pad, 1, 7]]),
        "prompt_mask": torch.tensor([[1, 1, 1], [0, 1, 1]]),
        "completion_ids": torch.tensor([[8, 9, pad], [10, 4, 2]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }


def log_probs(model: Any, temperature: float) -> Tensor:
    """Log-probabilities of the completion tokens, from each sequence's whole logits."""
    inputs, found = batch(), []
    for row in range(2):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        logits_TV = model(torch.cat([prompt, completion])[None]).logits[0] / temperature
        places = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        found.append(logits_TV.log_softmax(-1)[places, completion])
    return torch.cat(found)


@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(1.0, 1.0), (0.7, 0.5)])
def test_gradient_is_that_of_the_sampled_tokens(
    tmp_path: Path, temperature: float, teacher_temperature: float
) -> None:
    check_gradient(tmp_path, SampledTokenTrainer, temperature, teacher_temperature)


class Scaled(SampledTokenTrainer):
    """Student and teacher multiply their logits, each by another number."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for seed, (name, divisor) in enumerate({"model": 4.0, "teacher_model": 0.5}.items()):
            kwargs[name] = make(
                "granite", seed=seed, rows=len(TOKENIZER), logits_scaling=divisor
            ).eval()
        super().__init__(*args, **kwargs)


def test_gradient_is_that_of_the_logits_that_an_architecture_scales(tmp_path: Path) -> None:
    check_gradient(tmp_path, Scaled, 0.7, 0.5)


def check_gradient(
    output: Path,
    kind: type[SampledTokenTrainer],
    temperature: float,
    teacher_temperature: float,
) -> None:
    trainer = distillation(output, kind=kind, temperature=temperature)
    trainer.objective = SampledTokenOPD(teacher_temperature=teacher_temperature)
    student, teacher = trainer.model.double(), trainer.teacher_model.double()
    ours_N = log_probs(student, temperature)
    advantages_N = log_probs(teacher, temperature * teacher_temperature) - ours_N
    (-(advantages_N.detach() * ours_N).sum() / 5).backward()
    expected = gradient(student.parameters())
    loss, entropy, tokens = trainer._compute_loss(student, batch(), torch.tensor(5.0))
    loss.backward()
    assert tokens == 5
    assert entropy > 0
    assert_same(gradient(student.parameters()), expected)


def test_a_head_that_is_not_linear_is_refused(tmp_path: Path) -> None:
    class Capped(SampledTokenTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["model"].register_forward_hook(soft_capped)
            super().__init__(*args, **kwargs)

    with pytest.raises(ParameterMismatchError, match="soft-capped"):
        distillation(tmp_path, kind=Capped)


def soft_capped(module: Any, inputs: Any, outputs: Any) -> Any:
    outputs.logits = 30 * torch.tanh(outputs.logits / 30)
    return outputs


def test_what_a_tool_wrote_is_attended_to_alone(tmp_path: Path) -> None:
    """The gradient is that of the other tokens' sum, after the same tokens."""
    trainer = distillation(tmp_path, kind=SampledTokenTrainer)
    student, teacher = trainer.model.double(), trainer.teacher_model.double()
    tool_mask = torch.tensor([[1, 1, 1], [1, 0, 1]])  # TRL pads with ones
    kept_N = torch.tensor([True, True, True, False, True])
    ours_N = log_probs(student, 1.0)
    advantages_N = (log_probs(teacher, 1.0) - ours_N).detach()
    (-(advantages_N * ours_N)[kept_N].sum() / 4).backward()
    expected = gradient(student.parameters())
    inputs = batch() | {"tool_mask": tool_mask}
    loss, _, tokens = trainer._compute_loss(student, inputs, torch.tensor(4.0))
    loss.backward()
    assert_same(gradient(student.parameters()), expected)
    assert int(tokens) == 4
    all_own = batch() | {"tool_mask": torch.ones_like(tool_mask)}
    plain, marked = (trainer._compute_loss(student, each, None)[0] for each in (batch(), all_own))
    assert torch.equal(plain, marked)


def test_tools_with_vllm_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(self: Any, *args: Any, **kwargs: Any) -> None:
        self.use_vllm, self.tools = True, [len]
        self.model, self.teacher_model = None, None

    monkeypatch.setattr("trl.DistillationTrainer.__init__", pretend)
    monkeypatch.setattr(
        "effopd.integrations.trl.sampled_token.policy_of",
        lambda trainer, model: type("Policy", (), {"logit_factor": 1.0}),
    )
    with pytest.raises(ConfigError, match="whose probabilities vLLM gives after a call of a tool"):
        SampledTokenTrainer()
