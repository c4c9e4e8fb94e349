"""What is stated about a number holds whatever precision the caller gives to fp32 products."""

import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from tests.analysis.test_quadratic import SAMPLES, STUDENT, TARGETS, direction, policy
from tests.reference.objectives_models import models
from tests.search.test_alpha import jump_at, run
from tests.support.checkpoints import save_adapter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from effopd import AlphaPLS
from effopd.analysis.embeddings import state_shift
from effopd.analysis.local_theory import krylov_theory, leading_theory, quadratic_parabola
from effopd.analysis.quadratic import FrozenLoss, completion_logits
from effopd.analysis.ranks import components
from effopd.analysis.spectra import spectral_metrics
from effopd.analysis.subspaces import subspace_cosines
from effopd.analysis.theory import gradient_covariance, sampled_opd_covectors
from effopd.analysis.trajectories import explained_variance_ratio, leading_trajectory
from effopd.analysis.updates import path_geometry
from effopd.linalg.krylov import krylov_space, leading_eigenpairs
from effopd.linalg.leading import block_krylov, exact_directions, leading_directions
from effopd.models.updates import AdapterUpdate
from effopd.models.weights import MemoryWeights
from effopd.objectives import fused_divergence, token_divergences, token_log_probs
from effopd.precision import MatmulPrecision, float32_products
from effopd.search.factors import product_point
from effopd.training.monitor import Monitor
from effopd.training.settings import MonitorSettings

