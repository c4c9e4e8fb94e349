"""Graphics cards by name: memory, and speed where a data sheet is known."""

import re
from dataclasses import dataclass, replace

import torch

from effopd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A graphics card; its speed is 0 where not known."""

    name: str
    memory_bytes: int
    flops: float = 0.0  # peak of dense bfloat16 products, operations a second
    bandwidth: float = 0.0  # of its memory, bytes a second


GPUS = {
    "H20": Gpu(name="H20", memory_bytes=96 * 10**9, flops=148e12, bandwidth=4.0e12),
    "H100": Gpu(name="H100", memory_bytes=80 * 10**9, flops=989e12, bandwidth=3.35e12),
    "H200": Gpu(name="H200", memory_bytes=141 * 10**9, flops=989e12, bandwidth=4.8e12),
    "A100": Gpu(name="A100", memory_bytes=80 * 10**9, flops=312e12, bandwidth=2.0e12),
    "L40S": Gpu(name="L40S", memory_bytes=48 * 10**9, flops=362e12, bandwidth=0.86e12),
    "RTX4090": Gpu(name="RTX4090", memory_bytes=24 * 10**9, flops=165e12, bandwidth=1.0e12),
}
"""Data sheets of the manufacturer, dense figures."""
_FORM = r"(?:[ -]+(?:SXM\d?|PCIe|NVL|HBM\d\w?))*"
_GPU = re.compile(
    r" *(?:NVIDIA +)?(?:GeForce +)?(?P<name>RTX ?\d{4}|[A-Z][A-Z0-9]*)?"
    rf"{_FORM}[ -]*(?:(?P<gb>\d{{1,4}}) ?GB)?{_FORM} *",
    re.I,
)


def gpu_named(text: str) -> Gpu:
    """The card that is meant by "H100", "H100 80GB", "80GB" or a number of bytes.

    Names as drivers give them are understood too: "NVIDIA A100-SXM4-80GB".
    """
    name = text.strip()
    found = Gpu(name=name, memory_bytes=0)
    if name.isascii() and name.isdigit() and len(name) <= 15:
        found = Gpu(name=f"{name} bytes", memory_bytes=int(name))
    elif (match := _GPU.fullmatch(text)) and (match["name"] or match["gb"]):
        known = GPUS.get((match["name"] or "").upper().replace(" ", ""), found)
        memory = int(match["gb"]) * 10**9 if match["gb"] else known.memory_bytes
        found = replace(known, name=name, memory_bytes=memory)
    if found.memory_bytes < 1:
        raise ConfigError(
            f"--gpu must be one of {', '.join(GPUS)}, a name with its memory such as 'H100 80GB', "
            f"a number of bytes, or 'auto' for the card of this machine, got {text!r:.60}"
        )
    return found


def card_of(device: str) -> Gpu:
    """The card behind a device of this machine, with the memory that its driver reports."""
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
