"""Every test runs offline, on one thread and from the same seed."""

import gc
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", NO_COLOR="1", TERM="dumb")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads are slower for tiny tensors
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matmul on a GPU

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote
gc.disable()  # until the tests are collected: nothing of what is imported is garbage

THREADS = int(os.environ["OMP_NUM_THREADS"])

FUZZ_CPU_S = 90.0  # of a process, after which `make fuzz` begins no other test

# The same examples at every run, however slow the machine is; `make fuzz` looks for new ones.
settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "fuzz", settings.get_profile("tests"), derandomize=False, max_examples=1000, print_blob=True
)
settings.load_profile("tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fuzzing takes its tests in an order of its own, so that each has its turn some time."""
    if settings.get_current_profile_name() == "fuzz":
        random.Random(str(config.getoption("--hypothesis-seed"))).shuffle(items)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # looked through by no collection while tests run
    gc.enable()


def pytest_runtest_setup() -> None:
    if settings.get_current_profile_name() == "fuzz" and time.process_time() > FUZZ_CPU_S:
        pytest.skip(f"the {FUZZ_CPU_S:g} CPU s of fuzzing are over")


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs of this machine, which "auto" would take, where no test asks for one."""
    if "not gpu" in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)  # whatever the settings of a run before asked for
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an untrained `student` and `teacher`; tests read it and never write there."""
    from tests.support.tiny import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """PNG files stay empty: drawing takes longer than all else in commands that draw many."""
    from effopd.reports import png

    def empty(figure: object, path: Path, size: object = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"\x89PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png, "save_png", empty)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/golden/outcomes.json anew"
    )
