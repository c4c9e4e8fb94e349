"""Puts everything back that scoring a candidate may have touched."""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def preserve_state(
    tensors: Iterable[Tensor] = (),
    *,
    modules: Iterable[nn.Module] = (),
    attributes: Iterable[tuple[Any, Mapping[str, Any]]] = (),
) -> Iterator[None]:
    """Keeps random generators, training modes and attributes as they are now; for `with`."""
    devices = {t.device for t in tensors if t.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    python, numpy = random.getstate(), np.random.get_state()
    modes = {module: module.training for module in modules}
    for module in modes:
        module.training = False
    with torch.random.fork_rng(list(devices), device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for module, mode in modes.items():
                module.training = mode
            for owner, values in attributes:
                for name, value in values.items():
                    setattr(owner, name, value)
