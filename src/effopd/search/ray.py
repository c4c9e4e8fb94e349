"""The ray through anchor and tip, and moving live parameters along it.

`point(s) = anchor + s * (tip - anchor)`, always from the two fixed endpoints, computed in fp32 and
rounded once to the live dtype: no drift however many candidates are tried, and `point(1)` is the
tip bit for bit. The same holds where another displacement replaces `tip - anchor`:
`point(s) = tip + (s - 1) * displacement`, and the anchor is not touched. Where tensors are factors,
their products are on the ray, and the live factors hold the nearest product of their rank.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from effopd.errors import ParameterMismatchError
from effopd.search.factors import Factors

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORD_BYTES = 8
_MIX = 0x9E3779B97F4A7C15  # odd, so multiplying by it modulo 2**64 loses nothing


def local_(tensor: Tensor) -> Tensor:
    """The storage this process owns, detached: a DTensor's local shard, else the tensor itself."""
    shard = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return shard.detach()


def interpolate_(out: Tensor, anchor: Tensor, tip: Tensor, scale: float) -> None:
    """Writes `anchor + scale * (tip - anchor)` into `out`; scales 0 and 1 copy the end exactly.

    `torch.lerp` computes bf16 and fp16 inputs in fp32 and rounds once. Endpoints on another device
    travel one tensor at a time, asynchronously only towards CUDA: the host must not read early.
    """
    ahead = out.is_cuda
    if scale in {0.0, 1.0}:
        out.copy_(tip if scale else anchor, non_blocking=ahead)
        return
    start, end = (t.to(out.device, non_blocking=ahead) for t in (anchor, tip))
    torch.lerp(start, end, scale, out=out)


def displace_(out: Tensor, tip: Tensor, displacement: Tensor, distance: float) -> None:
    """Writes `tip + distance * displacement` into `out`, which may be the tip; 0 copies the tip.

    Computed in the displacement's dtype, fp32 or wider; tensors travel as in `interpolate_`.
    """
    ahead = out.is_cuda
    if distance == 0.0:
        out.copy_(tip, non_blocking=ahead)
        return
    start, along = (t.to(out.device, non_blocking=ahead) for t in (tip, displacement))
    torch.add(start, along, alpha=distance, out=out)


def bit_sum(tensor: Tensor) -> Tensor:
    """Sum of the bit patterns modulo 2**64, an int64 scalar on the tensor's device.

    Reads aligned words of eight bytes, so nothing is widened into a copy, and the few elements at
    either end one by one. A change of one element changes one summand by less than 2**64.
    """
    flat = tensor.contiguous().view(-1)
    elements = flat.view(_BITS[flat.element_size()])
    per_word = _WORD_BYTES // flat.element_size()
    head = -flat.storage_offset() % per_word
    words = (flat.numel() - head) // per_word
    if words <= 0:
        return elements.sum(dtype=torch.int64)
    tail = head + words * per_word
    ends = elements[:head].sum(dtype=torch.int64) + elements[tail:].sum(dtype=torch.int64)
    return elements[head:tail].view(torch.int64).sum() + ends


