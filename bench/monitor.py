"""A look of the monitor against the same numbers from whole copies and full decompositions.

    python bench/monitor.py [--json] [--model tiny|small] [--repeats 5]

The peer is what a look would cost if it were done plainly: whole copies of base, last place and
last stretch, every inner product over all of them, and a full singular value decomposition of every
attention and MLP matrix. Ours looks at 16 rows of each matrix, and at the leading pair of eight.

The share is that of a look in a step of training: one forward and backward pass over 4,096 tokens
of 32-token sequences and one AdamW update. Sampling, the teacher and the search are left out, so in
a run it is smaller. With `monitor.every = n` it is an n-th of that.

Before anything is timed, ours with all rows and many iterations must agree with the peer, and the
script says how far the sampled numbers are from it. Times are CPU milliseconds on one thread, both
sides interleaved, the least of the repeats.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from effopd.analysis.monitor import Look, Monitor, MonitorSettings, monitored_matrices
from effopd.data.world import TinyWorld, make_model

MODELS = {"tiny": (96, 4), "small": (512, 4)}
"""Hidden size and layers."""
SETTINGS = ("highest", "medium")
SEQUENCES, LENGTH, MICRO_BATCH = 128, 32, 32
OURS = MonitorSettings(every=1)
EXACT = MonitorSettings(every=1, rows=10**9, matrices=10**9, iterations=500)
TOLERANCE = {
    "step_cosine": 1e-4,
    "direction_cosine": 1e-4,
    "straightness": 1e-4,
    "allocation_entropy": 1e-4,
    "spectral_share": 1e-3,
}
PEER, PEER_VERSION = "whole copies and full SVD", f"torch {torch.__version__}"
GOAL = 0.03

Numbers = dict[str, float]


class Whole:
    """The peer: nothing is sampled."""

    def __init__(self, matrices: dict[str, Tensor]) -> None:
        self._live = matrices
        self._base = self._copy()
        self._last = self._copy()
        self._stretch = {name: torch.zeros_like(tensor) for name, tensor in self._base.items()}
        self._left: dict[str, Tensor] = {}
        self._length = 0.0

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def look(self) -> Numbers:
        now, sums, amounts, shares = self._copy(), torch.zeros(6), [], []
        for name, tensor in now.items():
            stretch, update = tensor - self._last[name], tensor - self._base[name]
            before, old = self._stretch[name], self._last[name] - self._base[name]
            pairs = ((stretch, stretch), (stretch, before), (before, before))
            more = ((update, update), (update, old), (old, old))
            sums += torch.stack([(a * b).sum() for a, b in (*pairs, *more)])
            amounts.append((update * update).sum())
            left_mr, values_r, _ = torch.linalg.svd(update, full_matrices=False)
            shares.append(values_r[0] / values_r.norm())
            self._left[name], self._stretch[name] = left_mr[:, 0], stretch
        self._last = now
        moved, along, moved_before, far, turned, was_far = sums.tolist()
        self._length += moved**0.5
        share_M = torch.stack(amounts) / far
        entropy = -(share_M * share_M.log()).sum() / torch.tensor(float(len(share_M))).log()
        return {
            "step_cosine": along / max((moved * moved_before) ** 0.5, 1e-30),
            "direction_cosine": turned / max((far * was_far) ** 0.5, 1e-30),
            "straightness": far**0.5 / self._length,
            "allocation_entropy": entropy.item(),
            "spectral_share": torch.stack(shares).mean().item(),
        }


class Training:
    """Steps on random tokens: only their cost matters, and that the weights move."""

    def __init__(self, hidden: int, layers: int) -> None:
        self.model: Any = make_model(replace(TinyWorld(), hidden=hidden, layers=layers))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        size = self.model.config.vocab_size
        rng = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, size, (SEQUENCES, LENGTH), generator=rng)

    def step(self) -> None:
        self.optimizer.zero_grad()
        for part in self.ids.split(MICRO_BATCH):
            (self.model(input_ids=part, labels=part).loss * len(part) / SEQUENCES).backward()
        self.optimizer.step()


def cpu_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def numbers_of(look: Look | None) -> Numbers:
    assert look is not None
    row = look.row()
    return {name: row[name] for name in TOLERANCE}


def distances(training: Training) -> Numbers:
    """How far the sampled numbers are from the peer's after two steps.

    Exits where anything but the sampling makes a difference.
    """
    matrices = monitored_matrices(training.model)
    whole, sampled, exact = Whole(matrices), Monitor(matrices, OURS), Monitor(matrices, EXACT)
    for step in (1, 2):
        training.step()
        expected, found = whole.look(), numbers_of(sampled.look_if_due(step))
        check = numbers_of(exact.look_if_due(step))
    if any(abs(check[name] - expected[name]) > TOLERANCE[name] for name in expected):
        raise SystemExit(f"ours is not the peer's: {check}, {expected}")
    return {name: abs(found[name] - expected[name]) for name in found}


def rows(labels: list[str], repeats: int) -> Iterator[dict[str, object]]:
    for label in labels:
        training = Training(*MODELS[label])
        off = distances(training)
        matrices = monitored_matrices(training.model)
        for setting in SETTINGS:
            torch.set_float32_matmul_precision(setting)
            ours, whole = Monitor(matrices, OURS), Whole(matrices)
            best = dict.fromkeys(("step", "ours", "peer"), float("inf"))
            for repeat in range(repeats + 1):  # the first is a cold start, and not counted
                taken = {
                    "step": cpu_ms(training.step),
                    "ours": cpu_ms(lambda ours=ours: ours.look_if_due(1)),
                    "peer": cpu_ms(whole.look),
                }
                if repeat:
                    best = {name: min(best[name], ms) for name, ms in taken.items()}
            yield {
                "name": f"monitor-{label}",
                "setting": setting,
                "ours": round(best["ours"], 2),
                "peer": round(best["peer"], 2),
                "peer_name": PEER,
                "peer_version": PEER_VERSION,
                "unit": "CPU ms/look",
                "ratio": round(best["peer"] / best["ours"], 1),
                "step": round(best["step"], 1),
                "share": round(best["ours"] / (best["step"] + best["ours"]), 4),
                "goal": GOAL,
                "off_by": {name: round(distance, 4) for name, distance in off.items()},
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--model", choices=MODELS, help="one of them only")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shown = ("name", "setting", "ours", "peer", "ratio", "step", "share")
    if not options.json:
        print("  ".join(f"{column:>16}" for column in shown))
    labels = [options.model] if options.model else list(MODELS)
    for row in rows(labels, options.repeats):
        line = "  ".join(f"{row[column]!s:>16}" for column in shown)
        print(json.dumps(row) if options.json else f"{line}  {row['off_by']}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
