"""A frozen model that is on its device only while it is used, and on the host otherwise."""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class Offloaded:
    """Puts a model's weights on a device inside a `with` block, which may be entered again inside.

    The host keeps its copy, so leaving only drops the other: weights of a frozen model never travel
    back. The output head stays on the device, since scores are products with it.

    Args:
        model: Hugging Face causal language model on the host; its parameters must not change.
        device: Where it is used.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._device = torch.device(device)
        model.get_output_embeddings().to(self._device)
        head = {id(p) for p in model.get_output_embeddings().parameters()}
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if self._entered == 0:
            self._leave()

    def _leave(self) -> None:
        for tensor, host in zip(self._moved, self._host, strict=True):
            tensor.data = host
