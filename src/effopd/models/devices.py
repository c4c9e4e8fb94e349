"""Which device computes."""

import torch

from effopd.errors import ConfigError

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
        torch.zeros(1, dtype=torch.float64, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used: {first}; 'auto' takes a GPU where there is one"
        ) from None
    return name
