"""A search of five accepted candidates against the released code's arithmetic.

    python bench/search.py [--json] [--dtype bf16] [--parameters 201326592] [--repeats 3]

The peer is that arithmetic on plain CPU tensors, written from its description: both points are
widened to fp32, a moving point is pushed away from the base by 2, 2/3, 2/5, 2/7, 2/9 of its own
distance and rounded each time, a full copy is made of the first point and of every accepted one,
and the base is overwritten with the last copy. What the release pays on top (gathering the full
model on every rank, twice a candidate) is not counted.

The tensors are those of four decoder layers of Qwen3-1.7B (201 million parameters), smaller in
proportion when asked. Their size matters: the peer's fp32 temporaries are beyond what the C library
keeps for reuse, so each costs fresh pages.

Times are CPU nanoseconds per parameter on one thread, both sides interleaved, best of the repeats.
The validator costs nothing, so this is the cost of moving alone; "guarded" includes our check that
the validator left the parameters alone, which the release does not have. Matrix products play no
part: the two settings of their precision are printed for uniformity and must agree.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from effopd import Draw, EveryN, Extrapolator, LadderScales, Search

LAYERS = 4
LAYER_SHARES = {
    "self_attn.q_proj": 4, "self_attn.k_proj": 2, "self_attn.v_proj": 2, "self_attn.o_proj": 4,
    "mlp.gate_proj": 12, "mlp.up_proj": 12, "mlp.down_proj": 12,
}  # fmt: skip
"""Elements of a layer's matrices in units of 1024 x 1024."""
SETTINGS = ("highest", "medium")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEER, PEER_VERSION = "release arithmetic", "arXiv 2605.11739 v1 code"
SEARCH = Search(schedule=EveryN(n=1), scales=LadderScales(), guard=None)

Tensors = dict[str, Tensor]
Look = Callable[[float], None]
"""Called with the scale at every candidate, while the live tensors are there."""


def ignore(scale: float) -> None:
    return None


class Released:
    """The peer: every candidate is made from the one before.

    Args:
        base: First point.
        copies: Device of the full copies; None keeps them beside the live tensors.
    """

    name = PEER

    def __init__(self, base: Tensors, *, copies: str | None = None) -> None:
        self.copies = copies
        self.live = {name: tensor.clone() for name, tensor in base.items()}
        self.base = {name: tensor.clone() for name, tensor in base.items()}

    def copy(self) -> Tensors:
        return {
            name: tensor.detach().to(self.copies or tensor.device, copy=True)
            for name, tensor in self.live.items()
        }

    def amplify_(self, factor: float) -> None:
        for name, tensor in self.live.items():
            now = tensor.float()
            update = now - self.base[name].float()
            tensor.copy_((now + factor * update).to(tensor.dtype))

    def reset_(self, base: Tensors, tip: Tensors) -> None:
        for name, tensor in self.live.items():
            tensor.copy_(tip[name])
            self.base[name].copy_(base[name])

    def search(self, look: Look) -> None:
        factor, kept = 2.0, self.copy()
        for k in range(1, 6):
            self.amplify_(factor)
            look(1.0 + 2 * k)
            kept = self.copy()  # accepted
            factor = factor / (1 + factor)
        for name, tensor in self.base.items():
            tensor.copy_(kept[name])


class Ours:
    """`Extrapolator.step` as it is, or without its guard.

    Args:
        base: First point.
        guarded: With the check that the validator changed nothing.
        anchor: Device of anchor and tip; None keeps them beside the live tensors.
    """

    def __init__(self, base: Tensors, *, guarded: bool, anchor: str | None = "cpu") -> None:
        self.name = "guarded" if guarded else "unguarded"
        self.live = {name: tensor.clone() for name, tensor in base.items()}
        self.extrapolator = Extrapolator(self.live, self.validate, search=SEARCH, device=anchor)
        if not guarded:
            self.extrapolator._ray.checksum = lambda: 0  # type: ignore[method-assign]
        self.look: Look = ignore
        self.trial = self.steps = 0

    def validate(self, draw: Draw) -> float:
        if self.trial:
            self.look(1.0 + 2 * self.trial)
        self.trial += 1
        return float(self.trial)

    def reset_(self, base: Tensors, tip: Tensors) -> None:
        self.extrapolator._ray.load_anchor_(base)
        for name, tensor in self.live.items():
            tensor.copy_(tip[name])

    def search(self, look: Look) -> None:
        self.look, self.trial = look, 0
        self.steps += 1
        result = self.extrapolator.step(self.steps)
        assert result is not None
        assert result.accepted_scale == 11
        assert len(result.trials) == 6


