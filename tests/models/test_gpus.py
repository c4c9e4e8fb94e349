"""Cards by the names that people and drivers give them."""

import pytest

from effopd.errors import ConfigError
from effopd.models.gpus import GPUS, Gpu, gpu_named


def test_cards_by_name_size_and_bytes() -> None:
    assert gpu_named("H100").memory_bytes == 80 * 10**9
    assert gpu_named("h100 94GB") == Gpu(
        name="h100 94GB", memory_bytes=94 * 10**9, flops=989e12, bandwidth=3.35e12
    )
    assert gpu_named("24GB").memory_bytes == 24 * 10**9
    drivers = {
        "NVIDIA A100-SXM4-80GB": ("A100", 80), "NVIDIA H100 80GB HBM3": ("H100", 80),
        "NVIDIA GeForce RTX 4090": ("RTX4090", 24), "NVIDIA H200": ("H200", 141),
    }  # fmt: skip
    for text, (name, gb) in drivers.items():
        found = gpu_named(text)
        assert (found.memory_bytes, found.flops) == (gb * 10**9, GPUS[name].flops)
    assert gpu_named("B300 288GB").flops == 0
    assert gpu_named("1234") == Gpu(name="1234 bytes", memory_bytes=1234)
    assert all(gpu_named(name).name == name for name in GPUS)


@pytest.mark.parametrize("text", ["", "H1000", "0", "0GB", "80 MB", "-5", "9" * 99, "H100\n80"])
def test_other_cards_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--gpu must be one of H20, H100"):
        gpu_named(text)
