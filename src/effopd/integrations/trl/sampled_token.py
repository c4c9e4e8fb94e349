"""The paper's objective in TRL: distillation on the sampled tokens, with importance correction."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import DistillationTrainer

from effopd.errors import ConfigError
from effopd.integrations.trl.compatibility import policy_of
from effopd.methods import SampledTokenOPD
from effopd.models.policy import Policy
from effopd.objectives import (
    check_finite,
    importance_weights,
    opd_advantages,
    sampled_token_loss,
    token_log_probs,
)


class SampledTokenTrainer(DistillationTrainer):
    """A DistillationTrainer whose loss pushes each sampled token by `log q - log p`.

    Teacher and student are compared at the sampled token only, where the trainer of TRL compares
    whole distributions: `-sum_n w_n (log q_n - log p_n) log p_n / N`, the bracket and
    `w = min(p_train / p_engine, cap)` without gradient. With vLLM the weights correct for an engine
    whose probabilities differ from the trainer's; Transformers' own generation is the trainer's
    model, and there they are 1. `beta` is not used; `temperature` divides the logits of both.

    Args:
        *args: As for a DistillationTrainer.
        objective: Cap of the weights, and the teacher's temperature.
        **kwargs: As for a DistillationTrainer. The teacher must be in this process; a head that is
            neither linear nor soft-capped raises a ParameterMismatchError. What `tools` write is
            attended to alone.

    Raises:
        ConfigError: `tools` with vLLM: TRL asks the engine again for the answers that called one,
            and does not tell whose probabilities come back.

    Source: equation (9) and section 5 of arXiv 2605.11739. Departure: TRL writes one answer a
    prompt.
    """

    _last_loaded_step: int

    def __init__(self, *args: Any, objective: SampledTokenOPD | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective = objective or SampledTokenOPD()
        # How architectures such as Granite and Gemma 2 scale and cap their logits.
        self._heads = tuple(policy_of(self, model) for model in (self.model, self.teacher_model))
        self._engine_log_probs: list[list[float]] = []
        if self.use_vllm and self.tools:
            raise ConfigError(
                "SampledTokenTrainer cannot tell whose probabilities vLLM gives after a call of a "
                "tool: set use_vllm=False, or use a DistillationTrainer"
            )
        if self.use_vllm:
            self.vllm_generation.logprobs = 0  # that of the sampled token

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, has_tool_images: bool = False
    ) -> list[list[int]]:
        """TRL's, which throws the engine's log-probabilities away."""
        if not self.use_vllm:
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, has_tool_images
            )
        if self.state.global_step != self._last_loaded_step:
            self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        _, completion_ids, log_probs, _ = self.vllm_generation.generate(
            prompts=prompt_ids, images=images, num_generations=1
        )
        self._engine_log_probs = [[first[0] for first in answer] for answer in log_probs]
        return completion_ids

    def _generate_and_score_completions(self, inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Adds the engine's log-probabilities to what a training batch holds."""
        output = super()._generate_and_score_completions(inputs)
        if self.use_vllm:
            width = output["completion_ids"].shape[1]
            rows = [torch.tensor(answer) for answer in self._engine_log_probs]
            padded_BT = pad_sequence([*rows, torch.zeros(width)], batch_first=True)[:-1]
            output["engine_log_probs"] = padded_BT.to(output["completion_ids"].device)
        return output

    def _compute_loss(
        self, unwrapped_student: Any, inputs: Mapping[str, Tensor], num_items_in_batch: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, sum of the student's entropies, and number of completion tokens."""
        kept_BT = inputs["completion_mask"].bool()
        if "tool_mask" in inputs:  # what tools wrote is attended to alone
            kept_BT = kept_BT & inputs["tool_mask"].bool()
        targets_N = inputs["completion_ids"][kept_BT]
        ours, theirs = self._heads
        student_N, entropies_N = self._log_probs(
            unwrapped_student, inputs, kept_BT, targets_N, ours, 1.0
        )
        teacher = self.accelerator.unwrap_model(self.teacher_model.eval())
        with torch.no_grad():
            teacher_N, _ = self._forward_redirection(
                self.teacher_model,
                teacher,
                self._log_probs,
                teacher,
                inputs,
                kept_BT,
                targets_N,
                theirs,
                self.objective.teacher_temperature,
            )
        engine_N = inputs["engine_log_probs"][kept_BT] if self.use_vllm else student_N.detach()
        tokens = kept_BT.sum()
        loss = sampled_token_loss(
            student_N,
            opd_advantages(student_N, teacher_N),
            importance_weights(student_N, engine_N, self.objective.importance_cap),
            float(tokens if num_items_in_batch is None else num_items_in_batch),
        )
        check_finite(loss, student=student_N, teacher=teacher_N, engine=engine_N)
        return loss, entropies_N.sum(), tokens

    def _log_probs(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        kept_BT: Tensor,
        targets_N: Tensor,
        policy: Policy,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the completion tokens kept, and entropies, nats."""
        hidden_BTD = self._get_last_hidden_state(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
        )
        head = model.get_output_embeddings()
        found = token_log_probs(
            hidden_BTD[kept_BT],
            head.weight,
            targets_N,
            bias=head.bias,
            cap=None if policy.head_cap is None else policy.head_cap / policy.logit_factor,
            temperature=self.temperature * temperature / policy.logit_factor,
        )
        return found.log_probs_N, found.entropies_N
