"""Leading eigenpairs of a symmetric operator, and the Krylov space of a vector.

Legend: P size of the operator, m steps, k eigenpairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from effopd.errors import ConfigError, NonFiniteError
from effopd.precision import float32_products

Product = Callable[[Tensor], Tensor]
"""v -> A v with A symmetric."""

OnStep = Callable[[int], None]
"""Called with the number of products so far."""

BREAKDOWN = 1e-10
"""A residual below this share of the largest coefficient ends a Krylov space."""


@dataclass(frozen=True, kw_only=True)
class Krylov:
    """Orthonormal basis in which the operator is tridiagonal.

    Attributes:
        basis_mP: Rows are the Lanczos vectors.
        diagonal_m: Diagonal of the tridiagonal matrix.
        couplings_m: Below the diagonal; the last one is the norm of the residual, 0 where the space
            is invariant.
        start_norm: Norm of the vector the first row was made of.
    """

    basis_mP: Float[Tensor, "m P"]
    diagonal_m: Float[Tensor, " m"]
    couplings_m: Float[Tensor, " m"]
    start_norm: float

    @property
    def is_invariant(self) -> bool:
        """Whether the operator does not lead out of the space."""
        return bool(self.couplings_m[-1] == 0)

    def tridiagonal(self) -> Float[Tensor, "m m"]:
        """The operator in this basis."""
        inner = self.couplings_m[:-1]
        return self.diagonal_m.diag() + inner.diag(1) + inner.diag(-1)


@dataclass(frozen=True, kw_only=True)
class EigenPairs:
    """Eigenvalues in descending order, with unit vectors and what is left of `A u - lambda u`.

    Attributes:
        values_k: Eigenvalues; each is within its residual of an exact one.
        vectors_kP: Rows are orthonormal.
        residuals_k: `||A u - lambda u||`, as the recurrence gives it.
        products: Products with A they took.
    """

    values_k: Float[Tensor, " k"]
    vectors_kP: Float[Tensor, "k P"]
    residuals_k: Float[Tensor, " k"]
    products: int


@float32_products()
def krylov_space(
    product: Product, start_P: Float[Tensor, " P"], steps: int, *, on_step: OnStep | None = None
) -> Krylov:
    """The space of `start, A start, ..., A^(m-1) start`, m = `steps` or less where it closes.

    Every new vector is orthogonalised twice against all earlier ones, so the basis is orthonormal
    to rounding. Holds m vectors of the start's dtype and makes m products.

    Args:
        product: The operator.
        start_P: Not zero.
        steps: Largest m, at least 1.
        on_step: Told about every product.

    Returns:
        The basis and the operator in it.

    Raises:
        ConfigError: `steps` is below 1, or the start is zero.
    """
    norm = float(start_P.norm())
    if steps < 1 or norm == 0 or not math.isfinite(norm):
        raise ConfigError(
            f"a Krylov space needs steps >= 1 and a start that is not zero, got steps {steps} and "
            f"a start of norm {norm}"
        )
    process = _Process(product, start_P / norm, min(steps, start_P.numel()), on_step)
    while process.size < process.capacity and not process.is_closed:
        process.extend_(process.next_P)
    return process.krylov(norm)


@float32_products()
def leading_eigenpairs(
    product: Product,
    start_P: Float[Tensor, " P"],
    k: int,
    *,
    tolerance: float = 1e-6,
    max_products: int | None = None,
    seed: int = 0,
    on_step: OnStep | None = None,
) -> EigenPairs:
    """The k largest eigenvalues of a symmetric operator and their vectors.

    Lanczos with full reorthogonalisation until every residual is below `tolerance` times the
    largest value. Where a Krylov space closes, the search goes on in its complement from a random
    vector, so that a multiple eigenvalue is found as often as it occurs and k pairs are found even
    of an operator of lower rank.

    Args:
        product: The operator.
        start_P: Gives dtype, device and the first direction; not zero.
        k: Pairs, 1 to P.
        tolerance: Relative residual at which a pair is done.
        max_products: Most products; None allows `4 k + 32`. Pairs that are not done then are
            returned with their residuals.
        seed: Of the random vectors.
        on_step: Told about every product.

    Returns:
        The pairs.

    Raises:
        ConfigError: k is out of range, or `max_products` is below k.
    """
    size = start_P.numel()
    limit = min(size, 4 * k + 32 if max_products is None else max_products)
    if not 1 <= k <= size or limit < k:
        raise ConfigError(
            f"k is 1 to the number of parameters ({size}) and at most max_products, got k {k}, "
            f"max_products {max_products}"
        )
    generator = torch.Generator().manual_seed(seed)
    process = _Process(product, start_P / start_P.norm(), limit, on_step)
    while process.size < process.capacity and not _is_done(process, k, tolerance):
        if process.is_closed:
            random_P = torch.randn(size, generator=generator, dtype=torch.float64).to(start_P)
            process.restart_(random_P)
        else:
            process.extend_(process.next_P)
    return ritz_pairs(process.krylov(1.0), k)


@float32_products()
def ritz_pairs(krylov: Krylov, k: int | None = None) -> EigenPairs:
    """The k largest eigenpairs of the operator restricted to the space; all of them for None."""
    values_m, weights_mm = torch.linalg.eigh(krylov.tridiagonal())
    order = values_m.argsort(descending=True)[:k]
    chosen_mk = weights_mm[:, order]
    return EigenPairs(
        values_k=values_m[order],
        vectors_kP=chosen_mk.mT.to(krylov.basis_mP) @ krylov.basis_mP,
        residuals_k=(krylov.couplings_m[-1] * chosen_mk[-1]).abs(),
        products=len(values_m),
    )


def _is_done(process: "_Process", k: int, tolerance: float) -> bool:
    """Whether the k leading pairs have settled, without forming their vectors.

    Once a space has closed, the random vector in its complement must have shown that nothing larger
    is left there: its own leading pair has settled and is none of the k largest, or the last.
    """
    if process.size < k:
        return False
    krylov, first = process.krylov(1.0), process.first_of_block
    T = krylov.tridiagonal()
    values_m, weights_mm = torch.linalg.eigh(T)
    limit = tolerance * float(values_m.abs().max())
    coupling = float(krylov.couplings_m[-1])
    if float((coupling * weights_mm[-1, -k:]).abs().max()) > limit:
        return False
    if first == 0:
        return not process.is_closed
    block, weights = torch.linalg.eigh(T[first:, first:])
    settled = process.is_closed or float((coupling * weights[-1, -1]).abs()) <= limit
    return settled and float(block[-1]) <= float(values_m[-k])


class _Process:
    """A Lanczos recurrence under way."""

    def __init__(
        self, product: Product, first_P: Tensor, capacity: int, on_step: OnStep | None
    ) -> None:
        self.capacity, self.size, self.first_of_block = capacity, 0, 0
        self._product, self._on_step = product, on_step
        self._basis = first_P.new_zeros(capacity, first_P.numel())
        self._diagonal: list[float] = []
        self._couplings: list[float] = []
        self.next_P = first_P
        self.is_closed = False
        self.extend_(first_P)

    def extend_(self, unit_P: Tensor) -> None:
        """Adds a vector and makes the next one."""
        self._basis[self.size] = unit_P
        image_P = self._product(unit_P)
        self._diagonal.append(float(image_P @ unit_P))
        self.size += 1
        if self._on_step is not None:
            self._on_step(self.size)
        residual_P = self._projected_out(image_P)
        coupling = float(residual_P.norm())
        if not math.isfinite(coupling):
            raise NonFiniteError("a product with the operator is not finite: check the model")
        scale = max(map(abs, [*self._diagonal, *self._couplings]), default=0.0)
        self.is_closed = coupling <= BREAKDOWN * scale or self.size == len(unit_P)
        self._couplings.append(0.0 if self.is_closed else coupling)
        self.next_P = residual_P / (coupling or 1.0)

    def restart_(self, vector_P: Tensor) -> None:
        """Goes on in the complement of a space that has closed."""
        rest_P = self._projected_out(vector_P)
        self.first_of_block = self.size
        self.extend_(rest_P / rest_P.norm())

    def krylov(self, start_norm: float) -> Krylov:
        """What was found so far."""
        numbers = torch.tensor([self._diagonal, self._couplings], dtype=torch.float64)
        diagonal_m, couplings_m = numbers.to(self._basis.device)
        return Krylov(
            basis_mP=self._basis[: self.size],
            diagonal_m=diagonal_m,
            couplings_m=couplings_m,
            start_norm=start_norm,
        )

    def _projected_out(self, vector_P: Tensor) -> Tensor:
        """Twice, since once leaves rounding errors as large as what was removed."""
        basis = self._basis[: self.size]
        for _ in range(2):
            vector_P = vector_P - basis.mT @ (basis @ vector_P)
        return vector_P
