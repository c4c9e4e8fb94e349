"""The optimizer updates of one step: rollouts in, moved weights out.

In bfloat16 an update below a 256th of a weight rounds away. So the optimizer, and the search, can
move float32 masters of a low-precision student: gradients are added up in float32, and the live
weights are the masters rounded once.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from effopd.errors import ConfigError, NonFiniteError
from effopd.evaluation.statistics import mean
from effopd.methods import Contribution, Learner, Portion
from effopd.models.checkpoints import restore_
from effopd.models.lora import factor_pairs
from effopd.models.policy import Policy, sorted_micro_batches
from effopd.objectives import non_finite_cause
from effopd.rollouts.engine import derive_seed
from effopd.rollouts.rollout import Rollout, total_tokens
from effopd.search.extrapolator import Extrapolator, Search
from effopd.search.factors import Factors
from effopd.search.line_search import OnTrial
from effopd.search.selection import select_parameters
from effopd.search.slope import SlopeRate
from effopd.search.validation import Validator
from effopd.training.averages import WeightAverage
from effopd.training.optimizers import make_optimizer
from effopd.training.rows import Row
from effopd.training.settings import LoopSettings


class Masters:
    """float32 copies of the trainable parameters, on the student's device or on the host.

    Gradients of the live parameters are added to those of the masters as soon as they are complete,
    and freed: at no time is there a second set of them.

    On `device` live masters, their gradients and the optimizer's moments; None is next to `live`.
    """

    def __init__(self, live: Mapping[str, nn.Parameter], device: str | None = None) -> None:
        self._live = dict(live)
        self.tensors: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}
        for name, parameter in self._live.items():
            master = parameter.detach().to(device or parameter.device, torch.float32, copy=True)
            self.tensors[name] = master.requires_grad_()

            def move_(parameter: Tensor, name: str = name, master: Tensor = master) -> None:
                """Called when a gradient is complete; with `self`, nothing would ever be freed."""
                assert parameter.grad is not None
                gradient = parameter.grad.to(master.device)  # widened after moving
                if master.grad is not None:
                    master.grad.add_(gradient)
                elif name in gradients:
                    master.grad = gradients[name].copy_(gradient)
                else:
                    master.grad = gradient.to(master.dtype)
                    if master.device.type == "cpu":  # where fresh memory costs more than a copy
                        gradients[name] = master.grad
                parameter.grad = None

            parameter.register_post_accumulate_grad_hook(move_)

    @torch.no_grad()
    def publish_(self) -> None:
        """Rounds the masters into the live parameters."""
        for name, parameter in self._live.items():
            parameter.copy_(self.tensors[name])

    def state(self) -> dict[str, Tensor]:
        """The masters by name; references."""
        return {name: master.detach() for name, master in self.tensors.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`, and the live parameters with it."""
        restore_(self.tensors, tensors, "float32 master copy")
        self.publish_()


