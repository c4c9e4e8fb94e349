"""Whether work grows with its input as it should, on any machine and beside any load."""

import time
from collections.abc import Callable

FACTOR = 16
"""How much longer the second input is: linear work grows 16 times, quadratic work 256 times."""
BETWEEN = 80
LEAST_S = 1e-3
"""What less work counts as, so that the rest of a call does not."""


def grows_linearly(run: Callable[[int], object], size: int) -> bool:
    """Compares the CPU seconds of this thread at a size and at `FACTOR` times it.

    Both are measured on the machine at hand, so that only their ratio counts, and a linear ratio
    may be five times off. The lesser of two tries is taken.
    """

    def cpu_s(length: int) -> float:
        tries = []
        for _ in range(2):
            before = time.thread_time()
            run(length)
            tries.append(time.thread_time() - before)
        return min(tries)

    return cpu_s(FACTOR * size) < BETWEEN * max(cpu_s(size), LEAST_S)
