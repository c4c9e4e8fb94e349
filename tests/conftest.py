"""Every test runs offline, on one thread and from the same seed."""

import os
import random

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", NO_COLOR="1", TERM="dumb")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads are slower for tiny tensors
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmul on a GPU

import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

LONGEST = (
    "test_reproduce.py",
    "test_compare.py",
    "test_trl_example.py",
    "test_trl_ranks.py",
    "test_kill.py",
    "test_input_safety.py",
    "test_analysis_page.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that in the end no process works alone."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
