"""The path of one tensor's leading direction over the checkpoints of a run, and pictures of it.

Axes: T checkpoints, d components of a direction (rows of the update), c coordinates of a picture.
All numbers follow from the T by T Gram matrix of the centred path, since T is far smaller than d.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from effopd.errors import ConfigError, MissingExtraError
from effopd.linalg.leading import leading_directions

LEAST_POINTS = 4
"""Fewest points that a t-SNE picture arranges: perplexity 1 needs three neighbours."""
LARGEST_PERPLEXITY = 30.0
"""Neighbours that a point of a t-SNE picture has in effect, where there are enough points."""
POINTS_A_RATE = 48
"""Points for each unit of t-SNE's learning rate, at least 1; the usual least, 50, is unstable."""
ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Spread, as a share of the points' size, that counts as none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Leading left directions of one tensor along a run, their signs following each other.

    Unit vectors of the checkpoints at which the tensor had moved, whose positions in the series are
    the `indices`. A relative gap is that of the first value to the second over the first: near 0
    the direction is one of many.
    """

    points_Td: Float64[Tensor, "T d"]
    indices: tuple[int, ...]
    relative_gaps: tuple[float, ...]

    @property
    def never_moved(self) -> bool:
        """Whether the tensor had moved at no checkpoint."""
        return not self.indices


def leading_trajectory(updates_mn: Iterable[Float[Tensor, "m n"]]) -> Trajectory:
    """First left direction of a tensor's update at each checkpoint, one update at a time."""
    moved: dict[int, tuple[Tensor, float]] = {}
    start = None
    for index, update_mn in enumerate(updates_mn):
        found = leading_directions(update_mn, 1, start=start)
        if not found.never_moved:
            start = found.V_nk
            moved[index] = found.U_mk[:, 0], float(found.relative_gaps_k[0])
    return Trajectory(
        points_Td=aligned([vector for vector, _ in moved.values()]),
        indices=tuple(moved),
        relative_gaps=tuple(gap for _, gap in moved.values()),
    )


def aligned(vectors: Sequence[Float[Tensor, "d"]]) -> Float64[Tensor, "T d"]:
    """Vectors of unknown sign, each turned to a non-negative product with the one before.

    Only the past decides, so that later checkpoints change nothing. The first one is turned so that
    its largest component is positive.
    """
    turned: list[Tensor] = []
    for vector in vectors:
        wide = vector.double()
        sign = float(wide @ turned[-1]) if turned else _sign(wide)
        turned.append(-wide if sign < 0 else wide)
    return torch.stack(turned) if turned else torch.empty(0, 0, dtype=torch.float64)


def _sign(vector: Tensor) -> float:
    """Sign of the largest component; of the first one among equals, rounding aside."""
    sizes = vector.abs()
    first = int((sizes >= (1 - 1e-9) * sizes.max()).nonzero()[0, 0])
    return float(vector[first].sign())


def explained_variance_ratio(points_Td: Float[Tensor, "T d"], components: int = 2) -> float | None:
    """Share of the path's variance in its leading principal components, in (0, 1].

    `(l_1 + l_2) / sum_i l_i` for the eigenvalues l of the covariance of the centred path. None
    where all points are equal, of a single point and of none. Up to three points lie in a plane:
    their ratio is 1 and says nothing.

    Source: arXiv 2605.11739, equation 18 and figure 13.
    """
    variances, _ = _principal(points_Td)
    total = float(variances.sum())
    return min(1.0, float(variances[:components].sum()) / total) if total else None


def pca_points(points_Td: Float[Tensor, "T d"], components: int = 2) -> Float64[Tensor, "T c"]:
    """Coordinates of the centred path along its leading principal components.

    The sign of each is such that its largest coordinate is positive. Components that the path does
    not have are zero.
    """
    variances, axes = _principal(points_Td)
    out = axes.new_zeros(len(axes), components)
    for c in range(min(components, len(variances))):
        column = axes[:, c] * variances[c].sqrt()
        out[:, c] = column * _sign(column)
    return out


def _principal(points_Td: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, and eigenvectors of the centred path's Gram matrix.

    They are T - 1 times the variances along the principal components, and the coordinates along
    them to scale. All are exactly zero for a path that stays in one point.
    """
    points = points_Td.double()
    if not len(points):
        return points.new_zeros(0), points.new_zeros(0, 0)
    centred = points - points.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    noise = ROUNDING**2 * float(points.square().sum())
    values = values.flip(0).clamp(min=0.0)
    # Rounding of the Gram matrix is relative to its largest eigenvalue.
    values[values <= max(noise, ROUNDING * float(values[0]))] = 0.0
    return values, vectors.flip(1)


def tsne_points(points_Td: Float[Tensor, "T d"]) -> Float64[Tensor, "T 2"]:
    """Places in a plane where near points stay near, by t-SNE from the principal components.

    Distances in the picture, and between groups, have no unit. The path of several runs, one below
    the other, gives one picture of all. Takes at least 4 points; the perplexity, an effective
    number of neighbours, is `min(30, (T - 1) / 3)`.

    Source: arXiv 2605.11739, figures 5a and 15 to 28, without perplexity or seed; both are ours.
    """
    count = len(points_Td)
    if count < LEAST_POINTS:
        raise ConfigError(
            f"a t-SNE picture of {count} points; expected at least {LEAST_POINTS}: give more "
            "checkpoints, or look at the principal components"
        )
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError(
            "a t-SNE picture needs scikit-learn, which is not installed: "
            "pip install 'effopd[analysis]'"
        ) from error
    # All principal components keep the distances, which are all that the method looks at.
    coordinates = pca_points(points_Td, count)
    spread = float(coordinates[:, 0].std())
    if not spread:
        return coordinates[:, :2].cpu()
    method = TSNE(
        n_components=2,
        perplexity=min(LARGEST_PERPLEXITY, (count - 1) / 3),
        init=(coordinates[:, :2] * (1e-4 / spread)).cpu().numpy(),
        method="exact",
        learning_rate=max(1.0, count / POINTS_A_RATE),
        random_state=0,
    )
    found = method.fit_transform((coordinates / spread).cpu().numpy())
    return torch.from_numpy(found).double()
