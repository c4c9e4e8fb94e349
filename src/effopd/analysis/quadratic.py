"""The loss of on-policy distillation on frozen contexts, and its quadratic at the base model.

Around the base model `L(D) = 1/2 D^T A D - b^T D + const` for a displacement D of the parameters,
with `A = E_c[J^T F J]` and `b = E_c[J^T F r]`. Neither the Jacobian J nor A is ever formed: a
product with J is one forward pass with tangents, one with `J^T` one backward pass.

Contexts are all completion positions of the given text, each with the same weight; the text stays
as it is when the parameters move, which drops the future-token part of the gradient (equation 8).

Legend: B sequences, T positions, N contexts, V vocabulary, P trained parameters, n chosen contexts.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call, jvp, vjp
from torch.overrides import TorchFunctionMode

from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.policy import Policy, Sample, micro_batches
from effopd.precision import float32_products

BATCH_TOKENS = 4096
"""Padded tokens in one pass through the model, at most."""


@dataclass(frozen=True, kw_only=True)
class ParameterSpace:
    """Trained tensors laid end to end in one vector, in the order of `shapes`."""

    shapes: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ConfigError("no tensor trains: set requires_grad on those that do")

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the vector."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        ends = [0, *itertools.accumulate(sizes)]
        return dict(zip(self.shapes, map(slice, ends, ends[1:]), strict=True))

    @property
    def size(self) -> int:
        """Number of parameters, P."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def flat(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " P"]:
        """One vector of the named tensors; others in the mapping are ignored."""
        for name, shape in self.shapes.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != tuple(shape):
                raise ParameterMismatchError(
                    f"{name}: expected a tensor of shape {tuple(shape)}, got "
                    f"{'none' if found is None else found}. Give every tensor that trains."
                )
        return torch.cat([tensors[name].detach().flatten() for name in self.shapes])

    def tensors(self, vector_P: Float[Tensor, " P"]) -> dict[str, Tensor]:
        """The tensors of a vector; views of it."""
        return {
            name: vector_P[self.slices[name]].view(shape) for name, shape in self.shapes.items()
        }


@dataclass(frozen=True, kw_only=True)
class ContextBatch:
    """Sequences that go through the model together, right-padded, and what is fixed there.

    `predicts_BT` are the positions that predict a completion token, row by row the N contexts, with
    the log-probabilities of the target (the teacher) and the completion tokens.
    """

    ids_BT: Int[Tensor, "B T"]
    attention_BT: Int[Tensor, "B T"]
    predicts_BT: Bool[Tensor, "B T"]
    target_log_probs_NV: Float[Tensor, "N V"]
    tokens_N: Int[Tensor, " N"]


Covectors = Callable[[ContextBatch, Tensor], Tensor]
"""(batch, log-probabilities [N, V] of the student) -> what `J^T` is applied to, [N, V]."""


