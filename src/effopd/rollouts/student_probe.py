"""Does an engine hold the student's weights? Both score the same tokens, and are compared."""

import math
from typing import Any

import torch

from effopd.errors import NonFiniteError


class StudentProbe:
    """The student's own log-probabilities of a fixed text, and whether they were finite."""

    def __init__(self, model: Any, token_ids: tuple[int, ...], vocabulary_size: int) -> None:
        self._model, self.token_ids = model, token_ids
        self._vocabulary_size = vocabulary_size
        self.log_probs: tuple[float, ...] = ()
        self.is_finite = True

    @torch.no_grad()
    def look(self) -> bool:
        """Scores all tokens but the first with the weights as they are; whether all is finite."""
        device = self._model.get_input_embeddings().weight.device
        ids_1T = torch.tensor([self.token_ids], device=device)
        training = self._model.training
        self._model.eval()
        try:
            logits_TV = self._model(input_ids=ids_1T).logits[0, :-1, : self._vocabulary_size]
        finally:
            self._model.train(training)
        log_probs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
        self.log_probs = tuple(log_probs_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist())
        self.is_finite = all(map(math.isfinite, self.log_probs))
        return self.is_finite

    def check_finite(self) -> None:
        """Refuses to sample with weights that were not brought over: they gave NaN."""
        if not self.is_finite:
            raise NonFiniteError("the student's logits are not finite: its weights may hold NaN")
