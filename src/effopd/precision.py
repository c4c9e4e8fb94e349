"""How exactly float32 matrices are multiplied: set inside, whatever the caller allows elsewhere.

PyTorch keeps the setting for the whole process: TF32 on a GPU, TF32 or bfloat16 operands in oneDNN,
and switches for convolutions of their own.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

MatmulPrecision = Literal["highest", "high", "medium"]

_FROM_EXACT: tuple[MatmulPrecision, ...] = ("highest", "high", "medium")
_lock = threading.Lock()
_asked: list[MatmulPrecision] = []  # by the blocks under way, in all threads
_before: list[tuple[Any, str]] = []  # switch and value outside of all blocks
_legacy_before: list[str] = []  # the same of `torch.set_float32_matmul_precision`, if readable


@contextmanager
def float32_products(setting: MatmulPrecision | None = "highest") -> Iterator[None]:
    """The precision of float32 products inside the block, or of a function that it decorates.

    "highest" rules out TF32 and bfloat16 in matrix products and in convolutions; the others are
    those of `torch.set_float32_matmul_precision`. The caller's settings come back at the end, also
    after an error. Blocks may be nested and run in several threads at once: while some are under
    way the most exact setting that one of them asks for holds for the whole process, so nothing is
    ever less exact than asked. Do not hold a block open across a `yield`.
    """
    if setting is None:
        yield
        return
    with _lock:
        if not _asked:
            _remember()
        _asked.append(setting)
        _apply()
    try:
        yield
    finally:
        with _lock:
            _asked.remove(setting)
            _apply()


def _switches() -> list[Any]:
    """One for each library and kind of product; none before PyTorch 2.9."""
    cuda, cpu, cudnn = torch.backends.cuda, torch.backends.mkldnn, torch.backends.cudnn
    paths = [(cuda, "matmul"), (cpu, "matmul")]
    paths += [(module, name) for module in (cudnn, cpu) for name in ("conv", "rnn")]
    found = [getattr(module, name, None) for module, name in paths]
    return [switch for switch in found if getattr(switch, "fp32_precision", None) is not None]


def _remember() -> None:
    _before[:] = [(switch, switch.fp32_precision) for switch in _switches()]
    try:
        _legacy_before[:] = [torch.get_float32_matmul_precision()]
    except RuntimeError:  # unreadable where the caller mixes old and new switches
        _legacy_before.clear()


def _apply() -> None:
    """The most exact setting asked for; the caller's where none is."""
    if not _asked:
        torch.set_float32_matmul_precision(_legacy_before[0] if _legacy_before else "highest")
        for switch, value in _before:  # the line above overwrote some of them
            switch.fp32_precision = value
        return
    setting = min(_asked, key=_FROM_EXACT.index)
    torch.set_float32_matmul_precision(setting)
    if setting == "highest":
        for switch, _ in _before:
            switch.fp32_precision = "ieee"