class Updater:
    """An optimizer of the student's trainable parameters, or of their float32 masters."""

    def __init__(self, student: Policy, learner: Learner, settings: LoopSettings) -> None:
        self._student, self._learner, self._settings = student, learner, settings
        self.live = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
        memory = settings.memory
        self.masters: Masters | None = None
        if memory.master_weights:
            self.masters = Masters(self.live, "cpu" if memory.offload_optimizer else None)
        self.moved: dict[str, Tensor] = dict(self.masters.tensors if self.masters else self.live)
        """What the optimizer moves: the trainable parameters, or their masters; by name."""
        self.optimizer = make_optimizer(settings.optimizer, self.moved)
        slope = settings.optimizer.slope
        self._slope = SlopeRate(self.optimizer, slope) if slope is not None else None
        self.average: WeightAverage | None = None
        if settings.average.is_active:
            self.average = WeightAverage(self.moved, settings.average)

    @property
    def is_averaged(self) -> bool:
        """Whether the weights that are evaluated are others than those that are trained."""
        return self.average is not None or callable(getattr(self.optimizer, "eval", None))

    @contextmanager
    def averaged_(self, moved: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Gives the student the average of its weights, where it has one, inside the block.

        That of `self.average`, or what an optimizer with `eval` puts in place. Afterwards all
        weights are back bit for bit, so that training does not depend on evaluations. Whenever
        this changes weights, `moved` is called.
        """
        if not self.is_averaged:
            yield
            return
        changed = {id(p): p for p in self.live.values()}
        if self.average is None:
            changed |= {id(tensor): tensor for tensor in self.moved.values()}
        with torch.no_grad():
            kept = {key: tensor.detach().clone() for key, tensor in changed.items()}
            if self.average is None:
                self.optimizer.eval()  # type: ignore[attr-defined]
            for name, tensor in (self.average.tensors() if self.average else self.moved).items():
                if self.live[name] is not tensor:
                    self.live[name].copy_(tensor)
        moved()
        try:
            yield
        finally:
            if self.average is None:
                self.optimizer.train()  # type: ignore[attr-defined]
            with torch.no_grad():
                for key, tensor in changed.items():
                    tensor.copy_(kept[key])
            moved()

    def state(self) -> dict[str, Tensor]:
        """The trained weights, where a checkpoint's model is an average and nothing else has them.

        References, by name.
        """
        if self.masters is not None or not self.is_averaged:
            return {}
        return {name: parameter.detach() for name, parameter in self.live.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`."""
        restore_(self.state(), tensors, "trained weights")

    def set_lr_(self, step: int, factor: float = 1.0) -> float:
        """Sets and returns the learning rate of a step: that of the schedule times `factor`."""
        lr = factor * self._settings.optimizer.lr_at(step, self._settings.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def update_(self, rollouts: Sequence[Rollout], step: int) -> Row:
        """One optimizer update for each mini-batch of each epoch; their means as a metrics row."""
        train, seed = self._settings.train, self._settings.seed
        torch.manual_seed(derive_seed(seed, "update", step))  # dropout
        updates = [
            self._one_update_(rollouts, indices)
            for epoch in range(train.epochs)
            for indices in mini_batches(len(rollouts), train.updates_per_step, seed, step, epoch)
        ]
        self._learner.release()
        names = dict.fromkeys(name for update in updates for name in update)
        row = {name: mean([update[name] for update in updates]) for name in names}
        if self._slope is not None:
            row["lr"] = self.optimizer.param_groups[0]["lr"] * self._slope.factor  # of the last
        estimate = self.optimizer.param_groups[0].get("d")  # of the distance, which sets the rate
        return row if estimate is None else row | {"optimizer_d": float(estimate)}

    def _one_update_(self, rollouts: Sequence[Rollout], indices: Sequence[int]) -> Row:
        """One clipped optimizer step; loss, gradient norm before clipping and means of tokens."""
        row, clipped = self._gradient_(rollouts, indices)
        # The rate of this very update follows the slopes, which are those of whole gradients.
        if self._slope is not None:
            value = row["loss"] if self._learner.has_value else None
            self._slope.before_step_(value, clipped)
        self.optimizer.step()
        self._publish_()
        if self._slope is not None:
            self._slope.after_step_()
            while self._slope.tries:  # the first update of a run finds its rate
                again, clipped = self._gradient_(rollouts, indices)
                self._slope.try_again_(again["loss"], clipped)
                self._publish_()
        self._learner.after_update()
        return row

    def _publish_(self) -> None:
        if self.masters is not None:
            self.masters.publish_()

    def _gradient_(self, rollouts: Sequence[Rollout], indices: Sequence[int]) -> tuple[Row, float]:
        """Accumulates the gradient over micro-batches; the row, and what clipping multiplied by."""
        members = [rollouts[i] for i in indices]
        portion = Portion(sequences=len(members), tokens=total_tokens(members))
        lengths = [rollout.sample.length for rollout in members]
        self.optimizer.zero_grad(set_to_none=True)
        self._student.model.train()
        parts: list[Contribution] = []
        train = self._settings.train
        limits: Any = {"tokens": train.micro_batch_tokens}
        limits["sequences"] = train.micro_batch_sequences or None
        for places in sorted_micro_batches(lengths, **limits):
            part = self._learner.contribution([indices[i] for i in places], portion)
            part.loss.backward()
            parts.append(part)
        self._student.model.eval()
        clip_norm = self._settings.optimizer.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.moved.values(), clip_norm).item()
        # A loss or a gradient that is not finite ends here, before the weights move.
        losses = [part.loss.item() for part in parts]
        loss = sum(losses)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            broken = [p for p, own in zip(parts, losses, strict=True) if not math.isfinite(own)]
            cause = f". {non_finite_cause(broken[0].inputs)}" if broken else ""
            raise NonFiniteError(f"loss {loss} and gradient norm {norm} must be finite{cause}")
        names = dict.fromkeys(name for part in parts for name in part.sums)
        means = {}
        for name in names:
            known = [float(part.known[name]) for part in parts if name in part.known]
            tokens = max(1.0, sum(known)) if known else portion.tokens
            means[name] = sum(float(part.sums.get(name, 0.0)) for part in parts) / tokens
        row = {"loss": loss, "grad_norm": norm, **means}
        return row, min(1.0, clip_norm / (norm + 1e-6))

    def discard(self) -> None:
        """Gives up an update: no gradients stay behind."""
        self.optimizer.zero_grad(set_to_none=True)
        self._learner.discard()
        self._learner.release()
        self._student.model.eval()


def mini_batches(count: int, updates: int, seed: int, step: int, epoch: int) -> list[list[int]]:
    """Indices of `count` rollouts in `updates` portions of nearly equal size.

    Shuffled anew in every epoch; a single portion keeps its order. Fewer rollouts than updates
    give fewer portions.
    """
    order = list(range(count))
    if updates > 1:
        random.Random(derive_seed(seed, "mini-batches", step, epoch)).shuffle(order)
    cuts = [count * i // updates for i in range(updates + 1)]
    return [order[start:end] for start, end in pairwise(cuts) if start < end]


def extrapolator_of(
    student: Policy,
    updater: Updater,
    settings: LoopSettings,
    *,
    search: Search | None,
    validate: Validator | None,
    on_trial: OnTrial,
) -> Extrapolator | None:
    """The search over what the optimizer moves; None without a search.

    Points are computed from float32 masters where there are any, and rounded once to the live
    weights. Of adapters the products are extrapolated instead of the factors.
    """
    if search is None:
        return None
    if validate is None:
        raise ConfigError("a search needs a validator: pass validate=, or search=None")
    names = select_parameters(student.model, search.parameters)
    pairs = factor_pairs(student.model)
    return Extrapolator(
        {name: updater.moved[name] for name in names},
        validate,
        search=search,
        mirrors={name: updater.live[name] for name in names} if updater.masters else None,
        device="cpu" if settings.memory.anchor_device == "cpu" else None,
        factors=Factors(pairs) if pairs else None,
        on_trial=on_trial,
    )
