"""How far the representations of tokens moved between two models that read the same text.

A representation is a row of the input embeddings, or the last hidden state after the final norm.
Legend: N tokens, S tokens chosen for a picture, D width, P points.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effopd.analysis.behavior import quantile
from effopd.errors import NonFiniteError
from effopd.models.policy import Policy, Sample, micro_batches
from effopd.precision import float32_products
from effopd.records import Row

BATCH_TOKENS = 32_768
"""Padded tokens that go through a model together, at most."""
_CHUNK_ELEMENTS = 2**22  # 32 MiB of float64


class ShiftSums:
    """Adds up in float64 what `row` needs, some tokens at a time, so that no [N, D] is kept."""

    def __init__(self) -> None:
        self._cosines: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}

    def add(self, before_ND: Float[Tensor, "N D"], after_ND: Float[Tensor, "N D"]) -> None:
        """Counts N more tokens."""
        rows = max(1, _CHUNK_ELEMENTS // max(1, before_ND.shape[1]))
        for before, after in zip(before_ND.split(rows), after_ND.split(rows), strict=True):
            b_ND, a_ND = before.double().cpu(), after.to(before.device).double().cpu()
            if not bool(b_ND.isfinite().all() and a_ND.isfinite().all()):
                raise NonFiniteError(
                    "a token's representation holds NaN or infinity: one of the two models is "
                    "damaged or has diverged"
                )
            length_N = b_ND.norm(dim=1)
            product_N, dots_N = length_N * a_ND.norm(dim=1), (b_ND * a_ND).sum(1)
            known_N = product_N > 0
            self._cosines.append((dots_N[known_N] / product_N[known_N]).clamp(-1, 1))
            units_ND = b_ND[length_N > 0] / length_N[length_N > 0, None]
            found = {
                "tokens": torch.tensor(float(len(b_ND))),
                "units": torch.tensor(float(len(units_ND))),
                "unit_D": units_ND.sum(0),
                "before_D": b_ND.sum(0),
                "after_D": a_ND.sum(0),
                "before": b_ND.square().sum(),
                "after": a_ND.square().sum(),
                "product": dots_N.sum(),
                "moved": (a_ND - b_ND).square().sum(),
            }
            for name, value in found.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value

    def row(self) -> Row:
        """The shift of all tokens that were added."""
        sums, tokens = self._sums, float(self._sums["tokens"])
        cosines = torch.cat(self._cosines).sort().values
        before, after, units = (float(sums[name]) for name in ("before", "after", "units"))
        # <B - mean, A - mean> / (|B - mean| |A - mean|) over all tokens and widths; None where
        # nothing but rounding is left without the means.
        squares = [float(sums[name].square().sum()) / tokens for name in ("before_D", "after_D")]
        spreads = [size - square for size, square in zip((before, after), squares, strict=True)]
        centred = None
        if all(spread > 1e-12 * size for spread, size in zip(spreads, squares, strict=True)):
            product = float(sums["product"] - sums["before_D"] @ sums["after_D"] / tokens)
            centred = max(-1.0, min(1.0, product / math.sqrt(spreads[0] * spreads[1])))
        # Mean of cos(b_i, b_j) over pairs i != j: (|sum of unit vectors|^2 - n) / (n (n - 1)).
        unrelated = None
        if units >= 2:
            unrelated = (float(sums["unit_D"].square().sum()) - units) / (units * (units - 1))
        known = len(cosines) > 0
        return {
            "tokens": int(tokens),
            "mean_cosine": float(cosines.mean()) if known else None,
            "p05_cosine": quantile(cosines, 0.05) if known else None,
            "min_cosine": float(cosines[0]) if known else None,
            "centred_cosine": centred,
            "unrelated_cosine": unrelated,
            "relative_shift": math.sqrt(float(sums["moved"]) / before) if before > 0 else None,
            "norm_ratio": math.sqrt(after / before) if before > 0 else None,
            "zero_tokens": int(tokens) - len(cosines),
        }


def embedding_shift(
    before_VD: Float[Tensor, "V D"], after_VD: Float[Tensor, "V D"], token_ids_N: Int[Tensor, " N"]
) -> Row:
    """Shift of the input embeddings of the tokens of a text, see `ShiftSums.row`.

    Source: arXiv 2605.11739, appendix E.1, table 3: the mean cosine of token representations on
    text that the base generated. Whether a token counts once or as often as it occurs is not said.
    """
    sums = ShiftSums()
    ids_N = token_ids_N.to(before_VD.device)
    rows = max(1, _CHUNK_ELEMENTS // max(1, before_VD.shape[1]))
    for ids in ids_N.split(rows):
        sums.add(before_VD[ids], after_VD[ids.to(after_VD.device)])
    return sums.row()


@dataclass(frozen=True, kw_only=True, eq=False)
class StateShift:
    """How far last hidden states moved (`ShiftSums.row`), and S chosen ones, fp32 on the CPU."""

    row: Row
    before_SD: Float[Tensor, "S D"]
    after_SD: Float[Tensor, "S D"]


@torch.no_grad()
@float32_products()
def state_shift(
    base: Policy,
    tuned: Policy,
    samples: Sequence[Sample],
    *,
    chosen: Sequence[int] = (),
    batch_tokens: int = BATCH_TOKENS,
) -> StateShift:
    """Shift of the last hidden states from which the tokens of a text are predicted.

    Source: arXiv 2605.11739, appendix E.1, the other reading of "token representations".
    """
    assert not (base.model.training)
    assert not (tuned.model.training)
    sums, before, after, start = ShiftSums(), [], [], 0
    wanted_S = torch.tensor(chosen, dtype=torch.long)
    for indices in micro_batches([sample.length for sample in samples], tokens=batch_tokens):
        batch = [samples[i] for i in indices]
        before_ND, after_ND = base.states(batch).hidden_ND, tuned.states(batch).hidden_ND
        sums.add(before_ND, after_ND)
        inside = (wanted_S >= start) & (wanted_S < start + len(before_ND))
        here = wanted_S[inside] - start
        before.append(before_ND[here.to(before_ND.device)].float().cpu())
        after.append(after_ND[here.to(after_ND.device)].float().cpu())
        start += len(before_ND)
    row = sums.row()
    return StateShift(row=row, before_SD=torch.cat(before), after_SD=torch.cat(after))


Projection = Callable[[Tensor], Tensor]
"""Points [P, D] to points [P, 2], such as `trajectories.pca_points`."""


def frequent_tokens(token_ids_N: Int[Tensor, " N"], count: int) -> list[int]:
    """The ids that occur most often in a text, most frequent first; equals by ascending id."""
    ids, counts = token_ids_N.unique(return_counts=True)
    return [int(ids[i]) for i in counts.argsort(descending=True, stable=True)[:count]]


def spread_tokens(tokens: int, count: int, seed: int = 0) -> list[int]:
    """Ascending indices of tokens drawn without replacement, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randperm(tokens, generator=generator)[:count].tolist())


def shift_points(
    before_SD: Float[Tensor, "S D"],
    after: Mapping[str, Float[Tensor, "S D"]],
    project: Projection,
) -> list[Row]:
    """Representations of S tokens in the base and in tuned models, projected together.

    The arrow of a token goes from its row of label "base" to its row of a model's label.

    Source: arXiv 2605.11739, appendix E.1, figure 11.
    """
    points_P2 = project(torch.cat([before_SD, *after.values()]))
    return _rows(["base", *after], points_P2, len(before_SD))


def shift_vectors(
    before_SD: Float[Tensor, "S D"],
    after: Mapping[str, Float[Tensor, "S D"]],
    project: Projection,
) -> list[Row]:
    """Shifts (after minus before) of S tokens in tuned models, projected together with no shift.

    Where shifts are small against the distances between tokens, as they are in trained embeddings,
    only this shows whether tokens move alike.
    """
    shifts = [tensor - before_SD for tensor in after.values()]
    points_P2 = project(torch.cat([torch.zeros_like(before_SD[:1]), *shifts]))
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
