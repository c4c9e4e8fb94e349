"""Krylov spaces and leading eigenpairs of a symmetric operator that is only known by its products.

Legend: P size of the operator, m steps, k eigenpairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import ConfigError, MissingExtraError, NonFiniteError
from effopd.precision import float32_products

Product = Callable[[Tensor], Tensor]
"""v -> A v with A symmetric."""

OnStep = Callable[[int], None]
"""Called with the number of products so far."""

BREAKDOWN = 1e-10
"""A residual below this share of the largest coefficient ends a Krylov space."""
DENSE_SIZE = 64
"""Operators up to this size are written out and decomposed whole."""


@dataclass(frozen=True, kw_only=True)
class Krylov:
    """Orthonormal basis (rows) in which the operator is tridiagonal.

    `couplings_m` are below the diagonal; the last one is the norm of the residual, 0 where the
    operator does not lead out of the space. `start_norm` is that of the vector it was made of.
    """

    basis_mP: Float[Tensor, "m P"]
    diagonal_m: Float[Tensor, " m"]
    couplings_m: Float[Tensor, " m"]
    start_norm: float

    def tridiagonal(self) -> Float[Tensor, "m m"]:
        """The operator in this basis."""
        inner = self.couplings_m[:-1]
        return self.diagonal_m.diag() + inner.diag(1) + inner.diag(-1)


@dataclass(frozen=True, kw_only=True)
class EigenPairs:
    """Eigenvalues in descending order; vectors are orthonormal rows.

    Each value is within its residual `||A u - lambda u||` of an exact one.
    """

    values_k: Float[Tensor, " k"]
    vectors_kP: Float[Tensor, "k P"]
    residuals_k: Float[Tensor, " k"]


@float32_products()
def krylov_space(
    product: Product, start_P: Float[Tensor, " P"], steps: int, *, on_step: OnStep | None = None
) -> Krylov:
    """The space of `start, A start, ..., A^(m-1) start`, m = `steps` or less where it closes.

    Lanczos with full reorthogonalisation: the basis is orthonormal to rounding. Holds m vectors of
    the start's dtype and makes m products.
    """
    norm = float(start_P.norm())
    if steps < 1 or norm == 0 or not math.isfinite(norm):
        raise ConfigError(
            f"a Krylov space needs steps >= 1 and a start that is not zero, got steps {steps} and "
            f"a start of norm {norm}"
        )
    steps = min(steps, start_P.numel())
    basis_mP = start_P.new_zeros(steps, start_P.numel())
    diagonal, couplings = list[float](), list[float]()
    next_P = start_P / norm
    for step in range(steps):
        basis_mP[step] = next_P
        rest_P = product(next_P)
        diagonal.append(float(rest_P @ next_P))
        if on_step is not None:
            on_step(step + 1)
        # Twice, since once leaves rounding errors as large as what was removed.
        for _ in range(2):
            rest_P = rest_P - basis_mP[: step + 1].mT @ (basis_mP[: step + 1] @ rest_P)
        coupling = float(rest_P.norm())
        if not math.isfinite(coupling):
            raise NonFiniteError("a product with the operator is not finite: check the model")
        # The space closes where the rest is rounding, or where it is everything.
        scale = max(map(abs, [*diagonal, *couplings]))
        if coupling <= BREAKDOWN * scale or step + 1 == start_P.numel():
            couplings.append(0.0)
            break
        couplings.append(coupling)
        next_P = rest_P / coupling
    numbers = torch.tensor([diagonal, couplings], dtype=torch.float64, device=start_P.device)
    return Krylov(
        basis_mP=basis_mP[: len(diagonal)],
        diagonal_m=numbers[0],
        couplings_m=numbers[1],
        start_norm=norm,
    )


@float32_products()
def ritz_pairs(krylov: Krylov) -> EigenPairs:
    """Eigenpairs of the operator restricted to the space."""
    values_m, weights_mm = torch.linalg.eigh(krylov.tridiagonal())
    return EigenPairs(
        values_k=values_m.flip(0),
        vectors_kP=weights_mm.flip(1).mT.to(krylov.basis_mP) @ krylov.basis_mP,
        residuals_k=(krylov.couplings_m[-1] * weights_mm[-1]).abs().flip(0),
    )


@float32_products()
def leading_eigenpairs(
    product: Product,
    start_P: Float[Tensor, " P"],
    k: int,
    *,
    tolerance: float = 1e-6,
    on_step: OnStep | None = None,
) -> EigenPairs:
    """The k largest eigenvalues of a symmetric operator and their vectors.

    ARPACK's restarted Lanczos iteration; it holds `max(2 k + 1, 20)` vectors on the CPU. Operators
    of up to `DENSE_SIZE`, or of which nearly all pairs are wanted, are decomposed whole.
    """
    try:
        from scipy.sparse.linalg import LinearOperator, eigsh
    except ImportError as error:
        raise MissingExtraError(
            "eigenpairs need SciPy, which is not installed: pip install 'effopd[analysis]'"
        ) from error
    size = start_P.numel()
    if not 1 <= k <= size:
        raise ConfigError(f"k is 1 to the number of parameters ({size}), got {k}")
    products = 0

    def image(vector_P: Tensor) -> Tensor:
        nonlocal products
        products += 1
        image_P = product(vector_P)
        if not bool(image_P.isfinite().all()):
            raise NonFiniteError("a product with the operator is not finite: check the model")
        if on_step is not None:
            on_step(products)
        return image_P

    if size <= max(DENSE_SIZE, k + 1):
        A = torch.stack([image(row) for row in torch.eye(size).to(start_P)]).double()
        values_P, vectors_PP = torch.linalg.eigh((A + A.mT) / 2)
        values_k, vectors_kP = values_P.flip(0)[:k], vectors_PP.flip(1).mT[:k].to(start_P)
    else:
        start = start_P.cpu().numpy()
        operator = LinearOperator(
            (size, size),
            dtype=start.dtype,
            matvec=lambda v: image(torch.from_numpy(v.ravel()).to(start_P)).cpu().numpy(),
        )
        values, vectors = eigsh(operator, k, which="LA", v0=start, tol=tolerance)
        order = values.argsort()[::-1].copy()
        values_k = torch.from_numpy(values[order]).double().to(start_P.device)
        vectors_kP = torch.from_numpy(vectors.T[order].copy()).to(start_P)
    left_kP = torch.stack([image(row) for row in vectors_kP]) - values_k[:, None] * vectors_kP
    return EigenPairs(
        values_k=values_k, vectors_kP=vectors_kP, residuals_k=left_kP.norm(dim=1).double()
    )