class FrozenLoss:
    """Mean reverse KL to the target on frozen contexts, with its quadratic at the base.

    The model is copied, put into evaluation mode and given plain attention, the one that has
    forward-mode derivatives. In float64 everything is, also what models compute in fp32 whatever
    their input, such as norms and attention: A has the zeros in its spectrum that it should have.

    Args:
        student: The base model; its tensors that require gradients are the trained ones.
        samples: The text, written by the base model.
        targets: Logits of the target at the contexts of each sample, [completion tokens, V].
        dtype: Precision of parameters and results.
        batch_tokens: Padded tokens in one pass, at most.

    Source: arXiv 2605.11739, equations 20 to 35 and 51. The gradient at the base is exactly -b,
    however far the teacher; A is the curvature only for a teacher near the base.
    """

    @float32_products()
    def __init__(
        self,
        student: Policy,
        samples: Sequence[Sample],
        targets: Sequence[Tensor],
        *,
        dtype: torch.dtype = torch.float64,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        if not samples:
            raise ConfigError("there is no text to take contexts from: give at least one sample")
        expected = [(len(s.learned_ids), student.vocabulary_size) for s in samples]
        if (found := [tuple(target.shape) for target in targets]) != expected:
            raise ParameterMismatchError(
                f"targets of shapes {found[:3]}...; expected one [learned tokens, vocabulary] "
                f"for each of {len(samples)} samples: {expected[:3]}..."
            )
        if not all(bool(target.isfinite().all()) for target in targets):
            raise NonFiniteError("a target logit is NaN or infinite: check the teacher")
        trained = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
        self.space = ParameterSpace(shapes={n: tuple(p.shape) for n, p in trained.items()})
        self.contexts = sum(len(sample.learned_ids) for sample in samples)
        self.dtype, self.device = dtype, student.device
        self._vocabulary, self._padding = student.vocabulary_size, student.tokenizer.pad_token_id
        self._model = copy.deepcopy(student.model).to(dtype).eval().requires_grad_(False)
        self._model.set_attn_implementation("eager")
        self._samples, self._targets = list(samples), list(targets)
        self.base_P = self.space.flat({n: p.to(dtype) for n, p in trained.items()})
        lengths = [sample.length for sample in samples]
        self._batches = [
            self._batch(chosen) for chosen in micro_batches(lengths, tokens=batch_tokens)
        ]
        with torch.no_grad():
            self._base_log_probs = [self._log_probs(b, self.base_P) for b in self._batches]

    @float32_products()
    def loss(self, update_P: Tensor | None = None) -> float:
        """Mean reverse KL (nats a token) at base + update, equation 24 on frozen contexts."""
        total = 0.0
        with torch.no_grad():
            for batch in self._batches:
                log_p_NV = self._log_probs(batch, self._moved(update_P))
                total += float((log_p_NV.exp() * (log_p_NV - batch.target_log_probs_NV)).sum())
        return total / self.contexts

    @float32_products()
    def gradient(self, update_P: Tensor | None = None) -> Float[Tensor, " P"]:
        """Gradient of `loss` at base + update.

        Its logit part is `F_z (log p_z - log p*)`, which equals `F_z (z - z*)`.
        """
        total_P = torch.zeros_like(self.base_P)
        parameters = self.space.tensors(self._moved(update_P))
        for batch in self._batches:
            total_P += self.space.flat(self._gradient_of(batch)(parameters))
        return total_P / self.contexts

    def drive(self) -> Float[Tensor, " P"]:
        """`b = E_c[J^T F r]` with `r = z* - z_0`, equation 51: minus the gradient at the base."""
        return -self.gradient()

    @float32_products()
    def curvature_product(self, vector_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """`A v = E_c[J^T F J v]`, equation 33: one pass with tangents and one backward a batch."""
        _load_forward_mode()
        total_P = torch.zeros_like(self.base_P)
        base, tangent = self.space.tensors(self.base_P), self.space.tensors(vector_P)
        for batch, log_probs_NV in zip(self._batches, self._base_log_probs, strict=True):
            moved_NV: Tensor = jvp(self._logits_of(batch), (base,), (tangent,))[1]  # J v
            covector_NV = fisher_product(log_probs_NV, moved_NV.detach())  # F J v
            total_P += self._pull_back(batch)(covector_NV)  # J^T F J v
        return total_P / self.contexts

    @float32_products()
    def hessian_product(self, vector_P: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """`H v` with the Hessian of `loss` at the base: A where the teacher is the base model.

        Elsewhere it has the curvature of the logits, and of the reverse KL away from the teacher;
        it may be indefinite. About three times the cost of `curvature_product`.
        """
        _load_forward_mode()
        total_P = torch.zeros_like(self.base_P)
        base, tangent = self.space.tensors(self.base_P), self.space.tensors(vector_P)
        for batch in self._batches:
            total_P += self.space.flat(jvp(self._gradient_of(batch), (base,), (tangent,))[1])
        return total_P / self.contexts

    def constant(self) -> float:
        """`1/2 E_c[r^T F r]`: what the quadratic gives for the loss of the base (equation 33)."""
        total = 0.0
        for batch, log_probs_NV in zip(self._batches, self._base_log_probs, strict=True):
            residual_NV = batch.target_log_probs_NV - log_probs_NV
            total += float((residual_NV * fisher_product(log_probs_NV, residual_NV)).sum())
        return total / (2 * self.contexts)

    @float32_products()
    def context_gradients(
        self, chosen: Sequence[int], covectors: Covectors
    ) -> Float[Tensor, "n P"]:
        """`J_c^T w_c` at the base, one row for each chosen context."""
        found_nP = torch.empty(len(chosen), self.space.size, dtype=self.dtype, device=self.device)
        start = 0
        for index, sample in enumerate(self._samples):
            stop = start + len(sample.learned_ids)
            rows = [(row, c - start) for row, c in enumerate(chosen) if start <= c < stop]
            start = stop
            if not rows:
                continue
            batch = self._batch([index])
            pull_back = self._pull_back(batch)
            covectors_NV = covectors(batch, self._log_probs(batch, self.base_P))
            for row, position in rows:
                alone_NV = torch.zeros_like(covectors_NV)
                alone_NV[position] = covectors_NV[position]
                found_nP[row] = pull_back(alone_NV)
        return found_nP

    def _moved(self, update_P: Tensor | None) -> Tensor:
        return self.base_P if update_P is None else self.base_P + update_P.to(self.base_P)

    def _gradient_of(self, batch: ContextBatch) -> Callable[[dict[str, Tensor]], Any]:
        def gradient(tensors: dict[str, Tensor]) -> Any:
            logits_NV, pull_back, *_ = vjp(self._logits_of(batch), tensors)
            log_p_NV = logits_NV.log_softmax(-1)
            return pull_back(fisher_product(log_p_NV, log_p_NV - batch.target_log_probs_NV))[0]

        return gradient

    def _pull_back(self, batch: ContextBatch) -> Callable[[Tensor], Tensor]:
        """`w -> J^T w` at the base."""
        pull = vjp(self._logits_of(batch), self.space.tensors(self.base_P))[1]
        return lambda covectors_NV: self.space.flat(pull(covectors_NV, retain_graph=True)[0])

    def _logits_of(self, batch: ContextBatch) -> Callable[[dict[str, Tensor]], Tensor]:
        inputs: dict[str, Any] = {"input_ids": batch.ids_BT, "attention_mask": batch.attention_BT}
        inputs["use_cache"] = False

        def logits(tensors: dict[str, Tensor]) -> Tensor:
            with _NeverNarrower():
                output = functional_call(self._model, tensors, kwargs=inputs)
            logits_NV: Tensor = output.logits[batch.predicts_BT]
            return logits_NV[:, : self._vocabulary]

        return logits

    def _log_probs(self, batch: ContextBatch, parameters_P: Tensor) -> Tensor:
        return self._logits_of(batch)(self.space.tensors(parameters_P)).log_softmax(-1)

    def _batch(self, chosen: Sequence[int]) -> ContextBatch:
        samples = [self._samples[i] for i in chosen]
        shape = len(samples), max(sample.length for sample in samples)
        ids_BT = torch.full(shape, self._padding, device=self.device)
        attention_BT = torch.zeros_like(ids_BT)
        predicts_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, sample in enumerate(samples):
            sequence = torch.tensor(sample.prompt_ids + sample.completion_ids)
            ids_BT[row, : sample.length] = sequence.to(self.device)
            attention_BT[row, : sample.length] = 1
            learned = True if sample.learned is None else torch.tensor(sample.learned)
            predicts_BT[row, len(sample.prompt_ids) - 1 : sample.length - 1] = learned
        targets_NV = torch.cat([self._targets[i] for i in chosen]).to(self.device, self.dtype)
        tokens = [token for sample in samples for token in sample.learned_ids]
        return ContextBatch(
            ids_BT=ids_BT,
            attention_BT=attention_BT,
            predicts_BT=predicts_BT,
            target_log_probs_NV=targets_NV.log_softmax(-1),
            tokens_N=torch.tensor(tokens, device=self.device),
        )


class _NeverNarrower(TorchFunctionMode):
    """What would make float32 of a float64 tensor leaves it float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = [torch.float64 if each is torch.float32 else each for each in args]
            if kwargs.get("dtype") is torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


def fisher_product(
    log_probs_NV: Float[Tensor, "N V"], vectors_NV: Float[Tensor, "N V"]
) -> Float[Tensor, "N V"]:
    """`F v = (Diag(p) - p p^T) v` in every row, equation 29."""
    p_NV = log_probs_NV.exp()
    return p_NV * (vectors_NV - (p_NV * vectors_NV).sum(-1, keepdim=True))


@torch.no_grad()
@float32_products()
def completion_logits(
    policy: Policy, samples: Sequence[Sample], *, batch_tokens: int = BATCH_TOKENS
) -> list[Float[Tensor, "N V"]]:
    """Logits of a policy at the contexts of each sample, in fp32 or wider."""
    found: list[Tensor] = []
    for chosen in micro_batches([sample.length for sample in samples], tokens=batch_tokens):
        states = policy.states([samples[i] for i in chosen])
        logits_NV = states.hidden_ND @ policy.head_weight_VD.mT
        if policy.head_bias_V is not None:
            logits_NV = logits_NV + policy.head_bias_V
        wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        found += wide_NV.split(list(states.lengths))
    return found


@cache
def _load_forward_mode() -> None:
    """Torch compiles rules of forward mode at its first use, by a function it calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))
