"""Hidden states of the answers at hand, so that every model that scores them reads them once.

Of a teacher behind a server they are asked for once; where it names likely tokens instead, those
are kept.

Legend: N completion tokens of some answers, one answer after the other, D hidden width.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from effopd.evaluation.logprobs import BATCH_SEQUENCES, BATCH_TOKENS, evaluation_mode
from effopd.evaluation.served_teacher import LikelyTokens, ServedTeacher
from effopd.models.policy import Policy, Sample, sorted_micro_batches
from effopd.objectives.projection import Head
from effopd.objectives.top_k import TopK
from effopd.rollouts.rollout import Rollout

Target = Head | TopK
"""What is known of a model's distributions over N tokens."""

DEFAULT_GB = 16.0
"""Room for kept states unless settings say otherwise, in 10^9 bytes."""

STUDENT, REFERENCE = "the student", "the reference"
"""Under what the states of other models than teachers are kept."""


def teacher_key(name: str) -> str:
    """Under what the states of a teacher are kept."""
    return f"the teacher {name}".rstrip()


class KeptStates:
    """Last hidden states of answers under several models, in the precision of each.

    Answers named by `hold` are at hand: what `fill` reads of them is kept until others are held or
    `release` drops it. Any other answer is read whenever it is asked for. So are answers that find
    no room, which is reported once.

    Args:
        gigabytes: Room for all states together, in 10^9 bytes; 0 keeps none.
        device: Where they are kept; None leaves them where they were made.
        moving: Models whose weights move while answers are held. Their states are always kept, and
            their head is copied with them: what was scored stays as it was when it was scored.
        report: Receives a sentence about answers that find no room.

    Attributes:
        tokens_read: Completion tokens that went through each model.
    """

    def __init__(
        self,
        gigabytes: float = DEFAULT_GB,
        *,
        device: str | None = "cpu",
        moving: Iterable[str] = (),
        report: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._limit, self._device, self._moving = gigabytes, device, frozenset(moving)
        self._report: Callable[[str], None] | None = report
        self._held: dict[int, Rollout] = {}  # by identity, which lasts as long as they are here
        self._states: dict[str, dict[int, Tensor | LikelyTokens]] = {}
        self._heads: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.tokens_read: Counter[str] = Counter()

    @property
    def bytes(self) -> int:
        """Of all states and likely tokens that are kept."""
        kept = [part for states in self._states.values() for part in states.values()]
        whole = [each for part in kept for each in ([part] if isinstance(part, Tensor) else part)]
        return sum(tensor.nbytes for tensor in whole)

    def hold(self, rollouts: Sequence[Rollout]) -> None:
        """Names the answers at hand; drops the states of others, and of models that move."""
        self._held = {id(rollout): rollout for rollout in rollouts}
        for key in self._moving:
            self.release(key)
        for states in self._states.values():
            for gone in states.keys() - self._held.keys():
                del states[gone]

    def release(self, key: str | None = None) -> None:
        """Drops the states under one model, or all states and answers."""
        if key is None:
            self._held, self._states, self._heads = {}, {}, {}
        else:
            self._states.pop(key, None)
            self._heads.pop(key, None)

    def missing(self, key: str, rollouts: Sequence[Rollout]) -> list[int]:
        """Indices of the answers that are not kept under a model."""
        kept = self._states.get(key, {})
        return [i for i, rollout in enumerate(rollouts) if id(rollout) not in kept]

    def fill(
        self,
        key: str,
        policy: Policy | ServedTeacher,
        rollouts: Sequence[Rollout],
        samples: Sequence[Sample],
        *,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """Reads the answers at hand that are not kept yet, as many as there is room for.

        `samples` are the rollouts as the model reads them. A pass has at most `batch_tokens` padded
        tokens; a server is asked for all of them together.
        """
        wanted = [i for i in self.missing(key, rollouts) if id(rollouts[i]) in self._held]
        token_bytes = _token_bytes(policy) if wanted else 0
        room, chosen = self._limit * 1e9 - self.bytes, []
        for i in wanted:
            room -= len(samples[i].learned_ids) * token_bytes
            if room < 0 and key not in self._moving:
                break
            chosen.append(i)
        if len(chosen) < len(wanted) and self._report is not None:
            self._report(
                f"memory.teacher_states_gb = {self._limit:g} holds the hidden states of "
                f"{len(rollouts) - len(wanted) + len(chosen)} of {len(rollouts)} answers under "
                f"{key}: the others are read anew in every pass over them"
            )
            self._report = None
        if not chosen:
            return
        kept = self._states.setdefault(key, {})
        if isinstance(policy, ServedTeacher):
            parts = self._ask(key, policy, [samples[i] for i in chosen])
            kept.update(zip([id(rollouts[i]) for i in chosen], parts, strict=True))
            return
        if key in self._moving and key not in self._heads:
            weight_VD, bias_V = policy.head_weight_VD, policy.head_bias_V
            self._heads[key] = (
                weight_VD.detach().clone(),
                None if bias_V is None else bias_V.detach().clone(),
            )
        lengths = [samples[i].length for i in chosen]
        with policy.during():
            for places in sorted_micro_batches(
                lengths, tokens=batch_tokens, sequences=BATCH_SEQUENCES
            ):
                members = [chosen[place] for place in places]
                read = self._read(key, policy, [samples[i] for i in members])
                kept.update(zip([id(rollouts[i]) for i in members], read, strict=True))

    def head(
        self, key: str, policy: Policy, rollouts: Sequence[Rollout], samples: Sequence[Sample]
    ) -> Head:
        """Hidden states [N, D] of some answers under a model, and its head, on the head's device.

        What is not kept is read in one pass: callers choose the micro-batch.
        """
        missing = self.missing(key, rollouts)
        weight_VD, bias_V = policy.head_weight_VD.detach(), policy.head_bias_V
        if key in self._heads and not missing:
            weight_VD, bias_V = self._heads[key]
        read = self._read(key, policy, [samples[i] for i in missing], keep=False)
        found = self._joined(key, rollouts, missing, read)
        hidden = [part.to(weight_VD.device) for part in found if isinstance(part, Tensor)]
        return Head(torch.cat(hidden), weight_VD, bias_V, policy.head_cap)

    def served(
        self,
        key: str,
        teacher: ServedTeacher,
        rollouts: Sequence[Rollout],
        samples: Sequence[Sample],
    ) -> list[Tensor | LikelyTokens]:
        """What a server says of some answers, one entry each; what is not kept is asked for."""
        missing = self.missing(key, rollouts)
        asked = self._ask(key, teacher, [samples[i] for i in missing])
        return self._joined(key, rollouts, missing, asked)

    def _joined(
        self,
        key: str,
        rollouts: Sequence[Rollout],
        missing: Sequence[int],
        read: Sequence[Tensor | LikelyTokens],
    ) -> list[Tensor | LikelyTokens]:
        """What is kept of some answers, and what was read of those that are missing, in order."""
        kept, new = self._states.get(key, {}), dict(zip(missing, read, strict=True))
        return [new[i] if i in new else kept[id(each)] for i, each in enumerate(rollouts)]

    def _ask(
        self, key: str, teacher: ServedTeacher, samples: Sequence[Sample]
    ) -> Sequence[Tensor | LikelyTokens]:
        """One request an answer."""
        if not samples:
            return []
        found = teacher.read(samples)
        self.tokens_read[key] += sum(len(sample.learned_ids) for sample in samples)
        return found

    @torch.no_grad()
    def _read(
        self, key: str, policy: Policy, samples: Sequence[Sample], *, keep: bool = True
    ) -> list[Tensor]:
        """One pass of a model over some answers, its states answer by answer."""
        if not samples:
            return []
        with evaluation_mode(policy):
            states = policy.states(samples)
        self.tokens_read[key] += sum(states.lengths)
        hidden_ND = states.hidden_ND
        if keep and self._device is not None:
            hidden_ND = hidden_ND.to(self._device)
        return list(hidden_ND.split(list(states.lengths)))


def served_target(teacher: ServedTeacher, parts: Sequence[Tensor | LikelyTokens]) -> Target:
    """What a server said of some answers, one after the other, with its head if that is needed."""
    likely = [part for part in parts if isinstance(part, LikelyTokens)]
    if likely:
        ids, log_probs, _ = zip(*likely, strict=True)
        return TopK(torch.cat(ids), torch.cat(log_probs))
    weight_VD, bias_V, cap = teacher.head
    hidden = [part.to(weight_VD.device) for part in parts if isinstance(part, Tensor)]
    return Head(torch.cat(hidden), weight_VD, bias_V, cap)


def _token_bytes(policy: Policy | ServedTeacher) -> int:
    if isinstance(policy, ServedTeacher):
        return policy.token_bytes
    return policy.head_weight_VD.shape[1] * policy.head_weight_VD.element_size()
