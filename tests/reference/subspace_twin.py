"""Plain twins of subspaces and trajectories: whole decompositions and textbook formulas, float64.

Written from the definitions, with none of the code under test.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def triples(matrix: Array, k: int) -> tuple[Array, Array, Array]:
    """Leading left directions [m, k], values [k] and right directions [n, k]."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :k], values[:k], right[:k].T


def direction_cosines(left: Array, other: Array) -> list[float]:
    return [abs(sum(left[:, j] * other[:, j])) for j in range(min(left.shape[1], other.shape[1]))]


def subspace_cosines(left: Array, other: Array) -> list[float]:
    """Nuclear norm over j, for each j."""
    count = min(left.shape[1], other.shape[1])
    products = [left[:, :j].T @ other[:, :j] for j in range(1, count + 1)]
    return [float(np.linalg.norm(p, "nuc")) / len(p) for p in products]


def principal_angles(left: Array, other: Array) -> list[float]:
    """By definition: the closest pair of unit vectors, then the closest ones orthogonal to it."""
    angles = []
    while left.shape[1] and other.shape[1]:
        inner_left, cosines, inner_right = np.linalg.svd(left.T @ other)
        angles.append(float(np.arccos(min(1.0, cosines[0]))))
        left, other = left @ inner_left[:, 1:], other @ inner_right[1:].T
    return angles


def captured_norms(other: Array, update: Array, k: int) -> list[float]:
    """Norm of the projected update over the norm of its best part of rank j, for each j."""
    found = []
    for j in range(1, k + 1):
        left, values, right = triples(update, j)
        projected = other[:, :j] @ other[:, :j].T @ update
        found.append(float(np.linalg.norm(projected) / np.linalg.norm((left * values) @ right.T)))
    return found


def aligned(vectors: Sequence[Array]) -> Array:
    """Signs, each from the vector before; the first from its largest component."""
    first = vectors[0]
    out = [first * np.sign(first[np.argmax(np.abs(first))])]
    for vector in vectors[1:]:
        out.append(vector if np.dot(vector, out[-1]) >= 0 else -vector)
    return np.stack(out)


def explained_variance_ratio(points: Array, components: int) -> float:
    """From the d x d covariance."""
    values = np.sort(np.linalg.eigvalsh(np.cov(points, rowvar=False)))[::-1]
    return float(values[:components].sum() / values.sum())


def pca_points(points: Array, components: int) -> Array:
    """Projections on the right singular vectors of the centred points."""
    centred = points - points.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:components]
    coordinates = centred @ axes.T
    largest = np.argmax(np.abs(coordinates), axis=0)
    return coordinates * np.sign(coordinates[largest, range(components)])
