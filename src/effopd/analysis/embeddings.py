"""How far the representations of tokens moved between two models that read the same text.

A representation is a row of the input embeddings, or the last hidden state after the final norm.
Legend: N tokens, S tokens chosen for a picture, D width, P points.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from effopd.analysis.behavior import quantile
from effopd.errors import ConfigError, NonFiniteError, ParameterMismatchError
from effopd.models.policy import Policy, Sample, micro_batches
from effopd.precision import float32_products
from effopd.records import Row

BATCH_TOKENS = 32_768
"""Padded tokens that go through a model together, at most."""
_CHUNK_ELEMENTS = 2**22  # 32 MiB of float64


class ShiftSums:
    """Adds up what `row` needs, some tokens at a time, so that no [N, D] has to be kept.

    Everything is accumulated in float64.
    """

    def __init__(self) -> None:
        self._cosines: list[Tensor] = []
        self._zeros = 0
        self._sums: dict[str, Tensor] = {}

    def add(self, before_ND: Float[Tensor, "N D"], after_ND: Float[Tensor, "N D"]) -> None:
        """Counts N more tokens."""
        if before_ND.shape != after_ND.shape or before_ND.dim() != 2:
            raise ParameterMismatchError(
                f"representations of shapes {tuple(before_ND.shape)} and {tuple(after_ND.shape)}: "
                "expected one row a token and one width; compare models of one architecture"
            )
        rows = max(1, _CHUNK_ELEMENTS // max(1, before_ND.shape[1]))
        for before, after in zip(before_ND.split(rows), after_ND.split(rows), strict=True):
            self._add(before.double().cpu(), after.to(before.device).double().cpu())

    def _add(self, before_ND: Tensor, after_ND: Tensor) -> None:
        if not bool(before_ND.isfinite().all() and after_ND.isfinite().all()):
            raise NonFiniteError(
                "a token's representation holds NaN or infinity: one of the two models is damaged "
                "or has diverged"
            )
        lengths_N = before_ND.norm(dim=1), after_ND.norm(dim=1)
        product_N = lengths_N[0] * lengths_N[1]
        known_N = product_N > 0
        dots_N = (before_ND * after_ND).sum(1)
        self._cosines.append((dots_N[known_N] / product_N[known_N]).clamp(-1, 1))
        self._zeros += int((~known_N).sum())
        units_ND = before_ND[lengths_N[0] > 0] / lengths_N[0][lengths_N[0] > 0, None]
        found = {
            "tokens": torch.tensor(float(len(before_ND))),
            "units": torch.tensor(float(len(units_ND))),
            "unit_D": units_ND.sum(0),
            "before_D": before_ND.sum(0),
            "after_D": after_ND.sum(0),
            "before": before_ND.square().sum(),
            "after": after_ND.square().sum(),
            "product": dots_N.sum(),
            "moved": (after_ND - before_ND).square().sum(),
        }
        for name, value in found.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def row(self) -> Row:
        """The shift of all tokens that were added."""
        if not self._sums:
            raise ConfigError("no token was compared: give a text of at least one token")
        sums, tokens = self._sums, int(self._sums["tokens"])
        cosines = torch.cat(self._cosines).sort().values
        before, after = float(sums["before"]), float(sums["after"])
        known = len(cosines) > 0
        return {
            "tokens": tokens,
            "mean_cosine": float(cosines.mean()) if known else None,
            "p05_cosine": quantile(cosines, 0.05) if known else None,
            "min_cosine": float(cosines[0]) if known else None,
            "centred_cosine": self._centred_cosine(),
            "unrelated_cosine": self._unrelated_cosine(),
            "relative_shift": math.sqrt(float(sums["moved"]) / before) if before > 0 else None,
            "norm_ratio": math.sqrt(after / before) if before > 0 else None,
            "zero_tokens": self._zeros,
        }

    def _centred_cosine(self) -> float | None:
        """`<B - mean, A - mean> / (|B - mean| |A - mean|)` over all tokens and widths."""
        sums, tokens = self._sums, float(self._sums["tokens"])
        product = float(sums["product"] - sums["before_D"] @ sums["after_D"] / tokens)
        spreads = []
        for name in ("before", "after"):
            mean_square = float(sums[f"{name}_D"].square().sum()) / tokens
            spreads.append(float(sums[name]) - mean_square)
            if spreads[-1] <= 1e-12 * mean_square:  # nothing is left but rounding
                return None
        return max(-1.0, min(1.0, product / math.sqrt(spreads[0] * spreads[1])))

    def _unrelated_cosine(self) -> float | None:
        """Mean of `cos(b_i, b_j)` over pairs i != j: `(|sum of unit vectors|^2 - n) / n(n - 1)`."""
        count = float(self._sums["units"])
        if count < 2:
            return None
        return (float(self._sums["unit_D"].square().sum()) - count) / (count * (count - 1))


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
    """How far last hidden states moved.

    Attributes:
        row: See `ShiftSums.row`.
        before_SD: Chosen states of the base, fp32 on the CPU.
        after_SD: The same of the tuned model.
    """

    row: Row
    before_SD: Float[Tensor, "S D"]
    after_SD: Float[Tensor, "S D"]


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
    sums, before, after, start = ShiftSums(), [], [], 0
    wanted_S = torch.tensor(chosen, dtype=torch.long)
    for before_ND, after_ND in _paired_states(base, tuned, samples, batch_tokens):
        sums.add(before_ND, after_ND)
        inside = (wanted_S >= start) & (wanted_S < start + len(before_ND))
        here = wanted_S[inside] - start
        before.append(before_ND[here.to(before_ND.device)].float().cpu())
        after.append(after_ND[here.to(after_ND.device)].float().cpu())
        start += len(before_ND)
    if any(not 0 <= index < start for index in chosen):
        raise ConfigError(
            f"token {max(chosen)} was chosen (from 0), the text has {start}: see spread_tokens"
        )
    row = sums.row()
    return StateShift(row=row, before_SD=torch.cat(before), after_SD=torch.cat(after))


@torch.no_grad()
def _paired_states(
    base: Policy, tuned: Policy, samples: Sequence[Sample], batch_tokens: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states of both models, batch by batch."""
    if base.model.training or tuned.model.training:
        raise ConfigError("a model is in training mode: call model.eval() before it is compared")
    for indices in micro_batches([sample.length for sample in samples], tokens=batch_tokens):
        batch = [samples[i] for i in indices]
        yield base.states(batch).hidden_ND, tuned.states(batch).hidden_ND


# Pictures -----------------------------------------------------------------------------------------

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
    """
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
