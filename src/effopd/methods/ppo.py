"""PPO's critic: a value for every token an answer has reached, and advantages from it.

Legend: N completion tokens of a batch, D hidden width.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from effopd.errors import CheckpointError
from effopd.evaluation.logprobs import BATCH_SEQUENCES, BATCH_TOKENS
from effopd.methods.objective import Tensors, TokenScores, gathered
from effopd.models.policy import Policy, Sample, micro_batches
from effopd.objectives import clipped_value_loss, explained_variance, gae, whiten


class Critic:
    """A copy of the student's body with one output, and its own AdamW.

    The value of token t is read where the policy predicts it, so it depends on the tokens before t
    alone. The new head starts at zero: the first values are 0 everywhere.

    Args:
        student: Its body is copied.
        lr: Learning rate.
        clip_norm: Largest gradient norm.
    """

    def __init__(self, student: Policy, *, lr: float, clip_norm: float = 1.0) -> None:
        self._policy = Policy(copy.deepcopy(student.model), student.tokenizer)
        self._body = self._policy.model.base_model
        width = student.head_weight_VD.shape[1]
        self._head = nn.Linear(width, 1, device=student.device, dtype=torch.float32)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self._clip_norm = clip_norm
        self._parameters = dict(self._named())
        self.optimizer = torch.optim.AdamW(self._parameters.values(), lr=lr, weight_decay=0.0)
        self.explained_variance: float | None = None
        self._samples: Sequence[Sample] = ()
        self._values: TokenScores = ()
        self._returns: TokenScores = ()

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in (("body", self._body), ("head", self._head)):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:  # of a student with adapters, those alone
                    yield f"{prefix}.{name}", parameter

    def values(self, samples: Sequence[Sample]) -> Float[Tensor, " N"]:
        """Values of every completion token, concatenated; with gradient if enabled."""
        hidden_ND = self._policy.states(samples).hidden_ND
        values_N: Tensor = self._head(hidden_ND.to(self._head.weight.dtype))[:, 0]
        return values_N

    @torch.no_grad()
    def all_values(self, samples: Sequence[Sample]) -> Float[Tensor, " N"]:
        """Values of many samples, portion by portion, on the host."""
        lengths = [sample.length for sample in samples]
        parts = micro_batches(lengths, tokens=BATCH_TOKENS, sequences=BATCH_SEQUENCES)
        return torch.cat([self.values([samples[i] for i in part]).cpu() for part in parts])

    def advantages(
        self, samples: Sequence[Sample], rewards_S: Tensor, gamma: float, lam: float
    ) -> Float[Tensor, " N"]:
        """Whitened, from values before the first update; keeps values and returns of the step."""
        lengths = [len(sample.completion_ids) for sample in samples]
        values_N = self.all_values(samples).double()
        rewards_N = torch.zeros_like(values_N)
        rewards_N[torch.tensor(lengths).cumsum(0) - 1] = rewards_S
        advantages_N, returns_N = gae(rewards_N, values_N, lengths, gamma, lam)
        self.explained_variance = explained_variance(returns_N, values_N)
        self._samples = samples
        self._values, self._returns = (
            [part.tolist() for part in each_N.split(lengths)] for each_N in (values_N, returns_N)
        )
        return whiten(advantages_N)

    def losses(self, indices: Sequence[int], clip: float) -> tuple[Tensor, Tensor]:
        """Values and clipped losses [N] of some samples of the step, with gradient."""
        values_N = self.values([self._samples[i] for i in indices])
        known_N, returns_N = (
            gathered(scores, indices, values_N) for scores in (self._values, self._returns)
        )
        return values_N, clipped_value_loss(values_N, known_N, returns_N, clip)

    def update_(self) -> None:
        """One clipped step along the gradients accumulated since the last."""
        nn.utils.clip_grad_norm_(self._parameters.values(), self._clip_norm)
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Drops the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> Tensors:
        """Weights and optimizer moments by name; references."""
        found = {f"critic/{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"critic-optimizer/{name}/{key}"] = value
        return found

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        self.optimizer.state.clear()
        for name, parameter in self._parameters.items():
            saved = tensors.get(f"critic/{name}")
            if saved is None or saved.shape != parameter.shape:
                raise CheckpointError(f"the saved critic does not fit this model: {name}")
            parameter.copy_(saved)
            prefix = f"critic-optimizer/{name}/"
            for key, value in tensors.items():
                if key.startswith(prefix):
                    entry = key.removeprefix(prefix)
                    placed = value if entry == "step" else value.to(parameter.device)
                    self.optimizer.state[parameter][entry] = placed
