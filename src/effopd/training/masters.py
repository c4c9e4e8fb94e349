"""float32 masters of a low-precision student: what the optimizer moves, and the search.

In bfloat16 an update below a 256th of a weight rounds away. So the optimizer moves float32 copies,
gradients are added up in float32, and the live weights are the masters rounded once.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from effopd.errors import CheckpointError


class Masters:
    """float32 copies of the trainable parameters, on the student's device or on the host.

    Gradients of the live parameters are added to those of the masters as soon as they are complete,
    and freed: at no time is there a second set of them.

    Args:
        live: Trainable parameters of the student by name.
        device: Where masters and their gradients live, and with them the optimizer's moments; None
            keeps them next to the live parameters.
    """

    def __init__(self, live: Mapping[str, nn.Parameter], device: str | None = None) -> None:
        self._live = dict(live)
        self.tensors: dict[str, Tensor] = {}
        for name, parameter in self._live.items():
            master = parameter.detach().to(device or parameter.device, torch.float32, copy=True)
            self.tensors[name] = master.requires_grad_()
            parameter.register_post_accumulate_grad_hook(_moves_gradient_to(master))

    @torch.no_grad()
    def publish_(self) -> None:
        """Rounds the masters into the live parameters."""
        for name, parameter in self._live.items():
            parameter.copy_(self.tensors[name])

    def state(self) -> dict[str, Tensor]:
        """The masters by name; references."""
        return {name: master.detach() for name, master in self.tensors.items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores `state()`, and the live parameters with it."""
        for name, master in self.tensors.items():
            saved = tensors.get(name)
            if saved is None or saved.shape != master.shape:
                raise CheckpointError(f"the saved masters do not fit this model: {name}")
            master.copy_(saved)
        self.publish_()


def _moves_gradient_to(master: Tensor) -> Callable[[Tensor], None]:
    """Called with a live parameter each time its gradient of a backward pass is complete."""

    def move_(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.to(master.device).to(master.dtype)  # wide after the way
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        parameter.grad = None

    return move_