class Ray:
    """Live tensors, their anchor, and during a search their tip.

    Memory: one copy of the selected parameters (the anchor), from the first search on two (the tip,
    kept for the next: fresh pages cost more than the copy), in `device` memory (pinned when the
    live tensors are on CUDA). A displacement of `aim_` is kept until the search is over.

    Live tensors are moved in place: plain tensors, fp32 masters, or DTensors, of which only the
    local shard is touched and nothing is gathered. `mirrors` are low-precision copies that must
    follow their masters, for bf16 training: written with each move, rounded once, at scale 1 the
    rounded master. `device` is where anchor and tip live; None keeps each next to its live tensor.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        mirrors: Mapping[str, Tensor] | None = None,
        device: torch.device | str | None = "cpu",
        factors: Factors | None = None,
    ) -> None:
        self._live, self._mirrors = dict(parameters), dict(mirrors or {})
        if not parameters:
            raise ParameterMismatchError("no parameters to move: pass at least one named tensor")
        for name, tensor in parameters.items():
            if not tensor.is_floating_point():
                raise ParameterMismatchError(
                    f"{name} is {tensor.dtype}; only floating-point tensors can be extrapolated: "
                    "leave it out of the selection"
                )
        for name, mirror in self._mirrors.items():
            fits = name in parameters and parameters[name].shape == mirror.shape
            if not (fits and mirror.is_floating_point()):
                raise ParameterMismatchError(
                    f"mirror {name!r} is {mirror.dtype} of shape {tuple(mirror.shape)}; it needs a "
                    "floating-point dtype, and a master of that name and shape among the parameters"
                )
        self._device = None if device is None else torch.device(device)
        self.tip: dict[str, Tensor] = {}  # at scale 1, from capture_tip_ to advance_anchor_
        self._displacement: Mapping[str, Tensor] | None = None  # None: from anchor to tip
        self._scale: float | None = None  # where the live tensors are; None when not known
        self._factors = factors
        if factors is not None:
            factors.check_fit(parameters)
            if self.is_sharded:
                raise ParameterMismatchError("products of sharded factors cannot be searched")
        self.truncation = 0.0
        """Relative error of the point written last, where rank r could not hold it."""
        self.anchor = self._snapshot()

    @property
    def live(self) -> dict[str, Tensor]:
        """The live tensors as this process holds them, detached, by name."""
        return {name: local_(tensor) for name, tensor in self._live.items()}

    @property
    def is_sharded(self) -> bool:
        """Whether other processes hold parts of the live tensors."""
        return any(
            isinstance(tensor, DTensor) and tensor.device_mesh.size() > 1
            for tensor in self._live.values()
        )

    def _snapshot(self) -> dict[str, Tensor]:
        """A copy of the live tensors in the anchor's memory."""
        copies = {}
        for name, tensor in self.live.items():
            device = self._device or tensor.device
            pinned = tensor.is_cuda and device.type == "cpu"
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, pin_memory=pinned)
            copies[name] = copy.copy_(tensor)
        return copies

    def capture_tip_(self) -> None:
        """Fixes the tip at the live values; the ray starts from the anchor."""
        self._displacement = None
        self.truncation = 0.0
        if self.tip:
            for name, tip in self.tip.items():
                tip.copy_(local_(self._live[name]))
        else:
            self.tip = self._snapshot()
        self._scale = None if self._mirrors else 1.0  # mirrors may lag behind their masters

    def aim_(self, displacement: Mapping[str, Tensor]) -> None:
        """Replaces `tip - anchor` by `displacement` until the anchor advances.

        The live tensors have to be at the tip, which is the same point on both rays.
        """
        assert displacement.keys() == self.tip.keys()
        assert self._factors is None, "a displacement of factors is none of their product"
        self._displacement = displacement

    @torch.no_grad()
    def move_to_(self, scale: float) -> None:
        """Sets the live tensors, and their mirrors, to `point(scale)`; no-op when they are there.

        Call `return_to_tip_` instead if anything else may have written to the live tensors.
        """
        if scale == self._scale:
            return
        self._scale = None
        self._write_points_(self.live, scale)
        for name, mirror in self._mirrors.items():
            local_(mirror).copy_(local_(self._live[name]))
        self._scale = scale

    def _write_points_(self, out: Mapping[str, Tensor], scale: float) -> None:
        """Writes `point(scale)` of all tensors; an endpoint is a copy, factors or not."""
        apart = self._factors if scale not in {0.0, 1.0} else None
        self.truncation = 0.0
        for name, tensor in out.items():
            if apart is not None and name in apart.names:
                continue
            if self._displacement is None:
                interpolate_(tensor, self.anchor[name], self.tip[name], scale)
            else:
                displace_(tensor, self.tip[name], self._displacement[name], scale - 1.0)
        if apart is not None:
            self.truncation = apart.write_point_(out, self.anchor, self.tip, scale)

    def return_to_tip_(self) -> None:
        """Writes the tip back, whatever happened to the live tensors."""
        self._scale = None
        self.move_to_(1.0)

    @torch.no_grad()
    def advance_anchor_(self, scale: float) -> None:
        """Makes `point(scale)` the anchor; the live tensors stay, the tip is no longer defined."""
        if scale == 1.0:
            self.anchor, self.tip = self.tip, self.anchor
        elif scale == self._scale:
            for name, anchor in self.anchor.items():
                anchor.copy_(local_(self._live[name]))
        else:
            self._write_points_(self.anchor, scale)
        self._displacement = None
        self._scale = None

    def checksum(self) -> int:
        """Of the live tensors and mirrors: changes whenever any one element changes.

        Costs one read of the tensors. Compensating changes of several elements can escape.
        """
        tensors = (*self._live.values(), *self._mirrors.values())
        total = 0
        for each in [bit_sum(local_(tensor)) for tensor in tensors]:  # launch all, then wait
            total = (total * _MIX + int(each)) % 2 ** (8 * _WORD_BYTES)
        return total

    @torch.no_grad()
    def load_anchor_(self, anchor: Mapping[str, Tensor]) -> None:
        """Replaces the anchor by a saved one, if it fits."""
        check_fits(anchor, self.anchor)
        for name, tensor in self.anchor.items():
            tensor.copy_(anchor[name])


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype displacements of `tensor` are kept in: fp32 or wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def check_fits(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Names, shapes and dtypes of saved tensors must be those expected."""
    missing, extra = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or extra:
        raise ParameterMismatchError(
            f"the saved state does not fit: missing {missing[:3]} ({len(missing)} in all), extra "
            f"{extra[:3]} ({len(extra)} in all). Load the state of the same model and selection."
        )
    for name, tensor in expected.items():
        found = given[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise ParameterMismatchError(
                f"saved tensor {name}: expected {tuple(tensor.shape)} {tensor.dtype}, got "
                f"{tuple(found.shape)} {found.dtype}"
            )
