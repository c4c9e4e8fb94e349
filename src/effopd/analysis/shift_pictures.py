"""Tokens before and after training as points of one plane.

Legend: N tokens, S tokens shown, D width, P points.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effopd.errors import ConfigError, ParameterMismatchError
from effopd.records import Row

Projection = Callable[[Tensor], Tensor]
"""Points [P, D] to points [P, 2], such as `trajectories.pca_points`."""


def frequent_tokens(token_ids_N: Int[Tensor, " N"], count: int) -> list[int]:
    """The ids that occur most often in a text, most frequent first; equals by ascending id.

    Args:
        token_ids_N: The text.
        count: How many are wanted.

    Returns:
        `count` different ids, or all that occur.

    Raises:
        ConfigError: `count` is below 1.
    """
    _check_count(count)
    ids, counts = token_ids_N.unique(return_counts=True)
    return [int(ids[i]) for i in counts.argsort(descending=True, stable=True)[:count]]


def spread_tokens(tokens: int, count: int, seed: int = 0) -> list[int]:
    """Ascending indices of tokens drawn without replacement, the same for the same seed.

    Args:
        tokens: How many there are.
        count: How many are wanted.
        seed: Of the draw; global generators are left alone.

    Returns:
        `count` indices, or all there are.

    Raises:
        ConfigError: `count` is below 1.
    """
    _check_count(count)
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(tokens, generator=generator)[:count].tolist())


def shift_points(
    before_SD: Float[Tensor, "S D"],
    after: Mapping[str, Float[Tensor, "S D"]],
    project: Projection,
) -> list[Row]:
    """Representations of S tokens in the base and in tuned models, projected together.

    The arrow of a token goes from its row of label "base" to its row of a model's label.

    Args:
        before_SD: In the base.
        after: In each tuned model by label.
        project: From all (1 + models) * S points to the plane.

    Returns:
        Rows `{"label", "token", "x", "y"}`, `token` counting from 0 in the order of `before_SD`.

    Source: arXiv 2605.11739, appendix E.1, figure 11.
    """
    _check(before_SD, after)
    points_PD = torch.cat([before_SD, *after.values()])
    return _rows(["base", *after], project(points_PD), len(before_SD))


def shift_vectors(
    before_SD: Float[Tensor, "S D"],
    after: Mapping[str, Float[Tensor, "S D"]],
    project: Projection,
) -> list[Row]:
    """Shifts (after minus before) of S tokens in tuned models, projected together with no shift.

    Where shifts are small against the distances between tokens, as they are in trained embeddings,
    only this shows whether tokens move alike.

    Args:
        before_SD: In the base.
        after: In each tuned model by label.
        project: From all models * S + 1 points to the plane.

    Returns:
        Rows as those of `shift_points`; the base has a single one, of token None: the place of a
        token that did not move.
    """
    _check(before_SD, after)
    still_1D = torch.zeros_like(before_SD[:1])
    shifts = [tensor - before_SD for tensor in after.values()]
    points_P2 = project(torch.cat([still_1D, *shifts]))
    (still,) = _rows(["base"], points_P2[:1], 1)
    return [still | {"token": None}, *_rows([*after], points_P2[1:], len(before_SD))]


def _rows(labels: list[str], points_P2: Tensor, tokens: int) -> list[Row]:
    """One row a point; the points of a label follow one another."""
    places = points_P2.reshape(len(labels), tokens, 2).tolist()
    return [
        {"label": label, "token": token, "x": x, "y": y}
        for label, points in zip(labels, places, strict=True)
        for token, (x, y) in enumerate(points)
    ]


def _check(before_SD: Tensor, after: Mapping[str, Tensor]) -> None:
    if "base" in after:
        raise ConfigError("no tuned model may be labelled 'base', which is the base's: rename it")
    for label, tensor in after.items():
        if tensor.shape != before_SD.shape:
            raise ParameterMismatchError(
                f"{label} has representations of shape {tuple(tensor.shape)}, the base of "
                f"{tuple(before_SD.shape)}: take the same tokens of models of one width"
            )


def _check_count(count: int) -> None:
    if count < 1:
        raise ConfigError(f"{count} tokens were asked for, expected at least 1")