Contender = Released | Ours


def endpoints(parameters: int, dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    """Weights of standard deviation 0.02 and a tip 0.0005 away."""
    rng = torch.Generator().manual_seed(0)
    unit = parameters // (LAYERS * sum(LAYER_SHARES.values()))
    base, tip = {}, {}
    for layer in range(LAYERS):
        for matrix, share in LAYER_SHARES.items():
            start = torch.randn(share * unit, generator=rng) * 0.02
            update = torch.randn(share * unit, generator=rng) * 0.0005
            name = f"layers.{layer}.{matrix}.weight"
            base[name], tip[name] = start.to(dtype), (start + update).to(dtype)
    return base, tip


def mismatches(contender: Contender, base: Tensors, tip: Tensors) -> int:
    """Elements of the five candidates that are not the float64 point, rounded once.

    fp32 arithmetic cannot be exact to the last fp32 bit; there an element counts when it is off by
    more than the rounding of its two terms.
    """
    wrong = 0

    def look(scale: float) -> None:
        nonlocal wrong
        for name, tensor in contender.live.items():
            start, end = base[name].double(), tip[name].double()
            update = end - start
            exact = start + scale * update
            if tensor.dtype == torch.bfloat16:
                wrong += int((tensor != exact.float().bfloat16()).sum())
            else:
                room = torch.finfo(tensor.dtype).eps * (exact.abs() + scale * update.abs())
                wrong += int(((tensor.double() - exact).abs() > room).sum())

    contender.reset_(base, tip)
    contender.search(look)
    return wrong


def cpu_seconds(contender: Contender, base: Tensors, tip: Tensors) -> float:
    contender.reset_(base, tip)
    start = time.process_time()
    contender.search(ignore)
    return time.process_time() - start


def rows(labels: list[str], parameters: int, repeats: int) -> Iterator[dict[str, object]]:
    for label in labels:
        dtype = DTYPES[label]
        base, tip = endpoints(parameters, dtype)
        count = sum(tensor.numel() for tensor in base.values())
        peer = Released(base)
        ours = [Ours(base, guarded=False), Ours(base, guarded=True)]
        wrong = {c.name: mismatches(c, base, tip) for c in (peer, ours[0])}
        for setting in SETTINGS:
            torch.set_float32_matmul_precision(setting)
            best = dict.fromkeys([peer.name, *(o.name for o in ours)], float("inf"))
            for _ in range(repeats):
                for contender in (peer, *ours):
                    taken = cpu_seconds(contender, base, tip)
                    best[contender.name] = min(best[contender.name], taken)
            ns = {name: 1e9 * seconds / count for name, seconds in best.items()}
            for mine in ours:
                yield {
                    "name": f"search-{label}" + ("-guarded" if mine.name == "guarded" else ""),
                    "setting": setting,
                    "ours": round(ns[mine.name], 3),
                    "peer": round(ns[peer.name], 3),
                    "peer_name": PEER,
                    "peer_version": PEER_VERSION,
                    "unit": "CPU ns/parameter",
                    "ratio": round(ns[peer.name] / ns[mine.name], 2),
                    "mismatches": wrong["unguarded"],
                    "peer_mismatches": wrong[PEER],
                    "guard": round(ns["guarded"] - ns["unguarded"], 3),
                    "parameters": count,
                }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--dtype", choices=DTYPES, help="one of them only")
    parser.add_argument("--parameters", type=int, default=LAYERS * 48 * 2**20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shown = ("name", "setting", "ours", "peer", "ratio", "guard", "mismatches", "peer_mismatches")
    if not options.json:
        print("  ".join(f"{column:>20}" for column in shown))
    labels = [options.dtype] if options.dtype else list(DTYPES)
    for row in rows(labels, options.parameters, options.repeats):
        line = "  ".join(f"{row[column]!s:>20}" for column in shown)
        print(json.dumps(row) if options.json else line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
