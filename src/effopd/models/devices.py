"""Which device computes."""

from dataclasses import replace

import torch

from effopd.errors import ConfigError
from effopd.models.gpus import Gpu, gpu_named

AUTO = "auto"


def real_device(name: str) -> str:
    """The PyTorch device that a setting stands for.

    Args:
        name: "auto", or a device as PyTorch names it: "cpu", "cuda", "cuda:1".

    Returns:
        For "auto" "cuda" where PyTorch finds a GPU (of NVIDIA, or of AMD by ROCm), else "cpu";
        another name as it is. Apple's "mps" is never taken: it has no float64, in which answers
        are sampled.

    Raises:
        ConfigError: The device is unknown, not there, or computes no float64.
    """
    if name == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=name).item()
    except (RuntimeError, AssertionError, TypeError):
        raise ConfigError(
            f"device {name!r} cannot be used: {_reason(name)}; 'auto' takes a GPU where there is "
            "one, else the CPU"
        ) from None
    return name


def _reason(name: str) -> str:
    """Why a device cannot be used: PyTorch's own words are a list of all its backends."""
    kind = name.partition(":")[0]
    if kind == "cuda" and torch.cuda.is_available():
        return f"the GPUs here are 0 to {torch.cuda.device_count() - 1}"
    if kind == "cuda":
        return "PyTorch finds no GPU here"
    if kind == "mps":
        return "it has no float64, in which answers are sampled"
    return "a device is 'auto', 'cpu', 'cuda' or, of several GPUs, 'cuda:1'"


def card_of(device: str) -> Gpu:
    """The card behind a device of this machine, with the memory that its driver reports.

    Raises:
        ConfigError: The device is no GPU of this machine.
    """
    if not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ConfigError(
            "--gpu auto takes the card of this machine, which has none: name the card of the "
            "machine that is to run it, such as 'H100 80GB'"
        )
    found = torch.cuda.get_device_properties(device)
    try:
        known = gpu_named(found.name)
    except ConfigError:  # a card without a data sheet here: its memory is known, its speed is not
        known = Gpu(name=found.name, memory_bytes=0)
    return replace(known, name=found.name, memory_bytes=found.total_memory)
