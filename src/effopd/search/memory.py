"""What a direction remembers from update to update, and the displacement it computes from it.

A memory changes only when an update, or the search after it, is over. Asking for a displacement
changes nothing, so a failed search leaves no trace.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from effopd.search.past import PastSearch
from effopd.search.ray import Ray, check_fits

Displacement = dict[str, Tensor]


class Memory(Protocol):
    """State of a direction; `ray.tip` and `ray.anchor` are defined while a search is on."""

    def displacement(
        self, ray: Ray, step: int, progress: float | None, past: Sequence[PastSearch]
    ) -> Displacement | None:
        """What replaces `tip - anchor`, in fp32 or wider; None for `tip - anchor` itself."""
        ...

    def record_(self, ray: Ray, step: int, progress: float | None, *, searched: bool) -> None:
        """Takes note of update `step`; after a search, before its anchor is given up."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, by flat names; references."""
        ...

    def notes(self) -> dict[str, Any]:
        """What goes with the tensors, JSON-able."""
        ...

    def load_(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Restores `tensors()` and `notes()`, or changes nothing and raises."""
        ...


class NoMemory:
    """Of directions that need the anchor alone."""

    def displacement(
        self, ray: Ray, step: int, progress: float | None, past: Sequence[PastSearch]
    ) -> Displacement | None:
        """None: the ray from the anchor."""
        return None

    def record_(self, ray: Ray, step: int, progress: float | None, *, searched: bool) -> None:
        """Nothing to note."""

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def notes(self) -> dict[str, Any]:
        """None."""
        return {}

    def load_(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Checks that there is nothing to restore.

        Raises:
            ParameterMismatchError: There is.
        """
        check_fits(tensors, {})


class AverageMemory:
    """The running average of `Averaged`, in fp32 or wider, one copy of the parameters.

    Args:
        beta: Weight of the past.
        ray: Names, shapes and memory of the parameters.
    """

    def __init__(self, beta: float, ray: Ray) -> None:
        self._beta = beta
        self._average = {n: torch.zeros_like(t, dtype=wide(t)) for n, t in ray.anchor.items()}

    def displacement(
        self, ray: Ray, step: int, progress: float | None, past: Sequence[PastSearch]
    ) -> Displacement | None:
        """The average with this search's displacement in it, bias-corrected."""
        correction = 1 - self._beta ** (len(past) + 1)
        return {name: self._following(ray, name) / correction for name in self._average}

    def record_(self, ray: Ray, step: int, progress: float | None, *, searched: bool) -> None:
        """Averages in the displacement of the search."""
        if searched:
            for name, average in self._average.items():
                average.copy_(self._following(ray, name))

    def _following(self, ray: Ray, name: str) -> Tensor:
        """`beta m + (1 - beta) (tip - anchor)`."""
        average = self._average[name]
        update = ray.tip[name].to(average.dtype) - ray.anchor[name].to(average.dtype)
        return torch.lerp(update, average, self._beta)

    def tensors(self) -> dict[str, Tensor]:
        """The average, not bias-corrected."""
        return {f"average/{name}": tensor for name, tensor in self._average.items()}

    def notes(self) -> dict[str, Any]:
        """None: the number of searches is known."""
        return {}

    def load_(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Restores the average.

        Raises:
            ParameterMismatchError: It does not fit.
        """
        own = self.tensors()
        check_fits(tensors, own)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype displacements of `tensor` are kept in: fp32 or wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
