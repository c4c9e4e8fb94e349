"""The optimizer updates of one step: rollouts in, moved weights out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from effopd.methods import Learner, Portion
from effopd.models.policy import Policy, micro_batches
from effopd.rollouts.rollout import Rollout, total_tokens
from effopd.rollouts.seeds import derive_seed
from effopd.training.batch import mini_batches
from effopd.training.masters import Masters
from effopd.training.rows import Row, Update, finite_update, update_statistics
from effopd.training.settings import LoopSettings


class Updater:
    """AdamW on the trainable parameters of the student, or on their float32 masters.

    Args:
        student: The policy to train.
        learner: Turns rollouts into losses.
        settings: Learning rate, portions and seed.
    """

    def __init__(self, student: Policy, learner: Learner, settings: LoopSettings) -> None:
        self._student, self._learner, self._settings = student, learner, settings
        self.live = {n: p for n, p in student.model.named_parameters() if p.requires_grad}
        memory = settings.memory
        self.masters: Masters | None = None
        if memory.master_weights:
            self.masters = Masters(self.live, "cpu" if memory.offload_optimizer else None)
        self.moved: dict[str, Tensor] = dict(self.masters.tensors if self.masters else self.live)
        """What the optimizer moves: the trainable parameters, or their masters; by name."""
        self.optimizer = torch.optim.AdamW(
            self.moved.values(),
            betas=settings.optimizer.betas,
            eps=settings.optimizer.eps,
            weight_decay=settings.optimizer.weight_decay,
        )

    def set_lr_(self, step: int, factor: float = 1.0) -> float:
        """Sets and returns the learning rate of a step: that of the schedule times `factor`."""
        lr = factor * self._settings.optimizer.lr_at(step, self._settings.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def update_(self, rollouts: Sequence[Rollout], step: int) -> Row:
        """One optimizer update for each mini-batch of each epoch."""
        train, seed = self._settings.train, self._settings.seed
        torch.manual_seed(derive_seed(seed, "update", step))  # dropout
        updates = [
            self._one_update_(rollouts, indices)
            for epoch in range(train.epochs)
            for indices in mini_batches(len(rollouts), train.updates_per_step, seed, step, epoch)
        ]
        return update_statistics(updates)

    def _one_update_(self, rollouts: Sequence[Rollout], indices: Sequence[int]) -> Update:
        """Accumulates the gradient over micro-batches and takes one clipped optimizer step."""
        members = [rollouts[i] for i in indices]
        portion = Portion(sequences=len(members), tokens=total_tokens(members))
        lengths = [rollout.sample.length for rollout in members]
        self.optimizer.zero_grad(set_to_none=True)
        self._student.model.train()
        parts = []
        for places in micro_batches(lengths, tokens=self._settings.train.micro_batch_tokens):
            part = self._learner.contribution([indices[i] for i in places], portion)
            part.loss.backward()
            parts.append(part)
        self._student.model.eval()
        clip_norm = self._settings.optimizer.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.moved.values(), clip_norm)
        update = finite_update(parts, portion, norm.item())
        self.optimizer.step()
        if self.masters is not None:
            self.masters.publish_()
        self._learner.after_update()
        return update

    def discard(self) -> None:
        """Gives up an update: no gradients stay behind."""
        self.optimizer.zero_grad(set_to_none=True)
        self._learner.discard()
        self._student.model.eval()
