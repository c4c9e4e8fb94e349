"""A causal language model as packed hidden states and a head.

Legend: N learned completion tokens of a batch, D hidden width, V vocabulary rows, B sequences, T
positions.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerateDecoderOnlyOutput

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.models.architecture import CAPS, FACTORS, logit_cap, logit_factors
from effopd.models.tokenizers import end_token_ids, token_names
from effopd.objectives.projection import Head

T = TypeVar("T")

CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"
"""What transformers calls keys and values, from 5.24 on and before."""
_PADDING_TOKENS = 512
"""About what a pass costs beside its tokens."""
_AMPLIFICATION = 1e4
"""Brings the logits of an untrained model beyond every soft cap in use, which are below 100."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt of at least one token and the completion sampled for it, its end token included.

    `learned` marks the completion's tokens that are learned and scored, None for all: the rest,
    what an environment wrote between them, is attended to alone.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    learned: tuple[bool, ...] | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def learned_ids(self) -> tuple[int, ...]:
        """The completion's learned tokens, in order."""
        return learned_only(self.completion_ids, self.learned)


def learned_only(values: Sequence[T], learned: Sequence[bool] | None) -> tuple[T, ...]:
    """Of one value per token those of learned tokens; None for all."""
    if learned is None:
        return tuple(values)
    return tuple(value for value, is_learned in zip(values, learned, strict=True) if is_learned)


@dataclass(frozen=True)
class PackedStates:
    """Hidden states that predict each learned token of the completions, sequences concatenated."""

    hidden_ND: Float[Tensor, "N D"]  # after the final norm, times the policy's `logit_factor`
    targets_N: Int[Tensor, " N"]  # the learned tokens
    lengths: tuple[int, ...]  # learned tokens of each sequence; sums to N