PRODUCTS = {
    "mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "mv", "addmv", "addmv_", "dot", "vdot",
}  # fmt: skip
SWITCHES = {
    "cuda.matmul": torch.backends.cuda.matmul, "mkldnn.matmul": torch.backends.mkldnn.matmul,
    "cudnn.conv": torch.backends.cudnn.conv, "mkldnn.conv": torch.backends.mkldnn.conv,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = in_force()
    yield
    torch.set_float32_matmul_precision("highest")
    for name, switch in SWITCHES.items():
        switch.fp32_precision = before[name]


def in_force() -> dict[str, str]:
    return {name: switch.fp32_precision for name, switch in SWITCHES.items()}


class RoundedOperands(TorchDispatchMode):
    """A machine that rounds the operands of fp32 products to bfloat16 wherever it may.

    Few processors do, and those for some shapes only; here a product outside of the guard shows.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_product = func.overloadpacket.__name__ in PRODUCTS
        if is_product and torch.backends.mkldnn.matmul.fp32_precision not in {"ieee", "none"}:
            args = (*args[:-2], *(_rounded(each) for each in args[-2:]))
        return func(*args, **(kwargs or {}))


def _rounded(operand: Tensor) -> Tensor:
    return operand.bfloat16().float() if operand.dtype == torch.float32 else operand


# Results ------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


UPDATE = (normal(24, 3) @ normal(3, 18, seed=1) + 0.05 * normal(24, 18, seed=2)).float()
WIDE = UPDATE.double()
SYMMETRIC = WIDE.T @ WIDE
VECTOR = normal(18, seed=3)
HEADS = models(40, 50)
LEFT, RIGHT = normal(6, 2, seed=4).float(), normal(2, 5, seed=5).float()


def head_tensors(dtype: torch.dtype) -> list[Tensor]:
    m = HEADS
    tensors = (m.student_hidden, m.student_weight, m.teacher_hidden, m.teacher_weight)
    return [each.detach().to(dtype).requires_grad_() for each in tensors]


def divergences(dtype: torch.dtype) -> Tensor:
    return token_divergences(*head_tensors(dtype))


def divergence_gradient(dtype: torch.dtype) -> Tensor:
    tensors = head_tensors(dtype)
    return torch.autograd.grad(fused_divergence(*tensors).loss, tensors[1])[0]


def log_probs(dtype: torch.dtype) -> Tensor:
    hidden, weight = head_tensors(dtype)[:2]
    found = token_log_probs(hidden, weight, torch.arange(40)).log_probs_N
    return torch.cat([found.detach(), torch.autograd.grad(found.sum(), weight)[0].flatten()])


def frozen(dtype: torch.dtype) -> FrozenLoss:
    return FrozenLoss(STUDENT, SAMPLES, TARGETS, dtype=dtype)


def theory_numbers(dtype: torch.dtype) -> Tensor:
    loss = frozen(dtype)
    v = direction().to(dtype)
    rows = [loss.gradient(v * 0), loss.curvature_product(v), loss.hessian_product(v)]
    rows += [loss.context_gradients([0, 3], sampled_opd_covectors).sum(0)]
    return torch.cat([row / row.norm() for row in rows] + [torch.tensor([loss.loss()])])


def descent(dtype: torch.dtype) -> Tensor:
    product = SYMMETRIC.to(dtype).mv
    start = VECTOR.to(dtype)
    krylov = krylov_theory(krylov_space(product, start, 3))
    leading = leading_theory(leading_eigenpairs(product, start, 3, tolerance=1e-5), start)
    parabola = quadratic_parabola(SYMMETRIC.to(dtype).mv, start, 0.1 * start, 0.2 * start)
    parts = [krylov.displacement(0.01, 3), leading.displacement(0.01, 9), leading.values_k]
    return torch.cat([*(p.double() for p in parts), torch.tensor([parabola.curvature])])


def observations(dtype: torch.dtype) -> Tensor:
    live = UPDATE.to(dtype)
    monitor = Monitor([live], MonitorSettings(every=1))
    found: list[float] = []
    for step in (1, 2):
        live += normal(24, 18, seed=step).to(dtype)
        row = monitor.observe(step)
        found += [row[n] for n in ("displacement", "path_length")]
    return torch.tensor([*found, row["step_cosine"]], dtype=torch.float64)


def adapter(dtype: torch.dtype) -> Tensor:
    if dtype == torch.float64:
        return LEFT.double() @ RIGHT.double()
    name = "model.layers.0.mlp.up_proj"
    tensors = {f"{name}.lora_A.weight": RIGHT, f"{name}.lora_B.weight": LEFT}
    with TemporaryDirectory() as directory:
        save_adapter(Path(directory), tensors, r=2, lora_alpha=2)
        base = MemoryWeights({f"{name}.weight": torch.zeros(6, 5)})
        return AdapterUpdate(base, Path(directory)).read(f"{name}.weight")


def predicted(dtype: torch.dtype) -> Tensor:
    points = [normal(7, 5, seed=9).to(dtype)]
    points += [points[0] + 0.1 * t * UPDATE[:7, :5].to(dtype) for t in range(1, 7)]
    return run(jump_at(6, AlphaPLS(every=1)), points, [0.1 * t for t in range(7)])


def subspaces(dtype: torch.dtype) -> Tensor:
    update = UPDATE.to(dtype)
    found = leading_directions(update, 2)
    cosines = subspace_cosines(found.U_mk, exact_directions(update[:, :9], 2).U_mk)
    return torch.cat([found.values_k, cosines])


def whole(dtype: torch.dtype) -> Tensor:
    """What is computed in float64 from whatever comes in."""
    update = UPDATE.to(dtype)
    metrics = spectral_metrics(update)
    path = leading_trajectory([update, 2 * update.T[:18].T.contiguous()]).points_Td
    point = product_point((LEFT.to(dtype), RIGHT.to(dtype)), (2 * LEFT, 3 * RIGHT), 1.5)
    numbers = [
        metrics.effective_rank, metrics.spectral_norm, gradient_covariance(update)["trace"],
        path_geometry([update, 2 * update]).step_products[0],
        explained_variance_ratio(torch.cat([path, normal(3, 24)])),
    ]  # fmt: skip
    kept = components(update, 0.2, "top").flatten()
    return torch.cat([torch.tensor(numbers, dtype=torch.float64), kept, point.left_mr.flatten()])


def states(dtype: torch.dtype) -> Tensor:
    """Of models in float32, so that only their own rounding is left."""
    found = state_shift(policy(0), policy(1), SAMPLES)
    row = [found.row["mean_cosine"], found.row["relative_shift"]]
    return torch.cat(
        [torch.tensor(row), *(each.flatten() for each in completion_logits(policy(1), SAMPLES))]
    )


RESULTS: dict[str, tuple[Callable[[torch.dtype], Tensor], float]] = {
    "divergence of a token": (divergences, 1e-6),
    "gradient of a divergence": (divergence_gradient, 1e-6),
    "log-probabilities and their gradient": (log_probs, 1e-6),
    "block Krylov": (lambda dtype: block_krylov(UPDATE.to(dtype), 2, depth=3).values_k, 1e-6),
    "local theory": (descent, 1e-5),
    "frozen loss": (theory_numbers, 1e-5),
    "monitor": (observations, 1e-6),
    "update of an adapter": (adapter, 1e-6),
    "weights that a regression predicts": (predicted, 1e-5),
    "directions": (subspaces, 1e-9),
    "spectra, paths, factors": (whole, 1e-7),
    "states and logits": (states, 0.0),
}


@cache
def exact(name: str) -> Tensor:
    """In float64; where a result has no such form, at the highest precision."""
    return RESULTS[name][0](torch.float64).double()


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
@pytest.mark.parametrize("name", RESULTS)
def test_results_are_as_exact_as_stated_at_any_setting(name: str, setting: str) -> None:
    compute, tolerance = RESULTS[name]
    expected = exact(name)
    torch.set_float32_matmul_precision(setting)
    with RoundedOperands():
        found = compute(torch.float32)
    assert float((found.double() - expected).norm() / expected.norm()) <= tolerance
    assert torch.get_float32_matmul_precision() == setting


def test_a_loss_follows_the_caller_where_that_is_asked_for() -> None:
    """And the rounding machine of these tests does round."""
    torch.set_float32_matmul_precision("medium")
    with RoundedOperands():
        found = token_divergences(*head_tensors(torch.float32), matmul_precision=None)
    error = float((found.double() - exact("divergence of a token")).abs().max())
    assert 1e-4 < error < 1e-1


# The guard ----------------------------------------------------------------------------------------


def test_it_sets_every_switch_and_brings_back_what_was_there() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    before = in_force()
    assert before["mkldnn.matmul"] == "bf16"

    @float32_products()
    def fails() -> None:
        raise KeyError(*in_force().values(), torch.get_float32_matmul_precision())

    with pytest.raises(KeyError) as caught:
        fails()
    assert caught.value.args == (*["ieee"] * 4, "highest")
    assert in_force() == before
    assert torch.get_float32_matmul_precision() == "medium"


def test_switches_that_the_old_setting_cannot_express_are_kept() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    with pytest.raises(RuntimeError, match="mix of the legacy and new"):
        torch.get_float32_matmul_precision()
    before = in_force()
    with float32_products():
        assert set(in_force().values()) == {"ieee"}
    assert in_force() == before


@pytest.mark.parametrize("asked", ["high", "medium"])
def test_nothing_is_less_exact_than_the_block_around_it(asked: MatmulPrecision) -> None:
    with float32_products(asked):
        assert torch.get_float32_matmul_precision() == asked
        with float32_products("highest"), float32_products(asked):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == asked


def test_threads_do_not_restore_each_others_settings() -> None:
    """One enters first and leaves first; the other computes on, and the last one restores."""
    torch.set_float32_matmul_precision("medium")
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []

    def first() -> None:
        with float32_products():
            first_in.set()
            second_in.wait()
        first_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait()
    with float32_products():
        second_in.set()
        first_out.wait()
        seen.append(torch.get_float32_matmul_precision())
    thread.join()
    assert seen == ["highest"]
    assert torch.get_float32_matmul_precision() == "medium"
