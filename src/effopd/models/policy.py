"""A causal language model as packed hidden states and a head.

Legend: N completion tokens of a batch, D hidden width, V vocabulary rows, B sequences, T positions.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effopd.errors import ParameterMismatchError
from effopd.models.end_tokens import end_token_ids, token_names


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt and what the student wrote, as token ids.

    Attributes:
        prompt_ids: At least one token.
        completion_ids: Sampled tokens, the end-of-sequence token included.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class PackedStates:
    """Hidden states that predict each completion token, sequences concatenated.

    Attributes:
        hidden_ND: After the final norm, in the model's dtype.
        targets_N: The completion tokens.
        lengths: Completion tokens of each sequence; sums to N.
    """

    hidden_ND: Float[Tensor, "N D"]
    targets_N: Int[Tensor, " N"]
    lengths: tuple[int, ...]


class Policy:
    """A model and its tokenizer, seen by the objectives.

    Args:
        model: Hugging Face causal language model whose logits are a plain linear head of its last
            hidden state; checked with a probe.
        tokenizer: Its tokenizer, with a padding token.
        vocabulary_size: Head rows used; fewer than the head has when padding rows are trimmed.
        during: Entered around every forward pass, for a model that has to be put into a state
            first. It may be entered within itself.

    Raises:
        ParameterMismatchError: The logits are not `hidden @ head.T + bias` (soft-capping, scaling),
            or the head has fewer rows than asked for.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        vocabulary_size: int | None = None,
        during: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.during = during
        self._head = model.get_output_embeddings()
        rows = self._head.weight.shape[0]
        self.vocabulary_size = rows if vocabulary_size is None else vocabulary_size
        if not 0 < self.vocabulary_size <= rows:
            raise ParameterMismatchError(
                f"the head has {rows} rows; vocabulary_size must be 1 to {rows}, got "
                f"{vocabulary_size}"
            )
        self._check_head()

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.device

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens at which its answers end."""
        return end_token_ids(self.tokenizer, self.model)

    @property
    def head_weight_VD(self) -> Float[Tensor, "V D"]:
        """Rows of the output head that belong to the vocabulary."""
        return self._rows(self._head.weight)

    @property
    def head_bias_V(self) -> Float[Tensor, " V"] | None:
        """The head's bias, if it has one."""
        return None if self._head.bias is None else self._rows(self._head.bias)

    def _rows(self, parameter: Tensor) -> Tensor:
        """The parameter itself where nothing is trimmed: slicing would copy its gradient."""
        untrimmed = parameter.shape[0] == self.vocabulary_size
        return parameter if untrimmed else parameter[: self.vocabulary_size]

    def states(self, samples: Sequence[Sample]) -> PackedStates:
        """Hidden states predicting each completion token; gradients flow if enabled.

        Sequences are right-padded, one forward pass: callers choose the micro-batch.

        Args:
            samples: B sequences.

        Returns:
            The N = sum of completion lengths states, in order.
        """
        sequences = [s.prompt_ids + s.completion_ids for s in samples]
        self.check_known(map(max, sequences))
        width = max(map(len, sequences))
        ids_BT = torch.full((len(samples), width), self.tokenizer.pad_token_id)
        attention_BT = torch.zeros(len(samples), width, dtype=torch.long)
        predicts_BT = torch.zeros(len(samples), width, dtype=torch.bool)
        for row, (sample, sequence) in enumerate(zip(samples, sequences, strict=True)):
            ids_BT[row, : len(sequence)] = torch.tensor(sequence)
            attention_BT[row, : len(sequence)] = 1
            predicts_BT[row, len(sample.prompt_ids) - 1 : len(sequence) - 1] = True
        hidden_BTD = self._forward(ids_BT, attention_BT)
        targets = [token for sample in samples for token in sample.completion_ids]
        return PackedStates(
            hidden_BTD[predicts_BT.to(hidden_BTD.device)],
            torch.tensor(targets, dtype=torch.long, device=hidden_BTD.device),
            tuple(len(s.completion_ids) for s in samples),
        )

    def check_known(self, token_ids: Iterable[int]) -> None:
        """Refuses tokens beyond the vocabulary.

        Raises:
            ParameterMismatchError: One is; names it.
        """
        largest = max(token_ids, default=0)
        if largest >= self.vocabulary_size:
            raise ParameterMismatchError(
                f"a prompt or an answer holds {token_names(self.tokenizer, (largest,))}, token "
                f"{largest}, which is not among the {self.vocabulary_size} that student and "
                "teacher share: leave it out of data and chat template, or choose a teacher that "
                "has it"
            )

    def _forward(self, ids_BT: Tensor, attention_BT: Tensor) -> Tensor:
        with self.during():
            hidden_BTD: Tensor = self.model.base_model(
                input_ids=ids_BT.to(self.device),
                attention_mask=attention_BT.to(self.device),
                use_cache=False,
            ).last_hidden_state
        return hidden_BTD

    @torch.no_grad()
    def _check_head(self) -> None:
        """Compares the head on its own with the model's own logits on four tokens.

        The head's output is amplified on its way, as a soft cap does little to small logits.
        """
        training = self.model.training
        self.model.eval()
        amplify = self._head.register_forward_hook(lambda head, inputs, logits: 100 * logits)
        try:
            with self.during():
                ids_BT = torch.arange(4, device=self.device)[None] % self.vocabulary_size
                attention_BT = torch.ones_like(ids_BT)
                expected = self.model(input_ids=ids_BT, attention_mask=attention_BT).logits.float()
                found = self._head(self._forward(ids_BT, attention_BT)).float()
        finally:
            amplify.remove()
            self.model.train(training)
        if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2, equal_nan=True):
            raise ParameterMismatchError(
                f"the logits of {type(self.model).__name__} are not its head applied to its last "
                "hidden state (largest relative difference "
                f"{((found - expected).abs().max() / found.abs().max()).item():.2g}): soft-capped "
                "or scaled logits are not supported"
            )