class Policy:
    """A model and its tokenizer, seen by the objectives.

    Args:
        model: Hugging Face causal language model whose logits are its linear head of its last
            hidden state, times a constant and soft-capped where its config.json says so; checked
            with a probe.
        tokenizer: Its tokenizer, with a padding token.
        vocabulary_size: Head rows used; fewer than the head has when padding rows are trimmed.
        during: Entered around every forward pass, for a model that has to be put into a state
            first. It may be entered within itself.

    Attributes:
        passes: Tokens that it has read so far in `states`, those with gradient three times: a
            backward pass costs two forward passes.
        head_rows: Of a frozen model, the rows of its head in the order of another's tokens; None is
            the first `vocabulary_size`. They are copied once.
        logit_factor: That constant. Hidden states and the head's bias are multiplied by it, so that
            losses need not know of it.
        head_cap: Bound of soft-capped logits `cap * tanh(logits / cap)`, which whoever multiplies
            by the head has to apply; None without one.

    Raises:
        ParameterMismatchError: The logits are something else, or the head has fewer rows than asked
            for.
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
        self.passes = 0
        self._head = model.get_output_embeddings()
        rows = self._head.weight.shape[0]
        self.vocabulary_size = rows if vocabulary_size is None else vocabulary_size
        if not 0 < self.vocabulary_size <= rows:
            raise ParameterMismatchError(
                f"the head has {rows} rows; vocabulary_size must be 1 to {rows}, got "
                f"{vocabulary_size}"
            )
        self.head_rows: tuple[int, ...] | None = None
        self._chosen_rows: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        # Models that see images keep the positions of their rows beside the cache.
        self._may_share = not any("rope_deltas" in vars(each) for each in model.modules())
        self.logit_factor, self.head_cap = self._factor_and_cap()

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
        """The head's bias times `logit_factor`, if it has one."""
        if self._head.bias is None:
            return None
        return self._scaled(self._rows(self._head.bias))

    def head(self, hidden_ND: Float[Tensor, "N D"]) -> Head:
        """Hidden states with what turns them into logits."""
        return Head(hidden_ND, self.head_weight_VD, self.head_bias_V, self.head_cap)

    def states(self, samples: Sequence[Sample]) -> PackedStates:
        """Hidden states predicting each learned token; gradients flow if enabled.

        B sequences, right-padded, in one forward pass: callers choose the micro-batch.
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
            learned = True if sample.learned is None else torch.tensor(sample.learned)
            predicts_BT[row, len(sample.prompt_ids) - 1 : len(sequence) - 1] = learned
        shared = self._shared(samples)
        hidden_BTD = self._forward(ids_BT, attention_BT, shared)
        read = sum(map(len, sequences)) - shared * (len(samples) - 1)
        self.passes += (3 if hidden_BTD.requires_grad else 1) * read
        found = [sample.learned_ids for sample in samples]
        return PackedStates(
            self._scaled(hidden_BTD[predicts_BT.to(hidden_BTD.device)]),
            torch.tensor(list(chain(*found)), dtype=torch.long, device=hidden_BTD.device),
            tuple(map(len, found)),
        )

    def check_known(self, token_ids: Iterable[int]) -> None:
        """Refuses tokens beyond the vocabulary with ParameterMismatchError."""
        largest = max(token_ids, default=0)
        if largest >= self.vocabulary_size:
            raise ParameterMismatchError(
                f"a prompt or an answer holds {token_names(self.tokenizer, (largest,))}, token "
                f"{largest}, which is not among the {self.vocabulary_size} that student and "
                "teacher share: leave it out of data and chat template, or choose a teacher that "
                "has it"
            )

    def _shared(self, samples: Sequence[Sample]) -> int:
        """How many first tokens of the prompts are read once for all samples; 0 reads them all.

        Without gradients alone, and where it saves more than a pass costs. Each sample keeps at
        least the last token of its prompt, which predicts the answer's first.
        """
        if torch.is_grad_enabled() or self.model.training or not self._may_share:
            return 0
        prompts = [sample.prompt_ids[:-1] for sample in samples]
        first, last = min(prompts), max(prompts)  # between them in order, so is the shared start
        shared = next(
            (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
            min(len(first), len(last)),
        )
        return shared if shared * (len(samples) - 1) >= _PADDING_TOKENS else 0

    def _forward(self, ids_BT: Tensor, attention_BT: Tensor, shared: int = 0) -> Tensor:
        """Last hidden states [B, T, D]; zeros at the first `shared` tokens, which rows share."""
        ids_BT, attention_BT = ids_BT.to(self.device), attention_BT.to(self.device)
        given: dict[str, Any] = {"use_cache": False}
        with self.during():
            if shared:
                read = self.model.base_model(input_ids=ids_BT[:1, :shared], use_cache=True)
                cache = getattr(read, CACHE)
                self._may_share = all(type(layer) is DynamicLayer for layer in cache.layers)
                if self._may_share:
                    cache.batch_repeat_interleave(len(ids_BT))
                    given = {"use_cache": True, CACHE: cache}
                else:  # such as a recurrent state, or a window that drops what it has passed
                    shared = 0
            hidden_BTD: Tensor = self.model.base_model(
                input_ids=ids_BT[:, shared:], attention_mask=attention_BT, **given
            ).last_hidden_state
        return nn.functional.pad(hidden_BTD, (0, 0, shared, 0)) if shared else hidden_BTD

    def _rows(self, parameter: Tensor) -> Tensor:
        """The parameter itself where nothing is trimmed: slicing would copy its gradient."""
        if self.head_rows is not None:
            key = id(parameter), self.head_rows
            if key not in self._chosen_rows:
                self._chosen_rows[key] = parameter.detach()[list(self.head_rows)]
            return self._chosen_rows[key]
        untrimmed = parameter.shape[0] == self.vocabulary_size
        return parameter if untrimmed else parameter[: self.vocabulary_size]

    def _scaled(self, tensor: Tensor) -> Tensor:
        return tensor if self.logit_factor == 1 else tensor * self.logit_factor

    @torch.no_grad()
    def _factor_and_cap(self) -> tuple[float, float | None]:
        """What becomes of the head's output, told by the model's own logits on four tokens.

        The output is amplified on its way: far beyond every soft cap in use where config.json names
        none, and to twice the one it names, so that both the slope and the bend show.
        """
        model, name = self.model, type(self.model).__name__
        config = getattr(model, "config", None)
        factors: tuple[float, ...] = (1.0,)
        cap: float | None = None
        if config is not None:
            factors, cap = logit_factors(config), logit_cap(config)
        training = model.training
        model.eval()
        strength = _AMPLIFICATION

        def amplified(head: Any, inputs: Any, logits: Tensor) -> Tensor:
            nonlocal strength
            if cap is not None:
                strength = 2 * cap / logits.abs().max().item()
            return strength * logits.float()

        amplify = self._head.register_forward_hook(amplified)
        try:
            with self.during():
                ids_BT = torch.arange(4, device=self.device)[None] % self.vocabulary_size
                attention_BT = torch.ones_like(ids_BT)
                # The whole model first: sharded ones are set up by that.
                expected = model(input_ids=ids_BT, attention_mask=attention_BT).logits.float()
                amplify.remove()
                found = self._head(self._forward(ids_BT, attention_BT)).float()
                tolerance = head_tolerance(self._head.weight)
        finally:
            amplify.remove()
            model.train(training)
        # The nearest of what the settings may mean has to be the model's own logits.
        nearest, factor, bound = math.inf, 1.0, cap
        for each, limit in itertools.product(factors, dict.fromkeys((cap, None))):
            made = each * strength * found
            made = made if limit is None else limit * torch.tanh(made / limit)
            apart = ((made - expected).abs().max() / made.abs().max()).item()
            if apart < nearest:
                nearest, factor, bound = apart, each, limit
        if tolerance < nearest < math.inf:  # infinite where the weights hold NaN
            raise ParameterMismatchError(
                f"the logits of {name} are not its head applied to its last hidden state (largest "
                f"relative difference {nearest:.2g}), nor that times or soft-capped by a setting "
                f"of its config.json ({', '.join((*FACTORS, *CAPS))}): such an architecture is not "
                "supported"
            )
        return factor, bound


def head_tolerance(weight_VD: Float[Tensor, "V D"]) -> float:
    """How far two computations of the same logits may be apart, relative to the largest.

    A few rounding errors of the lowest precision that takes part: that of the head, or of autocast
    where the caller is under it.
    """
    kind = weight_VD.device.type
    precisions = [torch.finfo(weight_VD.dtype).eps]
    if torch.is_autocast_enabled(kind):
        precisions.append(torch.finfo(torch.get_autocast_dtype(kind)).eps)
    return max(1e-3, 4 * max(precisions))


def micro_batches(
    lengths: Sequence[int], *, tokens: int, sequences: int | None = None
) -> Iterator[list[int]]:
    """Indices of consecutive sequences in micro-batches within the limits, by their lengths.

    `tokens` limits the padded size, the longest sequence times their number, and `sequences` that
    number. A single sequence longer than `tokens` forms a micro-batch of its own.
    """
    if tokens < 1 or (sequences is not None and sequences < 1):
        raise ConfigError(
            f"a micro-batch holds at least one token and one sequence, got tokens = {tokens}, "
            f"sequences = {sequences}"
        )
    batch: list[int] = []
    longest = 0
    for i, length in enumerate(lengths):
        padded = max(longest, length) * (len(batch) + 1)
        if batch and (padded > tokens or len(batch) == sequences):
            yield batch
            batch, longest = [], 0
        batch.append(i)
        longest = max(longest, length)
    if batch:
        yield batch


def sorted_micro_batches(
    lengths: Sequence[int], *, tokens: int, sequences: int | None = None
) -> Iterator[list[int]]:
    """`micro_batches` of sequences by ascending length, with little padding in any of them.

    One more pass is cheaper than much padding: at most `_PADDING_TOKENS` or a tenth of a portion.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for places in micro_batches([lengths[i] for i in order], tokens=tokens, sequences=sequences):
        batch: list[int] = []
        held = 0
        for i in (order[place] for place in places):
            padded = (len(batch) + 1) * lengths[i]
            padding = padded - held - lengths[i]
            if batch and padding > max(_PADDING_TOKENS, padded // 10):
                yield batch
                batch, held = [], 0
            batch.append(i)
            held += lengths[i]
        yield batch


class Offloaded:
    """Puts a frozen model on a device inside a `with` block, which may be entered within itself.

    The host keeps its copy, so leaving only drops the other: weights of a frozen model never travel
    back. The output head stays on the device, since scores are products with it.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._device = torch.device(device)
        head = {id(p) for p in model.get_output_embeddings().to(self._device).parameters()}
        self._moved: list[nn.Parameter | Tensor] = [
            tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in head
        ]
        pins = self._device.type == "cuda"
        self._host = [t.detach().pin_memory() if pins else t.detach() for t in self._moved]
        self._leave()
        self._entered = 0

    def __call__(self) -> "Offloaded":
        """Itself, to be entered."""
        return self

    def __enter__(self) -> None:
        if self._entered == 0:
            for tensor, host in zip(self._moved, self._host, strict=True):
                tensor.data = host.to(self._device, non_blocking=True, copy=True)
        self._entered += 1

    def __exit__(self, *error: object) -> None:
        self._entered -= 1
        if self._entered == 0:
            self._leave()

    def _leave(self) -> None:
        for tensor, host in zip(self._moved, self._host, strict=True):
            tensor.data = host
